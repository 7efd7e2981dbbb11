import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reszoo
from reszoo.training.devices import (
    Cluster,
    Devices,
    open_devices,
    read_cluster,
    wait_for_workers,
)

PROGRAM = Path(__file__).with_name("distributed.py")
# Seconds; a survivor has to notice much sooner, which is measured by itself.
LIMIT = 240
KEPT = {"ema": 0.9}
UNEVEN = {"uneven": True, "sampling": "balanced", "class_weight": {"1": 2.0}}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def cluster(index: int, ports: list[int]) -> str:
    addresses = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def start(folder: Path, jobs: list[dict[str, Any]], **more: str) -> Any:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), json.dumps(jobs)],
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[1]), **more},
        stderr=subprocess.PIPE,
        text=True,
    )


def carry_out(folder: Path, jobs: list[dict[str, Any]], workers: int) -> list[int]:
    """Have one or two processes carry out jobs; return how they ended."""
    ports = [free_port() for _ in range(workers)]
    envs = [{"TF_CONFIG": cluster(i, ports)} for i in range(workers)]
    started = [start(folder, jobs, **env) for env in (envs if workers > 1 else [{}])]
    try:
        said = [process.communicate(timeout=LIMIT)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [int(process.returncode) for process in started]
    assert codes[0] == 0, said[0][-3000:]
    return codes


def job(name: str, strategy: str | None, sends: Any = None, **options: Any) -> Any:
    return {"name": name, "strategy": strategy, "signal": sends, "options": options}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with two virtual devices."""
    folder = tmp_path_factory.mktemp("machine")
    jobs = [
        job("one", None),
        job("synced", "mirrored", sync_bn=True),
        job("apart", "mirrored", accumulate=2, mixup=0.2, **KEPT),
        job("odd", "mirrored", batch_size=15),
        job("uneven", None, **UNEVEN),
        job("even", "mirrored", sync_bn=True, **UNEVEN),
    ]
    carry_out(folder, jobs, workers=1)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two worker processes; the second is killed at the end, and both start again."""
    folder = tmp_path_factory.mktemp("pair")
    kill, stop = ({"step": 5, "name": name} for name in ("SIGKILL", "SIGTERM"))
    several = "multiworker"
    jobs = [
        job("synced", several, sync_bn=True),
        job("whole", several, output="whole", **KEPT),
        job("stopped", several, stop, output="cut", **KEPT),
        job("killed", several, kill, output="cut", resume=True, save_every=0, **KEPT),
    ]
    assert carry_out(folder, jobs, workers=2)[1] == -9
    again = [
        job("risen", several, output="cut", resume=True, **KEPT),
        job("unlike", several, seeds=[1, 2]),
    ]
    carry_out(folder, again, workers=2)
    return folder


def read(folder: Path, name: str, worker: int = 0) -> dict[str, Any]:
    return dict(np.load(folder / f"{name}.{worker}.npz"))


def weights(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if "." in name}


def assert_equal_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert len(weights(one)) == len(weights(other)) > 40
    for name, value in weights(one).items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def assert_same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["losses"].shape == other["losses"].shape == (16,)
    np.testing.assert_allclose(one["losses"], other["losses"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(one["history"], other["history"], atol=2e-3, rtol=0)


@pytest.mark.slow
def test_two_devices_with_shared_statistics_do_what_one_does(machine: Path) -> None:
    synced = read(machine, "synced")
    assert_same_training(read(machine, "one"), synced)
    assert synced["losses"][-4:].mean() < 0.75 * synced["losses"][:2].mean()


@pytest.mark.slow
def test_two_devices_sample_as_one_does(machine: Path) -> None:
    assert_same_training(read(machine, "uneven"), read(machine, "even"))
    plain, sampled = read(machine, "one"), read(machine, "uneven")
    assert np.abs(plain["losses"] - sampled["losses"]).max() > 0.05


@pytest.mark.slow
def test_all_copies_of_a_variable_stay_equal(machine: Path) -> None:
    for name in ("synced", "apart"):
        found = read(machine, name)
        assert found["copies"] > 100
        assert found["spread"] == 0
    apart, one = read(machine, "apart"), read(machine, "one")
    assert abs(apart["losses"][0] - one["losses"][0]) > 1e-3


@pytest.mark.slow
def test_two_workers_with_shared_statistics_do_what_one_does(
    machine: Path, pair: Path
) -> None:
    assert_same_training(read(machine, "one"), read(pair, "synced"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synced", "whole"])
def test_all_workers_end_with_equal_weights_and_statistics(
    pair: Path, name: str
) -> None:
    one, other = read(pair, name), read(pair, name, worker=1)
    assert_equal_weights(one, other)
    np.testing.assert_array_equal(one["losses"], other["losses"])
    np.testing.assert_array_equal(one["history"], other["history"])


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_of_them(pair: Path) -> None:
    for worker in (0, 1):
        stopped = read(pair, "stopped", worker)
        assert str(stopped["error"]).startswith("Stopped")
        assert len(stopped["losses"]) == 5


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_with_an_error(pair: Path) -> None:
    survivor = read(pair, "killed")
    assert "Another worker is gone" in str(survivor["error"])
    assert "Start all workers again with --resume" in str(survivor["error"])
    assert survivor["last_step_to_end"] < 60


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_ends_bit_equal(pair: Path) -> None:
    whole = read(pair, "whole")
    parts = [read(pair, name)["losses"] for name in ("stopped", "killed", "risen")]
    np.testing.assert_array_equal(whole["losses"][:5], parts[0])
    np.testing.assert_array_equal(whole["losses"][5:10], parts[1])
    np.testing.assert_array_equal(whole["losses"][-len(parts[2]) :], parts[2])
    for worker in (0, 1):
        assert_equal_weights(whole, read(pair, "risen", worker))


@pytest.mark.slow
def test_workers_with_different_arguments_are_refused(pair: Path) -> None:
    for worker in (0, 1):
        error = str(read(pair, "unlike", worker)["error"])
        assert (
            "UsageError: All workers must be started with the same arguments" in error
        )
        assert "recipe's seed, weights; on worker 1" in error


@pytest.mark.slow
def test_a_batch_that_cannot_be_cut_is_refused(machine: Path) -> None:
    error = str(read(machine, "odd")["error"])
    assert "UsageError: batch_size must be a multiple of 2 devices" in error


def test_one_device_is_no_strategy() -> None:
    with pytest.raises(reszoo.UsageError, match=r"two devices or more.*Found: /device"):
        open_devices("mirrored")
    with pytest.raises(reszoo.UnknownNameError, match="Did you mean 'mirrored'"):
        open_devices("miror")
    assert open_devices(None).count == 1


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"cluster": {}}',
        cluster(2, [1, 2]),
        cluster(0, [1]),
        cluster(0, [1, 1]),
        cluster(0, [1, 2]).replace("worker", "ps"),
        cluster(0, [1, 2]).replace("127.0.0.1:1", "127.0.0.1"),
    ],
)
def test_a_malformed_cluster_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(reszoo.UsageError, match="TF_CONFIG must name two workers"):
        open_devices("multiworker")


def test_the_cluster_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TF_CONFIG", cluster(1, [7, 8]))
    assert read_cluster() == Cluster(("127.0.0.1:7", "127.0.0.1:8"), 1)
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(reszoo.UsageError, match="needs the environment variable"):
        open_devices("multiworker")


def together(workers: list[int], patience: float) -> list[BaseException | None]:
    """Let some workers of three gather, each in a thread; return their errors."""
    addresses = tuple(f"127.0.0.1:{free_port()}" for _ in range(3))
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(wait_for_workers, Cluster(addresses, worker), patience)
            for worker in workers
        ]
        return [each.exception() for each in waiting]


def test_workers_wait_for_each_other() -> None:
    assert together([2, 1, 0], patience=20) == [None, None, None]


def test_missing_workers_are_listed() -> None:
    for error in together([0, 2], patience=0.5):
        assert isinstance(error, reszoo.ReszooError)
        assert "Not all workers connected within 0.5 seconds. Missing: 127" in str(
            error
        )


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("", 0)) as taken:
        addresses = (f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1")
        with pytest.raises(reszoo.ReszooError, match="Worker 0 cannot open its port"):
            wait_for_workers(Cluster(addresses, 0), 1)


def test_accumulated_parts_must_fit_too() -> None:
    with pytest.raises(reszoo.UsageError, match="1 device times accumulate=3"):
        Devices().check_batch_size(16, 3)
