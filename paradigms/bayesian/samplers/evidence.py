"""What weighted paths say about a target: its evidence with an error bar, and draws from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import InvalidValue
from mfoc.checks import check_integer
from paradigms.bayesian.density import LogDensity


@dataclass(frozen=True, eq=False)
class Evidence:
    """What weighted paths say about a target.

    Attributes:
        log_z: the estimate of log Z: the log of the mean weight.
        error: its standard error (of the mean weight, by the delta method).
        ess: effective sample size, (sum w)^2 / sum w^2, as a share of the number of paths.
        J: the unscaled objective, as the mean of -log w over the same paths (the stochastic integral has mean zero and
            takes most of the noise away); -J is a lower bound of log Z.
        J_error: its standard error.
        gap: J + log Z, which estimates KL(law of the path || optimal law) >= 0.
        x: end points ``[n, d]``.
        log_weights: log w ``[n]``, unnormalised: E[w] = Z.
        density: the target.
    """

    log_z: float
    error: float
    ess: float
    J: float
    J_error: float
    x: Tensor
    log_weights: Tensor
    density: LogDensity

    @staticmethod
    def of(x: Tensor, log_weights: Tensor, density: LogDensity) -> Evidence:
        """From weighted end points ``[n, d]``.

        Raises:
            InvalidValue: a weight that is NaN or infinite, or none that is positive.
        """
        n, logs = len(x), log_weights.double()
        if logs.isnan().any() or not logs.isfinite().any() or logs.max() == math.inf:
            raise InvalidValue(
                f"{int((~logs.isfinite()).sum())} of {n} weights are not finite; take more steps, or clip the drift"
            )
        scaled = (logs - logs.max()).exp()
        mean = scaled.mean()
        return Evidence(
            log_z=float(mean.log() + logs.max()),
            error=float(scaled.std() / mean / math.sqrt(n)),
            ess=float(scaled.sum().square() / scaled.square().sum() / n),
            J=-float(logs.mean()),
            J_error=float(logs.std() / math.sqrt(n)),
            x=x,
            log_weights=log_weights,
            density=density,
        )

    @property
    def gap(self) -> float:
        """J + log Z."""
        return self.J + self.log_z

    def resampled(self, n: int | None = None, *, seed: int = 0) -> Tensor:
        """End points drawn by their weights, by systematic resampling ``[n, d]``; as many as there are when None."""
        return self.x[systematic(self.log_weights, len(self.x) if n is None else n, seed)]

    def posterior(self, n: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """``resampled`` as posterior samples, name -> ``[n, ...]``, for ``pyro.infer.Predictive``."""
        return self.density.named(self.resampled(n, seed=seed))

    def __repr__(self) -> str:
        return (
            f"log Z = {self.log_z:.4f} +- {self.error:.4f}, J = {self.J:.4f} +- {self.J_error:.4f}, "
            f"J + log Z = {self.gap:.4f}, ESS {self.ess:.1%} of {len(self.x)}"
        )


def systematic(log_weights: Tensor, n: int, seed: int) -> Tensor:
    """Indices ``[n]`` drawn by weights ``[m]``, by systematic resampling: the i-th level is (i + U) / n."""
    check_integer(1, n=n)
    check_integer(0, seed=seed)
    total = log_weights.double().softmax(0).cumsum(0)
    offset = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(total.device)
    level = (torch.arange(n, device=total.device) + offset) / n
    return torch.searchsorted(total / total[-1], level).clamp_max(len(total) - 1)
