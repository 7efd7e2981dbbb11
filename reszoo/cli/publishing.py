"""The commands that show, publish and report: web, ..."""

from pathlib import Path

import reszoo
from reszoo.cli.options import command, given
from reszoo.console import print_json, print_text, printable


@command()
def web(
    folder: Path,
    *,
    output: Path,
    vendor: bool | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Write a static site that classifies camera images and photos in the browser.

    Example: reszoo web export --output site

    Args:
        folder (FOLDER): Folder that `reszoo export` wrote.
        vendor (default where npm is available): Copy the runtimes into the
            site, from npm; or let browsers load them from jsDelivr.
    """
    site = reszoo.write_site(**given(locals()))
    if as_json:
        print_json({"folder": str(site), "page": str(site / "index.html")})
        return
    where = printable(str(site))
    print_text(
        f"{where}/index.html is the page, for any static host over HTTPS. Try it: "
        f"python -m http.server --directory {where}\nand open http://localhost:8000."
    )


@command()
def doctor(*, as_json: bool = False) -> None:
    """Print what a bug report needs: versions, machine and settings.

    Loads no TensorFlow, so that it also works where that does not.

    Example: reszoo doctor
    """
    from reszoo.diagnosis import describe_environment

    found = describe_environment()
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        lines = [f"{name}: {value}"]
        if isinstance(value, dict):
            shown = (
                f"  {k}: {'not found' if v is None else v}" for k, v in value.items()
            )
            lines = [f"{name}:", *shown]
        elif isinstance(value, list):
            lines = [f"{name}: {', '.join(value) or 'none found'}"]
        print_text("\n".join(map(printable, lines)))
