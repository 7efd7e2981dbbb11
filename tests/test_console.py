"""The command line is silent about TensorFlow; a host process keeps its streams."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from made_card import made_card

from reszoo.cli import main
from reszoo.console import print_json, print_table, print_text, printable, quiet, say
from reszoo.weights.safetensors import write

NUMBERED = "a line of another thread, number "


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done


@pytest.mark.slow
def test_no_import_hook_is_installed() -> None:
    python(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "import reszoo\n"
        "assert sys.meta_path == before, sys.meta_path\n"
        # Two packages that TensorFlow imports, absl and six, install hooks.
        "import keras, tensorflow\n"
        "before = list(sys.meta_path)\n"
        "reszoo.build('resnet20')\n"
        "assert sys.meta_path == before, sys.meta_path\n"
    )


def test_training_from_the_command_line_shows_our_lines_only(
    folder: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reszoo", "train", str(folder), "--model", "plain20",
         "--output", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "4"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = done.stderr.splitlines()
    assert first.startswith("plain20 on ")
    assert second.startswith("epoch   1/1 ")
    assert done.stdout.startswith("Best checkpoint: ")


def test_the_command_line_imports_the_exporter_silently(folder: Path) -> None:
    """The demo loads the exporter first, then refuses a folder of photos."""
    done = subprocess.run(
        [sys.executable, "-m", "reszoo", "demo", "--output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"reszoo: {folder} exists and is not an export")


@pytest.mark.slow
def test_a_library_never_redirects_file_descriptors(folder: Path) -> None:
    python(
        "import os\n"
        "def refuse(*_): raise AssertionError('redirected')\n"
        "os.dup2 = refuse\n"
        "import reszoo\n"
        f"reszoo.scan({str(folder)!r})\n"
        f"reszoo.train('plain20', {str(folder)!r}, batch_size=4, epochs=1)\n"
    )


@pytest.mark.slow
def test_other_threads_lose_nothing_while_a_model_is_exported(tmp_path: Path) -> None:
    done = python(
        "import logging, os, sys, threading, warnings\n"
        "import reszoo\n"
        "warnings.simplefilter('always')\n"
        "model = reszoo.build('resnet20', weights='cifar10')\n"
        "ended, count = threading.Event(), 0\n"
        "def talk():\n"
        "    global count\n"
        "    while not ended.wait(0.01):\n"
        f"        line = {NUMBERED!r} + str(count)\n"
        "        os.write(2, f'write: {line}\\n'.encode())\n"
        "        print('print:', line, file=sys.stderr, flush=True)\n"
        "        logging.warning('log: %s', line)\n"
        "        warnings.warn(f'warn: {line}')\n"
        "        count += 1\n"
        "thread = threading.Thread(target=talk, daemon=True)\n"
        "thread.start()\n"
        f"reszoo.export(model, {str(tmp_path / 'export')!r})\n"
        "ended.set()\n"
        "thread.join()\n"
        "print(count)\n"
    )
    count = int(done.stdout)
    assert count > 100
    lost = {
        kind: [n for n in range(count) if f"{kind}: {NUMBERED}{n}\n" not in done.stderr]
        for kind in ("write", "print", "log", "warn")
    }
    # TensorFlow ignores all warnings for some 150 moments of a conversion, in every
    # thread (tensorflow/python/trackable/autotrackable.py).
    assert len(lost.pop("warn")) < count / 10
    assert not any(lost.values()), lost


def test_filters_are_restored() -> None:
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl")]
    before = [logger.level for logger in loggers], warnings.filters[:]
    with quiet(), quiet():
        warnings.warn_explicit("noise", UserWarning, "a.py", 1, "keras.src.ops")
        assert not any(logger.isEnabledFor(logging.WARNING) for logger in loggers)
        with pytest.warns(UserWarning, match="our own"):
            warnings.warn("our own", stacklevel=1)
    assert ([logger.level for logger in loggers], warnings.filters[:]) == before
    with pytest.raises(UserWarning, match="noise"):
        warnings.warn_explicit("noise", UserWarning, "a.py", 1, "keras.src.ops")


def test_on_the_command_line_written_noise_is_shown_if_the_body_fails() -> None:
    done = python(
        "import os\n"
        "from reszoo.console import enable_quiet_cli, quiet\n"
        "enable_quiet_cli()\n"
        "with quiet():\n"
        "    os.write(2, b'lost\\n')\n"
        "for show in (False, True):\n"
        "    try:\n"
        "        with quiet(show=show):\n"
        "            os.write(2, f'{show}\\n'.encode())\n"
        "            raise ValueError\n"
        "    except ValueError:\n"
        "        os.write(2, b'after\\n')\n"
    )
    assert done.stderr.splitlines() == ["after", "True", "after"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("caf\u00e9 \u732b", "caf\u00e9 \u732b"),
        ("\x1b[2J\r\n\x7f\x9b", r"\x1b[2J\r\n\x7f\x9b"),
        ("gnp.\u202etac", r"gnp.\u202etac"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_everything_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("one\x1b[31m\ntwo")
    print_table(["image"], [["a\nb\x1b[1m"]])
    print_json([os.fsdecode(b"\xe9")])
    say("three\r")
    found = capsys.readouterr()
    assert found.out.startswith("one\\x1b[31m\ntwo\n")
    assert "\x1b" not in found.out
    assert "a\\nb" in found.out
    assert '"\\udce9"' in found.out
    assert found.err == "three\\r\n"


def test_an_error_is_printed_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("reszoo.cli.enable_quiet_cli", lambda: None)
    name = str(tmp_path / "\x1b[2Jgone.onnx")
    monkeypatch.setattr(sys, "argv", ["reszoo", "inspect", name])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert r"\x1b[2Jgone.onnx" in capsys.readouterr().err


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    card = made_card(("\u732b", "caf\u00e9", "c"))
    write(tmp_path / "a.safetensors", {"fc.bias": np.zeros(3, np.float32)}, card)
    done = subprocess.run(
        [sys.executable, "-m", "reszoo", "inspect", tmp_path / "a.safetensors"],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True, check=True,
    )  # fmt: skip
    assert r"\u732b, café, c" in done.stdout.decode("cp1252")
