"""What an import costs, which package may use which, and what is public."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import reszoo

ROOT = Path(__file__).parent.parent
HEAVY = ("tensorflow", "keras", "numpy", "PIL", "onnx", "onnxruntime", "matplotlib")
# The architecture: a package uses those of the rows above it and, of the packages of
# its own row, only itself. `reszoo`, the table of lazily imported names, points
# everywhere; only the command line may use such a name of a row below its own.
LAYERS = (
    ("reszoo.errors", "reszoo.defaults"),
    ("reszoo.environment", "reszoo.fields"),
    ("reszoo.files", "reszoo.console"),
    ("reszoo.report",),
    ("reszoo.specs", "reszoo.archives"),
    ("reszoo.architecture",),
    ("reszoo.layers", "reszoo.preprocessing"),
    ("reszoo.blocks", "reszoo.cards"),
    ("reszoo.resnet",),
    ("reszoo.weights", "reszoo.data"),
    ("reszoo.zoo",),
    ("reszoo.metrics",),
    ("reszoo.confidence",),
    ("reszoo.training",),
    ("reszoo.studies",),
    ("reszoo_export",),
    ("reszoo.cli",),
    ("reszoo.__main__",),
)
LAZY = reszoo._LAZY
NAMED = re.compile(r"reszoo(_export)?(\.\w+)+(:\w+)?")
RANK = {package: rank for rank, row in enumerate(LAYERS) for package in row}


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("reszoo/**/*.py"), *ROOT.glob("export/reszoo_export/**/*.py")]
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts).removeprefix("export.").removesuffix(".__init__")] = file
    return names


def used(source: str) -> set[str]:
    """Return what a module imports: at its top, in functions, lazily, by a string."""
    tree = ast.parse(source)
    return set(_imported(tree)) | set(_lazy(tree)) | set(_named(tree))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                lazy = LAZY.get(alias.name) if node.module == "reszoo" else ""
                yield lazy or f"{node.module}.{alias.name}"


def _lazy(tree: ast.AST) -> Iterator[str]:
    """Yield the targets of `reszoo.train` and of other names of the lazy table."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="reszoo")) if node.attr in LAZY:
                yield LAZY[node.attr]


def _named(tree: ast.AST) -> Iterator[str]:
    """Yield strings such as "reszoo.zoo" and "reszoo.zoo:build"."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if NAMED.fullmatch(text):
                yield text


def package_of(name: str) -> str:
    """Return the row's entry that a module, or a name in it, belongs to."""
    parts = re.split("[.:]", name)
    return parts[0] if parts[0] == "reszoo_export" else ".".join(parts[:2])


def test_every_kind_of_import_is_seen() -> None:
    source = """
import reszoo
from reszoo import verify
from reszoo.zoo import build
def late():
    from reszoo.training.trainer import train
    return reszoo.Predictor, "reszoo_export.export:export", "reszoo is no module"
"""
    assert used(source) == {
        "reszoo",
        "reszoo.zoo.build",
        "reszoo.training.trainer.train",
        LAZY["verify"],
        LAZY["Predictor"],
        "reszoo_export.export:export",
    }


def test_packages_use_only_those_above_them() -> None:
    wrong = []
    for name, file in modules().items():
        if name == "reszoo":
            continue
        assert package_of(name) in RANK, f"{name} has no row in LAYERS"
        for other in sorted(used(file.read_text(encoding="utf-8"))):
            inner, outer = package_of(other), package_of(name)
            known = inner in RANK and inner != outer
            if known and RANK[inner] >= RANK[outer]:
                wrong.append(f"{name} uses {other}")
    assert not wrong, "\n".join(wrong)


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
        "dict",  # RECIPES
        "function",
        "str",
        "type",
    }
    assert dir(reszoo) == reszoo.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = reszoo.nonsense  # type: ignore[attr-defined]


def test_python_files_stay_readable() -> None:
    for name, file in modules().items():
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 600, name
