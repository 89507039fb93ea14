"""What a command needs of the extras, said before its work."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from mfoc.doctor.packages import PEERS
from mfoc.errors import MissingExtra
from mfoc.extras import EXTRAS, install


def need(what: str, modules: Iterable[str]) -> None:
    """Says at once what is missing, with one command.

    Args:
        what: has the need.
        modules: top-level names; those that no extra brings are not looked at.

    Raises:
        MissingExtra: something is missing.
    """
    wanted = set(modules)
    lacks = [peer for peer in PEERS if peer.imported in wanted and find_spec(peer.imported) is None]
    if lacks:
        command = install((each for peer in lacks for each in EXTRAS[peer.extra]), [peer.package for peer in lacks])
        names = ", ".join(peer.imported for peer in lacks)
        raise MissingExtra(f"{what} needs {names}: {command}", name=lacks[0].imported)
