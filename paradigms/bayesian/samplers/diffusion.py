"""A controlled diffusion on a grid of times, with the logarithm of its Girsanov weight, and its control problem."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidValue
from mfoc.checks import check_integer
from mfoc.derivatives import without_fast_path
from mfoc.networks.inspection import mixes, random_parts, trainable
from mfoc.problem import controls_of
from mfoc.seeding import mixed_seed
from paradigms.bayesian.density import LogDensity
from paradigms.bayesian.laws.normal import normal_log_prob, shape_or_type

_CHUNK = 4096  # particles run at once


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
        random = dict(random_parts(self.policy))
        for name, module in self.policy.named_modules():
            if mixes(module) or name in random:
                mixing = "mixes the paths of a batch, whose weights must be independent"
                raise InvalidValue(
                    f"policy: {name or 'the module'} ({type(module).__name__}) "
                    f"{mixing if mixes(module) else 'draws at random'}; call eval() on it (batch norm then needs "
                    "running averages), or take a layer norm"
                )
        x, last = self.density.check(self.density.initial(2)), len(self.lengths) - 1
        for t in (0, last):
            together = self._probed(t, x)
            if not together.isfinite().all():
                raise InvalidValue(
                    f"policy(t, x) is not finite at t = {self.times[t]:.4g}; was it made for another end time than "
                    f"T = {self.times[-1]:.4g}?"
                )
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
        if shape_or_type(u) != x.shape:
            raise InvalidValue(
                f"policy(t, x) returned {shape_or_type(u)} for x of shape {tuple(x.shape)}; expected that shape"
            )
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
        return self._at(controls, x.new_tensor(self.times[t]), x, score)

    def _at(self, controls: dict[str, Tensor], time: Tensor, x: Tensor, score: Tensor | None) -> Tensor:
        named = {"score": score} if self.takes_score else {}
        u: Tensor = torch.func.functional_call(self.policy, controls, (time, x), named)
        return u

    def drifts(self, controls: dict[str, Tensor], times: Tensor, x: Tensor) -> Tensor:
        """The drift at points ``[n, d]`` with a time ``[n]`` for each; the policy runs under ``torch.vmap``."""
        score = self.score(x)

        def one(time: Tensor, x: Tensor, *score: Tensor) -> Tensor:
            return self._at(controls, time, x[None], score[0][None] if score else None)[0]

        with without_fast_path():
            u: Tensor = torch.vmap(one)(times, x, *(() if score is None else (score,)))
        return u

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


@dataclass(frozen=True, eq=False)
class PathProblem(mfoc.Problem):
    """Steering a diffusion to a target at the least cost, with its paths, their weights and their bridges.

    ``follmer`` makes one. It holds all that a solver of its own kind, such as ``CrossEntropy``, needs.

    Attributes:
        diffusion: the controlled diffusion on its grid.
        particles: paths in a batch and in the readout.
        seed: of the paths.
    """

    diffusion: Diffusion = field(kw_only=True)
    particles: int = field(kw_only=True)
    seed: int = field(kw_only=True)

    def __repr__(self) -> str:
        policy = type(self.diffusion.policy).__name__
        return f"PathProblem({self.particles} paths of {self.stages} steps by {policy} to {self.density!r})"

    @property
    def density(self) -> LogDensity:
        """The target."""
        return self.diffusion.density

    def draw(self, k: int) -> mfoc.Particles:
        """The paths' noise of batch k, with their start."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, k, 0))
        noise = torch.stack([self.density.normals(self.particles, generator) for _ in range(self.stages)], dim=1)
        return mfoc.Particles(self.diffusion.start(self.particles), {"noise": noise})

    def paths(self, solution: Any, *, n: int = 4096, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Paths of the diffusion: their end points ``[n, d]`` and log weights ``[n]``; see ``Follmer.evaluate``."""
        check_integer(2, n=n)
        check_integer(0, seed=seed)
        controls, own = controls_of(solution), self.controls
        fits = isinstance(controls, dict) and controls.keys() == own.keys()
        if not fits or any(controls[name].shape != leaf.shape for name, leaf in own.items()):
            raise InvalidValue(  # others would leave the policy as it was made
                "the controls are not those of this sampler's policy: expected "
                f"{', '.join(f'{key} {tuple(leaf.shape)}' for key, leaf in own.items())}"
            )
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, seed, 1))
        sizes = [min(_CHUNK, n - first) for first in range(0, n, _CHUNK)]
        x, log_w = zip(*(self.diffusion.run(controls, size, generator) for size in sizes), strict=True)
        return torch.cat(x), torch.cat(log_w)

    # ---- bridges

    def check_bridges(self) -> None:
        """Refuses a policy that cannot be run at many times at once, as bridge matching does."""
        x, times = self.density.initial(2), self.diffusion.times
        try:
            with torch.no_grad():
                self.diffusion.drifts(self.controls, x.new_tensor([times[0], times[-2]]), x)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidValue(
                "policy(t, x) cannot be run under torch.vmap, for many times at once; write it without float(t), "
                f"branches on values and writes in place (torch.where for a branch): {error}"
            ) from error

    @cached_property
    def matching(self) -> mfoc.Problem:
        """The regression of the drift on points of bridges, as a problem of one stage."""
        diffusion, T = self.diffusion, self.diffusion.times[-1]

        def mismatch(t: int, x: Tensor, controls: Any, z: Any) -> Tensor:
            wanted = (z["end"] - x) / (T - z["time"])[:, None]
            u = diffusion.drifts(controls, z["time"], x.detach())
            cost: Tensor = z["weight"] * (u - wanted).square().sum(1)
            return cost

        return mfoc.Problem(
            dynamics=lambda t, x, controls, z: x,
            running_cost=mismatch,
            terminal_cost=lambda x, z: x.new_zeros(len(x)),
            controls=self.controls,
            horizon=1,
            schedule=mfoc.tied,
        )

    def bridges(self, pool: Tensor, n: int, key: int) -> mfoc.Particles:
        """The regression's particles: points of bridges to ends from the pool, spread evenly over the grid's times."""
        diffusion, stages, T = self.diffusion, self.stages, self.diffusion.times[-1]
        generator = torch.Generator().manual_seed(key)
        times, lengths = pool.new_tensor(diffusion.times[:-1]), pool.new_tensor(diffusion.lengths)
        end = pool[torch.randint(len(pool), (n,), generator=generator, device="cpu").to(pool.device)]
        stage = (
            torch.arange(n, device="cpu") + torch.randint(stages, (1,), generator=generator, device="cpu")
        ) % stages
        t, h = times[stage.to(pool.device)], lengths[stage.to(pool.device)]
        deviation = diffusion.sigma * (t * (T - t) / T).sqrt()
        x = t[:, None] / T * end + deviation[:, None] * self.density.normals(n, generator)
        return mfoc.Particles(x, {"end": end, "time": t, "weight": stages * h / (2 * diffusion.sigma**2)})
