"""The report of an export: what is there, how good it is, what to use it for."""

from pathlib import Path

from reszoo.files import write_text
from reszoo_export.manifest import Manifest
from reszoo_export.reporting.markdown import markdown
from reszoo_export.reporting.page import page
from reszoo_export.verification.reference import Reference

MARKDOWN_FILE = "REPORT.md"
HTML_FILE = "report.html"


def write_report(folder: Path, manifest: Manifest, reference: Reference) -> None:
    """Write `REPORT.md` and `report.html` into the folder of an export.

    Both are the same for the same export, but for what was measured.

    Args:
        folder: Where the files lie.
        manifest: What was written and measured.
        reference: The images that `Disagreement.image` counts in.
    """
    write_text(folder / MARKDOWN_FILE, markdown(manifest, reference))
    write_text(folder / HTML_FILE, page(manifest, reference))
