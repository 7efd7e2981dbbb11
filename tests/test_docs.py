"""The docs name what exists: files, public names, commands, options, variants."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import reszoo
from reszoo.cli import options
from reszoo.specs import SPECS
from reszoo.training.recipes import RECIPES
from reszoo_export.formats import FORMATS, Tolerance

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]
# Importing the package adds its commands to the application.
COMMANDS = get_command(options.app).commands  # type: ignore[attr-defined]
ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_readme_fits_on_200_lines() -> None:
    assert len(text_of("README.md").splitlines()) <= 200


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, which GitHub and the site name alike."""
    found = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in found}


@ids
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)]+))?\)", text):
        if not target.startswith("https://"):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_site_has_every_page() -> None:
    nav = text_of("mkdocs.yml").split("\nnav:")[1]
    for page in ROOT.glob("docs/**/*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in nav, page.name


@ids
def test_python_uses_public_names(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner, name = node.value.id, node.attr
                assert owner != "reszoo" or name in reszoo.__all__, name


@ids
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ reszoo (.*)", block, re.M):
            name, *words = shlex.split(line, comments=True)
            known = {each for param in COMMANDS[name].params for each in param.opts}
            options = {word for word in words if word.startswith("-")}
            assert options <= known, line


def test_every_variant_format_recipe_and_command_is_documented() -> None:
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in (*FORMATS, *RECIPES):
        assert f"`{name}`" in everything, name
    for name in COMMANDS:
        assert re.search(rf"(`|\$ )reszoo {name}\b|make {name}\b", everything), name
    named = set(re.findall(r"`([a-z_]+\d+\w*)`", text_of("docs/models-and-weights.md")))
    # Ranges such as "`resnet18` to `resnet152`" name their ends.
    assert named & set(SPECS)
    assert {name for name in SPECS if "x" in name or "wide" in name} <= named


# A row of the table in docs/verification.md -> the field that it shows.
LIMITS = {
    "largest difference of a probability": "max_difference",
    "largest difference of a log probability": "max_log_difference",
    "total variation distance": "max_variation",
    "the same over synthetic images": "max_variation_synthetic",
    "the same relative": "max_relative_variation",
    "change of the mean confidence": "max_confidence_change",
    "least share of images with the model's top-1, ties included": "min_agreement",
    "least share of images with the model's top-1, ties not": "min_top1",
    "drop of top-1 accuracy": "max_accuracy_drop",
}


@pytest.mark.parametrize("start", LIMITS)
def test_the_documented_limits_are_those_of_the_formats(start: str) -> None:
    text = text_of("docs/verification.md")
    head = re.findall(r"^\| \| (float32 .*) \|$", text, re.M)[0].split(" | ")
    tolerances: dict[str, Tolerance] = {}
    for row in FORMATS.values():
        assert tolerances.setdefault(row.precision, row.tolerance) == row.tolerance
    assert set(head) == set(tolerances)
    (line,) = re.findall(rf"^\| {re.escape(start)}.*\|$", text, re.M)
    shown = [cell.strip() for cell in line.split("|")[2:-1]]
    limits = [getattr(tolerances[precision], LIMITS[start]) for precision in head]
    assert shown == ["" if limit is None else f"{limit:g}" for limit in limits]
