"""Figures that a command saves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mfoc.errors import InvalidValue, require


def check(out: Path, option: str) -> None:
    """Says before the work, and not after it, that a figure cannot be saved; makes the folder.

    Args:
        out: the file.
        option: how the file was asked for, as in "--out".

    Raises:
        InvalidValue: the file's name ends in nothing that figures are saved as, or it is a folder.
        MissingExtra: matplotlib is not installed.
    """
    known = require("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
    if out.suffix[1:].lower() not in known or out.is_dir():
        raise InvalidValue(f"{option} is {str(out)!r}; expected a file name that ends in .{', .'.join(sorted(known))}")
    out.parent.mkdir(parents=True, exist_ok=True)


def save(figure: Any, out: Path) -> None:
    """Saves a figure, and says where.

    Args:
        figure: of matplotlib.
        out: the file.
    """
    figure.savefig(out)
    sys.stdout.write(f"figure: {out}\n")
