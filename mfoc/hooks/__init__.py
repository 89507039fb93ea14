"""Hooks for ``solve``: functions of the iterate, called after each step.

A hook may also have ``start(steps)``, ``finish(solution)``, ``failed(iterate)`` and ``close()``, which is called
however the solve ends; a hook that returns True stops the solve (``mfoc.solve`` says what counts as True).
"""

from mfoc.hooks.checkpoint import Checkpoint, load
from mfoc.hooks.progress import Progress, progress_display
from mfoc.hooks.record import Record

__all__ = ["Checkpoint", "Progress", "Record", "load", "progress_display"]
