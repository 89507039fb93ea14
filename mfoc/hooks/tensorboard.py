"""A run in TensorBoard."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mfoc.checks import check_flag
from mfoc.distributed import is_main
from mfoc.errors import InvalidValue, StorageError, require
from mfoc.hooks.files import storage_error
from mfoc.hooks.names import checked_name, explained_names, kind_at, status_of
from mfoc.hooks.numbers import Clerk, seen
from mfoc.solving import Iterate

_SECONDS = 5  # after which what was written can be looked at


class TensorBoard:
    """Writes J, the residual, the seconds and numbers of your own for ``tensorboard --logdir FOLDER``.

    They are written at the number of steps that were done, as in ``mfoc.hooks.CSV``. A solve that goes on from
    ``start=`` goes on in the same folder: what TensorBoard shows of the steps that are made again is the new run.
    Over ranks rank 0 writes; the function is called on all of them.

        hooks=[mfoc.hooks.TensorBoard("runs/adam", lambda it: {"accuracy": accuracy(net, it.controls)}, every=10)]

    Args:
        folder: one for each run, made if absent.
        function: ``function(iterate) -> dict`` of numbers, by their tags; "loss/train" is shown under "loss".
        every: steps between entries.
        overwrite: of a solve that begins at step 0, in a folder that holds a run: show this one in its place (the files
            stay). It is refused unless asked for.

    Attributes:
        folder: the folder, its whole path.

    Raises:
        MissingExtra: tensorboard is not installed.
        InvalidType: the folder is no name, or the function none; or, in a solve, the function has returned something
            else than numbers.
        InvalidValue: the folder is a file; or, in a solve that begins at step 0, it holds another run.
        StorageError: in a solve, the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        function: Callable[[Iterate], Mapping[str, Any]] | None = None,
        *,
        every: int = 1,
        overwrite: bool = False,
    ) -> None:
        self._clerk = Clerk(function, every)
        check_flag(overwrite=overwrite)
        name = checked_name(folder, "folder")
        with explained_names(name):
            status = status_of(name)
            if status is not None and not os.path.isdir(name):
                raise InvalidValue(f"folder is {name}; it is {kind_at(status)}, expected a folder")
        self._tensorboard = require("torch.utils.tensorboard", "tensorboard")
        self.folder = Path(os.path.abspath(name))
        self._overwrite = overwrite
        self._writer: Any = None

    def start(self, steps: int) -> None:
        """Starts the clock."""
        self._clerk.start()

    def __call__(self, iterate: Iterate) -> None:
        """Writes, when it is time."""
        if self._writer is None and is_main():
            self._writer = self._opened(iterate.step)
        due = self._clerk.due(iterate)
        if due is not None and self._writer is not None:
            (seconds, own), (value, residual) = due, seen(iterate)
            with self._explained():
                for tag, number in {"J": value, "residual": residual, "seconds": seconds, **own}.items():
                    self._writer.add_scalar(tag, number, iterate.step)

    def close(self) -> None:
        """Writes what is not written yet."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._explained():
                writer.close()

    def _opened(self, step: int) -> Any:
        """A writer, from this step on."""
        with self._explained():
            os.makedirs(self.folder, exist_ok=True)
            held = any("tfevents" in name for name in os.listdir(self.folder))
            if held and step == 1 and not self._overwrite:
                raise InvalidValue(
                    f"folder is {self.folder}; it holds another run, or this one, ended before its first checkpoint, "
                    "and this one begins at step 0: take another folder, or say overwrite=True, which hides it, "
                    "but keeps what start= goes on with"
                )
            # What is there of these steps is not shown any more.
            purged = None if not held else 0 if step == 1 else step
            return self._tensorboard.SummaryWriter(str(self.folder), purge_step=purged, flush_secs=_SECONDS)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What the system says, as an error of this library."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(self.folder, error) from error
