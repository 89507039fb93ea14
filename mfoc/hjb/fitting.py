"""Value functions of many state variables: a network fitted to optimal paths, and its gradient to their costates.

Nakamura-Zimmerer, Gong & Kang (2021), "Adaptive deep learning for high-dimensional Hamilton-Jacobi-Bellman equations",
eq. (3.6): along an optimal path V is the cost-to-go and dV/dx the costate, so that each path gives T values and T n
slopes. No grid is needed; how good the fit is where no path went is measured on paths held out.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mfoc import printing, tree
from mfoc.checks import check_instance, check_integer, check_non_negative
from mfoc.derivatives import check_twice, gradients, twice_differentiable
from mfoc.errors import InvalidType, InvalidValue
from mfoc.hjb.bellman import Bellman, bellman, check_controls
from mfoc.hjb.paths import costs_to_go, open_loop, per_particle
from mfoc.hjb.value import FittedValue
from mfoc.pontryagin import costates, rollout
from mfoc.populations import as_particles
from mfoc.problem import Problem
from mfoc.seeding import seeded

logger = logging.getLogger(__name__)

_HIDDEN = 64
_HELD_OUT = 0.2  # share of the paths


@printing.by_identity
class Paths(NamedTuple):
    """Optimal paths: at each stage 0 .. T-1 of each start, what the value function is fitted to.

    Attributes:
        stage: ``[M, T, 1]``.
        state: ``[M, T, n]``.
        value: cost-to-go ``[M, T]``.
        costate: ``[M, T, n]``.
    """

    stage: Tensor
    state: Tensor
    value: Tensor
    costate: Tensor


def fit(
    problem: Problem,
    population: Any,
    *,
    z: Any = None,
    net: nn.Module | None = None,
    steps: int = 1000,
    gradient_weight: float = 1.0,
    candidates: Tensor | None = None,
    seed: int = 0,
) -> FittedValue:
    """Fits a value function V(t, x) to optimal paths from a population of initial states.

    From each start the open-loop problem is solved on its own, by L-BFGS (projected Newton under bounds) from the
    problem's controls: a local minimum. The network is fitted to the values and to the costates on all stages,

        mean (V - v)^2 / var v  +  gradient_weight mean |dV/dx - p|^2 / mean |p|^2,

    by L-BFGS on four fifths of the paths; the errors on the others are in the result. V is trustworthy where paths go:
    draw the starts from where it will be asked.

    Args:
        problem: without noise; each stage has one tensor ``[m]`` as its control; particles must not interact.
        population: initial states ``[N, n]``, or what ``mfoc.population`` takes (its data are not used).
        z: data for all states, a pytree with leading axis 1, or None.
        net: ``[N, 1 + n] -> [N, 1]``, of the stage in [-1, 1] and the scaled state, twice differentiable; a copy is
            fitted. None: two hidden layers of 64 tanh units beside a quadratic function, as V is near a target
            (Nakamura-Zimmerer, Gong & Kang 2021, "QRnet", take that of the linearised problem).
        steps: iterations of the fit.
        gradient_weight: weight of the costates; 0 fits the values alone.
        candidates: as in ``mfoc.hjb.solve``, for the policy.
        seed: of the network and of the paths held out.

    Raises:
        InvalidType, InvalidValue: the problem has noise or does not fit, or hardly any optimal path was found.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_instance(nn.Module, "a network, a torch.nn.Module, or None", net=nn.Identity() if net is None else net)
    check_integer(1, steps=steps)
    check_integer(0, seed=seed)
    check_non_negative(gradient_weight=gradient_weight)
    if problem.noise is not None or callable(z):
        raise InvalidValue("the problem has noise: open-loop paths do not know the value function; use mfoc.hjb.solve")
    x = as_particles(population).state
    if not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point():
        raise InvalidType(f"the state is {printing.short(x)}; expected initial states, a floating-point tensor [N, n]")
    check_controls(problem)
    if (own := problem.schedule(problem.controls, 0)).dtype != x.dtype or own.device != x.device:
        raise InvalidValue(f"the state is {x.dtype} on {x.device}, the control {own.dtype} on {own.device}: make one")
    _check_net(net, x, twice=gradient_weight > 0)
    made = bellman(problem, x, z, None, 2, candidates)
    found, converged = optimal_paths(made, x)
    if len(found.state) < 5:
        raise InvalidValue(
            f"an optimal path was found from {len(found.state)} of {len(x)} starts; expected five at least. Start from "
            "better controls (problem.controls), or from more states"
        )
    return _fitted(made, found, net, steps, gradient_weight, seed, converged)


def _check_net(net: nn.Module | None, x: Tensor, *, twice: bool) -> None:
    """Refuses a network that is no map of ``[N, 1 + n]`` to ``[N, 1]``, has nothing to fit or no second derivative."""
    if net is None:
        return
    n, trained = x.shape[1], copy.deepcopy(net).to(x)
    if not any(p.requires_grad for p in trained.parameters()):
        raise InvalidValue("net has no parameter that requires grad; there is nothing to fit")
    given = x.new_zeros(2, 1 + n)
    try:
        with torch.no_grad():
            found = trained(given)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise InvalidValue(f"net fails on [N, {1 + n}], the stage and the {n} numbers of a state: {error}") from error
    if not isinstance(found, Tensor) or found.shape != (2, 1):
        raise InvalidValue(f"net returned {printing.short(found)} for [2, {1 + n}]; expected one value each, [2, 1]")
    if twice:  # slopes in the state are fitted, by derivatives of them in the parameters
        with torch.enable_grad(), twice_differentiable():
            value = trained(given.requires_grad_())
        own = [p for p in trained.parameters() if p.requires_grad]
        check_twice(value, [given, *own], "the fit of costates", "gradient_weight=0 does without")


def optimal_paths(made: Bellman, x: Tensor) -> tuple[Paths, float]:
    """The optimal paths from the starts ``[N, n]`` from which one was found, and their share."""
    controls, converged = open_loop(made, x)
    found = _labelled(made, x[converged], [u[converged] for u in controls])
    return found, float(converged.to(x).mean())


def _labelled(made: Bellman, x: Tensor, controls: list[Tensor]) -> Paths:
    problem = per_particle(made, controls)
    with torch.no_grad():
        trajectory = rollout(problem, controls, x)
    adjoint = costates(problem, controls, trajectory, x)
    stages = torch.arange(len(controls), device="cpu").to(x)
    return Paths(
        stages[None, :, None].expand(len(x), -1, 1),
        torch.stack(trajectory.states[:-1], 1),
        costs_to_go(made, trajectory.states, controls)[:-1].T,
        torch.stack(adjoint[:-1], 1),
    )


def _fitted(
    made: Bellman, found: Paths, net: nn.Module | None, steps: int, weight: float, seed: int, converged: float
) -> FittedValue:
    with seeded(seed, found.state.device):
        n, like = found.state.shape[2], found.state
        net = (_Network(n) if net is None else copy.deepcopy(net)).to(like)
        order = torch.randperm(len(found.state), device="cpu")
    kept = max(4, int((1 - _HELD_OUT) * len(order)))
    seen, unseen = (_flat(found, order[part]) for part in (slice(kept), slice(kept, None)))
    scales = seen.value.var().sqrt(), seen.costate.square().sum(1).mean().sqrt()
    if not all(bool(scale > 0) for scale in scales):
        raise InvalidValue(
            "all optimal paths cost the same; expected starts that differ, and costs that depend on them"
        )
    spread = seen.state.std(0)
    spread = torch.where(spread > 0, spread, 1)
    value = FittedValue(made, net, seen.state.mean(0), spread, scales[0])
    seen, unseen = (_above_terminal(made, part) for part in (seen, unseen))
    _train(value, seen, scales, steps, weight)
    net.requires_grad_(False)
    errors = [float(part.detach().sqrt()) for part in _errors(value, unseen, scales)]
    return replace(value, value_error=errors[0], gradient_error=errors[1], converged=converged)


class _Network(nn.Module):
    """A quadratic function of the state, whose coefficients are affine in the stage, and a network for the rest."""

    def __init__(self, n: int) -> None:
        super().__init__()
        layers = nn.Linear(1 + n, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, 1)
        self.rest = nn.Sequential(*layers)
        self.quadratic = nn.Linear(n + n * (n + 1) // 2, 2)

    def forward(self, given: Tensor) -> Tensor:
        stage, x = given[:, :1], given[:, 1:]
        i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
        constant, linear = self.quadratic(torch.cat([x, x[:, i] * x[:, j]], 1)).split(1, 1)
        found: Tensor = self.rest(given) + constant + stage * linear
        return found


def _flat(found: Paths, rows: Tensor) -> Paths:
    return Paths(*(part[rows].flatten(0, 1) for part in found))


def _above_terminal(made: Bellman, at: Paths) -> Paths:
    """What is left for the network: the values and slopes without those of the terminal cost."""
    with torch.enable_grad():
        x = tree.free(at.state)
        last = made.terminal(x)
        (slope,) = gradients(last, [x])
    return at._replace(value=at.value - last.detach(), costate=at.costate - slope)


def _errors(value: FittedValue, at: Paths, scales: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean squares of what is wrong with the values and with their gradients, in units of ``scales``."""
    with torch.enable_grad(), twice_differentiable():
        x = tree.free(at.state)
        found = value.above_terminal(at.stage, x)
        (slope,) = gradients(found, [x], create_graph=True)
        first = (found - at.value).square().mean() / scales[0] ** 2
        return first, (slope - at.costate).square().sum(1).mean() / scales[1] ** 2


def _train(value: FittedValue, at: Paths, scales: tuple[Tensor, Tensor], steps: int, weight: float) -> None:
    optimizer = torch.optim.LBFGS(
        value.net.parameters(), max_iter=steps, history_size=50, tolerance_grad=0, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Any:
        optimizer.zero_grad()
        first, second = _errors(value, at, scales)
        loss = first + weight * second
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        loss = optimizer.step(closure)  # type: ignore[no-untyped-call]
    logger.info("fitting began at a loss of %.3g", float(loss.detach()))
