"""Start two workers again and again on a busy machine; count hangs and foreign output.

    python stress/workers.py --starts 50 --busy 1

Each start is `reszoo train digits --strategy multiworker` in two processes on loopback,
while `--busy` others keep a core busy each. With `--linger` worker 1 ends so many
seconds after worker 0. A start counts as failed if a worker is not
done after `--limit` seconds, ends with an error, or prints what reszoo did not write.
Exit 1 if any did.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Lines of TensorFlow's C++ begin with a level, a date, or a Python-like location.
FOREIGN = re.compile(r"^([IWEF]\d{4} |\d{4}-\d\d-\d\d |WARNING:|Traceback|.*\.cc:\d+)")
# Worker 1 ends some seconds after worker 0, which has the coordination service.
PROGRAM = """
import sys, time
from reszoo.cli import main
linger = float(sys.argv.pop(1))
try:
    main()
finally:
    time.sleep(linger)
"""
OPTIONS = "--model resnet8 --epochs 1 --batch-size 64 --size 8 --strategy multiworker"


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in opened]
    for each in opened:
        each.close()
    return ports


def start(folder: Path, limit: float, linger: float) -> list[str]:
    """Train with two workers once; return what went wrong, a line each."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    words = ["train", "digits", *OPTIONS.split(), "--output", str(folder)]
    running = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": addresses}, "task": task}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(linger * index), *words],
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    ends, wrong = time.monotonic() + limit, []
    try:
        for index, process in enumerate(running):
            try:
                said = process.communicate(timeout=max(1, ends - time.monotonic()))[0]
            except subprocess.TimeoutExpired:
                process.kill()
                said = process.communicate()[0]
                wrong.append(f"worker {index} hangs")
            if process.returncode:
                wrong.append(f"worker {index} ended with {process.returncode}")
            lines = said.splitlines()
            wrong += [
                f"worker {index}: {each}" for each in lines if FOREIGN.match(each)
            ]
            if process.returncode:
                wrong += [f"worker {index}: {each}" for each in lines[-5:]]
    finally:
        for process in running:
            process.kill()
    return wrong


def main() -> None:
    """Start as often as asked and print one line for each start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--linger", type=float, default=0)
    chosen = parser.parse_args()
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(chosen.busy)]
    failed = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(1, chosen.starts + 1):
                began = time.monotonic()
                wrong = start(Path(folder) / str(number), chosen.limit, chosen.linger)
                failed += bool(wrong)
                seconds = time.monotonic() - began
                print(f"{number}: {seconds:.0f} s", *wrong, sep="\n  ", flush=True)
    finally:
        for each in busy:
            each.kill()
    print(f"{chosen.starts} starts, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
