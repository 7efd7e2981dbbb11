"""Bring one file over HTTP, whole or not at all.

An interrupted transfer goes on where it stopped, in the same call or in a later
one, as far as the server can tell that the file is still the same.
"""

import hashlib
import http.client
import math
import re
import time
import urllib.error
import urllib.request
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import IO

from reszoo.errors import CheckpointError
from reszoo.files import atomic_file, write_text
from reszoo.progress import Progress

# Seconds before each new attempt after a cut connection.
WAITS = (0.5, 1.0, 2.0)
_SILENCE = 30.0  # seconds without a byte that count as a cut
_CHUNK = 1 << 20
_MEGABYTE = 10**6
# Statuses of a server that may answer better in a moment.
_BUSY = (408, 429, 500, 502, 503, 504)


def transfer(url: str, sha256: str | None, final: Path) -> None:
    """Download a URL to a file.

    Two transfers to one file at a time would write into each other's partial file:
    the caller has to see to it.

    Args:
        url: An http or https URL.
        sha256: The file's SHA-256 in hex, or its first digits; None checks nothing
            but the length.
        final: The file; it appears when everything arrived and fits.

    Raises:
        CheckpointError: No network, a refusal, a connection cut again and again, or
            another file than the hash tells.
        ReszooError: The disk refused the write.
    """
    _Transfer(url, sha256, final).run()


def other_hash(file: Path, sha256: str | None) -> str | None:
    """Return a file's SHA-256 in hex if it does not begin with the one expected."""
    if sha256 is None:
        return None
    with file.open("rb") as stream:
        received = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if received.startswith(sha256.lower()) else received


class _Cut(Exception):  # noqa: N818
    """A download that broke off and may be taken up again."""


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects that stay on the web and as safe as the request."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        safe = "https://" if req.type == "https" else ("http://", "https://")
        if not newurl.lower().startswith(safe):
            reason = f"Redirection to url {newurl!r} is not allowed"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Transfer:
    """One file on its way.

    The bytes received so far lie beside the final name. The tag is what the server
    calls their version; without one, nothing tells whether they still fit.
    """

    def __init__(self, url: str, sha256: str | None, final: Path) -> None:
        self.url, self.sha256, self.final = url, sha256, final
        self.partial = final.with_name(f".{final.name}.part")
        self.tag = final.with_name(f".{final.name}.tag")

    def run(self) -> None:
        try:
            with atomic_file(self.final) as temporary:
                self._receive()
                self._check_hash()
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
            except _Cut as cut:
                if wait is None:
                    raise CheckpointError(
                        f"The download of {self.url} broke off {len(WAITS) + 1} times, "
                        f"the last time so: {cut}. Ask again, or {self._by_hand()}"
                    ) from cut
                time.sleep(wait)
            else:
                return

    def _attempt(self) -> None:
        with self._open() as response:
            total = self._begin(response)
            if response.will_close:
                # Read to the end of the connection, not to the announced length: it
                # may lie.
                response.length = None
            try:
                self._copy(response, total)
            except _Cut:
                if self._size() != total:
                    raise
        size = self._size()
        if total is not None and size < total:
            raise _Cut(f"{size} of {total} bytes arrived")

    def _open(self) -> http.client.HTTPResponse:
        headers = {"User-Agent": "reszoo"}
        if self.tag.is_file() and self._size():
            headers["Range"] = f"bytes={self._size()}-"
            headers["If-Range"] = self.tag.read_text(encoding="utf-8")
        request = urllib.request.Request(self.url, headers=headers)
        opener = urllib.request.build_opener(_WebRedirects)
        try:
            response: http.client.HTTPResponse = opener.open(request, timeout=_SILENCE)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except urllib.error.URLError as error:
            if self._size():
                raise _Cut(str(error.reason)) from error
            raise CheckpointError(
                f"{self.url} cannot be reached ({error.reason}) and is not in the "
                f"cache. Check the network, or {self._by_hand()}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(str(error) or type(error).__name__) from error
        return response

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._forget()
            return _Cut("the server has no more than what arrived")
        answer = f"the server answered {error.code} {error.reason}"
        if error.code in _BUSY:
            return _Cut(answer)
        return CheckpointError(
            f"{self.url} cannot be downloaded: {answer}. "
            f"Check the address, or {self._by_hand()}"
        )

    def _begin(self, response: http.client.HTTPResponse) -> int | None:
        """Make the partial file fit what follows; return the file's full length."""
        version = _version(response.headers)
        if response.status == http.client.PARTIAL_CONTENT and self.tag.is_file():
            start, total = _content_range(response.headers)
            other = version and version != self.tag.read_text(encoding="utf-8")
            if start != self._size() or other:
                self._forget()
                raise _Cut("the server sent another part than the missing one")
            return total
        self._forget()
        if response.status != http.client.OK:
            raise CheckpointError(
                f"{self.url} must be a file. Received: status {response.status}."
            )
        if response.length is None and not response.chunked and self.sha256 is None:
            raise CheckpointError(
                f"The server does not tell the length of {self.url}, so a cut could "
                f"not be noticed. Give its sha256; or {self._by_hand()}"
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
                        f"{self.url} must be as long as its server announced: "
                        f"{total} bytes. Received: more. Nothing was kept."
                    )

    def _check_hash(self) -> None:
        received = other_hash(self.partial, self.sha256)
        if received:
            self._forget()
            raise CheckpointError(
                f"{self.url} must have the SHA-256 {self.sha256}. "
                f"Received: {received}. Nothing was kept; the file was changed on the "
                "server or damaged on its way."
            )

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _forget(self) -> None:
        # The tag last: bytes without their tag are never continued.
        self.partial.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)

    def _by_hand(self) -> str:
        return (
            f"fetch {self.url} elsewhere and put it at {self.final}, or set "
            "RESZOO_HOME to a cache folder that has it."
        )


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(str(error) or type(error).__name__) from error


def _version(headers: Message) -> str | None:
    # Only these may stand in If-Range: a weak tag does not promise the same bytes.
    tag = headers["ETag"]
    return tag if tag and tag.startswith('"') else headers["Last-Modified"]


def _content_range(headers: Message) -> tuple[int, int]:
    """Return where a part begins and how long the whole is, (-1, 0) if not told."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers["Content-Range"] or "")
    return (int(found[1]), int(found[2])) if found else (-1, 0)
