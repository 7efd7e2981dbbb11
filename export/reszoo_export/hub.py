"""Publish a checkpoint, with its card and exported files, on the Hugging Face Hub."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import reszoo
from reszoo.cards import Card, public_origin
from reszoo.data.image_files import open_image
from reszoo.errors import ReszooError, UsageError
from reszoo.files import StrPath, as_path, folder_entries
from reszoo.preprocessing import to_rgb
from reszoo.report import page
from reszoo.weights import safetensors
from reszoo.weights.location import checkpoint_in, parse_address
from reszoo_export.formats import FORMATS
from reszoo_export.manifest import MANIFEST_FILE, Manifest, read_manifest
from reszoo_export.metadata import LABELS_FILE, licence
from reszoo_export.predictor import Predictor
from reszoo_export.report import escape_markdown, markdown_cell

MODEL_CARD = "README.md"
# Of an export: not the reference and the HTML report, which hold images of the data.
_BESIDE = (MANIFEST_FILE, LABELS_FILE, "REPORT.md")
_EXPORT, _SAMPLES = "export", "samples"
_SAMPLE_SIDE = 512  # pixels; samples are shown, not measured


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What `push` uploaded, or would upload."""

    repo: str
    files: dict[str, int]  # path in the repository -> bytes
    model_card: str  # the content of README.md
    timm: bool  # whether timm opens the repository
    commit: str | None = None  # None after a dry run
    url: str | None = None


def push(
    checkpoint: StrPath, repo: str, *,
    export: StrPath | None = None,
    samples: Sequence[StrPath] = (), private: bool = False,
    dry_run: bool = False,
) -> PushResult:  # fmt: skip
    """Upload a checkpoint to the Hugging Face Hub, in one commit.

    The repository then has the weights with their card, timm's `config.json` where timm
    has the architecture, and a model card: labels, preprocessing, accuracy and where it
    was measured, code, licence and origin. `reszoo.build` and `reszoo.load` open it as
    "hf://owner/name". The token is that of `hf auth login`, or of HF_TOKEN.

    Args:
        checkpoint: A `.safetensors` file with a card, or the folder of a run.
        repo: "owner/name" of a model repository, which is created if it is missing.
        export: An export of the same model, whose files are uploaded too; not the
            images that it was verified on.
        samples: Images for the model card, which are uploaded smaller and without
            their metadata, with the model's answers.
        private: Whether a new repository is private.
        dry_run: Whether to stop before anything is sent.

    Raises:
        UsageError: The name of the repository is invalid, the checkpoint has no card,
            or the export is of another model.
        CheckpointError: The checkpoint cannot be read.
        ExportError: A file of the export is missing, or has changed.
        ReszooError: The hub cannot be reached, or refuses.
    """
    if parse_address(f"hf://{repo}").revision is not None:
        raise UsageError(f"repo must be owner/name. Received: {repo!r}.")
    checkpoint = checkpoint_in(given := as_path(checkpoint)) or given
    tensors, card = safetensors.read(checkpoint)
    if card is None:
        raise UsageError(
            f"{checkpoint} has no card, so labels and preprocessing are unknown. Open "
            "it with reszoo.load, and write it with reszoo.save."
        )
    manifest = None if export is None else read_manifest(export)
    if manifest is not None and not _same_model(card, manifest.card):
        raise UsageError(
            f"{export} is an export of another model than {checkpoint}: its "
            "architecture, labels or origin differ. Export the checkpoint again."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            safetensors.write_timm_folder(folder, tensors, card)
            timm = True
        except UsageError:
            safetensors.write(folder / safetensors.WEIGHTS_FILE, tensors, card)
            timm = False
        if manifest is not None:
            _copy_export(manifest, folder / _EXPORT)
        answers = [*_write_samples(samples, checkpoint, folder / _SAMPLES)]
        text = _model_card(card, repo, manifest, answers, timm)
        (folder / MODEL_CARD).write_text(text, encoding="utf-8")
        names = sorted(folder_entries(folder))
        files = {name: (folder / name).stat().st_size for name in names}
        sent = {} if dry_run else _upload(folder, repo, private)
    return PushResult(repo=repo, files=files, model_card=text, timm=timm, **sent)


def _same_model(card: Card, other: Card) -> bool:
    """Tell whether two cards are of the same weights; exporting changes the input."""
    same = card.labels == other.labels and card.provenance == other.provenance
    return same and card.architecture.name == other.architecture.name


def _copy_export(manifest: Manifest, folder: Path) -> None:
    folder.mkdir()
    for name in _BESIDE:
        if (source := manifest.folder / name).exists():
            shutil.copyfile(source, folder / name)
    for record in manifest.files:
        manifest.copy_file(record, folder)


def _write_samples(
    samples: Sequence[StrPath], checkpoint: StrPath, folder: Path
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Yield the path of each sample in the repository, and the model's answers."""
    if not samples:
        return
    folder.mkdir()
    with Predictor(checkpoint) as predictor:
        for number, path in enumerate(samples, 1):
            image = to_rgb(open_image(as_path(path)))
            answers = predictor.top(image, k=3)
            image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
            # Pixels alone: metadata may tell where and by whom a photo was taken.
            plain = Image.frombytes("RGB", image.size, image.tobytes())
            plain.save(folder / f"{number}.jpg", quality=90)
            yield f"{folder.name}/{number}.jpg", answers


def _upload(folder: Path, repo: str, private: bool) -> dict[str, str]:
    import huggingface_hub as hub

    api = hub.HfApi(library_name="reszoo", library_version=reszoo.__version__)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        text = f"Upload with reszoo {reszoo.__version__}"
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=text)
    # Its releases use different HTTP libraries, whose errors have no common base.
    except Exception as error:
        reason = public_origin(" ".join(str(error).split()).rstrip("."))
        raise ReszooError(
            f"hf://{repo} cannot be written: {reason}. Log in with `hf auth login`, or "
            "set HF_TOKEN to a token with write access. Without the hub's Xet storage: "
            "set HF_HUB_DISABLE_XET=1."
        ) from error
    return {"commit": done.oid, "url": f"{api.endpoint}/{repo}"}


def _model_card(
    card: Card,
    repo: str,
    manifest: Manifest | None,
    answers: Sequence[tuple[str, list[tuple[str, float]]]],
    timm: bool,
) -> str:
    """Return the content of `README.md`, which begins with the hub's metadata."""
    files = manifest.files if manifest else ()
    runtimes = [FORMATS[each.format].runtime.name for each in files]
    template = page.environment(escape_markdown).get_template("hub.md.j2")
    return template.render(
        card=card, repo=repo, files=files, answers=answers, timm=timm, folder=_EXPORT,
        licence=licence(card), libraries=[*dict.fromkeys(runtimes)], cell=markdown_cell,
    )  # fmt: skip
