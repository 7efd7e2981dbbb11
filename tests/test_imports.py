"""What an import costs, which module may know which, and what is public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reszoo

ROOT = Path(__file__).parent.parent
HEAVY = ("tensorflow", "keras", "onnx", "onnxruntime", "tf2onnx", "matplotlib")
# Module prefix -> what it must not import: the arrows of the architecture.
FORBIDDEN = {
    "reszoo.specs": ("reszoo.resnet", "reszoo.zoo", "reszoo.cards"),
    "reszoo.preprocessing": ("reszoo.cards", "reszoo.zoo", "reszoo.data"),
    "reszoo.resnet": ("reszoo.zoo", "reszoo.cards", "reszoo.training"),
    "reszoo.cards": ("reszoo.weights", "reszoo.zoo", "reszoo.resnet"),
    "reszoo.weights": ("reszoo.zoo", "reszoo.training", "reszoo.data"),
    "reszoo.zoo": ("reszoo.training", "reszoo.evaluation", "reszoo.data"),
    "reszoo.data": ("reszoo.training", "reszoo.zoo", "reszoo.evaluation"),
    "reszoo": ("reszoo_export", "reszoo.cli"),
}


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("reszoo/**/*.py"), *ROOT.glob("export/reszoo_export/**/*.py")]
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts).removeprefix("export.").removesuffix(".__init__")] = file
    return names


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows_point_one_way(package: str) -> None:
    exceptions = {"reszoo", "reszoo.__main__", "reszoo.cli.demo"}
    for name, file in modules().items():
        free = name in exceptions or within(name, "reszoo.cli")
        if within(name, package) and not free:
            wrong = {
                other
                for other in imported(file)
                for banned in FORBIDDEN[package]
                if within(other, banned)
            }
            assert not wrong, f"{name} imports {wrong}"


@pytest.mark.parametrize(
    "code",
    [
        "import reszoo",
        "import reszoo; reszoo.list_models()",
        "import sys, reszoo.cli; sys.argv = ['reszoo', '--help']; reszoo.cli.main()",
        "import sys, reszoo.cli; sys.argv = ['reszoo', 'list']; reszoo.cli.main()",
        "import sys, reszoo.cli; sys.argv = ['reszoo', 'list', 'x']; reszoo.cli.main()",
    ],
)
def test_looking_around_loads_nothing_heavy(code: str) -> None:
    script = (
        "import sys, atexit\n"
        f"heavy = {HEAVY!r}\n"
        "loaded = lambda: sorted(set(heavy) & set(sys.modules))\n"
        "atexit.register(lambda: print('LOADED', *loaded()))\n"
        f"{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "LOADED", done.stdout + done.stderr


def test_every_public_name_is_there_and_no_module_takes_its_place() -> None:
    assert reszoo.__all__ == sorted(reszoo.__all__)
    for name in reszoo.__all__:
        assert getattr(reszoo, name) is not None
    assert {type(getattr(reszoo, name)).__name__ for name in reszoo.__all__} == {
        "function",
        "str",
        "type",
    }
    assert dir(reszoo) == reszoo.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = reszoo.nonsense


def test_python_files_stay_readable() -> None:
    for name, file in modules().items():
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 600, name
