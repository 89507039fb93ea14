"""Stages of a network that tracing cannot read: each runs the network itself, from its input up to the next cut.

The blocks before are not run again: what they returned is carried in the state, and they return it. What stands between
them is, so the state holds the input, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from mfoc.networks.cuts.rerun import Rerun
from mfoc.networks.cuts.verified import verify
from mfoc.tree import Tree


class Hooked(nn.Module):
    """One stage of a network that is run again; its parameters are those of this stage alone.

    Its submodules are the network's, under the same names, so that the weights of a control can be put in.
    """

    _rerun: Rerun
    _index: int

    def __init__(self, rerun: Rerun, index: int) -> None:
        super().__init__()
        self.training = rerun.net.training
        for key in ("_parameters", "_buffers", "_modules"):  # the very dicts of the network
            self.__dict__[key] = rerun.net.__dict__[key]
        self.__dict__["_rerun"] = rerun
        self.__dict__["_index"] = index

    def __deepcopy__(self, memo: dict[int, Any]) -> Hooked:
        return Hooked(self._rerun.private(), self._index)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that this stage trains."""
        owner, lead = self._rerun.owner, f"{prefix}." if prefix else ""
        for key, parameter in super().named_parameters("", recurse, remove_duplicate):
            if owner.get(key) == self._index:
                yield lead + key, parameter

    def forward(self, x: Tree) -> Tree:
        """The state that enters to the one that leaves."""
        if not self._index and self._rerun.needed is None:
            verify(self._rerun, x)
        return self._rerun.step(self._index, x)


def hooked_stages(net: nn.Module, names: Sequence[str]) -> list[Hooked]:
    """The stages of a network that is run again from its input at each of them."""
    rerun = Rerun(net, names)
    return [Hooked(rerun, k) for k in range(len(names))]
