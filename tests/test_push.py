"""`reszoo push`, with the real client and a hub on this machine."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import COMMIT, Site, answer, serve, start
from made_card import made_card
from PIL import Image
from scripts import EXPORT, ROOT
from torch_peers import import_timm

import reszoo
from reszoo.cards import Metric
from reszoo.weights import safetensors
from reszoo_export import hub

CHECKPOINT = ROOT / "reszoo/bundled/resnet20-cifar10.safetensors"
# Processes of their own: huggingface_hub reads its environment when it is imported.
_PUSH = """
import json, sys
import reszoo
print("started", flush=True)
try:
    done = reszoo.push(*sys.argv[1:3], **json.loads(sys.argv[3]))
    print(json.dumps([done.files, done.model_card, done.timm, done.commit, done.url]))
except reszoo.ReszooError as error:
    print("refused:", error)
"""
_BUILD = """
import sys
import reszoo
from reszoo.weights import safetensors
print("started", flush=True)
reszoo.save(reszoo.build(weights=sys.argv[1]), sys.argv[2])
"""
_TIMM = """
import sys
import numpy
sys.path.insert(0, sys.argv[3])
from torch_peers import import_timm
timm = import_timm()
print("started", flush=True)
model = timm.create_model(sys.argv[1], pretrained=True).eval()
numpy.savez(sys.argv[2], **{k: v.numpy() for k, v in model.state_dict().items()})
print(model.pretrained_cfg["label_names"], model.pretrained_cfg["crop_pct"])
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # Large files by Git LFS, which any server can play.
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def _push(checkpoint: Path, repo: str, **options: Any) -> Any:
    lines = answer(start(_PUSH, str(checkpoint), repo, json.dumps(options)))
    return json.loads(lines.splitlines()[-1])


@pytest.mark.slow
def test_a_pushed_model_is_built_with_the_same_tensors(
    site: Site, tmp_path: Path
) -> None:
    files, text, timm, commit, url = _push(CHECKPOINT, "me/net", export=str(EXPORT))
    assert (timm, commit, url) == (False, COMMIT, f"{site.url}/me/net")
    sent = {
        name.removeprefix("/me/net/resolve/main/"): content
        for name, content in site.files.items()
    }
    assert {name: len(content) for name, content in sent.items()} == files
    assert sent["README.md"].decode() == text
    # To the last byte, and none of the data's images.
    assert sent["model.safetensors"] == CHECKPOINT.read_bytes()
    for name in ("model.onnx", "model.tflite", "labels.txt", "manifest.json"):
        assert sent[f"export/{name}"] == (EXPORT / name).read_bytes()
    assert not {"export/reference.npz", "export/report.html"} & {*sent}
    copy = tmp_path / "copy.safetensors"
    answer(start(_BUILD, "hf://me/net", str(copy)))
    found, card = safetensors.read(copy)
    expected, own = safetensors.read(CHECKPOINT)
    assert card is not None
    assert own is not None
    assert (card.labels, card.metrics) == (own.labels, own.metrics)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, name)


def test_timm_opens_what_was_pushed(site: Site, tmp_path: Path) -> None:
    import_timm()
    checkpoint = tmp_path / "net.safetensors"
    reszoo.save(reszoo.build("resnet10t", classes=["cat", "dog"], seed=0), checkpoint)
    assert _push(checkpoint, "me/net")[2]
    out = tmp_path / "timm.npz"
    printed = answer(start(_TIMM, "hf-hub:me/net", str(out), str(ROOT / "tests")))
    assert printed.startswith("['cat', 'dog'] 0.")
    expected = safetensors.read(checkpoint)[0]
    with np.load(out) as found:
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, name)


@pytest.mark.slow
def test_a_dry_run_sends_nothing_and_shows_the_model_card(
    site: Site, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    Image.new("RGB", (900, 600), (200, 30, 30)).save(photo, exif=exif)
    options = {"samples": [str(photo)], "dry_run": True}
    files, text, _, commit, _ = _push(CHECKPOINT, "me/net", **options)
    assert (commit, site.asked) == (None, [])
    assert set(files) == {"README.md", "model.safetensors", "samples/1.jpg"}
    best, share = reszoo.Predictor(CHECKPOINT).top(photo)[0]
    for line in (
        'license: "apache-2.0"',
        "pipeline_tag: image-classification",
        'model = reszoo.build(weights="hf://me/net")',
        "* resize the short side to 32 pixels (bilinear, antialiased)",
        "| `top1` | 0.8831 | `CIFAR-10 (JPEG), the 10,000 test images` |",
        "Licence: Apache-2.0.",
        f"| ![](samples/1.jpg) | `{best}` {share:.1%}<br>",
    ):
        assert line in text


def test_a_run_folder_means_its_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(CHECKPOINT.read_bytes())
    done = reszoo.push(tmp_path, "me/net", dry_run=True)
    assert done.files["model.safetensors"] == CHECKPOINT.stat().st_size


def test_samples_are_small_and_without_metadata(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    Image.new("RGB", (900, 600)).save(photo, exif=exif)
    list(hub._write_samples([photo], CHECKPOINT, tmp_path / "samples"))
    with Image.open(tmp_path / "samples/1.jpg") as sample:
        assert sample.size == (512, 341)
        assert not sample.getexif()
    assert b"secret" not in (tmp_path / "samples/1.jpg").read_bytes()


def test_labels_and_origins_stay_text_in_the_model_card() -> None:
    card = made_card(("`<script>`", "b"))
    text = hub._model_card(card, "me/net", None, (), False)
    assert "`` `<script>` ``, `b`" in text
    assert "license" not in text
    assert "Licence: not recorded." in text
    assert "Not measured." in text


def test_nothing_in_a_card_is_markup_in_the_model_card() -> None:
    hostile = "<img src=x onerror=alert(1)> [a](javascript:b) `c` | d"
    labels = (hostile, "\u0642\u0637\u0629", "\U0001f408", "x" * 3000)
    card = replace(
        made_card(labels),
        provenance={"licence": hostile, hostile: "value", "source": hostile},
        versions={hostile: hostile},
        metrics=(Metric(name=hostile, value=0.5, data=hostile),),
    )
    answers = [("samples/1.jpg", [(hostile, 0.5)])]
    text = hub._model_card(card, "me/net", None, answers, False)
    # What is outside of code, where no backslash stands before it.
    body = text.split("---\n", 2)[2]
    outside = re.sub(r"(?s)(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    assert not re.search(r"(?<!\\)[<\[`]", outside.replace("![]", ""))
    assert f"`` {hostile} ``" in text
    assert "\u0642\u0637\u0629" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 4}


@pytest.mark.parametrize(
    ("licence", "hub_id"),
    [("Apache-2.0", "apache-2.0"), ("MIT", "mit"), ("proprietary", "other")],
)
def test_the_hub_is_told_only_licences_that_it_knows(licence: str, hub_id: str) -> None:
    card = replace(made_card(), provenance={"licence": licence})
    text = hub._model_card(card, "me/net", None, (), False)
    assert text.startswith(f'---\nlicense: "{hub_id}"\n')
    assert f"Licence: {licence}." in text


@pytest.mark.slow
def test_a_model_with_another_licence_is_pushed(site: Site, tmp_path: Path) -> None:
    tensors, card = safetensors.read(CHECKPOINT)
    assert card is not None
    other = replace(card, provenance={**card.provenance, "licence": "in-house"})
    checkpoint = tmp_path / "net.safetensors"
    safetensors.write(checkpoint, tensors, other)
    assert _push(checkpoint, "me/net")[3] == COMMIT
    assert b'license: "other"' in site.files["/me/net/resolve/main/README.md"]


def test_the_model_card_of_a_backbone_speaks_of_features() -> None:
    card = made_card(None)
    bare = replace(card.resnet, include_top=False, classes=None, pooling="avg")
    card = replace(card, architecture=bare)
    text = hub._model_card(card, "me/net", None, (), False)
    assert "pipeline_tag: image-feature-extraction" in text
    assert "A resnet20 that gives features of images." in text
    assert "None" not in text


def test_an_export_that_has_changed_is_not_pushed(tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(EXPORT, export)
    # A file of the user's, which is in the folder of the SavedModel.
    (export / "saved_model/notes.txt").write_text("private")
    with pytest.raises(reszoo.ExportError, match=r"saved_model: the file has changed"):
        reszoo.push(CHECKPOINT, "me/net", export=export, dry_run=True)
    (export / "saved_model/notes.txt").unlink()
    (export / "model.onnx").unlink()
    with pytest.raises(reszoo.ExportError, match=r"There is no file .*model\.onnx"):
        reszoo.push(CHECKPOINT, "me/net", export=export, dry_run=True)


@pytest.mark.slow
def test_large_files_go_to_the_hubs_xet_storage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hf-xet, which the client needs on most systems; the others use Git LFS."""
    pytest.importorskip("hf_xet")
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    token = {"casUrl": site.url, "exp": 4_000_000_000, "accessToken": "token"}
    path = "/api/models/me/net/xet-write-token/main"
    site.files[path] = json.dumps(token).encode()
    content = CHECKPOINT.read_bytes()
    # The commit names the file by this hash; the storage is not taken apart here.
    site.uploaded[hashlib.sha256(content).hexdigest()] = content
    assert _push(CHECKPOINT, "me/net")[3] == COMMIT
    assert sum(map(len, site.stored)) > len(content) // 2
    assert site.files["/me/net/resolve/main/model.safetensors"] == content


@pytest.mark.slow
def test_a_hub_without_xet_storage_is_reported(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    refused = answer(start(_PUSH, str(CHECKPOINT), "me/net", "{}"))
    assert "refused: hf://me/net cannot be written:" in refused
    assert "HF_HUB_DISABLE_XET=1" in refused
    assert "hf_secret" not in refused


def test_a_hub_that_refuses_is_reported_without_the_token(site: Site) -> None:
    site.statuses = [401, 401, 401]
    refused = answer(start(_PUSH, str(CHECKPOINT), "me/net", "{}"))
    assert "refused: hf://me/net cannot be written:" in refused
    assert "hf auth login" in refused
    assert "hf_secret" not in refused
    assert not site.files


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    for name in ("net", "me/net@main", "../x/y"):
        with pytest.raises(reszoo.UsageError, match="Received"):
            reszoo.push(CHECKPOINT, name, dry_run=True)
    bare = tmp_path / "bare.safetensors"
    safetensors.write(bare, safetensors.read(CHECKPOINT)[0])
    with pytest.raises(reszoo.UsageError, match=r"has no card.*reszoo.save"):
        reszoo.push(bare, "me/net", dry_run=True)
    other = ROOT / "reszoo/bundled/resnet32-cifar10.safetensors"
    with pytest.raises(reszoo.UsageError, match="is an export of another model"):
        reszoo.push(other, "me/net", export=EXPORT, dry_run=True)


def test_build_needs_a_name_or_weights() -> None:
    with pytest.raises(reszoo.UsageError, match=r"Received: neither; pass \"resnet50"):
        reszoo.build()
