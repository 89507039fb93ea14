"""Sampling as stochastic control: the path-integral or Foellmer sampler, with an estimate of the evidence.

Steer a diffusion that starts in one point to the target gamma / Z at time T, at the least cost,

    dX = u dt + sigma dW,  X_0 = 0,      J(u) = E[ int |u|^2 / (2 sigma^2) dt + log p0_T(X_T) - log gamma(X_T) ],

where p0_T = N(0, sigma^2 T) is the law of X_T without control. J(u) = KL(law of the path || optimal law) - log Z, so -J
is a lower bound of log Z that the optimal control attains: u* = sigma^2 grad log E[gamma / p0_T (X_T) | X_t], the drift
of Foellmer (1985). Zhang & Chen (2022), arXiv:2111.15141, eq. (5)-(10) (there u is in units of sigma); Tzen & Raginsky
(2019), arXiv:1903.01608, thm. 2.1; Vargas et al. (2023), arXiv:2111.10510.

Whatever the control, log w = -int |u|^2 / (2 sigma^2) dt - int u . dW / sigma - log p0_T(X_T) + log gamma(X_T) has
E[w] = Z (Girsanov). On a grid both statements stay exact: without control the Euler-Maruyama path has the exact law
N(0, sigma^2 T) at the end, and the ratio of two Gaussian transition densities is the discretised weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidValue
from mfoc.checks import check_flag, check_instance, check_integer, check_number, check_positive
from mfoc.formulation import Formulation
from paradigms.bayesian.density import LogDensity
from paradigms.bayesian.samplers.diffusion import Diffusion, PathProblem, grid
from paradigms.bayesian.samplers.drawing import draw_evidence
from paradigms.bayesian.samplers.drifts import Drift


@dataclass(frozen=True, eq=False)
class Evidence:
    """What weighted paths say about a target; print it, or ``.plot()`` it.

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
        """From weighted end points ``[n, d]``; refuses a weight that is NaN or infinite, and weights all of zero."""
        n, logs = len(x), log_weights.double()
        if logs.isnan().any() or not logs.isfinite().any() or logs.max() == math.inf:
            raise InvalidValue(
                f"{int((~logs.isfinite()).sum())} of {n} weights are not finite; take more steps, or clip the drift"
            )
        scaled = (logs - logs.max()).exp()
        mean = scaled.mean()
        return Evidence(
            log_z=float(mean.log() + logs.max()),
            error=_deviation(scaled) / float(mean) / math.sqrt(n),
            ess=float(scaled.sum().square() / scaled.square().sum() / n),
            J=-float(logs.mean()),
            J_error=_deviation(logs) / math.sqrt(n),
            x=x,
            log_weights=log_weights,
            density=density,
        )

    @property
    def gap(self) -> float:
        """The sum J + log Z."""
        return self.J + self.log_z

    def resampled(self, n: int | None = None, *, seed: int = 0) -> Tensor:
        """End points drawn by their weights, by systematic resampling ``[n, d]``; as many as there are when None."""
        return self.x[systematic(self.log_weights, len(self.x) if n is None else n, seed)]

    def posterior(self, n: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
        """``resampled`` as posterior samples, name -> ``[n, ...]``, for ``pyro.infer.Predictive``."""
        return self.density.named(self.resampled(n, seed=seed))

    def plot(self, *, exact: float | None = None) -> Any:
        """The log of Z by the number of paths, with its interval and lower bound, and the weights of the paths.

        Args:
            exact: log Z where it is known, drawn beside.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            InvalidType, InvalidValue: exact is no finite number.
            MissingExtra: matplotlib is not installed.
        """
        check_number(optional=True, exact=exact)
        numbers = self.log_z, self.error, self.ess, -self.J, self.J_error
        return draw_evidence(self.log_weights, *numbers, exact)

    def __repr__(self) -> str:
        return (
            f"log Z = {self.log_z:.4f} +- {self.error:.4f}, J = {self.J:.4f} +- {self.J_error:.4f}, "
            f"J + log Z = {self.gap:.4f}, ESS {self.ess:.1%} of {len(self.x)}"
        )


def _deviation(sample: Tensor) -> float:
    """The standard deviation of a sample ``[n]``; NaN of one."""
    return float(sample.std()) if len(sample) > 1 else math.nan


@dataclass(frozen=True, eq=False)
class Follmer(Formulation):
    """The path-integral sampler written as a control problem; its control is the policy's parameters.

    Attributes:
        path_problem: the problem of its paths: ``problem``, unless something else is minimised (``bridge_matching``).
    """

    path_problem: PathProblem

    def __repr__(self) -> str:
        return f"Follmer({self.path_problem!r})"

    @property
    def density(self) -> LogDensity:
        """The target."""
        return self.path_problem.density

    @property
    def diffusion(self) -> Diffusion:
        """The controlled diffusion on its grid."""
        return self.path_problem.diffusion

    @property
    def particles(self) -> int:
        """Paths in a batch and in the readout."""
        return self.path_problem.particles

    @property
    def seed(self) -> int:
        """Of the paths."""
        return self.path_problem.seed

    def evaluate(self, solution: Any, *, n: int = 4096, seed: int = 1) -> Evidence:
        """Log Z with its error bar, the effective sample size and J, on paths of its own.

        Args:
            solution: the solution, an iterate or controls.
            n: number of paths.
            seed: of the paths; they are never those of the training, whatever the seed.

        Raises:
            InvalidType, InvalidValue: controls of another problem, fewer than two paths, a bad seed, a weight that is
                NaN or infinite, or none that is positive.
        """
        return Evidence.of(*self.paths(solution, n=n, seed=seed), self.density)

    def paths(self, solution: Any, *, n: int = 4096, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Paths of the diffusion: their end points ``[n, d]`` and log weights ``[n]``; see ``evaluate``."""
        return self.path_problem.paths(solution, n=n, seed=seed)


def follmer(
    target: LogDensity,
    policy: nn.Module | None = None,
    *,
    sigma: float = 1.0,
    T: float = 1.0,
    steps: int = 50,
    spacing: float = 1.0,
    particles: int = 256,
    path_gradient: bool = True,
    stop_score: bool = False,
    seed: int = 0,
) -> Follmer:
    """The path-integral (Foellmer) sampler of a target.

    Args:
        target: what ``log_density`` returns.
        policy: the drift u, a module of (t, x), or of (t, x, score) when it has an argument named ``score``, the
            gradient of the log density at x; t is a scalar tensor, the time. Each point's drift must be its own: it
            may depend neither on other points nor on chance. It is copied, never changed.
            ``Drift(dim)`` when None.
        sigma: the noise. sigma^2 T is the variance of the uncontrolled end point: of the order of the target's.
        T: the end time.
        steps: Euler-Maruyama steps K.
        spacing: the grid is t_k = T (1 - (1 - k / K)^spacing). A target that is narrow in some directions needs short
            last steps: sigma^2 h of the order of its smallest variance. With spacing 2 the last step is T / K^2.
        particles: paths in a batch; each step of a solver draws new ones.
        path_gradient: adds int u . dW / sigma to the cost with the parameters in it held fixed. Its expectation is zero
            whatever they are, so J and its gradient keep their expectations; but the cost of a path is then -log w,
            which at the optimum is the same for all paths, so the noise of the gradient vanishes there (Xu et al. 2022,
            arXiv:2102.06559, sec. 4.2). A second evaluation of the policy.
        stop_score: do not differentiate through the gradient of the log density that the policy is given. It spares
            second derivatives, and the gradient in the parameters is then biased.
        seed: of the paths.

    Returns:
        A formulation: ``solve`` it, ``evaluate(solution)`` for log Z; ``readout(solution)`` is posterior samples, end
        points drawn by their weights.

    Raises:
        InvalidType, InvalidValue: wrong arguments, or a policy that does not return finite drifts ``[n, d]``.
    """
    check_instance(LogDensity, "what log_density(...) returns", target=target)
    check_positive(sigma=sigma, T=T, spacing=spacing)
    check_flag(path_gradient=path_gradient, stop_score=stop_score)
    check_integer(1, steps=steps, particles=particles)
    check_integer(0, seed=seed)
    if policy is None:
        policy = Drift(target.dim, T=T).to(target.like)
    check_instance(nn.Module, "a torch.nn.Module of (t, x)", policy=policy)
    diffusion = Diffusion(target, policy, sigma, grid(T, steps, spacing), path_gradient, stop_score)
    diffusion.check()

    problem = PathProblem(
        lambda t, x, u, z: diffusion.advance(t, x, u, z["noise"][:, t]),
        diffusion.terminal_cost,
        diffusion.controls(),
        horizon=steps,
        schedule=mfoc.tied,
        diffusion=diffusion,
        particles=particles,
        seed=seed,
    )

    def readout(solution: Any) -> dict[str, Tensor]:
        return made.evaluate(solution, n=max(2, particles), seed=0).posterior(particles)

    made = Follmer(problem, mfoc.population(problem.draw), readout, problem)
    return made


def systematic(log_weights: Tensor, n: int, seed: int) -> Tensor:
    """Indices ``[n]`` drawn by weights ``[m]``, by systematic resampling: the i-th level is (i + U) / n."""
    check_integer(1, n=n)
    check_integer(0, seed=seed)
    total = log_weights.double().softmax(0).cumsum(0)
    offset = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu").to(
        total.device
    )
    level = (torch.arange(n, device=total.device) + offset) / n
    return torch.searchsorted(total / total[-1], level).clamp_max(len(total) - 1)
