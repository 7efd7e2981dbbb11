"""Chromium, driven over pipes with its DevTools protocol: no package is needed."""

import base64
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

CHROMIUM = shutil.which("chromium")
# As root in a container, without Google's services.
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --mute-audio "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-quic --remote-debugging-pipe --hide-scrollbars"
)


class Browser:
    """One page of Chromium."""

    def __init__(self, process: Any, read: int, write: int) -> None:
        self._process, self._read, self._write = process, read, write
        self._number, self._buffer, self._session = 0, b"", None
        self._served: tuple[str, Mapping[str, Path]] = ("", {})
        self.damaged = ""  # end of the URL whose content is changed
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = self._send(method, params)
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _send(self, method: str, params: Mapping[str, Any]) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        content = memoryview(json.dumps(message).encode() + b"\0")
        while content:
            content = content[os.write(self._write, content) :]
        return self._number

    def intercept(self, start: str, files: Mapping[str, Path]) -> None:
        """Answer requests of URLs that start so with files, by the rest of the URL."""
        self._served = start, files
        self.call("Fetch.enable", patterns=[{"urlPattern": f"{start}*"}])

    def _serve(self, paused: Mapping[str, Any]) -> None:
        start, files = self._served
        content = files[paused["request"]["url"].removeprefix(start)].read_bytes()
        if self.damaged and paused["request"]["url"].endswith(self.damaged):
            content += b"\0"
        script = paused["request"]["url"].endswith("js")
        kind = "text/javascript" if script else "application/wasm"
        headers = {"Content-Type": kind, "Access-Control-Allow-Origin": "*"}
        answer = {
            "requestId": paused["requestId"],
            "responseCode": 200,
            "responseHeaders": [{"name": k, "value": v} for k, v in headers.items()],
            "body": base64.b64encode(content).decode(),
        }
        self._send("Fetch.fulfillRequest", answer)

    def _next(self) -> Any:
        """Return the next message, once those that ask for files are answered."""
        while (message := self._received()).get("method") == "Fetch.requestPaused":
            self._serve(message["params"])
        return message

    def _received(self) -> Any:
        while b"\0" not in self._buffer:
            received = os.read(self._read, 1 << 20)
            if not received:
                raise RuntimeError(f"Chromium ended: {self._process.poll()}")
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Return what the body of an async function returns in the page."""
        done = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"]["exception"]["description"])
        return done["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Return the errors that the console shows."""
        found = [e.get("params", {}) for e in self.events]
        logged = [p["entry"] for p in found if "entry" in p]
        texts = [each["text"] for each in logged if each["level"] == "error"]
        return [
            *texts,
            *(str(p["exceptionDetails"]) for p in found if "exceptionDetails" in p),
        ]


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """Start Chromium, with its profile in a new folder."""
    to_child, write = os.pipe()
    read, from_child = os.pipe()
    options = [*_FLAGS.split(), f"--user-data-dir={profile}", *flags]
    command = shlex.join([str(CHROMIUM), *options])
    # The protocol's pipes are the descriptors 3 and 4.
    shell = f"exec {command} 3<&{to_child} 4>&{from_child}"
    with subprocess.Popen(
        ["bash", "-c", shell],
        pass_fds=(to_child, from_child),
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(to_child)
        os.close(from_child)
        try:
            yield Browser(process, read, write)
        finally:
            process.terminate()
            os.close(write)
            os.close(read)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """Serve a folder as any static host does; yield its URL."""
    handler = partial(_Quiet, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
