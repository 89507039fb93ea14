"""Noise: Euler-Maruyama and the increments it is driven by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import check_callable, check_integer, check_non_negative, check_signature
from mfoc.errors import InvalidType, InvalidValue
from mfoc.problem import STAGE
from mfoc.tree import Tree

_MOST = 10**12  # numbers


@dataclass(frozen=True)
class euler_maruyama:
    """Euler-Maruyama for dx = b dt + sigma(t, x, u, z) dW, strong order 1/2 (1 for additive noise).

    The Brownian increments come from the data, so that the dynamics stay pure:
    ``z["noise"]`` holds standard normals ``[N, steps, k]`` (see ``brownian``); ``noise=`` finds them elsewhere.

    Attributes:
        diffusion: a number (scalar noise of the state's shape), or ``sigma(t, x, u, z)`` returning ``[N, d]``
            (diagonal noise) or ``[N, d, k]``.
        noise: ``noise(z) -> [N, steps, k]``; None reads ``z["noise"]``.
    """

    diffusion: float | Callable[[float, Tensor, Tree, Tree], Tensor]
    noise: Callable[[Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        if callable(self.diffusion):
            check_signature(STAGE, diffusion=self.diffusion)
        elif not isinstance(self.diffusion, Tensor):
            check_non_negative(diffusion=self.diffusion)
        check_callable("a function of the data z", optional=True, noise=self.noise)
        check_signature(("z",), optional=True, noise=self.noise)

    def increment(self, t: Any, s: float, x: Tensor, u: Tree, z: Tree, h: float) -> Tensor:
        """Sigma dW over step t, of the shape of the state ``[N, d]``."""
        if not isinstance(x, Tensor):
            raise InvalidType(f"euler_maruyama needs a state that is one tensor [N, d]; got {tree.describe(x)}")
        normals = self._normals(z)
        if normals.dim() < 2 or normals.shape[1] <= t:
            raise InvalidValue(
                f"stage {t}: dynamics: the noise has shape {tuple(normals.shape)} and each stage needs its own; "
                "expected standard normals [N, stages, k] (mfoc.schemes.brownian draws them)"
            )
        dw = math.sqrt(h) * normals[:, t]
        sigma = self.diffusion(s, x, u, z) if callable(self.diffusion) else self.diffusion
        dw = _product(sigma, dw) if isinstance(sigma, Tensor) and sigma.dim() == 3 else sigma * dw
        if dw.shape != x.shape:
            raise InvalidValue(f"the noise term has shape {tuple(dw.shape)}; expected the state's, {tuple(x.shape)}")
        return dw

    def _normals(self, z: Tree) -> Tensor:
        if self.noise is not None:
            return self.noise(z)
        if not isinstance(z, dict) or "noise" not in z:
            raise InvalidValue(
                "euler_maruyama found no noise: give particles data={'noise': [N, steps, k]} (mfoc.schemes.brownian "
                "draws it) or pass noise= to say where it is"
            )
        normals: Tensor = z["noise"]
        return normals


def _product(sigma: Tensor, dw: Tensor) -> Tensor:
    """``[N, d, k]`` times ``[N, k]``; refuses another k, which einsum would repeat where it is one."""
    if sigma.shape[2] != dw.shape[1]:
        raise InvalidValue(
            f"the diffusion has shape {tuple(sigma.shape)} and each stage {dw.shape[1]} normals; "
            f"expected {sigma.shape[2]}"
        )
    return torch.einsum("ndk,nk->nd", sigma, dw)


def brownian(n: int, steps: int, dim: int, *, seed: int, like: Tensor | None = None) -> Tensor:
    """Standard normals for ``euler_maruyama``, ``[N, steps, k]``.

    Args:
        n: particles N.
        steps: stages of the problem.
        dim: dimension k of the Brownian motion.
        seed: seed of the generator.
        like: a tensor whose dtype and device the noise takes; torch's defaults when None.

    Raises:
        InvalidType, InvalidValue: a number is none, or out of range; ``like`` is no floating-point tensor.
    """
    check_integer(1, n=n, steps=steps, dim=dim)
    check_integer(0, seed=seed)
    if n * steps * dim > _MOST:
        raise InvalidValue(f"{n} x {steps} x {dim} normals are more than memory holds; expected {_MOST:.0e} at most")
    if like is not None and not (isinstance(like, Tensor) and like.is_floating_point()):
        raise InvalidType(f"like is {tree.describe(like)}; expected a floating-point tensor, or None")
    dtype = like.dtype if like is not None else torch.get_default_dtype()
    noise = torch.randn(n, steps, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype, device="cpu")
    return noise.to(torch.get_default_device() if like is None else like.device)
