"""Read event files back as TensorBoard does: in the order of their names, up to the
first broken record, forgetting what a START record says is repeated.
"""

from pathlib import Path

import pytest
import tensorflow as tf

import reszoo
from reszoo.training import history
from reszoo.training.history import EventLog

Scalars = dict[str, list[tuple[int, float]]]


def events(path: Path) -> list[tf.compat.v1.Event]:
    found = []
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            found.append(tf.compat.v1.Event.FromString(record))
    except tf.errors.DataLossError:
        pass
    return found


def shown(folder: Path) -> Scalars:
    kept: Scalars = {}
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.session_log.status == tf.compat.v1.SessionLog.START:
                for tag, points in kept.items():
                    kept[tag] = [point for point in points if point[0] < event.step]
            for value in event.summary.value:
                point = (event.step, value.simple_value)
                kept.setdefault(value.tag, []).append(point)
    return kept


def test_values_come_back_by_tag_and_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(tmp_path / "new" / "logs")
    log.scalars(1, {"train/loss": 2.5, "learning_rate": 0.125})
    log.scalars(2, {"train/loss": 1.5})
    assert capfd.readouterr() == ("", "")
    written = shown(tmp_path / "new" / "logs")  # what is flushed needs no close
    assert written == {
        "train/loss": [(1, 2.5), (2, 1.5)],
        "learning_rate": [(1, 0.125)],
    }
    assert events(log.path)[0].file_version == "brain.Event:2"
    assert "tfevents" in log.path.name  # by which TensorBoard finds it
    log.close()


def test_steps_repeated_after_a_kill_show_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    for step in range(1, 6):
        log.scalars(step, {"loss": step})
    log.path.write_bytes(log.path.read_bytes()[:-3])  # killed while it wrote step 5
    monkeypatch.setattr("time.time", lambda: 1.0)  # a clock set back
    again = EventLog(tmp_path, first_step=3)
    assert shown(tmp_path) == {"loss": [(1, 1.0), (2, 2.0)]}
    for step in range(3, 7):
        again.scalars(step, {"loss": 10 * step})
    again.close()
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    assert shown(tmp_path) == {"loss": expected}


def test_a_disk_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(reszoo.ReszooError, match=r"file/logs could not be written"):
        EventLog(tmp_path / "file" / "logs")
    monkeypatch.setattr(history, "_next_file", lambda folder: Path("/dev/full"))
    with pytest.raises(reszoo.ReszooError, match=r"/dev/full could .* make room"):
        EventLog(tmp_path)
