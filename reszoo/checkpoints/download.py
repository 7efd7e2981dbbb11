"""Fetch weight files and keep them, so that each one travels the network once."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from reszoo.checkpoints.transfer import other_hash, transfer
from reszoo.errors import CheckpointError, ReszooError, UsageError

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_LONGEST = 100  # characters of a file name; systems allow 255 bytes
_URL = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?([/?][!-~]*)?", re.ASCII | re.I
)
_HUB = re.compile(
    r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Address:
    """Where weights come from.

    Attributes:
        kind: "hub" for a repository, "url" for a file on the web, "path" for a
            file on this machine.
        where: "owner/repo", the URL, or the path.
        revision: Of a repository: branch, tag or commit; None for its main branch.
    """

    kind: Literal["hub", "url", "path"]
    where: str
    revision: str | None = None


def parse_address(text: str) -> Address:
    """Tell a hub repository, a URL and a local path apart.

    Args:
        text: `hf://owner/repo`, `hf://owner/repo@revision`, an http(s) URL or a path.

    Raises:
        UsageError: A malformed hub address or URL, or another scheme.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|hf:", text)
    if scheme is None:
        return Address("path", text)
    if scheme[0].lower() in ("http://", "https://"):
        return Address("url", _checked_url(text))
    if not scheme[0].lower().startswith("hf:"):
        raise UsageError(
            "Weights come from hf://owner/repo, an http(s) URL or a local file. "
            f"Received: {text!r}."
        )
    found = _HUB.fullmatch(text)
    if found is None or ".." in text or "--" in found["repo"]:
        raise UsageError(
            "A hub address is hf://owner/repo or hf://owner/repo@revision. "
            f"Received: {text!r}."
        )
    return Address("hub", found["repo"], found["revision"])


def cache_folder() -> Path:
    """Return the folder that keeps downloads.

    It is the environment variable `RESZOO_HOME`, or else `reszoo` in the user's
    cache (`XDG_CACHE_HOME`, or else `~/.cache`). It need not exist yet.
    """
    home = os.environ.get("RESZOO_HOME")
    if not home:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = f"{caches}/reszoo"
    return Path(home).expanduser().absolute()


def fetch(url: str, sha256: str | None) -> Path:
    """Return the local copy of a file on the web, downloading it at first use.

    A file that is in the cache is returned without any network. Several processes
    may ask for the same file at once: one downloads it, the others wait.

    Args:
        url: An http or https URL.
        sha256: The file's SHA-256 in hex, or its first 8 digits or more. None
            checks nothing but the length.

    Returns:
        `cache_folder()/url/<hash of the URL>/<last part of the URL>`.

    Raises:
        UsageError: The URL or the hash is malformed.
        CheckpointError: No network, a refusal, a connection cut again and again, or
            another file than the hash tells.
        ReszooError: The disk refused the write.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9A-Fa-f]{8,64}", sha256):
        raise UsageError(
            f"sha256 must be 8 to 64 hexadecimal digits. Received: {sha256!r}."
        )
    final = _place(_checked_url(url))
    if not final.is_file():
        with _locked(final.parent.with_suffix(".lock")):
            if not final.is_file():
                transfer(url, sha256, final)
                return final
    received = other_hash(final, sha256)
    if received:
        raise CheckpointError(
            f"{final} must have the SHA-256 {sha256}. Received: {received}. "
            "Delete the file to download it again."
        )
    return final


def fetch_hub(
    repo: str, files: Sequence[str], revision: str | None = None
) -> dict[str, Path]:
    """Return local copies of files of a Hugging Face repository.

    All files are of one commit. Without a network, what was fetched before is
    returned. `pytorch_model.bin` is left out where `model.safetensors` was found.

    Args:
        repo: "owner/repo".
        files: Names of files in the repository.
        revision: Branch, tag or commit; None for the main branch.

    Returns:
        The paths of those files that the repository has, in the order asked for.

    Raises:
        CheckpointError: The repository cannot be reached or has none of the files,
            or a file arrived damaged.
    """
    found: dict[str, Path] = {}
    for file in _best_order(repo, files, revision):
        if file == _PICKLED and _SAFE in found:
            continue
        path = _hub_file(repo, file, revision)
        if path is not None:
            found[file] = path
            # .../snapshots/<commit>/<file>: the other files come from there too.
            revision = path.parents[file.count("/")].name
    if not found:
        raise CheckpointError(f"hf://{repo} has none of {', '.join(files)}.")
    return {file: found[file] for file in files if file in found}


def _checked_url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise UsageError(
            "A URL is http(s)://host/path in ASCII without spaces, user or password. "
            f"Received: {url!r}."
        )
    return url


def _place(url: str) -> Path:
    """Return where a URL's file belongs; the name is no way out of the folder."""
    last = unquote(urlsplit(url).path.rpartition("/")[2])
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", last)[-_LONGEST:].lstrip(".")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_folder() / "url" / digest / (name or "weights")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes out; the system frees the lock of one that dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise ReszooError(
            f"{path.parent} cannot be written: {error.strerror}. "
            "Set RESZOO_HOME to a folder that can."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    # POSIX only, so not at import.
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever had the lock removed its file: hold the one that others will find.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _hub_file(repo: str, file: str, revision: str | None) -> Path | None:
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # Of a commit, what is missing stays missing; of a branch, only the hub knows.
    is_commit = revision is not None and re.fullmatch("[0-9a-f]{40}", revision)
    if is_commit and _cached(repo, file, revision) is hub._CACHED_NO_EXIST:
        return None
    try:
        path = hub.hf_hub_download(
            repo, file, revision=revision, cache_dir=_hub_folder()
        )
    except LocalEntryNotFoundError as error:
        if _cached(repo, file, revision) is hub._CACHED_NO_EXIST:
            return None
        raise _hub_error(repo, revision, error) from error
    except EntryNotFoundError:
        return None
    # Its HTTP library differs by release, and their errors have no base in common.
    except Exception as error:
        raise _hub_error(repo, revision, error) from error
    return _intact(Path(path), repo)


def _hub_folder() -> Path:
    return cache_folder() / "hub"


def _cached(repo: str, file: str, revision: str | None) -> object:
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(
        repo, file, cache_dir=_hub_folder(), revision=revision
    )


def _best_order(repo: str, files: Sequence[str], revision: str | None) -> list[str]:
    """Put cached files first: they tell the commit where there is no network."""

    def rank(file: str) -> tuple[bool, bool]:
        return file == _PICKLED, not isinstance(_cached(repo, file, revision), str)

    return sorted(files, key=rank)


def _intact(path: Path, repo: str) -> Path:
    """Check a file against its own name: the hub's tag of large files is a SHA-256.

    huggingface_hub compares no more than the length.
    """
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return path
    received = other_hash(blob, blob.name)
    if received:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path.name} of hf://{repo} must have the SHA-256 {blob.name}. "
            f"Received: {received}. Nothing was kept; ask again."
        )
    return path


def _hub_error(repo: str, revision: str | None, error: Exception) -> CheckpointError:
    address = f"hf://{repo}@{revision}" if revision else f"hf://{repo}"
    reason = " ".join(str(error).split()).rstrip(".")
    folder = _hub_folder() / f"models--{repo.replace('/', '--')}"
    return CheckpointError(
        f"{address} cannot be fetched: {reason}. Without a network, copy {folder} from "
        "a machine that has fetched it, or set RESZOO_HOME to a cache folder that has "
        "it."
    )
