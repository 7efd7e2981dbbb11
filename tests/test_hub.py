import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loopback import COMMIT, Site, answer, serve, start

from reszoo.errors import UsageError
from reszoo.weights.location import Address, parse_address

# More than the 10 MiB that huggingface_hub reads at a time and so can go on from.
BODY = np.random.default_rng(0).bytes(12 << 20)
HASH = hashlib.sha256(BODY).hexdigest()
# A process of its own: huggingface_hub reads its environment when it is imported.
HUB = """
import sys
import huggingface_hub
from reszoo.weights.download import fetch_hub
from reszoo.errors import CheckpointError
print("started", flush=True)
try:
    found = fetch_hub("owner/net", sys.argv[1].split(","), *sys.argv[2:])
    for name, path in found.items():
        print(name, path)
except CheckpointError as error:
    print("refused:", error)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def from_hub(files: str, *revision: str) -> dict[str, Path]:
    lines = answer(start(HUB, files, *revision)).splitlines()
    return {line.split()[0]: Path(line.split()[-1]) for line in lines}


def test_the_hub_gives_what_it_has(site: Site, home: Path) -> None:
    site.put_on_hub(
        "owner/net", model_safetensors=BODY, pytorch_model_bin=b"old", config_json=b"{}"
    )
    found = from_hub("config.json,pytorch_model.bin,model.safetensors,none.txt")
    assert list(found) == ["config.json", "model.safetensors"]
    assert found["model.safetensors"].read_bytes() == BODY
    assert found["config.json"].read_bytes() == b"{}"
    assert found["config.json"].parts[-2] == COMMIT
    assert found["config.json"].is_relative_to(home / "hub")
    # Once the commit is known, a branch that moves on cannot mix two of them.
    heads = [path.split("/")[-2:] for method, path, _ in site.asked if method == "HEAD"]
    assert [revision for revision, _ in heads] == ["main", COMMIT, COMMIT]
    assert len(site.gets()) == 2


def test_the_hub_may_have_only_the_older_format(site: Site) -> None:
    site.put_on_hub("owner/net", pytorch_model_bin=BODY)
    found = from_hub("model.safetensors,pytorch_model.bin")
    assert list(found) == ["pytorch_model.bin"]
    assert found["pytorch_model.bin"].read_bytes() == BODY


def test_a_cut_connection_to_the_hub_goes_on_where_it_stopped(site: Site) -> None:
    site.put_on_hub("owner/net", model_safetensors=BODY)
    site.cuts = [11 << 20]
    found = from_hub("model.safetensors")
    assert found["model.safetensors"].read_bytes() == BODY
    assert [request.get("range") for request in site.gets()] == [
        None,
        f"bytes={10 << 20}-",
    ]


def test_a_wrong_byte_from_the_hub_is_refused_and_leaves_nothing(
    site: Site, home: Path
) -> None:
    site.put_on_hub("owner/net", model_safetensors=BODY)
    site.damaged = 7
    refused = answer(start(HUB, "model.safetensors"))
    assert (
        f"refused: model.safetensors of hf://owner/net must have the SHA-256 {HASH}"
        in (refused)
    )
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) < 1000
    site.damaged = None
    assert from_hub("model.safetensors")["model.safetensors"].read_bytes() == BODY


def test_two_processes_share_one_download_from_the_hub(site: Site) -> None:
    site.put_on_hub("owner/net", model_safetensors=BODY)
    site.gate.clear()
    site.gate_at = 1000
    both = [start(HUB, "model.safetensors") for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    opening = threading.Timer(1.0, site.gate.set)
    opening.start()
    paths = {answer(process).split()[-1] for process in both}
    opening.join()
    assert [Path(path).read_bytes() == BODY for path in paths] == [True]
    assert len(site.gets()) == 1


@pytest.mark.parametrize(
    ("asked", "offline"),
    [
        ("model.safetensors,pytorch_model.bin,config.json", False),
        ("model.safetensors,pytorch_model.bin,config.json", True),
        ("model.safetensors,pytorch_model.bin", True),
    ],
)
def test_a_warm_cache_needs_no_hub(
    site: Site, monkeypatch: pytest.MonkeyPatch, asked: str, offline: bool
) -> None:
    site.put_on_hub("owner/net", pytorch_model_bin=BODY, config_json=b"{}")
    first = from_hub(asked)
    assert list(first) == asked.split(",")[1:]
    site.stop()
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert from_hub(asked) == first


def test_a_cold_cache_without_hub_tells_what_to_do(
    site: Site, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = answer(start(HUB, "model.safetensors"))
    assert "refused: hf://owner/net cannot be downloaded: " in refused
    assert f"copy {home}/hub/models--owner--net from a machine" in refused
    assert "set RESZOO_HOME" in refused
    assert site.asked == []


def test_what_the_hub_does_not_have_is_told(site: Site) -> None:
    refused = answer(start(HUB, "model.safetensors"))
    assert "hf://owner/net cannot be downloaded: 404 Client Error" in refused
    site.put_on_hub("owner/net", README_md=b"hello")
    refused = answer(start(HUB, "model.safetensors,config.json"))
    assert refused == (
        "refused: hf://owner/net has none of model.safetensors, config.json.\n"
    )
    refused = answer(start(HUB, "README.md", "nonsense"))
    assert "refused: hf://owner/net@nonsense cannot be downloaded: " in refused
    assert from_hub("README.md", COMMIT)["README.md"].read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://timm/resnet50.a1_in1k", Address("hub", "timm/resnet50.a1_in1k")),
        ("hf://a/b@refs/pr/3", Address("hub", "a/b", "refs/pr/3")),
        (f"hf://a/b@{COMMIT}", Address("hub", "a/b", COMMIT)),
        ("https://host:8080/a.pth?x=1", Address("url", "https://host:8080/a.pth?x=1")),
        ("HTTP://[::1]/a", Address("url", "HTTP://[::1]/a")),
        ("runs/best.safetensors", Address("path", "runs/best.safetensors")),
        ("C:\\nets\\best.pth", Address("path", "C:\\nets\\best.pth")),
        ("a@b", Address("path", "a@b")),
    ],
)
def test_addresses_are_told_apart(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://", "A hub address is hf://owner/repo"),
        ("hf://repo", "A hub address is"),
        ("hf:owner/repo", "A hub address is"),
        ("hf://owner/repo/file", "A hub address is"),
        ("hf://owner/repo@", "A hub address is"),
        ("hf://owner/..", "A hub address is"),
        ("hf://owner/repo@../../x", "A hub address is"),
        ("HF://owner/repo", "A hub address is"),
        ("s3://bucket/net", "Weights come from hf://owner/repo, an http"),
        ("file:///etc/hosts", "Weights come from"),
        ("https://", "A URL is"),
        ("https://user:secret@host/net", "A URL is"),
        ("https://host/with space", "A URL is"),
        ("https://host/\r\nX: y", "A URL is"),
    ],
)
def test_a_malformed_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_address(text)
    shown = text.replace("user:secret@", "")
    assert f"Received: {shown!r}." in str(caught.value)
