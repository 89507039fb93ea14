"""Figures that a command saves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mfoc.errors import InvalidValue


def save(figure: Any, out: Path, option: str) -> None:
    """Saves a figure, and says where.

    Args:
        figure: of matplotlib.
        out: the file; its folder is made where it is missing.
        option: how the file was asked for, as in "--out".

    Raises:
        InvalidValue: the file's name ends in nothing that figures are saved as.
    """
    known = figure.canvas.get_supported_filetypes()
    if out.suffix[1:].lower() not in known:
        raise InvalidValue(f"{option} is {str(out)!r}; expected a file name that ends in .{', .'.join(sorted(known))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    sys.stdout.write(f"figure: {out}\n")
