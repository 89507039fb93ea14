"""The empirical kernel by one backward pass for each output of each sample: nothing shared, nothing batched."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """The gradients of every output of every sample in all trained parameters: ``[N, C, P]``."""
    free = [p for p in net.parameters() if p.requires_grad]
    rows = []
    for n in range(len(x)):
        for entry in net(x[n : n + 1].clone()).reshape(-1):  # a copy, as layers may write over their input
            found = torch.autograd.grad(entry, free, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, free, strict=True)]
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows).unflatten(0, (len(x), -1))  # type: ignore[no-untyped-call, no-any-return]


def dense_ntk(net: nn.Module, x1: Tensor, x2: Tensor | None = None) -> Tensor:
    """Theta ``[N1, N2, C, C]``."""
    left = jacobian(net, x1)
    return torch.einsum("iap,jbp->ijab", left, left if x2 is None else jacobian(net, x2))
