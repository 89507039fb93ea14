"""Problems whose stages are compiled: once for each kind of stage, not for each stage.

``torch.compile`` makes a graph anew where an integer argument that a function uses has another value, up to a limit (8
by default) from where on it runs uncompiled. The stage t is such an argument. What works, and how many graphs it takes
(each several times: with gradients, without, for another number of particles):

* dynamics that do not use t: one, for any number of stages, by ``torch.compile(dynamics)`` as it is;
* dynamics that calculate with t, ``1 + 0.1 * t`` or ``table[t]`` of a tensor, and drifts of ``mfoc.continuous``: two;
* dynamics that take t apart, ``layers[t]`` of a list or ``if t == 3``: one for each value that makes a difference.
  Those of ``mfoc.from_module`` are such. ``mfoc.compiled(problem)`` compiles one for each ``problem.kind``: a stage is
  one graph, whatever module it is, if that is one (``fullgraph=True`` says where it is not).

A compiled function has no second derivative unless the backend is "eager" (``DDP``, ``NewtonCG``, curvatures in
``certify``). ``mfoc.from_module`` takes a compiled network for the network that it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from mfoc.checks import check_instance
from mfoc.derivatives import transforming
from mfoc.networks.recomputation import without_reentry
from mfoc.problem import Problem
from mfoc.switches import Shared
from mfoc.tree import Tree


def compiled(problem: Problem[Any], **options: Any) -> Problem[Any]:
    """The same problem, whose dynamics run compiled, once for each kind of stage.

    Stages of one ``problem.kind`` compute the same function of (x, u, z), so one is compiled in the place of all. The
    values are those of the problem up to rounding (to the bit with ``backend="eager"``).

        deep = mfoc.compiled(mfoc.from_module(net, loss))

    Args:
        problem: a problem; without ``kind`` its dynamics are compiled as they are, see ``mfoc.compilation``.
        **options: what ``torch.compile`` takes: ``backend``, ``mode``, ``dynamic``, ``fullgraph``.

    Raises:
        InvalidType: it is no problem.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    return problem.rebuilt(lambda own: replace(own, dynamics=_by_kind(own, options)))


def _by_kind(problem: Problem[Any], options: dict[str, Any]) -> _Compiled:
    with validation_kept():
        if problem.kind is None:
            return _Compiled(torch.compile(problem.dynamics, **options), None)
        made: dict[Hashable, Callable[..., Tree]] = {}
        for t in range(problem.stages):
            if problem.kind(t) not in made:
                made[problem.kind(t)] = _Stage(_stage(problem.dynamics, t), options)
        return _Compiled(None, tuple(made[problem.kind(t)] for t in range(problem.stages)))


def _stage(dynamics: Callable[..., Tree], t: int) -> Callable[..., Tree]:
    """One stage as a function with code of its own: it is code that torch's limit on the number of graphs is for."""

    def stage(x: Tree, u: Tree, z: Tree) -> Tree:
        return dynamics(t, x, u, z)

    stage.__code__ = stage.__code__.replace(co_name=f"stage_{t}")
    return stage


class _Stage:
    """A stage that is run once as it is before it is compiled.

    A module is looked at when it first runs (whether it is pure, what it writes), and that is no part of its graph.
    What that run returns is left: the first call gives the bits of all others.
    """

    def __init__(self, stage: Callable[..., Tree], options: dict[str, Any]) -> None:
        self._plain, self._compiled, self._begun = stage, torch.compile(stage, **options), False

    def __call__(self, x: Tree, u: Tree, z: Tree) -> Tree:
        if not self._begun and not transforming():
            with torch.no_grad():
                self._plain(x, u, z)
            self._begun = True
        with without_reentry():  # where a graph is cut within a checkpoint, this runs as it is
            return self._compiled(x, u, z)


@dataclass(frozen=True, eq=False)
class _Compiled:
    """Dynamics that are compiled as they are, or a function for each stage, of which those of a kind are one."""

    function: Callable[..., Tree] | None
    stages: tuple[Callable[..., Tree], ...] | None

    def __call__(self, t: int, x: Tree, u: Tree, z: Tree) -> Tree:
        if self.stages is not None:
            return self.stages[t](x, u, z)
        assert self.function is not None
        return self.function(t, x, u, z)


@Shared
@contextmanager
def validation_kept() -> Iterator[None]:
    """torch.compile switches the validation of torch.distributions off, in all the process and for good."""
    kept = torch.distributions.Distribution._validate_args
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(kept)
