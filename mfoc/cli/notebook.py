"""A script in cells (the percent format of jupytext) as a notebook."""

from __future__ import annotations

import json
import re
from typing import Any

_CELL = re.compile(r"^# %%[ \t]*(\[markdown\])?.*$", re.MULTILINE)


def cells(script: str) -> list[tuple[str, str]]:
    """The cells of a script, as pairs of "markdown" or "code" and the text.

    Args:
        script: its text; what comes before the first ``# %%`` is a cell of code.
    """
    starts = list(_CELL.finditer(script))
    ends = [start.start() for start in starts] + [len(script)]
    found = [("code", script[: ends[0]])]
    for start, end in zip(starts, ends[1:], strict=True):
        text = script[start.end() : end].strip("\n")
        found.append(("markdown", _bare(text)) if start[1] else ("code", text))
    return [(kind, text) for kind, text in found if text.strip()]


def _bare(text: str) -> str:
    """Without the signs of a comment."""
    return "\n".join(re.sub(r"^# ?", "", line) for line in text.splitlines())


def notebook(script: str) -> str:
    """The script as a notebook of format 4.5, JSON."""
    written: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        written.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
