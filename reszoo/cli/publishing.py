"""The commands that publish and report: web, push, check-weights, doctor."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import reszoo
from reszoo.cli.options import command, show
from reszoo.console import printable


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
        f"python -m http.server --directory {where}\nand open http://localhost:8000.",
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
        checkpoint (CHECKPOINT): Checkpoint (.safetensors) with a card.
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
    from reszoo.diagnosis import describe_environment

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
