"""The table of architectures and doors, as it stands in the documentation.

``python -m tests.doors.catalogue`` writes it anew.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import mfoc
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

Said = Mapping[tuple[str, str], str]  # (network, door) -> what the door says

_HEAD = """\
# Every architecture at every door

"equal" says that values and gradients are those of plain torch, to rounding; "refused" that the door says what is wrong
and what to do instead: how its message begins, and below the table, by its number, the whole of it. Each cell is a
test, the messages included: `python -m pytest tests/doors` (`--device cuda` runs them on a GPU). This table is written
by `python -m tests.doors.catalogue`; what the doors are asked is said in `tests/doors`.
"""

_HESSIAN = "(a) torch has no second derivative of it: the certificate has no Hessian, and says so."


def table(said: Said) -> str:
    """The table in Markdown, and under it what the doors say where they refuse."""
    order = [(name, door) for name, entry in CATALOGUE.items() for door in DOORS if door in entry.refused]
    numbers = {message: n for n, message in enumerate(dict.fromkeys(said.get(cell, "") for cell in order), 1)}
    rows = [f"| {' | '.join(['network', *DOORS.values()])} |", f"|{'---|' * (1 + len(DOORS))}"]
    for entry in CATALOGUE.values():
        rows.append(f"| {' | '.join([entry.name, *(_cell(entry, door, said, numbers) for door in DOORS)])} |")
    notes = [f"{n}. {message}" for message, n in numbers.items()]
    return "\n".join([_HEAD, *rows, "", _HESSIAN, "", "The doors say:", "", *notes, ""])


def _cell(entry: Architecture, door: str, said: Said, numbers: Mapping[str, int]) -> str:
    if door in entry.refused:
        message = said.get((entry.name, door), "")
        return f"refused: {_beginning(message)} ({numbers.get(message)})"
    return "equal (a)" if door == "certify" and not entry.second else "equal"


def _beginning(message: str) -> str:
    """The first clause, four words at least, without words in brackets."""
    message = re.sub(r" \([a-zA-Z]([^()]|\([^()]*\))*\)", "", message)
    clauses = (message[: end.start()] for end in re.finditer(r"; |, (?!\d)|\. |: |$", message))
    return next(clause for clause in clauses if len(clause.split()) >= 4 or clause == message)


def refusal(entry: Architecture, door: str) -> str:
    """What a door says to a network that it refuses, on one line.

    Raises:
        AssertionError: it says nothing.
    """
    try:
        CHECKS[door](entry)
    except (mfoc.InvalidType, mfoc.InvalidValue) as error:
        return " ".join(str(error).split())
    raise AssertionError(f"{door} takes {entry.name!r}")


def written() -> dict[tuple[str, str], str]:
    """What the doors say according to the table that is written."""
    lines = PLACE.read_text(encoding="utf-8").splitlines()
    notes = {found[1]: found[2] for line in lines if (found := re.match(r"(\d+)\. (.*)", line))}
    found = {}
    for name, *cells in (line.strip("| ").split(" | ") for line in lines if line.startswith("| ")):
        for door, cell in zip(DOORS, cells, strict=True):
            if cell.startswith("refused"):
                found[name, door] = notes[cell.rpartition("(")[2].rstrip(")")]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PLACE.write_text(
        table({(name, door): refusal(entry, door) for name, entry in CATALOGUE.items() for door in entry.refused}),
        encoding="utf-8",
    )
