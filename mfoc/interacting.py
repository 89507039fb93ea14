"""Whether the particles of a problem interact, and where: what batches and ranks would change in silence.

A problem whose dynamics or costs depend on the law of the population is another problem on a batch of it: the batch
has a law of its own. So it is where each rank holds a share of the particles, unless the law is named (``mfoc.mean``
and what is built on it), which is over all ranks. ``solve`` asks ``check_interaction`` before it starts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_instance
from mfoc.distributed import active, any_rank, world_size
from mfoc.errors import InvalidValue
from mfoc.law import Tape, taped
from mfoc.particles import Particles
from mfoc.populations import Population, as_particles
from mfoc.problem import Problem, controls_for
from mfoc.tree import Tree

logger = logging.getLogger(__name__)

_FEW = 4  # particles that are looked at
_SLACK = 16  # roundings by which a particle may differ that nothing has moved


@dataclass(frozen=True, eq=False)
class Coupling:
    """How the particles of a problem depend on one another.

    Attributes:
        named: the law is used by name: ``mfoc.mean``, ``mfoc.variance``, ``mfoc.covariance``, ``mfoc.kernel_mean``.
        elsewhere: the first place where they depend on one another in another way, as in "dynamics of stage 2"; None
            when there is none.
    """

    named: bool
    elsewhere: str | None

    def __bool__(self) -> bool:
        return self.named or self.elsewhere is not None


def coupling(problem: Problem, particles: Any, *, controls: Any = None) -> Coupling:
    """Looks whether moving one particle moves what the problem says of the others, by values, not by derivatives.

    Each of a few particles in turn is put somewhere else, at each stage (one of each kind) and in each cost, with the
    answers of the named law held. So a mean that is detached, a rank or a sort is seen as well. The controls are
    shaken a little: at an initial guess of zero an interaction is often switched off. Only the state is moved, not z.

    Args:
        problem: the control problem.
        particles: a cloud, or what ``mfoc.population`` takes; of one particle, too.
        controls: around which controls to look, or a solution or iterate; the initial guess when None.

    Raises:
        InvalidType, InvalidValue: the problem does not fit the particles.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    particles = as_particles(particles)
    controls = tree.detached(problem.controls if controls is None else controls_for(problem, controls))
    few = _few(particles)
    # Shaken controls may be inadmissible, and a function may be written for one number of particles.
    shaken = _shaken(controls)
    for tried, cloud in ((shaken, few), (shaken, particles), (controls, few)):
        try:
            return _coupling(problem, tried, cloud, finite=True)
        except Exception as error:  # whatever the problem's functions raise
            logger.debug("the interaction of the particles could not be looked at: %s", error)
    return _coupling(problem, controls, particles, finite=False)


def check_interaction(problem: Problem, controls: Tree, source: Population, particles: Particles) -> None:
    """Refuses interacting particles in batches or on several ranks, where that would be another problem.

    Args:
        problem: the control problem.
        controls: the controls that are started from.
        source: the population.
        particles: this rank's share of a batch of it.

    Raises:
        InvalidValue: the problem on this population is not the problem that was written down.
    """
    if problem.per_particle:
        check_own(problem, controls, particles)
    batched = source.size is None or (source.batch_size is not None and source.batch_size < source.size)
    own = problem.interacting == "batch"
    if own and batched:
        logger.info("each batch is a population of its own (interacting='batch'): J is the mean over batches")
    if not active() and (own or not batched):
        return
    found = coupling(problem, particles, controls=controls)
    named, elsewhere = any_rank(found.named, controls), any_rank(found.elsewhere is not None, controls)
    where = found.elsewhere or "the problem (as seen on another rank)"
    if elsewhere and active():
        raise InvalidValue(
            f"{where}: the particles depend on one another, and each of {world_size()} ranks holds its share of them "
            "only. Write the dependence with mfoc.mean (or mfoc.variance, mfoc.covariance, mfoc.kernel_mean), which is "
            "over all ranks, or run on one rank"
        )
    if (named or elsewhere) and batched and not own:
        of = "drawn on demand" if source.size is None else f"of {source.batch_size} of {source.size} particles"
        how = f"{where}: the particles depend on one another" if elsewhere else "the problem uses the population's law"
        raise InvalidValue(
            f"{how}, and a minibatch ({of}) cannot know the population's mean: J would be that of another problem. "
            "Solve on all particles at once (batch_size=None), or say that each batch is a population of its own: "
            'Problem(..., interacting="batch"), or dataclasses.replace(problem, interacting="batch")'
        )


@torch.no_grad()
def check_own(problem: Problem, controls: Tree, particles: Particles) -> None:
    """Refuses a control of one particle that moves what the problem says of another, not by a law that is named.

    Raises:
        InvalidValue: it does; says where.
    """
    shaken = _shaken(controls) if problem.region is None else problem.region.project(_shaken(controls))
    x, z = particles.state, particles.data
    for t in range(problem.stages):
        u, probe = problem.schedule(shaken, t), _Probe(finite=False)
        if problem.running_cost is not None:
            probe.look(f"running_cost of stage {t}", partial(_of_control, problem.running_cost, t, x, z), u)
        moved = probe.look(f"dynamics of stage {t}", partial(_of_control, problem.dynamics, t, x, z), u)
        if probe.elsewhere is not None:
            raise InvalidValue(
                f"{probe.elsewhere}: with per_particle=True row i of the control is particle i's own, and here that of "
                "one moves the cost or state of another (a sum over all rows in place of u.sum(-1)?). A law of the "
                "controls is written with mfoc.mean(u)"
            )
        x = moved


def _of_control(function: Callable[..., Tree], t: int, x: Tree, z: Tree, u: Tree) -> Tree:
    return function(t, x, u, z)


# ---- the probe


def _few(particles: Particles) -> Particles:
    """A small cloud: the first particles, repeated where there are fewer."""
    n = len(particles)
    if n >= _FEW:
        return particles[:_FEW]  # a slice keeps views what they are
    return particles[torch.arange(_FEW, device=tree.leaves(particles.state)[0].device) % n]


def _shaken(controls: Tree) -> Tree:
    generator = torch.Generator().manual_seed(0)
    return tree.map(lambda leaf: leaf + 0.1 * (1 + leaf.abs()) * _normal(leaf, generator), controls)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


@torch.no_grad()
def _coupling(problem: Problem, controls: Tree, particles: Particles, *, finite: bool) -> Coupling:
    x, z, probe = particles.state, particles.data, _Probe(finite)
    dynamics, running_cost, terminal_cost = problem.dynamics, problem.running_cost, problem.terminal_cost
    seen = set()
    for t in range(problem.stages):
        u = problem.schedule(controls, t)
        for each in problem.path_constraints:
            probe.look(f"the path constraint of stage {t}", lambda y: each.function(t, y, u, z), x)  # noqa: B023
        kind = t if problem.kind is None else ("kind", problem.kind(t))
        new = kind not in seen
        seen.add(kind)
        if new and running_cost is not None:
            probe.look(f"running_cost of stage {t}", lambda y: running_cost(t, y, u, z), x)  # noqa: B023
        x = probe.look(f"dynamics of stage {t}", lambda y: dynamics(t, y, u, z), x, move=new)  # noqa: B023
    probe.look("terminal_cost", lambda y: terminal_cost(y, z), x)
    for each in problem.terminal_constraints:
        probe.look("the terminal constraint", lambda y: each.function(y, z), x)  # noqa: B023
    return Coupling(probe.named, probe.elsewhere)


class _Probe:
    """What was found so far; with ``finite``, states and costs that are not are an error."""

    def __init__(self, finite: bool) -> None:
        self.finite = finite
        self.named = False
        self.elsewhere: str | None = None
        self.generator = torch.Generator().manual_seed(1)

    def look(self, name: str, function: Callable[[Tree], Tree], x: Tree, *, move: bool = True) -> Tree:
        """What the function says of x; with ``move``, whether it says the same of the others when a particle moves."""
        tape = Tape()
        with taped(tape):
            base = function(x)
        held = tree.tensors(base) if self.finite else []
        if held and not bool(torch.stack([leaf.isfinite().all() for leaf in held]).all()):
            raise InvalidValue(f"{name} is not finite on the particles looked at")
        self.named = self.named or bool(tape.answers)
        if move and self.elsewhere is None:
            again = _differences(_pairs(base, _again(function, x, tape)))
            noise = [gap for gap, _ in again]  # zero, unless sums are unordered
            rows = range(min(_FEW, len(tree.leaves(x)[0])))
            if any(self._moves_others(function, x, i, base, noise, tape) for i in rows):
                self.elsewhere = name
        return base

    def _moves_others(
        self, function: Callable[[Tree], Tree], x: Tree, i: int, base: Tree, noise: list[float], tape: Tape
    ) -> bool:
        # Far off, and where its neighbour is: out of the domain a function may fail, and a kernel may reach near only.
        for size in (1.0 + 3 * (i % 2), 0.0):
            try:
                pairs = _pairs(base, _again(function, self._placed(x, i, size), tape))
            except Exception as error:  # whatever the problem's functions raise
                logger.debug("particle %d cannot be moved by %g: %s", i, size, error)
                continue
            others = [(_others(a, i), _others(b, i)) for a, b in pairs]
            seen = _differences(others)
            if any(gap > 10 * floor + slack for (gap, slack), floor in zip(seen, noise, strict=True)):
                return True
        return False

    def _placed(self, x: Tree, i: int, size: float) -> Tree:
        """The cloud with particle i where its neighbour is, or (floating-point leaves) somewhere around."""

        def place(leaf: Tensor) -> Tensor:
            row = leaf[(i + 1) % len(leaf)]
            if tree.differentiable(leaf) and leaf.numel():
                reach = leaf.abs().max()
                row = row + size * torch.where(reach > 0, reach, 1.0).to(reach) * _normal(row, self.generator)
            moved = leaf.clone()
            moved[i] = row
            return moved

        return tree.map(place, x)


def _again(function: Callable[[Tree], Tree], x: Tree, tape: Tape) -> Tree:
    tape.rewind()
    with taped(tape):
        return function(x)


def _pairs(left: Tree, right: Tree) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tree.leaves(left), tree.leaves(right), strict=True))


def _others(leaf: Tensor, i: int) -> Tensor:
    return torch.cat([leaf[:i], leaf[i + 1 :]])


def _differences(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[float, float]]:
    """Of each pair the largest difference, and the one that rounding makes; the host waits once for all of them.

    The first is infinite where one alone is not finite, or where leaves of integers differ.
    """
    numbers = iter(tree.floats([scalar for pair in pairs for scalar in _scalars(*pair)]))
    found = []
    for left, _ in pairs:
        gap, size = next(numbers), next(numbers)
        if tree.differentiable(left):
            found.append((gap if gap == gap else torch.inf, _SLACK * torch.finfo(left.dtype).eps * size))
        else:
            found.append((torch.inf if gap else 0.0, 0.0))
    return found


def _scalars(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The largest difference and the largest size of the left; of integers whether they differ, and whatever."""
    if not tree.differentiable(left):
        differ = (left != right).any() if left.shape == right.shape else left.new_ones((), dtype=torch.bool)
        return differ, differ
    if not left.numel():
        return left.new_zeros(()), left.new_zeros(())
    same = (left == right) | (left.isnan() & right.isnan())
    return (left - right).abs().masked_fill(same, 0.0).max(), left.abs().nan_to_num(0.0, 0.0, 0.0).max()
