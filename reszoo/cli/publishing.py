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
