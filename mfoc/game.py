"""Differential games: a control problem in which every particle is disturbed by an adversary.

    min over u, max over eta in a ball, of   E[ sum_t L_t(x_t, u_t, z) + Phi(x_T, z) ],
    x_(t+1) = f_t(x_t, u_t, z),   and the state that enters stage s is x_s + eta.

Zhang, Zhang, Lu, Zhu, Dong (2019), "You only propagate once: accelerating adversarial training via maximal principle",
arXiv:1905.00877, sec. 3. The Hamiltonian of the problem is that of both players: u minimises it, eta maximises H_s.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc import _tree
from mfoc._errors import InvalidType, InvalidValue
from mfoc._tree import Tree
from mfoc.checks import check_integer
from mfoc.pontryagin import rollout_from
from mfoc.problem import Particles, Problem

_NORMS = ("linf", "l2")
_TINY = 1e-10  # keeps a vanishing gradient from being divided by zero


@dataclass(frozen=True)
class Ball:
    """What the adversary may do: ||eta|| <= epsilon per particle, and x + eta within bounds.

    A disturbance is kept inside the norm ball; the state it produces, ``enter(x, eta)``, is clamped to the bounds.

    Attributes:
        epsilon: the radius, in units of the state.
        norm: "linf" or "l2", over all axes of a particle's state.
        bounds: least and largest value a disturbed state may have, or None.
    """

    epsilon: float
    norm: str = "linf"
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.epsilon, bool) or not isinstance(self.epsilon, Real):
            raise InvalidType(f"epsilon is a {type(self.epsilon).__name__}; expected a positive number")
        if not 0 < self.epsilon < math.inf:
            raise InvalidValue(f"epsilon is {self.epsilon!r}; expected a positive finite number")
        if self.norm not in _NORMS:
            raise InvalidValue(f"norm is {self.norm!r}; expected one of {', '.join(map(repr, _NORMS))}")
        if self.bounds is None:
            return
        if not isinstance(self.bounds, tuple | list) or len(self.bounds) != 2:
            raise InvalidType(f"bounds is {self.bounds!r}; expected a pair (least, largest) or None")
        low, high = self.bounds
        if any(isinstance(bound, bool) or not isinstance(bound, Real) for bound in self.bounds):
            raise InvalidType(f"bounds is {self.bounds!r}; expected a pair of numbers (least, largest) or None")
        if not low < high:
            raise InvalidValue(f"bounds is {self.bounds!r}; expected least < largest")
        object.__setattr__(self, "bounds", (float(low), float(high)))

    def enter(self, x: Tensor, eta: Tensor) -> Tensor:
        """The disturbed state ``[N, ...]``."""
        point = x + eta
        return point if self.bounds is None else point.clamp(*self.bounds)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Random disturbances of the states x ``[N, ...]``.

        Uniform in the cube for "linf"; for "l2" a uniform direction with a uniform radius.
        """
        eta = torch.empty_like(x)
        if self.norm == "linf":
            return eta.uniform_(-self.epsilon, self.epsilon, generator=generator)
        eta.normal_(generator=generator)
        size = _sizes(eta)
        radius = torch.zeros_like(size).uniform_(0, 1, generator=generator)
        return eta * (radius / size.clamp_min(_TINY) * self.epsilon)

    def project(self, eta: Tensor) -> Tensor:
        """The nearest disturbance with norm at most epsilon."""
        if self.norm == "linf":
            return eta.clamp(-self.epsilon, self.epsilon)
        return eta * (self.epsilon / _sizes(eta).clamp_min(_TINY)).clamp_max(1.0)

    def ascend(self, x: Tensor, eta: Tensor, slope: Tensor, step: float, *, times: int = 1) -> Tensor:
        """Projected steepest ascent from eta along a fixed slope.

        Args:
            x: the states ``[N, ...]``.
            eta: the disturbances.
            slope: the gradient at the disturbed state; only its direction (its signs, for "linf") counts.
            step: length of one step, in units of the state and in the ball's norm.
            times: number of steps.

        Returns:
            The new disturbances.
        """
        if self.norm == "linf":  # each coordinate moves to one side until it meets its bound: one long step does it
            return self.project(self.enter(x, eta) + times * step * slope.sign() - x)
        direction = slope / (_sizes(slope) + _TINY)
        for _ in range(times):
            eta = self.project(self.enter(x, eta) + step * direction - x)
        return eta

    def gap(self, x: Tensor, eta: Tensor, slope: Tensor) -> Tensor:
        """How far the adversary is from stationary: the largest <slope, eta' - eta> over all admissible eta'.

        The first-order stationary condition of Wang et al. (2019), "On the convergence and robustness of adversarial
        training", eq. (8), which is the Frank-Wolfe gap; exact for "linf", for "l2" without the bounds (so, too large).

        Args:
            x: the states ``[N, ...]``.
            eta: the disturbances.
            slope: the gradient of the cost at the disturbed state, per particle.

        Returns:
            A non-negative number per particle ``[N]``; zero where no small move raises the cost.
        """
        point = self.enter(x, eta)
        if self.norm == "l2":
            return (self.epsilon * _sizes(slope)).flatten() - _rows(slope * (point - x)).sum(1)
        best = self.enter(x, self.epsilon * slope.sign())
        return _rows(slope * (best - point)).sum(1)


def _sizes(x: Tensor) -> Tensor:
    """Euclidean norms of the particles, shaped so that they broadcast."""
    sizes: Tensor = torch.linalg.vector_norm(_rows(x), dim=1).view(-1, *[1] * (x.dim() - 1))
    return sizes


def _rows(x: Tensor) -> Tensor:
    """One row for each particle ``[N, d]``."""
    return x.reshape(len(x), -1)


class Disturbed(NamedTuple):
    """What a game's functions receive as z once a disturbance is played.

    Attributes:
        data: the z of the problem; an empty tuple when it has none.
        disturbance: eta ``[N, ...]``, shaped as the (part of the) state it is added to.
    """

    data: Tree
    disturbance: Tensor


@dataclass(frozen=True)
class Game(Problem):
    """A control problem with an adversary; make one with ``Game.of``.

    It is a ``Problem``: on plain particles it is the undisturbed one, on ``disturb(particles, eta)`` the disturbed one.
    So everything that takes a problem (``evaluate``, ``certify``, any solver's step) applies to the minimiser's side.

    Attributes:
        ball: the admissible disturbances.
        stage: the stage s whose incoming state is disturbed.
        part: the state's entry (an index or key) that is disturbed, when the state is a tuple, list or dict.
    """

    ball: Ball = field(default_factory=lambda: Ball(1.0), kw_only=True)
    stage: int = field(default=0, kw_only=True)
    part: int | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, Ball):
            raise InvalidType(f"ball is a {type(self.ball).__name__}; expected mfoc.Ball(epsilon, norm, bounds)")
        check_integer(0, self.stages - 1, stage=self.stage)

    @staticmethod
    def of(problem: Problem, ball: Ball, *, stage: int = 0, part: int | str | None = None) -> Game:
        """The game in which an adversary disturbs a problem.

        Args:
            problem: the control problem; it is not changed.
            ball: the admissible disturbances.
            stage: the stage whose incoming state is disturbed; 0 is the input.
            part: which entry of the state, when it is a tuple, list or dict.

        Raises:
            InvalidType, InvalidValue: wrong arguments.
        """
        if not isinstance(problem, Problem):
            raise InvalidType(f"problem is a {type(problem).__name__}; expected mfoc.Problem")
        if isinstance(problem, Game):
            raise InvalidType("problem is a Game already; a game has one adversary")
        running_cost, kind = problem.running_cost, problem.kind

        def before(t: int, x: Tree, z: Tree) -> tuple[Tree, Tree]:
            if not isinstance(z, Disturbed):
                return x, z
            return (_entered(ball, part, x, z.disturbance) if t == stage else x), undisturbed(z)

        def dynamics(t: int, x: Tree, u: Tree, z: Tree) -> Tree:
            x, z = before(t, x, z)
            return problem.dynamics(t, x, u, z)

        def cost(t: int, x: Tree, u: Tree, z: Tree) -> Tensor:
            assert running_cost is not None
            x, z = before(t, x, z)
            return running_cost(t, x, u, z)

        def terminal_cost(x: Tree, z: Tree) -> Tensor:
            return problem.terminal_cost(x, undisturbed(z))

        def kind_of(t: int) -> Hashable:
            assert kind is not None
            return ("disturbed", kind(t)) if t == stage else kind(t)

        return Game(
            dynamics,
            terminal_cost,
            problem.controls,
            running_cost=None if running_cost is None else cost,
            horizon=problem.horizon,
            schedule=problem.schedule,
            kind=None if kind is None else kind_of,
            affine=problem.affine,
            ball=ball,
            stage=stage,
            part=part,
        )

    def target(self, x: Tree) -> Tensor:
        """The tensor in the state at the disturbed stage that eta is added to.

        Raises:
            InvalidType: it is no floating-point tensor.
            InvalidValue: ``part`` is not an entry of the state.
        """
        return target_of(self.part, x)

    def enter(self, x: Tree, eta: Tensor) -> Tree:
        """The state at the disturbed stage with a disturbance added and the bounds applied."""
        return _entered(self.ball, self.part, x, eta)

    def disturb(self, particles: Particles, eta: Tensor) -> Particles:
        """The particles on which this game's functions see the disturbance eta ``[N, ...]``."""
        data = undisturbed(particles.data)
        return Particles(particles.state, Disturbed(() if data is None else data, eta))


def undisturbed(z: Tree) -> Tree:
    """The data of a problem, whether or not a disturbance is played."""
    if not isinstance(z, Disturbed):
        return z
    return None if isinstance(z.data, tuple) and not z.data else z.data


def target_of(part: int | str | None, x: Tree) -> Tensor:
    """The disturbed tensor of a state; see ``Game.target``."""
    if part is not None:
        if isinstance(x, Tensor):
            raise InvalidValue(f"part is {part!r} and the state is a tensor {tuple(x.shape)}; leave part out")
        try:
            x = x[part]
        except (KeyError, IndexError, TypeError) as error:
            raise InvalidValue(f"part is {part!r}, which is no entry of the state {_tree.describe(x)}") from error
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"a {x.dtype} tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InvalidType(
            f"the state to be disturbed is {what}; expected a floating-point tensor (name an entry of a state that is "
            "a tuple, list or dict with part=...)"
        )
    target: Tensor = x
    return target


def _entered(ball: Ball, part: int | str | None, x: Tree, eta: Tensor) -> Tree:
    target = target_of(part, x)
    if eta.shape != target.shape:
        raise InvalidValue(
            f"the disturbance has shape {tuple(eta.shape)}; the state it is added to has {tuple(target.shape)}"
        )
    return with_target(part, x, ball.enter(target, eta))


def with_target(part: int | str | None, x: Tree, value: Tensor) -> Tree:
    """A state with another tensor in the place of the disturbed one."""
    if part is None:
        return value
    if isinstance(x, dict):
        return {**x, part: value}
    entries = list(x)
    entries[part] = value  # type: ignore[index, call-overload]
    return type(x)(*entries) if hasattr(x, "_fields") else type(x)(entries)


def entering(game: Game, controls: Tree, particles: Particles) -> Tree:
    """The states that enter the disturbed stage, before they are disturbed (cut from any graph)."""
    if not isinstance(game, Game):
        raise InvalidType(f"game is a {type(game).__name__}; expected mfoc.Game, made by mfoc.Game.of(problem, ball)")
    x, z = particles.state, undisturbed(particles.data)
    with torch.no_grad():
        for t in range(game.stage):
            x = game.dynamics(t, x, game.schedule(controls, t), z)
    return x


@torch.enable_grad()
def costate_at(game: Game, controls: Tree, x: Tree, z: Tree, eta: Tensor) -> Tensor:
    """The gradient of the mean cost in the disturbed state: p_s / N.

    Args:
        game: the game.
        controls: the controls; no gradient in them is computed.
        x: what ``entering`` returned.
        z: the problem's data.
        eta: the disturbance.
    """
    point = game.ball.enter(game.target(x), eta).detach().requires_grad_()
    cost = rollout_from(game, _tree.detached(controls), game.stage, with_target(game.part, x, point), z).cost
    return _tree.leaf_gradients(cost.mean(), [point])[0]
