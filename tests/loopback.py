"""A server on 127.0.0.1 that plays the web and the hub, and misbehaves when told."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LICENCES = ["apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "other"]
_HUB_PATH = re.compile(r"/(\w+/\w+)/resolve/(\w+)/(.+)")


@dataclass
class Site:
    """What the server holds, how it misbehaves, and what it was asked.

    Attributes:
        files: Path -> content. A file of the hub is at
            "/owner/repo/resolve/main/file"; its tag is its SHA-256.
        tag: ETag of files that are not of the hub.
        ranges: Whether a part of a file can be asked for.
        careless: Whether it sends parts of a file that is no longer the same.
        cuts: After how many bytes each of the next answers breaks off.
        statuses: Sent instead of the next answers.
        announced: Added to the true length; None tells no length.
        chunked: Whether to send chunks, without a length.
        closes: Whether to say that each connection carries one answer.
        lingers: Whether to keep the connection open all the same.
        damaged: Index of a byte that is sent wrong.
        redirects: Path -> where it moved to.
        gate: Answers stop after `gate_at` bytes until it opens.
        asked: Method, path and headers of every request.
        uploaded: SHA-256 -> content of large files that were sent to the hub.
        stored: What the hub's Xet storage was sent, in its own format.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    tag: str | None = '"v1"'
    ranges: bool = True
    careless: bool = False
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    announced: int | None = 0
    chunked: bool = False
    closes: bool = True
    lingers: bool = False
    damaged: int | None = None
    redirects: dict[str, str] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    gate_at: int = 0
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    stored: list[bytes] = field(default_factory=list)
    url: str = ""
    stop: Any = None

    def gets(self) -> list[dict[str, str]]:
        """Return the headers of every download asked for."""
        return [
            headers
            for method, path, headers in self.asked
            if method == "GET" and not path.startswith("/api/")
        ]

    def put_on_hub(self, repo: str, **files: bytes) -> None:
        """Add files; the last underscore of a name is its dot."""
        for name, content in files.items():
            path = f"/{repo}/resolve/main/{'.'.join(name.rsplit('_', 1))}"
            self.files[path] = content


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body_wanted=False)

    def do_GET(self) -> None:
        self._answer(body_wanted=True)

    def do_PUT(self) -> None:
        self.site.uploaded[self.path.rpartition("/")[2]] = self._received()
        self._head(200)

    def do_POST(self) -> None:
        """Play the hub's side of `huggingface_hub.HfApi.upload_folder`."""
        site, content = self.site, self._received()
        site.asked.append((self.command, self.path, dict(self.headers)))
        if site.statuses:
            return self._head(site.statuses.pop(0))
        repo = self.path.removeprefix("/api/models/").rsplit("/", 2)[0]
        if self.path.endswith("/preupload/main"):
            # Weights go to the large file storage, as on the hub.
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": each["path"], "shouldIgnore": False}
                | {"uploadMode": modes[each["path"].endswith(".safetensors")]}
                for each in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **each,
                    "actions": {"upload": {"href": f"{site.url}/lfs/{each['oid']}"}},
                }
                for each in json.loads(content)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if self.path.endswith("/commit/main"):
            self._commit(repo, [json.loads(line) for line in content.splitlines()])
            return self._json(
                {"commitUrl": f"{site.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        if self.path == "/api/repos/create":
            made = json.loads(content)
            return self._json(
                {"url": f"{site.url}/{made['organization']}/{made['name']}"}
            )
        if re.match(r"/v\d/", self.path):
            # The storage behind the hub, in the first version of its protocol.
            if not self.path.startswith(("/v1/xorbs/", "/v1/shards")):
                return self._head(404)
            site.stored.append(content)
            return self._json({"was_inserted": True, "result": 1})
        assert self.path == "/api/validate-yaml", self.path
        return self._validate(json.loads(content)["content"])

    def _validate(self, model_card: str) -> None:
        """Refuse metadata as the hub does: it knows a list of licences."""
        found = re.search(r'^license: "?([^"\n]*)', model_card, re.MULTILINE)
        if found is None or found[1] in _LICENCES:
            return self._json({"errors": [], "warnings": []})
        told = [{"message": f'"license" must be one of {_LICENCES}'}]
        return self._json({"errors": told, "warnings": []}, 400)

    def _commit(self, repo: str, lines: list[Any]) -> None:
        for line in lines:
            value = line["value"]
            name = f"/{repo}/resolve/main/{value.get('path')}"
            if line["key"] == "file":
                self.site.files[name] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.site.files[name] = self.site.uploaded[value["oid"]]

    def _received(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self._head(status, **{"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _answer(self, body_wanted: bool) -> None:
        site = self.site
        headers = {name.lower(): value for name, value in self.headers.items()}
        site.asked.append((self.command, self.path, headers))
        if body_wanted and site.statuses:
            return self._head(site.statuses.pop(0))
        if self.path in site.redirects:
            return self._head(302, Location=site.redirects[self.path])
        extra = self._hub_headers() if "/resolve/" in self.path else {}
        body = site.files.get(self.path.replace(COMMIT, "main"))
        if body is None or "X-Error-Code" in extra:
            return self._head(404, **extra)
        tag = extra.setdefault("ETag", site.tag or "")
        start = self._start(headers, tag)
        if start and start >= len(body):
            return self._head(416)
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if site.announced is not None and not site.chunked:
            extra["Content-Length"] = str(len(body) - start + site.announced)
        if site.chunked:
            extra["Transfer-Encoding"] = "chunked"
        # Taken before the head: a client may leave at that, and set the next cut.
        cut = site.cuts.pop(0) if body_wanted and site.cuts else len(body)
        self._head(206 if start else 200, **extra)
        return self._send(body, start, cut) if body_wanted else None

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if self.site.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _start(self, headers: dict[str, str], tag: str) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        same = headers.get("if-range", tag) == tag or self.site.careless
        return int(asked[1]) if asked and same and self.site.ranges else 0

    def _send(self, body: bytes, start: int, cut: int) -> None:
        site = self.site
        if site.damaged is not None:
            wrong = bytes([body[site.damaged] ^ 1])
            body = body[: site.damaged] + wrong + body[site.damaged + 1 :]
        end = min(start + cut, len(body))
        gate = max(start, min(end, site.gate_at))
        self._write(body[start:gate])
        site.gate.wait(60)
        self._write(body[gate:end])
        if site.chunked and end >= len(body):
            self.wfile.write(b"0\r\n\r\n")
        if site.lingers:
            self.rfile.read(1)  # until the client hangs up

    def _write(self, part: bytes) -> None:
        if self.site.chunked and part:
            part = b"%x\r\n%s\r\n" % (len(part), part)
        self.wfile.write(part)
        self.wfile.flush()

    def _hub_headers(self) -> dict[str, str]:
        found = _HUB_PATH.fullmatch(self.path)
        prefix = f"/{found[1]}/" if found else None
        if prefix is None or not any(
            path.startswith(prefix) for path in self.site.files
        ):
            return {"X-Error-Code": "RepoNotFound"}
        if not found or found[2] not in ("main", COMMIT):
            return {"X-Error-Code": "RevisionNotFound"}
        body = self.site.files.get(f"{prefix}resolve/main/{found[3]}")
        if body is None:
            return {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        return {"X-Repo-Commit": COMMIT, "ETag": tag, "X-Linked-Size": str(len(body))}


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        # Clients of these tests hang up and are killed.
        pass


@contextmanager
def serve() -> Iterator[Site]:
    """Yield a site that is open to requests; its gate is open."""
    site = Site()
    site.gate.set()
    handler = type(
        "Handler", (_Handler,), {"site": site, "protocol_version": "HTTP/1.1"}
    )
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}
    )
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread.start()

    def stop() -> None:
        site.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()

    site.stop = stop
    try:
        yield site
    finally:
        if thread.is_alive():
            stop()


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python process that prints "started" when it has imported all."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    """Return what such a process printed, once it has succeeded."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.removeprefix("started\n")
