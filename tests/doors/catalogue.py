"""The table of architectures and doors, as it stands in the documentation.

``python -m tests.doors.catalogue`` writes it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.architectures import CATALOGUE, DOORS, Architecture
from tests.doors import bayes, games, meanfield, meta

CHECKS: dict[str, Callable[[Architecture], None]] = {
    "train": meanfield.train,
    "emsa": meanfield.emsa,
    "certify": meanfield.certify,
    "pgd": games.pgd,
    "yopo": games.yopo,
    "variational": bayes.variational,
    "density": bayes.density,
    "maml": meta.maml,
}

PLACE = Path(__file__).parents[1] / "architectures" / "TABLE.md"

_HEAD = """\
# Every architecture at every door

"equal" says that values and gradients are those of plain torch, to rounding; "refused" that the door says what is wrong
and what to do instead. Each cell is a test: `python -m pytest tests/doors`; `python -m tests.doors.catalogue` writes
this table, and says what the doors are asked.
"""

_NOTES = """\
(1) torch has no second derivative of it: the certificate has no Hessian, and says so.
"""


def table() -> str:
    """The table in Markdown."""
    rows = [f"| {' | '.join(['network', *DOORS.values()])} |", f"|{'---|' * (1 + len(DOORS))}"]
    for entry in CATALOGUE.values():
        rows.append(f"| {' | '.join([entry.name, *(_cell(entry, door) for door in DOORS)])} |")
    return "\n".join([_HEAD, *rows, "", _NOTES])


def _cell(entry: Architecture, door: str) -> str:
    if door in entry.refused:
        return "refused"
    return "equal (1)" if door == "certify" and not entry.second else "equal"


if __name__ == "__main__":
    PLACE.write_text(table())
