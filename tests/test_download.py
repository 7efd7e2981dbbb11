import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from email.message import Message
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, build_opener

import numpy as np
import pytest
from loopback import Site, answer, serve, start

from reszoo.errors import CheckpointError, ReszooError, UsageError
from reszoo.weights import download
from reszoo.weights.download import fetch

BODY = np.random.default_rng(0).bytes(300_000)
HASH = hashlib.sha256(BODY).hexdigest()
PATH = "/weights/net.safetensors"
pytestmark = pytest.mark.usefixtures("home")
FETCH = """
import sys
from reszoo.weights.download import fetch
print("started", flush=True)
print(fetch(sys.argv[1], sys.argv[2]))
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        running.files[PATH] = BODY
        yield running


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once_and_then_needs_no_server(
    site: Site, home: Path
) -> None:
    path = fetch(site.url + PATH, HASH)
    assert path.read_bytes() == BODY
    assert path.name == "net.safetensors"
    assert path.parent.parent == home / "url"
    assert leftovers(home) == ["net.safetensors"]
    site.stop()
    assert fetch(site.url + PATH, HASH) == path
    assert fetch(site.url + PATH, None) == path
    assert len(site.asked) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_connection_goes_on_where_it_stopped(site: Site, chunked: bool) -> None:
    site.chunked = chunked
    site.cuts = [100_000, 50_000]
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY
    assert [request.get("range") for request in site.gets()] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]
    assert [request.get("if-range") for request in site.gets()[1:]] == ['"v1"'] * 2


def test_a_server_without_ranges_is_asked_from_the_start(site: Site) -> None:
    site.ranges = False
    site.cuts = [100_000]
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY
    assert len(site.gets()) == 2


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_continued(
    site: Site, home: Path, tag: str | None
) -> None:
    site.tag = tag
    site.cuts = [100_000]
    assert fetch(site.url + PATH, None).read_bytes() == BODY
    assert [request.get("range") for request in site.gets()] == [None, None]
    assert leftovers(home) == ["net.safetensors"]


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("tag", ['"v1"', '"v2"'])
def test_a_file_that_changed_meanwhile_is_not_mixed(
    site: Site, home: Path, careless: bool, tag: str
) -> None:
    site.cuts = [100_000, 0, 0, 0]
    with pytest.raises(CheckpointError, match="interrupted 4 times"):
        fetch(site.url + PATH, None)
    assert leftovers(home) == [".net.safetensors.part", ".net.safetensors.tag"]
    # Under the old tag only the length can tell.
    changed = BODY[:50_000] if tag == site.tag else BODY[::-1]
    site.files[PATH], site.tag, site.careless = changed, tag, careless
    assert fetch(site.url + PATH, None).read_bytes() == changed
    assert leftovers(home) == ["net.safetensors"]


def test_a_connection_that_always_breaks_is_an_error(site: Site, home: Path) -> None:
    site.tag = None
    site.cuts = [10] * 9
    text = (
        r"interrupted 4 times, at last because 10 of 300000 bytes arrived\. Try again"
    )
    with pytest.raises(CheckpointError, match=text):
        fetch(site.url + PATH, HASH)
    assert len(site.gets()) == 4
    assert leftovers(home) == []


def test_a_server_that_goes_away_midway_may_come_back(site: Site) -> None:
    site.cuts = [100_000, 0, 0, 0]
    with pytest.raises(CheckpointError, match="interrupted 4 times"):
        fetch(site.url + PATH, HASH)
    site.stop()
    with pytest.raises(CheckpointError, match=r"interrupted 4 times, .* refused"):
        fetch(site.url + PATH, HASH)


def test_waits_grow(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(download, "WAITS", (1.0, 2.0, 4.0))
    monkeypatch.setattr(time, "sleep", waited.append)
    site.statuses = [503, 429, 500]
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY
    assert waited == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("cuts", [[], [100_000]])
def test_a_wrong_byte_is_refused_and_leaves_nothing(
    site: Site, home: Path, cuts: list[int]
) -> None:
    site.damaged, site.cuts = 200_000, cuts
    wrong = BODY[:200_000] + bytes([BODY[200_000] ^ 1]) + BODY[200_001:]
    received = hashlib.sha256(wrong).hexdigest()
    text = f"must have the SHA-256 {HASH}. Received: {received}. Nothing was kept"
    with pytest.raises(CheckpointError, match=text):
        fetch(site.url + PATH, HASH)
    assert leftovers(home) == []
    assert list((home / "url").iterdir()) == []
    site.damaged = None
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY


def test_the_beginning_of_a_hash_is_enough(site: Site) -> None:
    with pytest.raises(CheckpointError, match=r"SHA-256 00000000\. Received: "):
        fetch(site.url + PATH, "00000000")
    assert fetch(site.url + PATH, HASH[:8].upper()).read_bytes() == BODY


def test_an_md5_is_checked(site: Site) -> None:
    digest = hashlib.md5(BODY).hexdigest()
    with pytest.raises(CheckpointError, match=f"MD5 {32 * '0'}. Received: {digest}"):
        fetch(site.url + PATH, f"md5:{32 * '0'}")
    assert fetch(site.url + PATH, f"md5:{digest}").read_bytes() == BODY
    with pytest.raises(CheckpointError, match=r"MD5 .* Delete the file"):
        fetch(site.url + PATH, f"md5:{32 * '0'}")


@pytest.mark.parametrize(
    "checksum",
    ["", "1234567", "not hexadecimal", HASH + "0", "md5:12345678", "sha1:12345678"],
)
def test_a_hash_that_is_none_is_refused(site: Site, checksum: str) -> None:
    with pytest.raises(UsageError, match=r"8 to 64 hexadecimal digits.* Received: '"):
        fetch(site.url + PATH, checksum)
    assert site.asked == []


def test_a_cached_file_is_checked_and_kept(site: Site) -> None:
    path = fetch(site.url + PATH, None)
    with pytest.raises(CheckpointError, match=r"Delete the file to download it again"):
        fetch(site.url + PATH, "0" * 64)
    assert path.read_bytes() == BODY
    assert len(site.asked) == 1


def test_a_body_longer_than_announced_is_refused(site: Site, home: Path) -> None:
    site.announced = -1
    text = "must be as long as its server announced: 299999 bytes. Received: more"
    with pytest.raises(CheckpointError, match=text):
        fetch(site.url + PATH, None)
    assert leftovers(home) == []


def test_a_body_shorter_than_announced_is_refused(site: Site) -> None:
    site.announced, site.ranges = 1, False
    with pytest.raises(CheckpointError, match="300000 of 300001 bytes arrived"):
        fetch(site.url + PATH, None)


def test_a_server_that_never_hangs_up_has_sent_all(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.5)
    site.lingers = True
    assert fetch(site.url + PATH, None).read_bytes() == BODY
    assert len(site.gets()) == 1


def test_a_connection_kept_open_ends_with_the_announced_length(site: Site) -> None:
    site.closes = False
    assert fetch(site.url + PATH, None).read_bytes() == BODY


def test_without_a_length_there_must_be_a_hash(site: Site, home: Path) -> None:
    site.announced = None
    with pytest.raises(CheckpointError, match=r"does not tell the length of .* sha256"):
        fetch(site.url + PATH, None)
    site.cuts = [100_000]
    with pytest.raises(CheckpointError, match="must have the SHA-256"):
        fetch(site.url + PATH, HASH)
    assert leftovers(home) == []
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY


def test_two_processes_share_one_download(site: Site, home: Path) -> None:
    site.gate.clear()
    site.gate_at = 1000
    both = [start(FETCH, site.url + PATH, HASH) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    opening = threading.Timer(0.3, site.gate.set)
    opening.start()
    paths = {Path(answer(process).strip()) for process in both}
    opening.join()
    assert [path.read_bytes() == BODY for path in paths] == [True]
    assert len(site.gets()) == 1
    assert leftovers(home) == ["net.safetensors"]


def test_a_killed_download_is_taken_up_by_the_next_process(
    site: Site, home: Path
) -> None:
    site.gate.clear()
    site.gate_at = 100_000
    process = start(FETCH, site.url + PATH, HASH)
    while sum(path.stat().st_size for path in home.rglob("*.part")) < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert ".net.safetensors.part" in leftovers(home)
    site.gate.set()
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY
    resumed = int(site.gets()[1]["range"].removeprefix("bytes=").rstrip("-"))
    assert 50_000 <= resumed <= 100_000
    assert leftovers(home) == ["net.safetensors"]


def test_without_network_the_error_tells_what_to_put_where(
    site: Site, home: Path
) -> None:
    site.stop()
    url = site.url + PATH
    with pytest.raises(CheckpointError, match="cannot be reached") as caught:
        fetch(url, HASH)
    found = re.search(
        r"download (\S+) elsewhere and put it at (\S+), or", str(caught.value)
    )
    assert found
    assert found[1] == url
    assert "set RESZOO_HOME" in str(caught.value)
    assert leftovers(home) == []
    path = Path(found[2])
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert fetch(url, HASH) == path


def test_a_missing_file_is_not_asked_for_again(site: Site, home: Path) -> None:
    with pytest.raises(CheckpointError, match="the server answered 404 Not Found"):
        fetch(site.url + "/none.bin", None)
    assert len(site.asked) == 1
    assert leftovers(home) == []


def test_redirects_on_the_web_are_followed(site: Site) -> None:
    site.redirects["/old"] = PATH
    site.cuts = [100_000]
    assert fetch(site.url + "/old", HASH).read_bytes() == BODY
    assert site.gets()[3]["range"] == "bytes=100000-"


@pytest.mark.parametrize(
    "target", ["file:///etc/hosts", "ftp://127.0.0.1/net", "data:,x"]
)
def test_redirects_off_the_web_are_refused(site: Site, home: Path, target: str) -> None:
    site.redirects["/old"] = target
    with pytest.raises(CheckpointError, match=r"answered 302 .*Redirection to url"):
        fetch(site.url + "/old", None)
    assert leftovers(home) == []


def test_a_redirect_must_not_give_up_encryption() -> None:
    opener, response = build_opener(download._WebRedirects), Message()
    response["Location"] = "http://127.0.0.1/net"
    with pytest.raises(HTTPError, match=r"'http://127.0.0.1/net' is not allowed"):
        opener.error("https", Request("https://host"), BytesIO(), 302, "", response)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/..%2f..%2fevil", "_.._evil"),
        ("/a/%2e%2e", "weights"),
        ("/", "weights"),
        ("/a%00b%5cc.bin?download=1", "a_b_c.bin"),
        ("/" + "x" * 300 + ".pth", "x" * 96 + ".pth"),
    ],
)
def test_a_name_never_leaves_the_cache(
    site: Site, home: Path, path: str, name: str
) -> None:
    site.files[path] = BODY
    found = fetch(site.url + path, HASH)
    assert found.name == name
    assert found.resolve().parent.parent == (home / "url").resolve()


def test_the_same_name_at_two_addresses_is_two_files(site: Site) -> None:
    site.files["/b" + PATH] = b"other"
    assert fetch(site.url + PATH, None).read_bytes() == BODY
    assert fetch(site.url + "/b" + PATH, None).read_bytes() == b"other"


def test_a_folder_that_cannot_be_written_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "file"))
    text = r"file/url cannot be written: Not a directory. Set RESZOO_HOME"
    with pytest.raises(ReszooError, match=text):
        fetch(site.url + PATH, HASH)


def test_a_full_disk_is_told_as_such(site: Site, home: Path) -> None:
    limit = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    )
    _, err = start(limit + FETCH, site.url + PATH, HASH).communicate(timeout=60)
    assert "ReszooError" in err
    assert "net.safetensors could not be written: File too large" in err
    assert "net.safetensors" not in leftovers(home)
    assert fetch(site.url + PATH, HASH).read_bytes() == BODY
