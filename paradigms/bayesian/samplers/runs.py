"""Particle methods as the dynamics of a mean-field control problem, and how to run them.

A ``Flow`` is one step of a particle method, pure, with its noise given. ``sampler`` makes a control problem of it: the
state is the cloud, the noise is the data z, and what is left to choose, the control, is the size of the steps. How good
the choice was is the problem's cost, the squared kernel Stein discrepancy of the last cloud: the squared norm of the
gradient of KL(rho || p) in Stein's geometry, which vanishes only at p.

- ``mfoc.rollout(problem, controls, particles)`` runs the sampler,
- ``formulation.solve(mfoc.Gradient(...), steps=...)`` tunes its step sizes,
- ``formulation.readout(solution)`` is the last cloud as posterior samples for ``pyro.infer.Predictive``,
- ``sample(formulation, steps=...)`` runs it for long, keeping only what is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_choice, check_instance, check_integer, check_plain, kind_of
from mfoc.distributed import alone, gathered, share
from mfoc.formulation import Formulation
from mfoc.law import jointly
from mfoc.problem import controls_of
from mfoc.seeding import mixed_seed
from paradigms.bayesian.density import LogDensity, log_density
from paradigms.bayesian.samplers.drawing import draw_draws
from paradigms.bayesian.samplers.kernels import squared_discrepancy

State = Any
Steps = float | Tensor | Sequence[float] | Callable[[int], float]


class Flow(Protocol):
    """One step of a particle method; pure, with its noise given."""

    def start(self, density: LogDensity, x: Tensor) -> State:
        """The state of particles at points ``[n, d]``: a tensor ``[n, d]``, or a dict with it as "x"."""

    def draw(self, density: LogDensity, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The noise of one step, tensors ``[n, ...]``."""

    def step(self, density: LogDensity, t: int, state: State, h: Tensor, z: Mapping[str, Tensor]) -> State:
        """The next state, with step size h."""


def points(state: State) -> Tensor:
    """The points ``[n, d]`` of a state."""
    x: Tensor = state["x"] if isinstance(state, dict) else state
    return x


@dataclass(frozen=True, eq=False)
class Sampler(Formulation):
    """A particle method written as a control problem; its control is {"log_step": log of the step size}.

    Attributes:
        density: the target.
        flow: one step of the method.
        start: where the particles start ``[n, d]``.
        seed: of the noise.
    """

    density: LogDensity
    flow: Flow
    start: Tensor
    seed: int = 0

    def __repr__(self) -> str:
        return f"Sampler({len(self.start)} particles, {self.problem.stages} steps of {self.flow!r} to {self.density!r})"


def as_density(target: Any, particles: Any) -> LogDensity:
    """A target as a log density; a bare function takes its dimension from the particles."""
    if isinstance(target, LogDensity):
        return target
    if isinstance(particles, Tensor) and callable(target) and not isinstance(target, torch.nn.Module):
        if particles.dim() != 2 or not len(particles):
            raise InvalidValue(f"particles has shape {tuple(particles.shape)}; expected points [n, d], at least one")
        return log_density(target, like=particles[0])
    raise InvalidType(
        f"the target is {kind_of(target)}; expected what log_density(...) returns, or a function together with "
        "particles=[n, d]"
    )


def sampler(
    density: LogDensity,
    flow: Flow,
    step: Steps,
    steps: int,
    particles: int | Tensor,
    seed: int,
    init: str | None = None,
) -> Sampler:
    """A formulation from any ``Flow``. The other arguments are those of ``langevin``."""
    check_integer(1, steps=steps)
    check_integer(0, seed=seed)
    start = _start(density, particles, seed, init)
    controls, schedule = _schedule(density, step, steps)

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        now = {} if z is None else {name: leaf[:, t] for name, leaf in z.items()}
        return flow.step(density, t, x, u["log_step"].exp(), now)

    def terminal_cost(x: Any, z: Any) -> Tensor:
        x = points(x)
        return jointly(squared_discrepancy, x, density.score(x))

    def draw(k: int) -> mfoc.Particles:
        generator = torch.Generator().manual_seed(mixed_seed(seed, k))
        drawn = [flow.draw(density, len(start), generator) for _ in range(steps)]
        noise = {name: torch.stack([one[name] for one in drawn], dim=1) for name in drawn[0]}
        return mfoc.Particles(flow.start(density, start), noise or None)

    # Each draw is the whole ensemble: where its particles interact, they are a population of their own.
    problem = mfoc.Problem(dynamics, terminal_cost, controls, horizon=steps, schedule=schedule, interacting="batch")

    def readout(solution: Any) -> dict[str, Tensor]:
        with alone():  # a rank may read out by itself
            return density.named(sample(made, controls=controls_of(solution), burn_in=steps - 1).x[-1])

    made = Sampler(problem, mfoc.population(draw), readout, density, flow, start, seed)
    return made


def _start(density: LogDensity, particles: Any, seed: int, init: str | None) -> Tensor:
    if init is not None:
        check_choice("prior", "uniform", init=init)
    if isinstance(particles, Tensor) and init is not None:
        raise InvalidValue(f"init is {init!r}, and particles says where they start; leave one of them out")
    if isinstance(particles, Tensor):
        if particles.dim() != 2 or not len(particles):
            raise InvalidValue(
                f"particles has shape {tuple(particles.shape)}; expected points (n, {density.dim}), at least one"
            )
        return density.check(particles.detach().to(density.like).clone())
    check_integer(1, particles=particles)
    if init == "prior":
        if density.prior is None:
            raise InvalidValue(
                f"init is 'prior', and {density!r} has none that can be drawn from; pass particles=, points [n, d]"
            )
        return density.check(density.prior(particles, seed))
    if init == "uniform":
        density = dataclasses.replace(density, draw=None)
    return density.check(density.initial(particles, seed))


def _schedule(density: LogDensity, step: Any, steps: int) -> tuple[Any, Any]:
    if callable(step) and not isinstance(step, Tensor):
        step = [step(t) for t in range(steps)]
    if isinstance(step, int | float | Tensor):
        return {"log_step": _log_step(density, step)}, mfoc.tied
    if not isinstance(step, Sequence) or isinstance(step, str):
        raise InvalidType(f"step is {kind_of(step)}; expected a number, a tensor, a sequence or a function of t")
    if len(step) != steps:
        raise InvalidValue(f"step holds {len(step)} step sizes; the horizon is {steps}")
    return [{"log_step": _log_step(density, h)} for h in step], mfoc.per_stage


def _log_step(density: LogDensity, h: Any) -> Tensor:
    if isinstance(h, Tensor):
        check_plain("a step size, or one for each axis", step=h)
    message = f"step is {h!r}; expected a positive finite step size, or one for each of {density.dim} axes"
    try:
        size = tree.tensor_of(None if isinstance(h, bool) else h, density.like.dtype).to(density.like).detach()
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidType(message) from error
    if not (size.isfinite() & (size > 0)).all() or size.shape not in ((), (density.dim,)):
        raise InvalidValue(message)
    return size.log()


@dataclass(frozen=True, eq=False)
class Draws:
    """What ``sample`` returns; print it, or ``.plot()`` it.

    Attributes:
        x: the draws kept ``[k, n, d]``, in the order of the steps.
        last: the state after the last step.
        done: steps made so far, those of the draws it went on from included.
        moved: the share of particles that moved, by step: the acceptance rate of MALA. ``[steps]``
        density: the target.
    """

    x: Tensor
    last: Any
    moved: Tensor
    density: LogDensity
    done: int

    def __repr__(self) -> str:
        k, n, _ = self.x.shape
        return (
            f"Draws({k} clouds of {n} particles after {self.done} steps, {self.acceptance:.0%} moved; {self.density!r})"
        )

    @property
    def acceptance(self) -> float:
        """The mean share of moves that were accepted."""
        return float(self.moved.mean())

    def plot(self, axes: tuple[int, int] = (0, 1)) -> Any:
        """The draws in two coordinates (a histogram where there is one), and how many moved by step.

        Args:
            axes: which coordinates.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            InvalidType, InvalidValue: no pair of coordinates.
            MissingExtra: matplotlib is not installed.
        """
        check_instance(tuple | list, "a pair of coordinates, such as (0, 1)", axes=axes)
        if len(axes) != 2:
            raise InvalidValue(f"axes is {axes!r}; expected a pair of coordinates, such as (0, 1)")
        first, second = axes
        if self.x.shape[-1] > 1:
            named: dict[str, Any] = {"axes[0]": first, "axes[1]": second}
            check_integer(0, self.x.shape[-1] - 1, **named)
        return draw_draws(self.x, self.moved, (first, second))

    def posterior(self) -> dict[str, Tensor]:
        """All draws as posterior samples, name -> ``[k * n, ...]``, for ``pyro.infer.Predictive``."""
        return self.density.named(self.x.flatten(0, 1))


@torch.no_grad()
def sample(
    formulation: Sampler,
    *,
    steps: int | None = None,
    burn_in: int = 0,
    thin: int = 1,
    controls: Any = None,
    start: Any = None,
    seed: int = 0,
) -> Draws:
    """Runs a sampler for any number of steps, keeping every ``thin``-th cloud after the first ``burn_in`` steps.

    Over the horizon, with ``seed=0``, it is ``mfoc.rollout`` on the particles ``formulation.population(0)`` to the bit.
    Over ranks each of them moves its share of the particles, and all get the draws of all: every rank must call.

    Args:
        formulation: what ``langevin`` or ``svgd`` returned.
        steps: how many; the horizon when None. Past it only a constant step size can go.
        burn_in: steps before the first draw is kept.
        thin: keep one in so many clouds.
        controls: step sizes, or a solution that has them; those of the problem when None.
        start: draws to go on from: with the same seed the run is then the one that never stopped.
        seed: which noise: that of ``formulation.population(seed)``.

    Raises:
        InvalidType: no sampler.
        InvalidValue: wrong counts, controls or draws of another sampler, or a cloud that is no longer finite.
    """
    check_instance(Sampler, "what langevin or svgd returned", formulation=formulation)
    problem, density, flow = formulation.problem, formulation.density, formulation.flow
    steps = problem.stages if steps is None else steps
    check_integer(1, steps=steps, thin=thin)
    check_integer(0, burn_in=burn_in, seed=seed)
    if burn_in >= steps:
        raise InvalidValue(f"burn_in is {burn_in} of {steps} steps; nothing would be kept")
    controls = problem.controls if controls is None else controls_of(controls)
    if not tree.same_structure(controls, problem.controls):
        raise InvalidValue(
            'the controls are not those of this sampler: expected {"log_step": ...}, one or one for each step'
        )
    problem.check_controls(controls)
    state, first = flow.start(density, formulation.start), 0
    if start is not None:
        check_instance(Draws, "the draws that sample(...) returned", start=start)
        if not tree.same_structure(state, start.last) or tree.describe(state) != tree.describe(start.last):
            raise InvalidValue("start holds draws of another sampler: another method, or another number of particles")
        state, first = start.last, start.done
    if first + steps > problem.stages and problem.per_stage:
        raise InvalidValue(f"steps is {steps}; the schedule of step sizes ends after {problem.stages}")

    n, generator = len(formulation.start), torch.Generator().manual_seed(mixed_seed(formulation.seed, seed))
    for _ in range(first):
        flow.draw(density, n, generator)  # the noise of the steps made before
    mine = share(torch.arange(n, device=formulation.start.device))
    split = len(mine) < n

    def own(rows: Any) -> Any:
        """This rank's share."""
        return tree.map(lambda leaf: leaf[mine], rows) if split else rows

    def joined(rows: Any) -> Any:
        """Those of all ranks."""
        return tree.map(gathered, rows) if split else rows

    state = own(state)
    kept, moved, sizes = [], [], dict[int, Tensor]()
    for t in range(first, first + steps):
        u = problem.schedule(controls, t)["log_step"]
        h, before = sizes.setdefault(id(u), u.exp()), points(state)
        state = flow.step(density, t, state, h, own(flow.draw(density, n, generator)))
        x = points(state)
        moved.append((x != before).any(1).to(h.dtype))
        if t - first >= burn_in and (t - first - burn_in + 1) % thin == 0:
            kept.append(joined(x))
    x, state, moves = joined(x), joined(state), joined(torch.stack(moved, 1)).mean(0)
    if lost := int((~x.isfinite()).any(1).sum()):
        raise InvalidValue(f"after {steps} steps {lost} of {n} particles are not finite; take smaller steps")
    return Draws(torch.stack(kept), state, moves, density, first + steps)
