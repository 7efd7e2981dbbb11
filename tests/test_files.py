import errno
import os
import socket
from pathlib import Path

import pytest
import tensorflow as tf

from reszoo.errors import ReszooError
from reszoo.files import (
    atomic_file,
    atomic_folder,
    cache_folder,
    disk_errors,
    write_json,
)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü"\n}\n'

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text(encoding="utf-8").startswith("{")
    assert names(path.parent) == ["file.json"]


def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ReszooError, match="could not be written: No space left"):
        write_json(path, 2)
    assert path.read_text(encoding="utf-8") == "1\n"
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("1155072 requested and 158740 written"),
        RuntimeError("{{node}} /x/y; No space left on device [Op:SaveV2]"),
    ],
)
def test_libraries_that_tell_a_full_disk_in_their_own_words_are_understood(
    tmp_path: Path, error: Exception
) -> None:
    with (
        pytest.raises(ReszooError, match="x could not be written: No space left"),
        disk_errors(tmp_path / "x"),
    ):
        raise error
    interrupted = tf.errors.UnavailableError(None, None, "x; Interrupted system call")
    with (
        pytest.raises(ReszooError, match="could not be written: Interrupted"),
        disk_errors(tmp_path / "x"),
    ):
        raise interrupted
    with pytest.raises(OSError, match="a decoder's"), disk_errors(tmp_path / "x"):
        raise OSError("a decoder's")


def test_what_killed_processes_left_is_swept_and_brought_back(tmp_path: Path) -> None:
    folder, host = tmp_path / "folder", socket.gethostname()
    gone = tmp_path / f".folder.{host}-999999999-abcd.tmp"
    living = tmp_path / f".folder.{host}-{os.getpid()}-abcd.tmp"
    foreign = tmp_path / ".folder.elsewhere-999999999-abcd.tmp"
    for left in (gone, living, foreign):
        left.mkdir()
    aside = tmp_path / ".folder.old"
    aside.mkdir()
    (aside / "treasure").write_text("kept")
    with pytest.raises(KeyError), atomic_folder(folder):
        raise KeyError
    assert names(folder) == ["treasure"]
    assert sorted(names(tmp_path)) == sorted([living.name, foreign.name, "folder"])


def test_a_folder_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_folder(folder) as temporary:
            (temporary / content).write_text(content)
        assert names(folder) == [content]
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.suffix == ".tmp" and target == folder and "two" not in names(source):
            full_disk()
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with (
        pytest.raises(ReszooError, match="No space left"),
        atomic_folder(folder) as new,
    ):
        (new / "three").write_text("three")
    assert names(folder) == ["two"]
    assert names(tmp_path) == ["folder"]


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == home
    monkeypatch.setenv("RESZOO_HOME", "~/zoo")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "zoo"
    monkeypatch.delenv("RESZOO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "reszoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "reszoo"
    assert not (tmp_path / ".cache").exists()
