"""A linear layer at drawn weights: the draw, the product and the first derivatives of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from paradigms.bayesian.laws.normal import softplus_slope
from paradigms.bayesian.laws.rules import Slopes


def drawn_weights(loc: Tensor, rho: Tensor, noise: Tensor) -> Tensor:
    """Weights ``[S, n]`` from their law, loc and rho ``[n]``, and normals ``[S, n]``: loc + softplus(rho) noise."""
    return torch.addcmul(loc, noise, F.softplus(rho))


@dataclass(frozen=True)
class LinearDraws:
    """A linear layer at S draws of its weights: a ``Rule`` of loc and rho ``[n]``, normals ``[S, n]`` and inputs.

    The inputs are ``[B, in]``, one for all draws, or ``[S, B, in]``; the outputs ``[S, B, out]``. They lie in memory as
    [S, out, B]: the long axis is the last one, and no gradient has to be laid out anew.

    Attributes:
        out: how many outputs.
        bias: whether the weights of an output, which lie one after another, end with its bias.
    """

    out: int
    bias: bool

    def plain(self, loc: Tensor, rho: Tensor, noise: Tensor, x: Tensor) -> Tensor:
        """See ``Rule``."""
        return self.at(drawn_weights(loc, rho, noise), x)

    def at(self, weights: Tensor, x: Tensor) -> Tensor:
        """The outputs at given weights ``[S, n]``."""
        if x.dim() == 2:
            return self._together(weights, self._widened(x))
        w, b = self._parts(weights)
        return (torch.bmm(w, x.mT) if b is None else torch.baddbmm(b, w, x.mT)).mT

    def value(self, loc: Tensor, rho: Tensor, noise: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Rule``: the weights are kept."""
        weights = drawn_weights(loc, rho, noise)
        return self.at(weights, x), weights

    def slopes(
        self, slope: Tensor, held: Tensor, wanted: tuple[bool, ...],
        loc: Tensor, rho: Tensor, noise: Tensor, x: Tensor,
    ) -> Slopes:  # fmt: skip
        """See ``Rule``."""
        columns, own = slope.mT, None  # [S, out, B]
        if wanted[3]:
            w = self._parts(held)[0].mT
            # A product over a single output is an outer one: a plain multiplication is twice as fast.
            own = (w * columns if self.out == 1 else torch.bmm(w, columns)).mT
        by_weight = None
        if wanted[0] or wanted[1]:
            by_weight = self._by_weight(columns, x).view(len(noise), -1)
        by_loc = by_weight.sum(0) if by_weight is not None and wanted[0] else None
        by_rho = None
        if by_weight is not None and wanted[1]:
            by_rho = softplus_slope((by_weight * noise).sum(0), rho)
        return by_loc, by_rho, None, own

    def _by_weight(self, columns: Tensor, x: Tensor) -> Tensor:
        """The derivative in the weights of each draw, ``[S, out, width]``."""
        s, out, b = columns.shape
        if x.dim() == 2:
            # The small matrix first: BLAS is several times faster than on the large one times the small.
            return (self._widened(x).mT @ columns.reshape(s * out, b).mT).mT.contiguous()
        by_w = torch.bmm(columns, x)
        return torch.cat([by_w, columns.sum(-1, keepdim=True)], -1) if self.bias else by_w

    def _together(self, weights: Tensor, x: Tensor) -> Tensor:
        """All draws on one input ``[B, width]`` as a single product of matrices.

        The weights are laid out by columns: their gradient is then a product of the small matrix with the large one.
        """
        rows = weights.view(-1, x.shape[1]).mT.contiguous().mT
        return (rows @ x.mT).view(len(weights), self.out, -1).mT

    def _widened(self, x: Tensor) -> Tensor:
        """Inputs with a column of ones for the bias, which spares a pass over the outputs each way."""
        return F.pad(x, (0, 1), value=1.0) if self.bias else x

    def _parts(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights ``[S, out, in]`` and biases ``[S, out, 1]``, if any."""
        rows = weights.view(len(weights), self.out, -1)
        return (rows[..., :-1], rows[..., -1:]) if self.bias else (rows, None)
