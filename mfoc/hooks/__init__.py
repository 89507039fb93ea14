"""Hooks for ``solve``: functions of the iterate, called after each step.

Any function of the iterate is one, so that whatever else is to hear of a run takes a line:

    hooks=[lambda it: wandb.log({"J": float(it.info.value), "residual": it.info.residual}, step=it.step)]

``it.info`` is what the step saw at the controls it started from, ``it.controls`` are those after it. A hook that
returns True stops the solve (``mfoc.solve`` says what counts as True), so that one of a function which may return it is
written as ``lambda it: print(tell(it))``, or as a function that returns nothing.

A hook may also have ``start(steps)``, ``finish(solution)``, ``failed(iterate)`` and ``close()``, which is called
however the solve ends.
"""

from mfoc.hooks.checkpoint import Checkpoint, load
from mfoc.hooks.csv import CSV
from mfoc.hooks.progress import Progress, progress_display
from mfoc.hooks.record import Record
from mfoc.hooks.tensorboard import TensorBoard

__all__ = ["CSV", "Checkpoint", "Progress", "Record", "TensorBoard", "load", "progress_display"]
