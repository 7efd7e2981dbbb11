"""Install wheel and sdist into clean environments and use them: `make test-dist`.

For each Python: all packages, with the demo run outside the checkout; and the wheel
and the sdist without dependencies beside NumPy, Pillow and a runtime, with the demo's
files.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13")
# Of pyenv and uv, which need not be on the PATH.
PLACES = (
    ".pyenv/versions/{}.*/bin/python",
    ".local/share/uv/python/*{}*/bin/python",
)
# Package of a runtime -> kind of distribution, files of the demo that it opens.
RUNTIMES = {
    "onnxruntime": ("*.whl", ("model.onnx", "model-int8.onnx")),
    "ai-edge-litert": ("*.tar.gz", ("model.tflite", "model-int8.tflite")),
}
USE = """
import json, sys, reszoo
file, image = sys.argv[1:]
print(json.dumps(reszoo.Predictor(file).top(image, k=1)))
"""
IMAGE = """
import sys, numpy as np, PIL.Image
pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
PIL.Image.fromarray(pixels).save(sys.argv[1])
"""


def find_interpreter(version: str) -> str | None:
    """Return the path of a Python that starts; None if there is none."""
    found = [shutil.which(f"python{version}")]
    for place in PLACES:
        found += map(str, sorted(Path.home().glob(place.format(version))))
    for path in filter(None, found):
        code = "import sys; print('{}.{}'.format(*sys.version_info))"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return path
    return None


def run(*command: object, cwd: Path) -> str:
    """Run a command without this checkout's modules; return what it prints."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{said}")
    return done.stdout


def install(python: str, folder: Path, name: str, *packages: object) -> Path:
    """Make an environment with packages of the tested versions; return its bin/."""
    run(python, "-m", "venv", folder / name, cwd=folder)
    programs = folder / name / "bin"
    options = ["--quiet", "--constraint", ROOT / "constraints.txt"]
    run(programs / "python", "-m", "pip", "install", *options, *packages, cwd=folder)
    return programs


def use_all(python: str, folder: Path, wheel: Path) -> str:
    """Install the wheel with all packages and run the demo from it."""
    programs = install(python, folder, "all", f"{wheel}[demo]")
    where = run(
        programs / "python", "-c", "import reszoo; print(reszoo.__file__)", cwd=folder
    )
    if not where.startswith(str(folder)):
        raise RuntimeError(f"reszoo must come from the environment. Received: {where}")
    manifest = json.loads(run(programs / "reszoo", "demo", "--json", cwd=folder))
    accuracies = [each["verification"]["accuracy"] for each in manifest["files"]]
    if min(accuracies) < 0.95:
        raise RuntimeError(f"The demo's files must reach 95 %. Received: {accuracies}")
    return f"demo, {len(accuracies)} files, top-1 at least {min(accuracies):.2%}"


def use_files(python: str, folder: Path, runtime: str, dist: Path) -> str:
    """Install reszoo alone beside one runtime and use the demo's files."""
    kind, names = RUNTIMES[runtime]
    (package,) = dist.glob(kind)
    programs = install(python, folder, runtime, "numpy", "pillow", runtime)
    pip = [programs / "python", "-m", "pip"]
    run(*pip, "install", "--quiet", "--no-deps", package, cwd=folder)
    image = folder / "image.png"
    run(programs / "python", "-c", IMAGE, image, cwd=folder)
    for name in names:
        file = folder / "saved_models/demo" / name
        ((label, probability),) = json.loads(
            run(programs / "python", "-c", USE, file, image, cwd=folder)
        )
        (answers,) = json.loads(
            run(programs / "reszoo", "predict", file, image, "--json", cwd=folder)
        ).values()
        described = json.loads(
            run(programs / "reszoo", "inspect", file, "--json", cwd=folder)
        )
        if (answers[0]["label"], described["card"]["labels"]) != (
            label, [str(digit) for digit in range(10)],
        ):  # fmt: skip
            raise RuntimeError(f"{name}: {label}, {probability}, {answers}")
    listed = json.loads(run(*pip, "list", "--format", "json", cwd=folder))
    return f"{', '.join(names)}; {len(listed)} packages with pip"


def main(versions: Sequence[str]) -> int:
    """Check each version; return 1 if a check failed or there is no Python at all."""
    dist, failed, used = ROOT / "dist", 0, 0
    (wheel,) = dist.glob("*.whl")
    for version in versions or VERSIONS:
        if (python := find_interpreter(version)) is None:
            print(f"{version}  MISSING: no python{version} here, nothing was tested")
            continue
        used += 1
        with tempfile.TemporaryDirectory(prefix="reszoo-dist-") as place:
            folder = Path(place)
            checks = {"all packages": partial(use_all, python, folder, wheel)} | {
                f"files only, {name}": partial(use_files, python, folder, name, dist)
                for name in RUNTIMES
            }
            for name, check in checks.items():
                start = time.monotonic()
                try:
                    result = check()
                except RuntimeError as error:
                    failed, result = failed + 1, f"FAILED: {error}"
                took = time.monotonic() - start
                print(f"{version}  {name}  {took:.0f} s  {result}", flush=True)
    return int(bool(failed) or not used)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
