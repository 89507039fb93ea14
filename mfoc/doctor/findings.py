"""What is found, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class State(StrEnum):
    """What is said of one thing that was looked at."""

    OK = "ok"
    MISSING = "missing"  # optional, and not there
    NOTE = "note"  # there, and worth knowing
    BROKEN = "broken"
    UNSAFE = "unsafe"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        state: how it is.
        said: what was found.
        cure: what to do about it, where there is something to do.
    """

    name: str
    state: State
    said: str
    cure: str = ""

    @property
    def bad(self) -> bool:
        """Whether it has to be mended."""
        return self.state in (State.BROKEN, State.UNSAFE)


def report(findings: Sequence[Finding], *, as_json: bool = False, install: str = "") -> str:
    """The findings as a table with a last line that says whether all is well, or as JSON.

    Args:
        findings: what was found.
        as_json: for a program to read.
        install: the command that installs what is missing.
    """
    bad = [finding for finding in findings if finding.bad]
    if as_json:
        told = {"ok": not bad, "install": install, "findings": [asdict(finding) for finding in findings]}
        return json.dumps(told, indent=2)
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state.value:8s}{finding.name:{width}s}  {finding.said}")
        lines += [" " * (width + 10) + f"-> {finding.cure}"] * bool(finding.cure)
    lines += ["what is missing is optional; this installs all of it:", f"    {install}"] if install else []
    names = ", ".join(dict.fromkeys(finding.name for finding in bad))
    return "\n".join([*lines, f"to mend: {names}" if bad else "all is well"])
