"""The adversary's half of a differential game: how eta is found with the controls fixed.

Every maximiser ascends the Hamiltonian of the disturbed stage s, whose gradient in the disturbed state is the costate:
dH_s/dx = p_s. ``PGD`` and ``FGSM`` roll the whole problem out for each step; ``YOPO`` freezes p_(s+1), after which
only stage s is needed; ``Free`` and ``YOPO`` share their passes with the minimiser.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_flag, check_integer, check_positive
from mfoc.derivatives import gradients
from mfoc.games.game import Game, costate_at, entering, undisturbed
from mfoc.games.passes import Pass, Passes
from mfoc.particles import Particles
from mfoc.printing import by_identity
from mfoc.tree import Tree

_REACH = 2.5  # default: all steps together could cross the ball from end to end, and a quarter more


@runtime_checkable
class Maximiser(Protocol):
    """What ``Minimax`` needs of an adversary."""

    def maximise(
        self, game: Game, controls: Tree, particles: Particles, generator: torch.Generator | None = None
    ) -> Tensor:
        """Disturbances ``[N, ...]`` that raise the cost at these controls.

        Args:
            game: the game.
            controls: the minimiser's controls.
            particles: the cloud; a disturbance in it is ignored.
            generator: of the random starts, from which one integer is drawn: that of a particle is then a function
                of this integer and its ``index``. Torch's own when None.
        """


@by_identity
class Play(NamedTuple):
    """What the minimiser gets from a maximiser that shares its passes.

    Attributes:
        disturbance: where the adversary stands now ``[N, ...]``.
        value: the cost the passes saw, a scalar.
        gradient: what the minimiser descends, shaped as the controls (a mean over this rank's particles).
    """

    disturbance: Tensor
    value: Tensor
    gradient: Tree


@runtime_checkable
class SharingMaximiser(Maximiser, Protocol):
    """A maximiser whose passes also give the minimiser's gradient.

    ``updates`` is the number of steps the minimiser makes on one batch; ``carries`` says that the disturbance of one
    batch is the start on the next.
    """

    @property
    def updates(self) -> int:
        """Plays on one batch, with a step of the minimiser after each."""

    @property
    def carries(self) -> bool:
        """Whether ``begin`` is given the disturbance of the batch before."""

    def begin(
        self,
        game: Game,
        x: Tensor,
        generator: torch.Generator | None,
        previous: Tensor | None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The disturbance to start a batch with ``[N, ...]``.

        Args:
            game: the game.
            x: the states that will be disturbed.
            generator: of the random starts.
            previous: the disturbance of the batch before, for a maximiser that carries it.
            index: the particles' indices ``[N]``; one whose ``begin`` has no such argument is not given them.
        """

    def play(self, game: Game, controls: Tree, particles: Particles, disturbance: Tensor) -> Play:
        """Moves the adversary, and gives the minimiser its gradient."""


def begun(
    inner: SharingMaximiser,
    game: Game,
    x: Tensor,
    generator: torch.Generator | None,
    previous: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    """``inner.begin``, which gets the particles' indices if it takes them."""
    known = {"index": index} if "index" in inspect.signature(inner.begin).parameters else {}
    return inner.begin(game, x, generator, previous, **known)


class _Ascent:
    """A maximiser that rolls the whole problem out for each step of projected steepest ascent."""

    def plan(self, game: Game) -> tuple[int, float, bool]:
        """The number of steps, their length, and whether they start at random."""
        raise NotImplementedError

    def maximise(
        self, game: Game, controls: Tree, particles: Particles, generator: torch.Generator | None = None
    ) -> Tensor:
        """See ``Maximiser``."""
        steps, length, random_start = self.plan(game)
        x = entering(game, controls, particles)
        target = game.target(x)
        eta = torch.zeros_like(target)
        if random_start:
            eta = game.ball.sample(target, generator, index=particles.index)
        for _ in range(steps):
            slope = costate_at(game, controls, x, undisturbed(particles.data), eta)
            eta = game.ball.ascend(target, eta, slope, length)
        return eta


@dataclass(frozen=True)
class PGD(_Ascent):
    """Projected gradient ascent (Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks").

    Attributes:
        steps: number of steps; each costs one forward and one backward pass.
        step_size: length of a step in units of the state; ``2.5 * epsilon / steps`` when None.
        random_start: start from a random disturbance, else from none.
    """

    steps: int
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        check_integer(1, steps=self.steps)
        check_positive(step_size=self.step_size, optional=True)
        check_flag(random_start=self.random_start)

    def plan(self, game: Game) -> tuple[int, float, bool]:
        """As the attributes say."""
        length = _REACH * game.ball.epsilon / self.steps if self.step_size is None else self.step_size
        return self.steps, length, self.random_start


@dataclass(frozen=True)
class FGSM(_Ascent):
    """The fast gradient (sign) method: one step to the boundary (Goodfellow, Shlens, Szegedy 2015, eq. in sec. 4).

    Attributes:
        step_size: length of the step in units of the state; epsilon when None.
        random_start: start from a random disturbance (Wong, Rice, Kolter 2020 train with ``step_size=1.25 * epsilon``).
    """

    step_size: float | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        check_positive(step_size=self.step_size, optional=True)
        check_flag(random_start=self.random_start)

    def plan(self, game: Game) -> tuple[int, float, bool]:
        """One step."""
        return 1, game.ball.epsilon if self.step_size is None else self.step_size, self.random_start


@dataclass(frozen=True)
class Free(_Ascent):
    """Free adversarial training: each pass moves both players (Shafahi et al. 2019, "Adversarial training for free!").

    A batch is replayed, and after each replay the controls and the disturbance move along the two parts of one
    gradient. The disturbance a batch ends with is where the next one starts (algorithm 1 of the paper). A learning-rate
    schedule counts the steps of the optimiser, so ``replays`` for each step of the solve.

    Attributes:
        replays: replays of a batch (m in the paper): each is one step of the minimiser.
        step_size: length of the adversary's step; epsilon when None, as in the paper.
    """

    replays: int
    step_size: float | None = None

    carries = True  # the next batch starts where this one ends

    def __post_init__(self) -> None:
        check_integer(1, replays=self.replays)
        check_positive(step_size=self.step_size, optional=True)

    @property
    def updates(self) -> int:
        """One for each replay."""
        return self.replays

    def plan(self, game: Game) -> tuple[int, float, bool]:
        """With the controls fixed: as many steps as replays, from no disturbance."""
        return self.replays, game.ball.epsilon if self.step_size is None else self.step_size, False

    def begin(
        self,
        game: Game,
        x: Tensor,
        generator: torch.Generator | None,
        previous: Tensor | None,
        index: Tensor | None = None,
    ) -> Tensor:
        """The previous disturbance, as far as it covers this batch."""
        eta = torch.zeros_like(x)
        if previous is not None and previous.shape[1:] == x.shape[1:]:
            shared = min(len(previous), len(x))
            eta[:shared] = previous[:shared].to(eta)
        return eta

    def play(self, game: Game, controls: Tree, particles: Particles, disturbance: Tensor) -> Play:
        """One forward and one backward pass for both players."""
        step = self.plan(game)[1]
        passes = Passes(game, controls, particles, descend=True)
        run = passes.forward(disturbance)
        slope, *slopes = gradients(run.total, [run.point, *passes.weights(range(game.stages))])
        eta = game.ball.ascend(run.target, disturbance, slope, step)
        return Play(eta, run.total.detach().mean(), passes.gradient(slopes))


@dataclass(frozen=True)
class YOPO:
    """You only propagate once (Zhang et al. 2019, arXiv:1905.00877, sec. 3.2): YOPO-m-n.

    m times: one full forward and backward pass at x + eta gives the frozen costate p_(s+1) and the gradient of every
    stage but s; n ascent steps on H_s(x + eta, p_(s+1), u_s) need stage s alone; the gradient of stage s is
    dH_s/du_s at the new eta. The m gradients are added up, as in the paper, and the minimiser makes one step: the
    learning rate of plain SGD means m times what it means with ``PGD``.

    Where f_s is affine in the state (a linear or convolutional first layer) the ascent direction is p_s itself, a
    by-product of the full pass, and the n steps cost no evaluation at all.

    Attributes:
        m: full passes on a batch.
        n: ascent steps after each.
        step_size: length of an ascent step; ``2.5 * epsilon / (m * n)`` when None.
    """

    m: int
    n: int
    step_size: float | None = None

    updates, carries = 1, False  # one step of the minimiser a batch, and each batch starts at random

    def __post_init__(self) -> None:
        check_integer(1, m=self.m, n=self.n)
        check_positive(step_size=self.step_size, optional=True)

    def maximise(
        self, game: Game, controls: Tree, particles: Particles, generator: torch.Generator | None = None
    ) -> Tensor:
        """The m n ascent steps with the controls fixed: m full passes."""
        eta = begun(self, game, game.target(entering(game, controls, particles)), generator, None, particles.index)
        return self._passes(Passes(game, controls, particles, descend=False), eta)[0]

    def begin(
        self,
        game: Game,
        x: Tensor,
        generator: torch.Generator | None,
        previous: Tensor | None,
        index: Tensor | None = None,
    ) -> Tensor:
        """A random disturbance."""
        return game.ball.sample(x, generator, index=index)

    def play(self, game: Game, controls: Tree, particles: Particles, disturbance: Tensor) -> Play:
        """The m passes."""
        passes = Passes(game, controls, particles, descend=True)
        eta, value, slopes = self._passes(passes, disturbance)
        return Play(eta, value, passes.gradient(slopes))

    def _passes(self, passes: Passes, eta: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The disturbance, the value of the last pass, and N times the added-up gradient in the weights by stage."""
        game, s = passes.game, passes.game.stage
        own = passes.weights([s])
        others = passes.weights([t for t in range(game.stages) if t != s])
        own_total, others_total = [torch.zeros_like(u) for u in own], [torch.zeros_like(u) for u in others]
        costate: list[Tensor] = []
        for k in range(self.m):
            run = passes.forward(eta)
            if k > 0 and passes.descend:  # the forward pass at the new eta serves this gradient too
                _add(own_total, passes.hamiltonian_slopes(run, costate, own, keep=True))
            steady = game.affine is not None and game.affine(s) and not _reaches(run.cost, run.point)
            moved = tree.tensors(run.moved)
            slope, *found = gradients(run.total, [run.point, *moved, *(others if passes.descend else [])])
            costate = found[: len(moved)]
            if passes.descend:
                _add(others_total, found[len(moved) :])
            eta = self._ascend(passes, run, eta, slope, costate, steady=steady)
        if passes.descend and own:
            _add(own_total, passes.hamiltonian_slopes(passes.local(run, eta), costate, own, keep=False))
        before = len(passes.weights(range(s)))
        return eta, run.total.detach().mean(), [*others_total[:before], *own_total, *others_total[before:]]

    def _ascend(
        self, passes: Passes, run: Pass, eta: Tensor, slope: Tensor, costate: list[Tensor], *, steady: bool
    ) -> Tensor:
        """The n steps on H_s with the costate frozen; the first slope, p_s, comes from the full pass."""
        ball, step = passes.game.ball, self._step(passes.game)
        if steady:
            return ball.ascend(run.target, eta, slope, step, times=self.n)
        eta = ball.ascend(run.target, eta, slope, step)
        for _ in range(self.n - 1):
            there = passes.local(run, eta)
            slope = passes.hamiltonian_slopes(there, costate, [there.point], keep=False)[0]
            eta = ball.ascend(run.target, eta, slope, step)
        return eta

    def _step(self, game: Game) -> float:
        return _REACH * game.ball.epsilon / (self.m * self.n) if self.step_size is None else self.step_size


def _add(totals: list[Tensor], slopes: list[Tensor]) -> None:
    for total, slope in zip(totals, slopes, strict=True):
        total += slope


def _reaches(costs: list[Tensor], x: Tensor) -> bool:
    """Whether a running cost depends on the state."""
    return any(
        cost.requires_grad and torch.autograd.grad(cost.sum(), x, retain_graph=True, allow_unused=True)[0] is not None
        for cost in costs
    )
