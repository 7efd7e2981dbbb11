"""The worker processes of a training, as TF_CONFIG names them."""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from reszoo.errors import ReszooError, UsageError

_VARIABLE = "TF_CONFIG"
_EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_GO = b"reszoo: all are here"
# Seconds between two tries, and for what should come at once.
_PAUSE, _SHORT = 0.2, 5.0


@dataclass(frozen=True)
class Cluster:
    """All workers of a training and which of them this process is.

    Attributes:
        addresses: "host:port" of every worker, in the same order everywhere.
        worker: Number of this one, from 0.
    """

    addresses: tuple[str, ...]
    worker: int


def read_cluster() -> Cluster:
    """Read the environment variable TF_CONFIG.

    Raises:
        UsageError: It is missing, malformed, names fewer than two workers, or asks
            for other tasks than workers.
    """
    text = os.environ.get(_VARIABLE)
    if not text:
        raise UsageError(
            'strategy="multiworker" needs the environment variable TF_CONFIG, which '
            f"names every worker and this one. Set it in each process: {_EXAMPLE}."
        )
    try:
        return _cluster(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "TF_CONFIG must name two workers or more as host:port, and this one by "
            f"its index, as in {_EXAMPLE}. Received: {text}."
        ) from error


def _cluster(content: Any) -> Cluster:
    jobs, task = content["cluster"], content["task"]
    addresses = tuple(jobs["worker"])
    cluster = Cluster(addresses, int(task["index"]))
    ports = [address.rpartition(":")[2].isdigit() for address in addresses]
    fits = (
        set(jobs) == {"worker"}
        and task["type"] == "worker"
        and len(set(addresses)) == len(addresses) >= 2
        and all(ports)
        and 0 <= cluster.worker < len(addresses)
    )
    if not fits:
        raise ValueError
    return cluster


def gather(cluster: Cluster, patience: float) -> None:
    """Wait until all workers are there, before TensorFlow begins to wait for them.

    TensorFlow 2.21 waits for an hour, deaf to Ctrl-C. Every worker reports to the
    first one, at the address that TensorFlow opens afterwards.

    Args:
        cluster: The workers.
        patience: Seconds.

    Raises:
        ReszooError: One did not come, or the first one cannot open its port.
    """
    end = time.monotonic() + patience
    try:
        missing = _call(cluster, end) if cluster.worker == 0 else _report(cluster, end)
    except OSError as error:
        raise ReszooError(
            f"Worker 0 cannot open its port: {cluster.addresses[0]} ({error}). Choose "
            "one that is free."
        ) from error
    if missing:
        raise ReszooError(
            f"Not all workers came within {patience:g} seconds. Missing: "
            f"{', '.join(missing)}. Start all of them, where each can be reached "
            "under its address."
        )


def _call(cluster: Cluster, end: float) -> list[str]:
    """Let all others report; return the addresses of those who did not."""
    present: dict[int, socket.socket] = {}
    others = range(1, len(cluster.addresses))
    port = int(cluster.addresses[0].rpartition(":")[2])
    with socket.create_server(("", port)) as server:
        server.settimeout(_PAUSE)
        while len(present) < len(others) and time.monotonic() < end:
            _welcome(server, present)
            _drop_closed(present)
        missing = [cluster.addresses[n] for n in others if n not in present]
        for line in present.values():
            with line:
                if not missing:
                    line.sendall(_GO)
    return missing


def _welcome(server: socket.socket, present: dict[int, socket.socket]) -> None:
    with suppress(TimeoutError):
        line, _ = server.accept()
        line.settimeout(_SHORT)
        try:
            number = int(line.recv(16))
        except (OSError, ValueError):
            # Somebody who is no worker.
            line.close()
            return
        line.setblocking(False)
        if number in present:
            present[number].close()
        present[number] = line


def _drop_closed(present: dict[int, socket.socket]) -> None:
    """Forget who went away again while it waited; it has to come anew."""
    for number in [n for n, line in present.items() if _is_closed(line)]:
        present.pop(number).close()


def _is_closed(line: socket.socket) -> bool:
    try:
        return not line.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _report(cluster: Cluster, end: float) -> list[str]:
    """Report to worker 0; return its address if it did not call."""
    host, _, port = cluster.addresses[0].rpartition(":")
    while (left := end - time.monotonic()) > 0:
        try:
            line = socket.create_connection((host, int(port)), min(left, _SHORT))
            with line:
                line.sendall(str(cluster.worker).encode())
                line.settimeout(left)
                if line.recv(len(_GO), socket.MSG_WAITALL) == _GO:
                    return []
        except OSError:
            pass
        time.sleep(_PAUSE)
    return [f"{cluster.addresses[0]} or another one"]
