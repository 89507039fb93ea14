"""The control problem of the path-integral sampler, which knows its paths, their weights and their bridges."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidValue
from mfoc.checks import check_integer
from mfoc.problem import controls_of
from mfoc.seeding import mixed_seed
from paradigms.bayesian.density import LogDensity
from paradigms.bayesian.samplers.diffusion import Diffusion

_CHUNK = 4096  # particles run at once


@dataclass(frozen=True, eq=False)
class PathProblem(mfoc.Problem):
    """Steering a diffusion to a target at the least cost; ``follmer`` makes one.

    It is a ``Problem`` and holds all that a solver of its own kind, such as ``CrossEntropy``, needs.

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
        controls = self._own(solution)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, seed, 1))
        sizes = [min(_CHUNK, n - first) for first in range(0, n, _CHUNK)]
        x, log_w = zip(*(self.diffusion.run(controls, size, generator) for size in sizes), strict=True)
        return torch.cat(x), torch.cat(log_w)

    def _own(self, solution: Any) -> Any:
        """The controls of a solution, if they are this policy's: others would leave it as it was made."""
        controls, own = controls_of(solution), self.controls
        fits = isinstance(controls, dict) and controls.keys() == own.keys()
        if not fits or any(controls[name].shape != leaf.shape for name, leaf in own.items()):
            raise InvalidValue(
                "the controls are not those of this sampler's policy: expected "
                f"{', '.join(f'{key} {tuple(leaf.shape)}' for key, leaf in own.items())}"
            )
        return controls

    # ---- bridges

    def check_bridges(self) -> None:
        """Refuses a policy that cannot be run at many times at once, as bridge matching does.

        Raises:
            InvalidValue: it cannot run under ``torch.vmap``.
        """
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
        end = pool[torch.randint(len(pool), (n,), generator=generator).to(pool.device)]
        stage = (torch.arange(n) + torch.randint(stages, (1,), generator=generator)) % stages
        t, h = times[stage.to(pool.device)], lengths[stage.to(pool.device)]
        deviation = diffusion.sigma * (t * (T - t) / T).sqrt()
        x = t[:, None] / T * end + deviation[:, None] * self.density.normals(n, generator)
        return mfoc.Particles(x, {"end": end, "time": t, "weight": stages * h / (2 * diffusion.sigma**2)})
