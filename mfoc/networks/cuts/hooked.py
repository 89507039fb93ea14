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

_RERUN, _INDEX = "_run_again", "_stage_of_it"  # names that no network has


class Hooked(nn.Module):
    """One stage of a network that is run again; its parameters are those of this stage alone.

    Its submodules are the network's, under the same names, so that the weights of a control can be put in.
    """

    def __init__(self, rerun: Rerun, index: int) -> None:
        super().__init__()
        self.__dict__.update(rerun.net.__dict__)  # with the very dicts of its parts
        self.__dict__.update({_RERUN: rerun, _INDEX: index})

    def __deepcopy__(self, memo: dict[int, Any]) -> Hooked:
        return Hooked(self.__dict__[_RERUN].private(), self.__dict__[_INDEX])

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that this stage trains."""
        owners, lead = self.__dict__[_RERUN].owners, f"{prefix}." if prefix else ""
        for key, parameter in super().named_parameters("", recurse, remove_duplicate):
            if self.__dict__[_INDEX] in owners.get(key, ()):
                yield lead + key, parameter

    def forward(self, x: Tree) -> Tree:
        """The state that enters to the one that leaves."""
        held = dict(self.__dict__)
        rerun, index = held.pop(_RERUN), held.pop(_INDEX)
        if not index and rerun.needed is None:
            verify(rerun, x)
        net = object.__new__(type(rerun.net))  # the network with the weights that this stage has now
        net.__dict__.update(held)
        return rerun.step(index, x, net)


def hooked_stages(net: nn.Module, names: Sequence[str]) -> list[Hooked]:
    """The stages of a network that is run again from its input at each of them."""
    rerun = Rerun(net, names)
    return [Hooked(rerun, k) for k in range(len(names))]
