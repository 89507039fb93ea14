"""Drifts for the path-integral sampler: a network, and the optimal one for a Gaussian target."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_flag, check_instance, check_integer, check_plain, check_positive, kind_of
from mfoc.seeding import seeded


class Drift(nn.Module):
    """A drift u = a + b * clip(grad log gamma(x)) + c * x / (1 - 0.99 t / T): a, b, c are outputs of a network.

    After PIS-Grad of Zhang & Chen (2022), sec. 4.2, where b depends on time alone and there is no c. Here all depend
    on time, x and the gradient; the network also sees asinh(x), and only asinh of the gradient, so that large values
    do not drown the others. Where a target is narrow around zero the optimal drift is close to -x / (T - t), far less
    than the gradient, and how narrow it is depends on x; where it is wide the drift grows with x. a, b, c start at
    zero, so that the first paths are those of the Brownian motion, or those of ``base``.

    Args:
        dim: dimension d.
        hidden: width of the layers.
        layers: number of hidden layers.
        score: whether the gradient is used.
        clip: the gradient's coordinates are clipped to (-clip, clip), which keeps the first steps bounded.
        base: a drift to add to, a module of (t, x); ``GaussianDrift`` for one.
        T: the end time, in which the features of time are scaled; that of ``follmer``.
        seed: of the initial weights.

    Raises:
        InvalidType, InvalidValue: bad counts, a clip or an end time that is not positive, a base that is no module.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 64,
        layers: int = 2,
        score: bool = True,
        clip: float = 100.0,
        base: nn.Module | None = None,
        T: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer(1, dim=dim, hidden=hidden)
        check_integer(0, layers=layers, seed=seed)
        check_positive(clip=clip, T=T)
        check_flag(score=score)
        if base is not None:
            check_instance(nn.Module, "a torch.nn.Module of (t, x)", base=base)
        self.clip, self.T, self.takes_score, self.base = clip, T, score, base
        with seeded(seed):
            self.time = nn.Sequential(nn.Linear(18, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            self.state = nn.Linear(3 * dim if score else 2 * dim, hidden)
            self.trunk = nn.Sequential(
                *(part for _ in range(layers) for part in (nn.GELU(), nn.Linear(hidden, hidden))), nn.GELU()
            )
            self.out = nn.Linear(hidden, 3 * dim if score else 2 * dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("frequencies", torch.arange(1, 9, device="cpu") * math.pi)

    def forward(self, t: Tensor, x: Tensor, score: Tensor | None = None) -> Tensor:
        """Time (a scalar), points ``[n, d]`` and gradients ``[n, d]`` to drifts ``[n, d]``."""
        s = t / self.T
        waves = s * self.frequencies.to(x.dtype)  # type: ignore[operator]
        features = torch.cat([torch.stack([s, (1.001 - s).log()]), waves.sin(), waves.cos()])
        along = [x / (1 - 0.99 * s)]
        seen = [x, x.asinh()]
        if self.takes_score and score is not None:
            along.append(score.clamp(-self.clip, self.clip))
            seen.append(score.asinh())
        u, *gates = self.out(self.trunk(self.state(torch.cat(seen, 1)) + self.time(features))).split(x.shape[1], dim=1)
        for gate, direction in zip(gates, along, strict=True):
            u = u + gate * direction
        return u if self.base is None else u + self.base(t, x)  # type: ignore[no-any-return]


class GaussianDrift(nn.Module):
    """The optimal drift for a Gaussian target N(m, C), in closed form.

    With S = sigma^2 T, A = C^-1 - I / S and b = C^-1 m the ratio of target and reference is exp(-x.A x / 2 + b.x), and
    its expectation over the rest of the path is Gaussian again:

        u*(t, x) = sigma^2 (I + sigma^2 (T - t) A)^-1 (b - A x).

    Its parameters are b and the logarithms of the eigenvalues of C^-1, so it may start from a rough guess (a Laplace
    approximation) and be solved for; the eigenvectors stay.

    Args:
        mean: m ``[d]``.
        covariance: C ``[d, d]``.
        sigma: the noise; that of ``follmer``.
        T: the end time; that of ``follmer``.

    Raises:
        InvalidType, InvalidValue: no such pair, or a sigma or T that is not positive.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, *, sigma: float = 1.0, T: float = 1.0) -> None:
        super().__init__()
        check_positive(sigma=sigma, T=T)
        for name, value in (("mean", mean), ("covariance", covariance)):
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype != mean.dtype:
                what = value.dtype if isinstance(value, Tensor) else kind_of(value)
                raise InvalidType(f"{name} is {what}; expected floating-point tensors of one dtype")
            check_plain("a floating-point tensor", **{name: value})
            if not value.isfinite().all():
                raise InvalidValue(f"{name} holds NaN or infinite values")
        if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
            raise InvalidValue(
                f"mean and covariance have shapes {tuple(mean.shape)} and {tuple(covariance.shape)}; "
                "expected (d,) and (d, d)"
            )
        if not torch.allclose(covariance, covariance.mT, rtol=0, atol=1e-3 * float(covariance.abs().max())):
            raise InvalidValue("covariance is not symmetric")
        values, vectors = torch.linalg.eigh(covariance.detach())
        if not (values > 0).all():
            raise InvalidValue("covariance is not positive definite")
        self.sigma, self.T = sigma, T
        self.register_buffer("axes", vectors)
        self.slope = nn.Parameter((mean.detach() @ vectors) / values)
        self.log_precision = nn.Parameter(-values.log())

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Time (a scalar) and points ``[n, d]`` to drifts ``[n, d]``."""
        axes: Tensor = self.axes.to(x.dtype)  # type: ignore[assignment]
        excess = self.log_precision.exp() - 1 / (self.sigma**2 * self.T)
        pull = self.slope - excess * (x @ axes)
        u: Tensor = (self.sigma**2 * pull / (1 + self.sigma**2 * (self.T - t) * excess)) @ axes.mT
        return u
