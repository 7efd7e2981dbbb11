"""Devices and worker processes that a training run is distributed over."""

import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.console import end_quietly, quiet, say
from reszoo.errors import ReszooError, UsageError, known
from reszoo.training.state import Stopped

_EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_READY = b"reszoo: all are here"
# Seconds between two attempts, and for an answer that takes no waiting.
_PAUSE, _TIMEOUT = 0.2, 5.0
# Connections that may be silent at a time.
_MOST_STRANGERS = 100


class Cluster(NamedTuple):
    """The workers of a distributed training, and the number of this process."""

    addresses: tuple[str, ...]  # "host:port" of each, in the same order everywhere
    worker: int  # number of this process, from 0


def read_cluster() -> Cluster:
    """Read the environment variable TF_CONFIG.

    A UsageError if it is missing, malformed, or names fewer than two workers or tasks
    other than workers.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise UsageError(
            'strategy="multiworker" needs the environment variable TF_CONFIG, which '
            f"lists all workers and selects one. Set it in each process: {_EXAMPLE}."
        )
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        found = Cluster(tuple(jobs["worker"]), int(task["index"]))
        count = len(set(found.addresses))
        ports = [address.rpartition(":")[2].isdigit() for address in found.addresses]
        only_workers = set(jobs) == {task["type"]} == {"worker"}
        distinct = count == len(ports) >= 2
        if only_workers and distinct and all(ports) and 0 <= found.worker < count:
            return found
    raise UsageError(
        "TF_CONFIG must name two workers or more as host:port, and this process "
        f"by its index, as in {_EXAMPLE}. Received: {text}."
    )


def wait_for_workers(cluster: Cluster, timeout: float) -> None:
    """Wait until all workers have started, before TensorFlow waits for them.

    TensorFlow 2.21 waits for an hour and ignores Ctrl-C. Every worker connects to the
    first one, at the address that TensorFlow opens afterwards, and says its number and
    a hash of all addresses; other connections count for nothing and delay nobody. A
    ReszooError if a worker did not connect, or the first one cannot open its port.
    """
    connect = _accept_workers if cluster.worker == 0 else _connect_to_chief
    try:
        missing = connect(cluster, time.monotonic() + timeout)
    except OSError as error:
        raise ReszooError(
            f"Worker 0 cannot open its port: {cluster.addresses[0]} ({error}). Choose "
            "a free one."
        ) from error
    if missing:
        raise ReszooError(
            f"Not all workers connected within {timeout:g} seconds. Missing: "
            f"{', '.join(missing)}. Start all of them, where each can be reached "
            "under its address."
        )


def _greeting(cluster: Cluster, worker: int) -> bytes:
    """Return what a worker says first: which cluster it is of, and its number."""
    return f"{bytes(_digest(cluster.addresses)).hex()} {worker:>8}".encode()


def _accept_workers(cluster: Cluster, end: float) -> list[str]:
    """Accept the other workers; return the addresses of those that are missing."""
    others = range(1, len(cluster.addresses))
    greetings = {_greeting(cluster, number): number for number in others}
    connected: dict[int, socket.socket] = {}
    strangers: list[socket.socket] = []

    def greet(connection: socket.socket) -> None:
        """Count a worker as connected for as long as it is; close all others."""
        with connection, connection.makefile("rb") as said, suppress(OSError):
            try:
                number = greetings.get(said.read(len(next(iter(greetings)))))
            finally:
                strangers.remove(connection)
            if number is not None:
                connected[number] = connection
                connection.settimeout(None)
                # A worker says no more: this ends when it or we disconnect.
                said.read(1)
                if connected.get(number) is connection:
                    del connected[number]

    host, _, port = cluster.addresses[0].rpartition(":")
    # At its own address only, of version 4 or 6.
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    family, _, _, _, place = found[0]
    with socket.create_server((str(place[0]), int(port)), family=family) as server:
        server.settimeout(_PAUSE)
        while len(connected) < len(others) and time.monotonic() < end:
            with suppress(OSError):
                connection, _ = server.accept()
                connection.settimeout(_TIMEOUT)
                strangers.append(connection)
                threading.Thread(target=greet, args=[connection], daemon=True).start()
            # Those who came first and said nothing make room.
            for each in strangers[:-_MOST_STRANGERS]:
                _disconnect(each)
    missing = [cluster.addresses[n] for n in others if n not in connected]
    for connection in [*connected.values()] if not missing else []:
        # One that is gone by now fails on its own side.
        with suppress(OSError):
            connection.sendall(_READY)
    for connection in [*strangers, *connected.values()]:
        _disconnect(connection)
    return missing


def _disconnect(connection: socket.socket) -> None:
    """End a connection that a thread waits at, which then closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _connect_to_chief(cluster: Cluster, end: float) -> list[str]:
    """Connect to worker 0; return its address if it did not answer."""
    host, _, port = cluster.addresses[0].rpartition(":")
    while (left := end - time.monotonic()) > 0:
        with suppress(OSError):
            address = (host.strip("[]"), int(port))
            with socket.create_connection(address, min(left, _TIMEOUT)) as connection:
                connection.sendall(_greeting(cluster, cluster.worker))
                connection.settimeout(left)
                if connection.recv(len(_READY), socket.MSG_WAITALL) == _READY:
                    return []
        time.sleep(_PAUSE)
    return [f"{cluster.addresses[0]} or another one"]


STRATEGIES = ("mirrored", "multiworker")
# Seconds within which all workers have to be started.
_START_TIMEOUT = 300.0
# What TensorFlow raises where another worker no longer answers.
_UNREACHABLE = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
    tf.errors.DeadlineExceededError, tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)  # fmt: skip
_DIGEST_SIZE = 32


class Devices:
    """The devices of one worker or of several; see `open_devices`.

    Attributes:
        count: Devices of all workers together.
        worker: Number of this worker, from 0.
        workers: How many there are.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy | None = None,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        self._strategy = strategy
        self.count = strategy.num_replicas_in_sync if strategy else 1
        self.worker, self.workers = worker, workers
        self._local_count = self.count // workers
        self._sum_over_workers = tf.function(self.replicated(self._sum_once_per_worker))

    @property
    def is_chief(self) -> bool:
        """Whether this worker evaluates, prints and writes."""
        return self.worker == 0

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which new variables get a copy on every device."""
        return self._strategy.scope() if self._strategy else nullcontext()

    def check_batch_size(self, batch_size: int, accumulate: int) -> None:
        """Refuse a batch size that cannot be divided equally.

        A UsageError if there is a remainder.
        """
        if batch_size % (self.count * accumulate):
            parts = f"{self.count} device{'s' * (self.count != 1)}"
            if accumulate > 1:
                parts += f" times accumulate={accumulate}"
            raise UsageError(
                f"batch_size must be a multiple of {parts}, for each takes an equal "
                f"part. Received: batch_size={batch_size}."
            )

    def replicated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls this one on each device, as in a step.

        Within it, `shard` and `all_reduce` tell the devices apart. Its results must be
        the same for all of them.
        """
        strategy = self._strategy
        if strategy is None:
            return function

        def call(*arguments: Any) -> Any:
            results = strategy.run(function, args=arguments)
            return tf.nest.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], results
            )

        return call

    def shard(
        self, images: tf.Tensor, targets: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return this device's part of this worker's batch, and a key of its own."""
        if self._strategy is None:
            return images, targets, key
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = images.shape[0] // self._local_count
        start = number % self._local_count * size
        # Sliced where the batch is: a device does not need all of it.
        with tf.device("/device:CPU:0"):
            images, targets = (each[start : start + size] for each in (images, targets))
            return images, targets, tf.random.fold_in(key, number)

    def all_reduce(
        self, operation: Literal["SUM", "MEAN"], values: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Return the sums or means over all devices."""
        if self._strategy is None:
            return values
        context = tf.distribute.get_replica_context()
        reduced = context.all_reduce(tf.distribute.ReduceOp[operation], values)
        return list(reduced)

    def any_worker(self, value: bool) -> bool:
        """Return whether the value is true on any worker."""
        if self.workers == 1:
            return value
        return bool(self._over_workers([float(value)])[0])

    def broadcast(self, numbers: Sequence[float]) -> list[float]:
        """Return the chief's numbers, as many as this worker gave."""
        if self.workers == 1:
            return list(numbers)
        own = numbers if self.is_chief else [0.0] * len(numbers)
        return list(map(float, self._over_workers(own)))

    def check_agreement(self, facts: Mapping[str, Any]) -> None:
        """Refuse to start where a worker was started differently from the chief.

        Facts are what must be the same, by name, as JSON values; a UsageError says what
        is not.
        """
        if self.workers == 1:
            return
        digests = np.zeros((self.workers, len(facts), _DIGEST_SIZE))
        digests[self.worker] = [_digest(value) for _, value in sorted(facts.items())]
        everyone = self._over_workers(digests.ravel()).reshape(digests.shape)
        different = (everyone != everyone[:1]).any(-1)
        if different.any():
            who = ", ".join(str(worker) for worker in np.flatnonzero(different.any(1)))
            names = np.array(sorted(facts))[different.any(0)]
            raise UsageError(
                "All workers must be started with the same arguments. Different from "
                f"worker 0: {', '.join(names)}; on worker {who}."
            )

    def barrier(self) -> None:
        """Wait for all workers at the very end, so that none leaves too early."""
        # A worker that has passed may exit at once, before the others have heard of it.
        with suppress(*_UNREACHABLE):
            self.any_worker(False)
        # TensorFlow's coordination reports a worker that leaves before another.
        if self.workers > 1:
            end_quietly()

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Have all workers fail where one of them fails, instead of waiting for it.

        A ReszooError if another worker is gone.
        """
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            if self.workers == 1:
                raise
            _abort(f"worker {self.worker} failed")
            if not isinstance(error, _UNREACHABLE):
                raise
            raise ReszooError(
                "Another worker is gone: it exited, failed, or is unreachable; see its "
                "own messages. Start all workers again with --resume (resume=True) to "
                "continue from the last state."
            ) from error

    def _over_workers(self, numbers: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self._sum_over_workers(tf.constant(numbers, tf.float64)))

    def _sum_once_per_worker(self, numbers: tf.Tensor) -> tf.Tensor:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        first = number % self._local_count == 0
        own = numbers if first else tf.zeros_like(numbers)
        return self.all_reduce("SUM", [tf.identity(own)])[0]


def open_devices(strategy: str | None, timeout: float = _START_TIMEOUT) -> Devices:
    """Return the devices of a strategy, and wait some seconds for the other workers.

    "mirrored" is all GPUs of this machine (or all virtual CPUs), "multiworker" the
    processes in TF_CONFIG, None one device. An UnknownNameError for others; a
    UsageError if there is one device only, TF_CONFIG is missing or wrong, or TensorFlow
    was used before the workers were connected; a ReszooError if the other workers did
    not connect.
    """
    if strategy is None:
        return Devices()
    if known("strategy", strategy, STRATEGIES) == "mirrored":
        return Devices(_mirrored())
    cluster = read_cluster()
    workers = len(cluster.addresses)
    return Devices(_connected(cluster, timeout), cluster.worker, workers)


@cache
def _mirrored() -> tf.distribute.Strategy:
    """Create the strategy once: two in a process give their reductions equal numbers.

    With TensorFlow 2.21 the second then fails with "Shape mismatch in the collective".
    """
    kinds: tuple[Literal["GPU"], Literal["CPU"]] = ("GPU", "CPU")
    found = (tf.config.list_logical_devices(kind) for kind in kinds)
    devices = [device.name for device in next(filter(None, found))]
    if len(devices) < 2:
        raise UsageError(
            'strategy="mirrored" needs two devices or more on this machine. Found: '
            f"{', '.join(devices)}. Leave the strategy out."
        )
    return tf.distribute.MirroredStrategy(devices)


@cache
def _connected(cluster: Cluster, timeout: float) -> tf.distribute.Strategy:
    """Connect once: a process cannot leave its cluster, but it can train again."""
    say(
        f"This is worker {cluster.worker} of {len(cluster.addresses)} "
        f"({cluster.addresses[cluster.worker]}); waiting for the others."
    )
    wait_for_workers(cluster, timeout)
    try:
        with quiet():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise UsageError(
            "Workers must be connected before TensorFlow is first used. Give "
            "reszoo.train the name of a model (and weights=) instead of a model."
        ) from error
    except (tf.errors.OpError, ValueError) as error:
        raise ReszooError(f"The workers could not be connected: {error}.") from error
    # TensorFlow handles this signal as a notice of preemption, and does not stop.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return strategy


def _abort(reason: str) -> None:
    """Make waiting workers fail; without it they notice only the end of the process.

    TensorFlow 2.21 has no public function for it.
    """
    from tensorflow.python.eager import context

    context.context().abort_collective_ops(tf.errors.UNAVAILABLE, reason)


def _digest(value: Any) -> list[int]:
    return list(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest())
