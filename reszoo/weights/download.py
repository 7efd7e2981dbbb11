"""Download weight files over HTTP and from the Hugging Face Hub, and cache them."""

import hashlib
import http.client
import math
import os
import re
import time
import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from reszoo.cards import public_origin
from reszoo.console import Progress
from reszoo.errors import CheckpointError, ReszooError, UsageError
from reszoo.files import atomic_file, cache_folder, write_text
from reszoo.weights.safetensors import PICKLED_FILE, WEIGHTS_FILE

# Seconds before each new attempt after an interrupted connection.
WAITS = (0.5, 1.0, 2.0)
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_MEGABYTE = 10**6
# Statuses of a server that may recover in a moment.
_RETRIED = (408, 429, 500, 502, 503, 504)
_MAX_NAME = 100  # characters of a file name; systems allow 255 bytes
_MD5 = "md5:"
_CHECKSUM = re.compile(rf"[0-9A-Fa-f]{{8,64}}|{_MD5}[0-9A-Fa-f]{{32}}")
_URL = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?([/?][!-~]*)?", re.ASCII | re.I
)


def fetch(url: str, checksum: str | None) -> Path:
    """Return the local copy of a file on the web, downloading it at first use.

    A file that is in the cache is returned without any network. Several processes may
    ask for the same file at once: one downloads it, the others wait. The checksum is
    the SHA-256 in hex, or its first 8 digits or more, or "md5:" and an MD5; None checks
    nothing but the length. Returns
    `cache_folder()/url/<hash of the URL>/<last part of the URL>`. A UsageError if the
    URL or the hash is malformed; a CheckpointError if the server cannot be reached or
    refuses, the connection is interrupted again and again, or the file has another
    hash; a ReszooError if the disk refused the write.
    """
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        raise UsageError(
            "A SHA-256 must be 8 to 64 hexadecimal digits, an MD5 'md5:' and 32. "
            f"Received: {checksum!r}."
        )
    final = _cached_path(checked_url(url))
    if not final.is_file():
        with _locked(final.parent.with_suffix(".lock")):
            if not final.is_file():
                _Transfer(url, checksum, final).run()
                return final
    _check_hash(final, checksum, str(final), "Delete the file to download it again.")
    return final


def fetch_hub(
    repo: str, files: Sequence[str], revision: str | None = None
) -> dict[str, Path]:
    """Return local copies of files of a Hugging Face repository, "owner/repo".

    All files are of one commit; the revision is a branch, tag or commit, None the main
    branch. Without a network, cached files are returned. `pytorch_model.bin` is left
    out if there is a `model.safetensors`. Paths are of those files that the repository
    has, in the order asked for. A CheckpointError if it cannot be reached or has none
    of them, or a file is damaged.
    """
    found: dict[str, Path] = {}

    def rank(file: str) -> tuple[bool, bool]:
        # Cached files first: without a network they give the commit.
        return file == PICKLED_FILE, not isinstance(_cached(repo, file, revision), str)

    for file in sorted(files, key=rank):
        if file == PICKLED_FILE and WEIGHTS_FILE in found:
            continue
        path = _hub_file(repo, file, revision)
        if path is not None:
            found[file] = path
            # .../snapshots/<commit>/<file>: the other files come from there too.
            revision = path.parents[file.count("/")].name
    if not found:
        raise CheckpointError(f"hf://{repo} has none of {', '.join(files)}.")
    return {file: found[file] for file in files if file in found}


def checked_url(url: str) -> str:
    """Return a URL if it is well formed; otherwise raise UsageError."""
    if not _URL.fullmatch(url):
        raise UsageError(
            "A URL is http(s)://host/path in ASCII without spaces, user or password. "
            f"Received: {public_origin(url)!r}."
        )
    return url


def _cached_path(url: str) -> Path:
    # No character of the URL's last part can lead out of the folder.
    last = unquote(urlsplit(url).path.rpartition("/")[2])
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", last)[-_MAX_NAME:].lstrip(".")
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_folder() / "url" / digest / (name or "weights")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other processes; the system frees the lock of one that dies."""
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
        # Whoever had the lock removed its file: lock the one that others will find.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _check_hash(
    file: Path, checksum: str | None, what: str, remedy: str,
    spoilt: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Refuse a file whose hash does not begin as expected; remove what is spoilt."""
    if checksum is None:
        return
    digits = checksum.removeprefix(_MD5)
    kind = "SHA-256" if digits == checksum else "MD5"
    with file.open("rb") as stream:
        received = hashlib.file_digest(stream, kind.replace("-", "")).hexdigest()
    if not received.startswith(digits.lower()):
        for path in spoilt:
            path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{what} must have the {kind} {digits}. Received: {received}. {remedy}"
        )


class _Interrupted(Exception):  # noqa: N818
    """A download stopped early and may be continued."""


class _WebRedirects(HTTPRedirectHandler):
    """Follows redirects to http and https, from https only to https."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        safe = "https://" if req.type == "https" else ("http://", "https://")
        if not newurl.lower().startswith(safe):
            reason = f"Redirection to url {public_origin(newurl)!r} is not allowed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transfer:
    """Downloads one file, continuing an earlier attempt where the server allows it."""

    # The caller holds the lock: two transfers to one file would share a partial file.
    # The bytes received so far are kept next to the final name. The tag is the server's
    # name for their version; without one they are not continued.

    def __init__(self, url: str, checksum: str | None, final: Path) -> None:
        self.url, self.checksum, self.final = url, checksum, final
        # In messages, which end up in logs.
        self.shown = public_origin(url)
        self.partial = final.with_name(f".{final.name}.part")
        self.tag = final.with_name(f".{final.name}.tag")
        self.by_hand = (
            f"download {self.shown} elsewhere and put it at {final}, or set "
            "RESZOO_HOME to a cache folder that has it."
        )

    def run(self) -> None:
        try:
            with atomic_file(self.final) as temporary:
                self._receive()
                remedy = (
                    "Nothing was kept; the file changed on the server or was damaged "
                    "on the way."
                )
                received = (self.partial, self.tag)
                _check_hash(self.partial, self.checksum, self.shown, remedy, received)
                self.partial.replace(temporary)
            self._forget()
        finally:
            if not self.tag.is_file():
                self._forget()
            with suppress(OSError):
                self.final.parent.rmdir()

    def _receive(self) -> None:
        for wait in (*WAITS, None):
            try:
                self._attempt()
            except _Interrupted as cut:
                if wait is None:
                    raise CheckpointError(
                        f"The download of {self.shown} was interrupted "
                        f"{len(WAITS) + 1} times, at last because {cut}. Try again, or "
                        f"{self.by_hand}"
                    ) from cut
                time.sleep(wait)
            else:
                return

    def _attempt(self) -> None:
        with self._open() as response:
            total = self._begin(response)
            if response.will_close:
                # Read to the end of the connection: the announced length may be wrong.
                # On one that stays open, what follows it is no part of the file (RFC
                # 9112, section 6.3), and waiting for it would take forever.
                response.length = None
            try:
                self._copy(response, total)
            except _Interrupted:
                if self._size() != total:
                    raise
        size = self._size()
        if total is not None and size < total:
            raise _Interrupted(f"{size} of {total} bytes arrived")

    def _open(self) -> http.client.HTTPResponse:
        headers = {"User-Agent": "reszoo"}
        if self.tag.is_file() and self._size():
            headers["Range"] = f"bytes={self._size()}-"
            headers["If-Range"] = self.tag.read_text(encoding="utf-8")
        request = Request(self.url, headers=headers)
        try:
            response: http.client.HTTPResponse = build_opener(_WebRedirects).open(
                request, timeout=_TIMEOUT
            )
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except urllib.error.URLError as error:
            if self._size():
                raise _Interrupted(str(error.reason)) from error
            raise CheckpointError(
                f"{self.shown} cannot be reached ({error.reason}) and is not in the "
                f"cache. Check the network, or {self.by_hand}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        return response

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._forget()
            return _Interrupted("the server has no more than what arrived")
        answer = f"the server answered {error.code} {error.reason}"
        if error.code in _RETRIED:
            return _Interrupted(answer)
        return CheckpointError(
            f"{self.shown} cannot be downloaded: {answer}. "
            f"Check the address, or {self.by_hand}"
        )

    def _begin(self, response: http.client.HTTPResponse) -> int | None:
        """Prepare the partial file for the response; return the file's full length."""
        # If-Range takes no weak tag, which does not promise the same bytes (RFC 9110).
        tag, modified = (response.headers[name] for name in ("ETag", "Last-Modified"))
        version = tag if tag and tag.startswith('"') else modified
        if response.status == http.client.PARTIAL_CONTENT and self.tag.is_file():
            content_range = response.headers["Content-Range"] or ""
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
            start, total = map(int, found.groups()) if found else (-1, 0)
            other = version and version != self.tag.read_text(encoding="utf-8")
            if start != self._size() or other:
                self._forget()
                raise _Interrupted("the server sent another part than the missing one")
            return total
        self._forget()
        if response.status != http.client.OK:
            raise CheckpointError(
                f"{self.shown} must be a file. Received: status {response.status}."
            )
        if response.length is None and not response.chunked and self.checksum is None:
            raise CheckpointError(
                f"The server does not tell the length of {self.shown}, so a truncated "
                f"file could not be recognised. Give its sha256, or {self.by_hand}"
            )
        if version:
            write_text(self.tag, version)
        return response.length

    def _copy(self, response: http.client.HTTPResponse, total: int | None) -> None:
        size = self._size()
        megabytes = math.ceil((total or 0) / _MEGABYTE)
        with (
            Progress(f"{self.final.name} (MB)", megabytes) as bar,
            self.partial.open("ab") as file,
        ):
            bar.advance(size // _MEGABYTE)
            while chunk := _read(response):
                file.write(chunk)
                bar.advance((size + len(chunk)) // _MEGABYTE - size // _MEGABYTE)
                size += len(chunk)
                if total is not None and size > total:
                    self._forget()
                    raise CheckpointError(
                        f"{self.shown} must be as long as its server announced: "
                        f"{total} bytes. Received: more. Nothing was kept."
                    )

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _forget(self) -> None:
        # The tag last: bytes without a tag are never continued.
        self.partial.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _hub_file(repo: str, file: str, revision: str | None) -> Path | None:
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # Of a commit, what is missing stays missing; of a branch, only the hub knows.
    is_commit = revision is not None and re.fullmatch("[0-9a-f]{40}", revision)
    if is_commit and _cached(repo, file, revision) is hub._CACHED_NO_EXIST:
        return None
    folder = cache_folder() / "hub"
    try:
        path = hub.hf_hub_download(repo, file, revision=revision, cache_dir=folder)
    # Its releases use different HTTP libraries, whose errors have no common base.
    except Exception as error:
        missing = isinstance(error, EntryNotFoundError)
        if isinstance(error, LocalEntryNotFoundError):
            missing = _cached(repo, file, revision) is hub._CACHED_NO_EXIST
        if missing:
            return None
        address = f"hf://{repo}@{revision}" if revision else f"hf://{repo}"
        reason = public_origin(" ".join(str(error).split()).rstrip("."))
        copy = folder / f"models--{repo.replace('/', '--')}"
        raise CheckpointError(
            f"{address} cannot be downloaded: {reason}. Without a network, copy {copy} "
            "from a machine that has it, or set RESZOO_HOME to a cache folder that has "
            "it."
        ) from error
    link, blob = Path(path), Path(path).resolve()
    # The hub names large files by their SHA-256; its client compares only lengths.
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        what, remedy = f"{link.name} of hf://{repo}", "Nothing was kept; try again."
        _check_hash(blob, blob.name, what, remedy, spoilt=(blob, link))
    return link


def _cached(repo: str, file: str, revision: str | None) -> object:
    from huggingface_hub import try_to_load_from_cache

    return try_to_load_from_cache(repo, file, cache_folder() / "hub", revision)
