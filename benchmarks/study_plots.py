"""Draw the picture of the claim in `docs/studies.md` from the results in the docs.

Run: python benchmarks/study_plots.py

`docs/preact-study.json` was written by `reszoo study --family preact`.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from reszoo.studies.report import draw
from reszoo.studies.results import RESULTS, read_results

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "depth.png"


def picture() -> bytes:
    """Return the training error by depth of all three kinds of networks."""
    with TemporaryDirectory() as folder:
        shutil.copyfile(DOCS / "preact-study.json", Path(folder, RESULTS))
        return draw(read_results(Path(folder)), "depth.png")


if __name__ == "__main__":
    PICTURE.write_bytes(picture())
