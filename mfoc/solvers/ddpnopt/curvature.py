"""Q_uu up to the learning rate, one a stage: what it remembers, and its inverse.

The curvature never sees the feedback, so that a step without feedback is a step of an ordinary optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mfoc.distributed import expectation
from mfoc.errors import InvalidValue
from mfoc.solvers.ddpnopt.gradients import Factors, Own

Memory = dict[str, Any]


class Inverse(Protocol):
    """Q_uu^-1 of a stage."""

    def solved(self, gradient: list[Tensor]) -> list[Tensor]:
        """Q_uu^-1 g, leaf by leaf."""

    def squares(self, own: Own) -> Tensor:
        """g_i' Q_uu^-1 g_i of each particle ``[N]``."""


class Curvature(Protocol):
    """How Q_uu comes about."""

    def start(self, leaves: list[Tensor]) -> Memory:
        """What is remembered before the first step, for a stage with these controls."""

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """What is remembered after E dH/du and the gradients of the particles of step ``steps``, from 0 on."""

    def inverse(self, memory: Memory) -> Inverse:
        """Q_uu^-1 by what is remembered."""


@dataclass(frozen=True)
class Identity:
    """Q_uu = I: gradient descent. It is its own inverse."""

    def start(self, leaves: list[Tensor]) -> Memory:
        """Nothing."""
        return {}

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """Nothing."""
        return memory

    def inverse(self, memory: Memory) -> Inverse:
        """Itself."""
        return self

    def solved(self, gradient: list[Tensor]) -> list[Tensor]:
        """The gradient."""
        return gradient

    def squares(self, own: Own) -> Tensor:
        """|g_i|^2 of each particle ``[N]``."""
        return own.squares()


@dataclass(frozen=True)
class Diagonal:
    """Q_uu = sqrt(v) + damping, v the running mean of (E dH/du)^2: RMSProp as ``torch.optim.RMSprop`` takes it."""

    decay: float
    damping: float

    def start(self, leaves: list[Tensor]) -> Memory:
        """No square yet: v = 0."""
        return {"squares": [torch.zeros_like(leaf) for leaf in leaves]}

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """The mean with this gradient."""
        pairs = zip(memory["squares"], gradient, strict=True)
        return {"squares": [(v * self.decay).addcmul_(g, g, value=1 - self.decay) for v, g in pairs]}

    def inverse(self, memory: Memory) -> Inverse:
        """1 / (sqrt(v) + damping)."""
        return _Scales([(v.sqrt() + self.damping).reciprocal_() for v in memory["squares"]])


@dataclass(frozen=True, eq=False)
class _Scales:
    """A diagonal, leaf by leaf."""

    scales: list[Tensor]

    def solved(self, gradient: list[Tensor]) -> list[Tensor]:
        return [g * scale for g, scale in zip(gradient, self.scales, strict=True)]

    def squares(self, own: Own) -> Tensor:
        return own.squares(self.scales)


@dataclass(frozen=True)
class Kronecker:
    """Q_uu = (A + a I) x (B + b I), A of a linear layer's inputs and B of its costates.

    K-FAC (Martens & Grosse 2015, arXiv:1503.05671, secs. 3, 6.3) with the gradients of the data: A and B are running
    means of E xx' and E pp', a b = damping, and a / b is the ratio of their mean eigenvalues.
    """

    decay: float
    damping: float

    def start(self, leaves: list[Tensor]) -> Memory:
        """Nothing met yet: A = 0 and B = 0."""
        out, inputs = leaves[0].shape
        return {"inputs": leaves[0].new_zeros(2 * (inputs + len(leaves) - 1,)), "slopes": leaves[0].new_zeros(out, out)}

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """A and B with these particles: their plain mean at first, a mean that forgets later."""
        if not isinstance(own, Factors):
            raise InvalidValue(
                'curvature="kronecker" needs states [N, d] at linear layers, and a state that enters one is of another '
                'shape; use "rmsprop" or "identity"'
            )
        x, p, n = own.extended, own.slopes, len(own.slopes)
        share = max(1 - self.decay, 1 / (steps + 1))
        means = expectation([x.mT @ x / n, p.mT @ p / n], n)
        pairs = zip(("inputs", "slopes"), means, strict=True)
        return {name: torch.lerp(memory[name], mean, share) for name, mean in pairs}

    def inverse(self, memory: Memory) -> Inverse:
        """(A + a I)^-1 and (B + b I)^-1."""
        a, b = memory["inputs"], memory["slopes"]
        least = torch.finfo(a.dtype).tiny  # no slope at all: a cost that is constant
        sizes = [(m.trace() / len(m)).clamp(min=least) for m in (a, b)]
        ratio = sizes[0] / sizes[1]
        return _Product(_inverse(a, (ratio * self.damping).sqrt()), _inverse(b, (self.damping / ratio).sqrt()))


@dataclass(frozen=True, eq=False)
class _Product:
    """A Kronecker product; the weights ``[out, in]`` have the bias beside them."""

    inputs: Tensor  # [in, in], or [in + 1, in + 1] with a bias
    slopes: Tensor  # [out, out]

    def solved(self, gradient: list[Tensor]) -> list[Tensor]:
        if len(gradient) == 1:
            return [self.slopes @ gradient[0] @ self.inputs]
        found = self.slopes @ torch.cat([gradient[0], gradient[1][:, None]], 1) @ self.inputs
        return [found[:, :-1], found[:, -1]]

    def squares(self, own: Own) -> Tensor:
        assert isinstance(own, Factors)
        x, p = own.extended, own.slopes
        return ((x @ self.inputs) * x).sum(1) * ((p @ self.slopes) * p).sum(1)


def _inverse(matrix: Tensor, share: Tensor) -> Tensor:
    """(M + share I)^-1 of a positive semidefinite M; NaN, without an error, where M is not finite."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    eye = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    factor: Tensor = torch.linalg.cholesky_ex(wide + share.to(wide) * eye)[0]
    return torch.cholesky_inverse(factor).to(matrix.dtype)
