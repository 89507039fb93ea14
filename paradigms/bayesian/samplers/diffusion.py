"""A controlled diffusion on a grid of times, with the logarithm of its Girsanov weight."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidValue
from mfoc.networks.inspection import is_dropout, mixes, trainable
from paradigms.bayesian.density import LogDensity
from paradigms.bayesian.laws.normal import normal_log_prob


def grid(T: float, steps: int, spacing: float) -> list[float]:
    """The times t_0 = 0, ..., t_K = T; see ``follmer``."""
    return [T * (1 - (1 - k / steps) ** spacing) for k in range(steps + 1)]


class Diffusion:
    """The controlled diffusion on a grid. Its state has the points "x" and the cost so far, "cost"."""

    def __init__(
        self,
        density: LogDensity,
        policy: nn.Module,
        sigma: float,
        times: list[float],
        path_gradient: bool,
        stop_score: bool,
    ) -> None:
        self.density, self.policy, self.sigma, self.times = density, copy.deepcopy(policy), sigma, times
        self.lengths = [after - before for before, after in itertools.pairwise(times)]
        self.variance = sigma**2 * times[-1]
        self.path_gradient, self.stop_score = path_gradient, stop_score
        parameters = list(inspect.signature(policy.forward).parameters)
        self.takes_score = "score" in parameters and getattr(policy, "takes_score", True)

    def controls(self) -> dict[str, Tensor]:
        """The policy's parameters, copied."""
        return {k: p.detach().clone() for k, p in trainable(self.policy).items() if p.numel()}

    def check(self) -> None:
        """Refuses a policy that does not fit."""
        if not self.controls():
            raise InvalidValue("policy has no parameter that requires grad; there is nothing to solve for")
        _refuse_mixing(self.policy)
        x, last = self.density.check(self.density.initial(2)), len(self.lengths) - 1
        for t in (0, last):
            if not self._probed(t, x).isfinite().all():
                raise InvalidValue(
                    f"policy(t, x) is not finite at t = {self.times[t]:.4g}; was it made for another end time than "
                    f"T = {self.times[-1]:.4g}?"
                )
        together = self._probed(last, x)
        alone = torch.cat([self._probed(last, point[None]) for point in x])
        if not torch.allclose(together, alone, rtol=1e-2, atol=1e-3 * float(together.abs().max())):
            raise InvalidValue(
                "policy(t, x) gives a point another drift when other points are there, or every time: it draws at "
                "random or mixes the paths of a batch, whose weights must be independent"
            )

    def _probed(self, t: int, x: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                u = self.drift(self.controls(), t, x, self.density.score(x))
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidValue(f"policy(t, x) failed on t a scalar and x of shape {tuple(x.shape)}: {error}") from error
        if not isinstance(u, Tensor) or u.shape != x.shape:
            what = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise InvalidValue(f"policy(t, x) returned {what} for x of shape {tuple(x.shape)}; expected that shape")
        return u

    def start(self, n: int) -> dict[str, Tensor]:
        """The state at time 0."""
        zeros = self.density.like.new_zeros(n, self.density.dim)
        return {"x": zeros, "cost": zeros[:, 0].clone()}

    def score(self, x: Tensor) -> Tensor | None:
        """The gradient of the log density, when the policy takes it."""
        return self.density.score(x) if self.takes_score else None

    def drift(self, controls: dict[str, Tensor], t: int, x: Tensor, score: Tensor | None) -> Tensor:
        """The drift u at the start of step t ``[n, d]``."""
        time = x.new_tensor(self.times[t])
        named = {"score": score} if self.takes_score else {}
        u: Tensor = torch.func.functional_call(self.policy, controls, (time, x), named)
        return u

    def drifts(self, controls: dict[str, Tensor], times: Tensor, x: Tensor) -> Tensor:
        """The drift at points ``[n, d]`` with a time ``[n]`` for each; the policy runs under ``torch.vmap``."""
        score = self.score(x)

        def one(time: Tensor, x: Tensor, *score: Tensor) -> Tensor:
            named = {"score": score[0][None]} if score else {}
            u: Tensor = torch.func.functional_call(self.policy, controls, (time, x[None]), named)
            return u[0]

        u: Tensor = torch.vmap(one)(times, x, *(() if score is None else (score,)))
        return u

    def step(self, t: int, state: Any, controls: Any, z: Any) -> dict[str, Tensor]:
        """The dynamics of the control problem."""
        return self.advance(t, state, controls, z["noise"][:, t])

    def advance(self, t: int, state: Any, controls: Any, xi: Tensor) -> dict[str, Tensor]:
        """One step; xi are standard normals ``[n, d]``."""
        x, h = state["x"], self.lengths[t]
        score = self.score(x.detach() if self.stop_score else x)
        u = self.drift(controls, t, x, score)
        cost = state["cost"] + h / (2 * self.sigma**2) * u.square().sum(1)
        if self.path_gradient:
            held = u
            if torch.is_grad_enabled():
                held = self.drift({name: leaf.detach() for name, leaf in controls.items()}, t, x, score)
            cost = cost + math.sqrt(h) / self.sigma * (held * xi).sum(1)
        return {"x": x + h * u + self.sigma * math.sqrt(h) * xi, "cost": cost}

    def terminal_cost(self, state: Any, z: Any) -> Tensor:
        """The cost of the path, with log p0_T(X_T) - log gamma(X_T)."""
        x = state["x"]
        reference = normal_log_prob(x, 0.0, math.sqrt(self.variance)).sum(1)
        cost: Tensor = state["cost"] + reference - self.density(x)
        return cost

    @torch.no_grad()
    def run(self, controls: Any, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """End points ``[n, d]`` and log weights ``[n]``."""
        state, integral = self.start(n), self.density.like.new_zeros(n)
        for t, h in enumerate(self.lengths):
            xi, before = self.density.normals(n, generator), state["x"]
            state = self.advance(t, state, controls, xi)
            if not self.path_gradient:  # u . dW / sigma, which the cost then lacks; u from the move itself
                dw = math.sqrt(h) * xi
                integral = integral + ((state["x"] - before - self.sigma * dw) * dw).sum(1) / (h * self.sigma)
        return state["x"], -self.terminal_cost(state, None) - integral


def _refuse_mixing(policy: nn.Module) -> None:
    """Refuses a policy by which paths depend on each other or on chance: weights must be independent and pure."""
    for name, module in policy.named_modules():
        if mixes(module) or is_dropout(module, active=True):
            mixing = "mixes the paths of a batch, whose weights must be independent"
            why = mixing if mixes(module) else "draws at random"
            raise InvalidValue(
                f"policy: {name or 'the module'} ({type(module).__name__}) {why}; call eval() on it (batch norm then "
                "needs running averages), or take a layer norm"
            )
