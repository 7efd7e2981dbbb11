"""Pages of the site that are generated, and links that hold in both places.

The pages in docs/ are written for the repository, where a link leads to any file of it.
On the site, README.md is the home page, the notebooks are tutorials, and other files
that pages link to are copied into `files/`. Nothing here imports TensorFlow.
"""

import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as mathml
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

# File of the repository -> page of the site.
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
    "saved_models/resnet20-cifar10": "exported-model.md",
    "notebooks/01-why-shortcuts.ipynb": "tutorials/why-shortcuts.md",
    "notebooks/02-fine-tune-and-export.ipynb": "tutorials/fine-tune-and-export.md",
}
# Page of the API -> title and the modules whose public names it has.
API = {
    "models": (
        "Models and weights",
        r"reszoo\.(blocks|cards|preproc|specs|weights|zoo)",
    ),
    "training": ("Data and training", r"reszoo\.(confidence|data|metrics|training)"),
    "export": ("Export and prediction", r"reszoo_export"),
    "studies": ("Studies", r"reszoo\.studies"),
    "errors": ("Errors", r"reszoo\.errors"),
}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
MATH = re.compile(r"\$\$?([^$]+)\$\$?")
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"(?:https?:)?//"
)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files that pages link to."""
    # mkdocs takes back what a hook changes while it is loaded.
    sys.path[:0] = [str(ROOT), str(ROOT / "export")]
    pages = dict(reference_pages())
    for source, page in MOVED.items():
        path = ROOT / source
        text = (path / "REPORT.md" if path.is_dir() else path).read_text("utf-8")
        pages[page] = notebook_page(text) if source.endswith("ipynb") else text
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    for name in sorted(linked_files(files)):
        files.append(
            File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name))
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adapt a page of the repository to Python-Markdown and to the site."""
    source = source_of(page.file.src_uri)
    if source is None:
        return markdown
    lines, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if not fenced:
            # What belongs to an item of a list is indented by 2; here by 4.
            line = re.sub(r"^ +", lambda found: found[0] * 2, line)
            line = LINK.sub(lambda found: moved_link(found, source, page), line)
        lines.append(line)
    return "\n".join(lines)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from another host."""
    if found := EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {found[0]}")
    return output


def source_of(page: str) -> str | None:
    """The file of the repository that a page is made of."""
    for source, moved in MOVED.items():
        if moved == page:
            return source
    return None if page.startswith("reference/") else f"docs/{page}"


def target_of(link: str, source: str) -> str:
    """The file of the repository that a link of another one leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def moved_link(found: re.Match[str], source: str, page: Any) -> str:
    """Return a link to a file of the repository as a link of the site."""
    name = target_of(found[1], source)
    if name.startswith("docs/"):
        target = name.removeprefix("docs/")
    else:
        target = MOVED.get(name, f"files/{name}")
    start = posixpath.dirname(page.file.src_uri)
    return f"]({posixpath.relpath(target, start or '.')}{found[2] or ''})"


def linked_files(files: Files) -> set[str]:
    """The files outside docs/ that pages link to, other than pages."""
    names = set()
    for file in files.documentation_pages():
        if (source := source_of(file.src_uri)) is not None:
            for link, _ in LINK.findall(file.content_string):
                name = target_of(link, source)
                if not name.startswith("docs/") and name not in MOVED:
                    names.add(name)
    return names


def notebook_page(text: str) -> str:
    """A notebook with its outputs as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # Browsers show MathML by themselves.
            parts.append(MATH.sub(lambda found: mathml(found[1]), source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                image = "".join(data["image/png"].split())
                parts.append(f"![output of the cell](data:image/png;base64,{image})")
            elif shown := "".join(data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


def reference_pages() -> Iterator[tuple[str, str]]:
    """The reference of the commands and of the public names."""
    import reszoo

    yield "reference/commands.md", "\n\n".join(command_reference())
    left = {*reszoo.__all__} - {"__version__"}
    for page, (title, modules) in API.items():
        names = sorted(
            name for name in left if re.match(modules, reszoo._LAZY[name].split(":")[0])
        )
        left -= {*names}
        parts = [f"# {title}", "", "Each name is imported on first use: `reszoo.NAME`."]
        parts[-1] += " `StrPath` is `str | os.PathLike[str]`."
        for name in names:
            parts += ["", f"::: {reszoo._LAZY[name].replace(':', '.')}"]
            parts += ["    options:", f"      heading: reszoo.{name}"]
            parts += [f"      toc_label: {name}"]
        yield f"reference/{page}.md", "\n".join(parts) + "\n"
    if left:
        raise PluginError(f"No page of the reference has {sorted(left)}.")


def command_reference() -> Iterator[str]:
    """The commands, their arguments and options, as `--help` has them."""
    from click import Context
    from typer.main import get_command

    from reszoo.cli.options import app

    yield "# Commands"
    yield (
        "Generated from the commands: `reszoo COMMAND --help` prints the same. Exit "
        "codes: 0 done, 1 a check failed, 2 wrong usage."
    )
    for name, command in get_command(app).commands.items():
        context = Context(command, info_name=f"reszoo {name}")
        yield f"## reszoo {name}"
        for part in (command.help or "").split("\n\n"):
            example = part.strip().removeprefix("Example: ")
            yield f"```console\n$ {example}\n```" if example != part.strip() else part
        yield f"```text\n{command.get_usage(context)}\n```"
        rows = [
            record
            for each in command.params
            if (record := each.get_help_record(context))
        ]
        rows = ["| argument or option | meaning |", "|---|---|"] + [
            f"| `{' '.join(names.split())}` | {cell(text)} |" for names, text in rows
        ]
        yield "\n".join(rows)


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
