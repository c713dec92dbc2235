"""The log for TensorBoard, where a run asks for it."""

import pathlib
from collections.abc import Mapping
from typing import Any

FOLDER = "tensorboard"
SETTING = "tensorboard"
"""Name of the setting that asks for it."""


def writer() -> Any:
    """tensorboardX's class that writes.

    Raises:
      ValueError: it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard is set, but tensorboardX is not installed; pip install "
            "'sinkflow[tensorboard]', or leave --tensorboard away"
        ) from None
    return SummaryWriter


class Board:
    """Scalars of one start of a training, in a file of their own; nothing without a folder."""

    def __init__(self, folder: pathlib.Path | None):
        self.folder, self.open = folder, None

    def start(self, done: int) -> None:
        """Opens the file of a start that goes on after ``done`` steps.

        What an earlier start wrote of later steps stays in its file; TensorBoard then hides it.
        """
        if self.folder is not None:
            self.open = writer()(str(self.folder), purge_step=done + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step; a kill after it loses none of them."""
        if self.open is not None:
            for name, value in values.items():
                self.open.add_scalar(name, value, step)
            self.open.flush()

    def close(self) -> None:
        """Ends the file."""
        if self.open is not None:
            self.open.close()
