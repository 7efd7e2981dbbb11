"""The meeting of workers: strangers count for nothing and delay nobody."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

import reszoo
from reszoo.training.devices import Cluster, wait_for_workers


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return int(opened.getsockname()[1])


def reached(address: tuple[str, int]) -> socket.socket:
    for _ in range(100):
        try:
            return socket.create_connection(address, 1)
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nobody listens at {address}")


@contextmanager
def meeting(addresses: tuple[str, ...], patience: float) -> Iterator[list[object]]:
    """Worker 0 waits in a thread; the list gets its error, or None."""
    ended: list[object] = []

    def wait() -> None:
        try:
            wait_for_workers(Cluster(addresses, 0), patience)
            ended.append(None)
        except reszoo.ReszooError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield ended
    finally:
        thread.join()


@pytest.mark.parametrize("said", [b"77", b"-5", b"1", b"x" * 200, b" 1 " * 40, b""])
def test_what_a_stranger_says_counts_for_nothing(said: bytes) -> None:
    port = free_port()
    addresses = (f"127.0.0.1:{port}", "127.0.0.1:1")
    with meeting(addresses, patience=1.5) as ended:
        stranger = reached(("127.0.0.1", port))
        stranger.sendall(said)
        stranger.settimeout(3)
        with stranger, suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    assert "Missing: 127.0.0.1:1" in str(ended[0])


def test_silent_connections_delay_nobody() -> None:
    port = free_port()
    addresses = (f"127.0.0.1:{port}", "127.0.0.1:1", "127.0.0.1:2")
    with meeting(addresses, patience=20) as ended:
        silent = [reached(("127.0.0.1", port)) for _ in range(8)]
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            others = [
                pool.submit(wait_for_workers, Cluster(addresses, number), 20)
                for number in (1, 2)
            ]
        assert [each.result() for each in others] == [None, None]
        # Each used to take five seconds.
        assert time.monotonic() - began < 15
        for each in silent:
            each.close()
    assert ended == [None]


def test_worker_0_listens_at_its_own_address_only() -> None:
    port = free_port()
    addresses = (f"127.0.0.2:{port}", "127.0.0.1:1")
    with meeting(addresses, patience=1.0):
        reached(("127.0.0.2", port)).close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 1).close()
