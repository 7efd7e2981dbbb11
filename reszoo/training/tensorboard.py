"""Write scalars that TensorBoard shows, without the `tensorboard` package.

`tf.summary.scalar` needs that package; the event file itself is TFRecords of `Event`
messages, both of which TensorFlow has.
"""

import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from reszoo.errors import ReszooError
from reszoo.files import disk_errors

_EVENT = tf.compat.v1.Event


class EventLog:
    """One event file; a run that goes on adds another to the same folder.

    Its first record tells TensorBoard to forget what earlier files of the folder
    hold from `first_step` on, so that steps repeated after a kill show only once.
    Earlier files stay untouched: their last record may be cut off, and readers then
    go on with the next file.

    Args:
        folder: Where the file goes; made if missing.
        first_step: The first step that will be written: 0 for a new run, else one
            more than the last step in the state that the run goes on from.

    Raises:
        ReszooError: The disk refused the write.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.path = _next_file(folder)
        self._writer = self._told(tf.io.TFRecordWriter, str(self.path))
        self._write(file_version="brain.Event:2")
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        self._write(session_log=start, step=first_step)
        self._told(self._writer.flush)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by tag ("train/loss"), and flush them to the file."""
        # `simple_value` is what torch's writer uses too: every reader knows it, and
        # TensorBoard turns it into its newer form while loading.
        summary = tf.compat.v1.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._write(summary=summary, step=step)
        self._told(self._writer.flush)

    def close(self) -> None:
        """Close the file."""
        self._told(self._writer.close)

    def _write(self, **fields: Any) -> None:
        event = _EVENT(wall_time=time.time(), **fields)
        self._told(self._writer.write, event.SerializeToString())

    def _told(self, action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except tf.errors.OpError as error:
            raise ReszooError(
                f"{self.path} could not be written: {error.message}. Make room on "
                "the disk or choose another place."
            ) from error


def _next_file(folder: Path) -> Path:
    """Name a file that sorts behind all there are, whatever the clock says.

    TensorBoard reads the files of a folder in the order of their names.
    """
    stamps = re.compile(r"events\.out\.tfevents\.(\d+)\.")
    found = [stamps.match(path.name) for path in folder.iterdir()]
    last = max((int(match[1]) for match in found if match), default=0)
    stamp = max(int(time.time()), last + 1)
    return folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"
