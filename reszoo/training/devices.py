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
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from reszoo.console import say
from reszoo.errors import ReszooError, UnknownNameError, UsageError
from reszoo.training.state import Stopped

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


STRATEGIES = ("mirrored", "multiworker")
# Seconds in which all workers have to be started.
_PATIENCE = 300.0
# What TensorFlow raises where another worker does not answer any more.
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)
_DIGEST = 32


class Devices:
    """Some devices of one worker or of several; see `open_devices`.

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
        self._own = self.count // workers
        self._reduced = tf.function(self.everywhere(self._own_numbers))

    @property
    def is_chief(self) -> bool:
        """Whether this worker judges, tells and writes."""
        return self.worker == 0

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which new variables get a copy on every device."""
        return self._strategy.scope() if self._strategy else nullcontext()

    def check(self, batch_size: int, accumulate: int) -> None:
        """Refuse a batch that cannot be cut into equal parts.

        Raises:
            UsageError: There is an image over.
        """
        if batch_size % (self.count * accumulate):
            parts = f"{self.count} devices"
            if accumulate > 1:
                parts += f" times accumulate={accumulate}"
            raise UsageError(
                f"batch_size must be a multiple of {parts}, for each takes an equal "
                f"part. Received: batch_size={batch_size}."
            )

    def everywhere(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls this one for each device, as in a step.

        Within it, `part`, `mean` and `total` tell the devices apart. Its results must
        be the same for all of them.
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

    def part(
        self, images: tf.Tensor, labels: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return what of this worker's batch this device gets, and a key of its own."""
        if self._strategy is None:
            return images, labels, key
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = images.shape[0] // self._own
        start = number % self._own * size
        # Cut where the batch lies: a device need not have all of it.
        with tf.device("/device:CPU:0"):
            images, labels = (each[start : start + size] for each in (images, labels))
            return images, labels, tf.random.fold_in(key, number)

    def mean(self, values: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the means over all devices."""
        return self._reduce(tf.distribute.ReduceOp.MEAN, values)

    def total(self, values: list[tf.Tensor]) -> list[tf.Tensor]:
        """Return the sums over all devices."""
        return self._reduce(tf.distribute.ReduceOp.SUM, values)

    def anyone(self, asks: bool) -> bool:
        """Return whether any worker asks for something."""
        return bool(self._over_workers([float(asks)])[0]) if self.workers > 1 else asks

    def from_chief(self, numbers: Sequence[float]) -> list[float]:
        """Return the chief's numbers, as many as this worker gave."""
        if self.workers == 1:
            return list(numbers)
        mine = numbers if self.is_chief else [0.0] * len(numbers)
        return [float(number) for number in self._over_workers(mine)]

    def check_agreement(self, facts: Mapping[str, Any]) -> None:
        """Refuse to begin where a worker was started otherwise than the chief.

        Args:
            facts: What must be the same, by name, as JSON values.

        Raises:
            UsageError: Something differs; the message tells what.
        """
        if self.workers == 1:
            return
        digests = np.zeros((self.workers, len(facts), _DIGEST))
        digests[self.worker] = [_digest(value) for _, value in sorted(facts.items())]
        everyone = self._over_workers(digests.ravel()).reshape(digests.shape)
        odd = (everyone != everyone[:1]).any(-1)
        if odd.any():
            who = ", ".join(str(worker) for worker in np.flatnonzero(odd.any(1)))
            names = np.array(sorted(facts))[odd.any(0)]
            raise UsageError(
                "All workers must be started alike. Other than with worker 0: "
                f"{', '.join(names)}; on worker {who}."
            )

    def meet(self) -> None:
        """Wait for all workers at the very end, so that none leaves too early."""
        # Who has met may leave at once, before the others have heard of it.
        with suppress(*_GONE):
            self.anyone(False)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Have all workers end where one of them fails, instead of waiting for it.

        Raises:
            ReszooError: Another worker is gone.
        """
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            if self.workers == 1:
                raise
            _abort(f"worker {self.worker} failed")
            if not isinstance(error, _GONE):
                raise
            raise ReszooError(
                "Another worker is gone: it ended, failed, or cannot be reached any "
                "more; its own messages tell why. Start all workers again with "
                "--resume (resume=True) to go on from the last state."
            ) from error

    def _reduce(
        self, operation: tf.distribute.ReduceOp, values: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        if self._strategy is None:
            return values
        context = tf.distribute.get_replica_context()
        return list(context.all_reduce(operation, values))

    def _over_workers(self, numbers: Sequence[float] | NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self._reduced(tf.constant(numbers, tf.float64)))

    def _own_numbers(self, numbers: tf.Tensor) -> tf.Tensor:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = numbers if number % self._own == 0 else tf.zeros_like(numbers)
        return self.total([tf.identity(mine)])[0]


def open_devices(strategy: str | None, patience: float = _PATIENCE) -> Devices:
    """Return the devices of a strategy, and wait for the other workers.

    Args:
        strategy: "mirrored" for all GPUs of this machine (or all virtual CPUs),
            "multiworker" for the processes in TF_CONFIG, None for one device.
        patience: Seconds to wait for the other workers.

    Raises:
        UnknownNameError: There is no such strategy.
        UsageError: There is one device only, TF_CONFIG is missing or wrong, or
            TensorFlow has been used before the workers were connected.
        ReszooError: The other workers did not come.
    """
    if strategy is None:
        return Devices()
    if strategy not in STRATEGIES:
        raise UnknownNameError("strategy", strategy, STRATEGIES)
    if strategy == "mirrored":
        return Devices(_mirrored())
    cluster = read_cluster()
    opened = _connected(cluster, patience)
    return Devices(opened, cluster.worker, len(cluster.addresses))


@cache
def _mirrored() -> tf.distribute.Strategy:
    """Make the strategy once: two of them in a process number their reductions alike.

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
def _connected(cluster: Cluster, patience: float) -> tf.distribute.Strategy:
    """Connect once: a process cannot leave its cluster, but it can train again."""
    say(
        f"This is worker {cluster.worker} of {len(cluster.addresses)} "
        f"({cluster.addresses[cluster.worker]}); waiting for the others."
    )
    gather(cluster, patience)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise UsageError(
            "Workers must be connected before TensorFlow is first used. Give "
            "reszoo.train the name of a net (and weights=) instead of a model."
        ) from error
    except (tf.errors.OpError, ValueError) as error:
        raise ReszooError(f"The workers could not be connected: {error}.") from error
    # TensorFlow takes this signal over, to tell of preemption, and then goes on.
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
    text = json.dumps(value, sort_keys=True)
    return list(hashlib.sha256(text.encode()).digest())
