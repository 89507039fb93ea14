"""Whether ``paradigms`` is the package of this library."""

from __future__ import annotations

from collections.abc import Iterator

from mfoc import neighbours
from mfoc.doctor.findings import Finding, State


def paradigms() -> Iterator[Finding]:
    """Whether another package has its name."""
    found, sharing = list(neighbours.candidates()), neighbours.sharing()
    strangers = neighbours.strangers()
    if strangers:
        yield Finding("paradigms", State.BROKEN, neighbours.message(strangers[0]))
    elif sharing:
        others = ", ".join(sharing)
        said = f"{others}: says that it brings a package `paradigms`, too; files of both may lie in one folder"
        yield Finding("paradigms", State.BROKEN, said, f"pip uninstall {sharing[0]}, then install mfoc anew")
    elif found:
        yield Finding("paradigms", State.OK, str(found[0].parent))
    else:
        yield Finding("paradigms", State.NOTE, "not found on sys.path: mfoc works without it, the paradigms do not")
