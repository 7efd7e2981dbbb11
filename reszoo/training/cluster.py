"""The worker processes of a training, as TF_CONFIG names them."""

import json
import os
from dataclasses import dataclass
from typing import Any

from reszoo.errors import UsageError

_VARIABLE = "TF_CONFIG"
_EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


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
