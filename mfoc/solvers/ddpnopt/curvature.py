"""Q_uu up to the learning rate, one a stage: what it remembers, how it is inverted, and g' Q_uu^-1 g of a particle.

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


class Curvature(Protocol):
    """What a step needs of Q_uu."""

    def start(self, leaves: list[Tensor]) -> Memory:
        """What is remembered before the first step, for a stage with these controls."""

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """What is remembered after E dH/du and the gradients of the particles of step ``steps``, from 0 on."""

    def solved(self, memory: Memory, gradient: list[Tensor]) -> list[Tensor]:
        """Q_uu^-1 g, leaf by leaf."""

    def squares(self, memory: Memory, own: Own) -> Tensor:
        """g_i' Q_uu^-1 g_i of each particle ``[N]``."""


@dataclass(frozen=True)
class Identity:
    """Q_uu = I: gradient descent."""

    def start(self, leaves: list[Tensor]) -> Memory:
        """Nothing."""
        return {}

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """Nothing."""
        return memory

    def solved(self, memory: Memory, gradient: list[Tensor]) -> list[Tensor]:
        """The gradient."""
        return gradient

    def squares(self, memory: Memory, own: Own) -> Tensor:
        """|g_i|^2."""
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
        """The mean v with this gradient."""
        pairs = zip(memory["squares"], gradient, strict=True)
        return {"squares": [self.decay * v + (1 - self.decay) * g.square() for v, g in pairs]}

    def solved(self, memory: Memory, gradient: list[Tensor]) -> list[Tensor]:
        """The gradient over sqrt(v) + damping."""
        return [g / (v.sqrt() + self.damping) for v, g in zip(memory["squares"], gradient, strict=True)]

    def squares(self, memory: Memory, own: Own) -> Tensor:
        """sum_k g_(i,k)^2 / (sqrt(v_k) + damping)."""
        return own.squares([1 / (v.sqrt() + self.damping) for v in memory["squares"]])


@dataclass(frozen=True)
class Kronecker:
    """Q_uu = (A + a I) x (B + b I), A of a linear layer's inputs and B of its costates.

    K-FAC (Martens & Grosse 2015, arXiv:1503.05671, secs. 3, 6.3) with the gradients of the data: A and B are running
    means of E aa' and E pp', a b = damping, and a / b is the ratio of their mean eigenvalues.
    """

    decay: float
    damping: float

    def start(self, leaves: list[Tensor]) -> Memory:
        """A = 0 and B = 0; their inverses come with the first particles."""
        weight = leaves[0]
        sizes = weight.shape[1] + len(leaves) - 1, weight.shape[0]
        a, b = (weight.new_zeros(n, n) for n in sizes)
        return {"inputs": a, "slopes": b, "inverses": [torch.zeros_like(a), torch.zeros_like(b)]}

    def seen(self, memory: Memory, gradient: list[Tensor], own: Own | None, steps: int) -> Memory:
        """A and B with these particles: their plain mean at first, a mean that forgets later."""
        if not isinstance(own, Factors):
            raise InvalidValue(
                'curvature="kronecker" needs states [N, d] at linear layers, and a state that enters one is of another '
                'shape; use "rmsprop" or "identity"'
            )
        a, b, n = own.extended, own.slopes, len(own.slopes)
        share = max(1 - self.decay, 1 / (steps + 1))
        means = expectation([a.mT @ a / n, b.mT @ b / n], n)
        old = [memory["inputs"], memory["slopes"]]
        new = [torch.lerp(before, now, share) for before, now in zip(old, means, strict=True)]
        return {"inputs": new[0], "slopes": new[1], "inverses": self._inverses(*new)}

    def _inverses(self, a: Tensor, b: Tensor) -> list[Tensor]:
        least = torch.finfo(a.dtype).tiny
        sizes = [(m.trace() / len(m)).clamp(min=least) for m in (a, b)]
        shares = [(size / other * self.damping).sqrt() for size, other in (sizes, sizes[::-1])]
        return [_inverse(m, share) for m, share in zip((a, b), shares, strict=True)]

    def solved(self, memory: Memory, gradient: list[Tensor]) -> list[Tensor]:
        """(B + b I)^-1 G (A + a I)^-1, G the gradient ``[out, in]`` with that of the bias beside it."""
        a, b = memory["inverses"]
        joined = torch.cat([gradient[0], gradient[1][:, None]], 1) if len(gradient) == 2 else gradient[0]
        found = b @ joined @ a
        return [found[:, :-1], found[:, -1]] if len(gradient) == 2 else [found]

    def squares(self, memory: Memory, own: Own) -> Tensor:
        """(a_i' (A + a I)^-1 a_i) (p_i' (B + b I)^-1 p_i)."""
        assert isinstance(own, Factors)
        a, b = memory["inverses"]
        x, p = own.extended, own.slopes
        return ((x @ a) * x).sum(1) * ((p @ b) * p).sum(1)


def _inverse(matrix: Tensor, share: Tensor) -> Tensor:
    """(M + share I)^-1 of a positive semidefinite M; NaN, without an error, where M is not finite."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    eye = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    factor, _ = torch.linalg.cholesky_ex(wide + share.to(wide) * eye)
    found: Tensor = torch.cholesky_inverse(factor).to(matrix)
    return found
