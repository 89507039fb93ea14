"""What a network that is run again carries between its stages, found and checked on the first batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.derivatives import reached, transforming
from mfoc.errors import InvalidValue
from mfoc.networks.cuts.axes import axes_of, particles_first
from mfoc.networks.cuts.rerun import Call, Rerun
from mfoc.tree import Tree

logger = logging.getLogger(__name__)


def verify(rerun: Rerun, x: Tree) -> None:
    """Finds what each cut has to carry, and checks that the stages together are the network.

    Where values cannot be looked at (under ``torch.func``) nothing is done: all is carried.

    Raises:
        InvalidValue: blocks run in another order or not once, parameters outside of them are used in two stages or
            belong to another one than was thought, or the stages are another function than the network.
    """
    if transforming():
        return
    x = tree.detached(x)
    with torch.no_grad():
        expected, outputs = _recorded(rerun, x)
    with torch.enable_grad():
        uses = _uses(rerun, x, outputs)
    along = iter(axes_of(lambda few: _recorded(rerun, few)[1], x))
    rerun.shapes, rerun.along = outputs, [[next(along, 0) for _ in tree.leaves(output)] for output in outputs]
    last = len(rerun.names) - 1
    everything = [set(range(k + 1)) for k in range(last)]
    found = [
        {j for j in range(k + 1) if j == k or any(j in uses[c] for c in range(k + 1, last + 1))} for k in range(last)
    ]
    for needed in (found, everything):
        rerun.needed = needed
        with torch.no_grad():
            culprit = _culprit(rerun, x, outputs, expected)
        if culprit is None:
            logger.info("cuts of %s carry its input and %s", type(rerun.net).__name__, needed)
            return
    rerun.needed = None
    raise InvalidValue(
        f"the network cannot be cut at {culprit!r}: run again from its input, with what the blocks before returned, it "
        "gives another value (it changes itself, draws random numbers, or its blocks hand something on in another way "
        "than by what they return). Leave this block out of stages, or make the network an nn.Sequential of stages"
    )


def _recorded(rerun: Rerun, x: Tree) -> tuple[Any, list[Tree]]:
    """The network's output, and that of each block."""
    found: list[Tree] = []
    ran: list[int] = []

    def instead(block: int, own: Call, args: Any, kwargs: Any) -> Any:
        ran.append(block)
        found.append(tree.map(_kept, own(*args, **kwargs)))
        return tree.map(_kept, found[-1])

    output = rerun.run(x, instead)
    if ran != list(range(len(rerun.names))):
        rerun.refuse_order(ran)
    return output, found


def _kept(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _uses(rerun: Rerun, x: Tree, outputs: Sequence[Tree]) -> list[set[int]]:
    """For each stage the blocks whose outputs it uses; refuses parameters of other stages."""
    stubs = [tree.detached(output, requires_grad=True) for output in outputs]
    leaves = [tree.tensors(stub) for stub in stubs]
    received: list[list[Tensor]] = [[] for _ in stubs]

    def instead(block: int, _own: Call, args: Any, kwargs: Any) -> Any:
        received[block] += tree.tensors([args, kwargs])
        return tree.map(_kept, stubs[block])

    with rerun.fresh_parameters() as parameters:
        received[-1] += tree.tensors(rerun.run(x, instead))
    users: dict[str, list[int]] = {}
    for stage, tensors in enumerate(received):
        for key, used in zip(parameters, reached(tensors, list(parameters.values())), strict=True):
            if used:
                users.setdefault(key, []).append(stage)
    _refuse_strangers(rerun, users)
    uses = []
    for tensors in received:
        met = [
            any(reached(tensors, own)) or len(own) < len(tree.leaves(s)) for own, s in zip(leaves, stubs, strict=True)
        ]
        uses.append({block for block, used in enumerate(met) if used})
    return uses


def _refuse_strangers(rerun: Rerun, users: dict[str, list[int]]) -> None:
    for key, stages in users.items():
        own = rerun.owners[key]
        strangers = [rerun.names[stage] for stage in stages if stage not in own]
        if strangers:
            layer = key.rpartition(".")[0]
            cure = f"name {layer!r} in stages, too" if layer and len(stages) == 1 else "leave cuts out"
            raise InvalidValue(
                f"parameter {key!r}, which stands outside of the blocks, was counted to stage "
                f"{rerun.names[min(own)]!r} and is used in {strangers}: it cannot be the control of one stage; {cure}"
            )


def _culprit(rerun: Rerun, x: Tree, outputs: Sequence[Tree], expected: Any) -> str | None:
    """The first block at which the stages part from the network; None where they do not."""
    state = x
    for stage, name in enumerate(rerun.names):
        state = rerun.step(stage, state)
        last = stage == len(rerun.names) - 1
        found = state if last else state["value"]
        if not _close(found, expected if last else particles_first(outputs[stage], rerun.along[stage])):
            return name
    return None


def _close(left: Tree, right: Tree) -> bool:
    pairs = zip(tree.leaves(left), tree.leaves(right), strict=True)
    return all(_close_leaves(a, b) for a, b in pairs)


def _close_leaves(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b)
    if not tree.differentiable(a):
        return torch.equal(a, b)
    slack = torch.finfo(a.dtype).eps ** 0.75
    scale = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=slack, atol=slack * scale, equal_nan=True)
