"""The commands that publish and report: web, push, check-weights, doctor."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import reszoo
from reszoo.cli.options import command, show
from reszoo.console import printable
from reszoo.environment import allowed_cores, processor, usable_cores
from reszoo.files import cache_folder

# Not dependencies, but what reszoo meets in the wild.
_OTHERS = ("torch", "torchvision", "timm", "openvino", "mediapipe", "jax", "keras-hub")
# TensorFlow's among TF_...; Terraform's may be secrets.
_VARIABLES = re.compile(
    "RESZOO_HOME|KERAS_|CUDA_VISIBLE|ONEDNN|OMP_|XLA_|HF_HUB_(OFF|DISABLE_XET)|"
    "TF_(CONFIG|CPP|CUDNN|DETERMINISTIC|DISABLE|ENABLE|FORCE|GPU|NUM|ONEDNN|USE|XLA)"
)
_TOOLS = ("npm", "nvidia-smi", "chromium")


@command()
def web(
    folder: Path, *, output: Path, vendor: bool | None = None, overwrite: bool = False
) -> None:
    """Write a static site that classifies camera images and photos in the browser.

    Example: reszoo web export --output site

    Args:
        folder (FOLDER): Folder that `reszoo export` wrote.
        vendor (default where npm is available): Copy the runtimes into the
            site, from npm; or let browsers load them from jsDelivr.
    """
    site = reszoo.write_site(**locals())
    where = printable(str(site))
    show(
        {"folder": str(site), "page": str(site / "index.html")},
        f"{where}/index.html is the page, for any static host over HTTPS. Try it: "
        f"python -m http.server --directory {shlex.quote(where)}\n"
        "and open http://localhost:8000.",
    )


@command()
def push(
    checkpoint: Path,
    repo: str,
    *,
    export: Path | None = None,
    sample: list[Path] = [],  # noqa: B006
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub, with a model card.

    reszoo.build(..., weights="hf://owner/name") opens it, and timm where it has the
    architecture. Log in with `hf auth login` first.

    Example: reszoo push runs/photos/best.safetensors me/photos --export export
    --dry-run

    Args:
        checkpoint (CHECKPOINT): Checkpoint (.safetensors) with a card, or a run folder.
        repo (OWNER/NAME): Repository, which is created if it is missing.
        export (FOLDER, default none): Export of the same model to upload too, without
            the images that it was verified on.
        sample (IMAGE, default none): Image to show with the model's answer; may be
            repeated.
        private: Make a new repository private.
        dry_run: Print what would be uploaded, and send nothing.
    """
    arguments = dict(locals())
    done = reszoo.push(samples=arguments.pop("sample"), **arguments)
    files = [[name, f"{size:,}"] for name, size in done.files.items()]
    told = f"{done.url}, commit {done.commit}" if done.commit else "Nothing sent."
    model_card = [done.model_card] if dry_run else []
    show(asdict(done), *model_card, (["file", "bytes"], files), told)


@command("check-weights")
def check_weights(
    pattern: str = "*", *, images: Path, allow_noncommercial: bool = False
) -> None:
    """Download published weights and measure their accuracy on ImageNet.

    Exits with 1 if one differs by more than 0.3 points from the published one, or could
    not be measured. Needs a network and the validation set.

    Example: reszoo check-weights "resnet50/torchvision/*" --images imagenet/val

    Args:
        pattern (PATTERN): Weights by model or model/weights, such as "resnet50" or
            "resnet50/timm/a1_in1k".
        images (FOLDER): ImageNet's validation set: 1,000 folders named by WordNet
            number, such as n01440764.
        allow_noncommercial: Check weights whose licence forbids commercial use, too.
    """
    rows = [*reszoo.check_weights(**locals())]
    content = [{**asdict(row), "passed": row.passed} for row in rows]
    columns = ["weights", "published", "measured", "top-5", "measured", ""]
    told = [printable(f"{r.model}/{r.weights}: {r.error}") for r in rows if r.error]
    show(content, (columns, [_checked(row) for row in rows]), *told)
    if not all(row.passed for row in rows):
        raise SystemExit(1)


def _checked(row: Any) -> list[str]:
    numbers = (row.published_top1, row.top1, row.published_top5, row.top5)
    cells = ["" if number is None else f"{number:.2f} %" for number in numbers]
    verdict = "not measured" if row.error else "" if row.passed else "differs"
    return [f"{row.model}/{row.weights}", *cells, verdict]


@command()
def doctor() -> None:
    """Print what a bug report needs: versions, machine and settings.

    Loads no TensorFlow, so that it also works where that does not.

    Example: reszoo doctor
    """
    found, lines = describe_environment(), []
    for name, value in found.items():
        entries = value if isinstance(value, dict) else {}
        if isinstance(value, list):
            value = ", ".join(value) or "none found"
        lines.append(f"{name}:" if entries else f"{name}: {value}")
        lines += [
            f"  {k}: {'not found' if v is None else v}" for k, v in entries.items()
        ]
    show(found, "\n".join(map(printable, lines)))


def describe_environment() -> dict[str, Any]:
    """Return the machine, versions and settings, without importing any library.

    Paths in the user's home begin with "~"; of the environment only variables that
    change what reszoo or its libraries do are listed.
    """
    return {
        "reszoo": reszoo.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": _short(sys.executable),
        "system": platform.platform(),
        "processor": processor(),
        "cores": {"usable": usable_cores(), "allowed": allowed_cores()},
        "memory_gb": _memory(),
        "gpus": _gpus(),
        "libraries": _libraries(),
        "tools": {name: _short(shutil.which(name) or "") or None for name in _TOOLS},
        "cache": {"folder": _short(str(cache_folder())), "mb": _size(cache_folder())},
        "variables": {
            name: _short(value)
            for name, value in sorted(os.environ.items())
            if _VARIABLES.match(name)
        },
    }


def _short(path: str) -> str:
    return re.sub(f"^{re.escape(str(Path.home()))}(?=/)", "~", path)


def _memory() -> float | None:
    """Return the machine's memory in GB, None where the system does not tell."""
    with suppress(AttributeError, ValueError, OSError):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return None


def _gpus() -> list[str]:
    """Return NVIDIA's GPUs with their drivers, as `nvidia-smi` names them."""
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _libraries() -> dict[str, str | None]:
    """Return the versions of all dependencies; None for those not installed."""
    required: list[str] = []
    with suppress(metadata.PackageNotFoundError):
        required = metadata.requires("reszoo") or []
    names = [found[0] for each in required if (found := re.match(r"[\w.-]+", each))]
    versions: dict[str, str | None] = {}
    for name in sorted({*names, *_OTHERS}, key=str.lower):
        versions[name] = None
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _size(folder: Path) -> float:
    """Return how many MB (10**6 bytes) the files in a folder take."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # Other processes may remove files meanwhile.
                size += (Path(place) / name).lstat().st_size
    return round(size / 1e6, 1)
