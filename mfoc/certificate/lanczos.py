"""The smallest eigenvalue of many symmetric operators at once, from products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mfoc import tree
from mfoc.printing import by_identity


@by_identity
class Lowest(NamedTuple):
    """Smallest eigenpairs."""

    value: Tensor  # Ritz values, never below the true smallest eigenvalue [G]
    vector: Tensor  # Ritz vectors of unit length [G, n]
    error: Tensor  # residual norms ||A v - value v||: some eigenvalue lies within this of the value [G]
    bound: Tensor  # the lowest lies at most this far below the value, with the confidence asked for [G]
    largest: Tensor  # largest Ritz values [G]
    products: int  # products taken


class Subspace(Protocol):
    """A linear space for each row."""

    @property
    def dimension(self) -> Tensor:
        """Its dimension ``[G]``."""

    def along(self, directions: Tensor) -> Tensor:
        """The orthogonal projection of each row ``[G, n]`` on it."""


def lowest_eigenpair(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    iterations: int,
    generator: torch.Generator,
    confidence: float = 0.95,
    first: Tensor | None = None,
    face: Subspace | None = None,
) -> Lowest:
    """Lanczos with full reorthogonalisation (Golub & Van Loan, "Matrix Computations", 2013, sec. 10.3).

    ``product: [G, n] -> [G, n]`` multiplies row g by the symmetric A_g; ``like`` has that shape. n iterations make the
    result exact. The generator, of the starting vectors, is one of the CPU. Near the vectors ``first``, where they are
    given, the search starts, and a few products tell how they turn; ``bound`` then says nothing. With ``face``, a
    space for each row that ``product`` maps to itself, the eigenvalues are those on that space; on one of no dimension
    the lowest is infinite.

    That a Ritz value is near an eigenvalue does not say that it is near the lowest. Of a random start Kuczynski &
    Wozniakowski (1992, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start",
    theorem 4.2) say that after k products the value misses it by more than a share e of the spectrum's width with
    probability 1.648 sqrt(n) exp(-sqrt(e) (2 k - 1)) at most; and so at the other end, whence the width from the Ritz
    values. Where b is the last off-diagonal entry and c the start's component along an eigenvector, some Ritz value
    lies within b / |c| of its eigenvalue. In a space that is exhausted b is rounding, not zero; and |c| is less than
    s / sqrt(n) with a probability of about sqrt(2 / pi) s. ``bound`` is the smaller of the two, each of the three
    events having a third of what the confidence leaves.
    """
    rows, size = like.shape
    steps = min(iterations, size)
    narrow, like = like, like.to(torch.promote_types(like.dtype, torch.float32))  # half precision has no eigh
    vector = torch.randn(rows, size, generator=generator, dtype=torch.float64, device="cpu").to(like)
    vector = vector / tree.length(vector, 1, keepdim=True)
    if first is not None:
        vector = first.to(like) + 0.1 * vector
        vector = vector / tree.length(vector, 1, keepdim=True)
    if face is not None:
        vector = face.along(vector.to(narrow)).to(like) * (face.dimension > 0)[:, None]
        length = tree.length(vector, 1, keepdim=True)
        vector = torch.where(length > 0, vector / torch.where(length > 0, length, 1.0), 0.0)
    nowhere = (vector == 0).all(1)
    basis, diagonal, off = [vector], [], []
    for step in range(steps):
        image = product(vector.to(narrow)).to(like)
        diagonal.append((image * vector).sum(1))
        frame = torch.stack(basis, 1)  # [G, k, n]
        for _ in range(2):  # once is not enough in finite precision
            image = image - torch.einsum("gk,gkn->gn", torch.einsum("gkn,gn->gk", frame, image), frame)
        length = tree.length(image, 1)
        off.append(length)
        # A row whose Krylov space is exhausted goes on with a zero vector; see _tridiagonal.
        scale = torch.stack([d.abs() for d in diagonal]).amax(0) + torch.finfo(like.dtype).tiny
        alive = length > 1e2 * torch.finfo(like.dtype).eps * scale
        if face is not None:  # what rounding leaves of an exhausted face points out of it
            alive = alive & (step + 1 < face.dimension)
        vector = torch.where(alive[:, None], image / length.clamp_min(torch.finfo(like.dtype).tiny)[:, None], 0)
        if step + 1 < steps:
            basis.append(vector)
    frame = torch.stack(basis, 1)
    values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, off, frame))
    weights = vectors[:, :, 0]
    error = off[-1] * weights[:, -1].abs()
    there = (frame.norm(dim=2) > 0.5).sum(1, keepdim=True).clamp_min(1)
    largest = values.gather(1, there - 1)[:, 0]
    third = (1 - confidence) / 3
    share = (math.log(1.648 * math.sqrt(size) / third) / (2 * steps - 1)) ** 2
    missed = (largest - values[:, 0]) * (share / (1 - 2 * share) if share < 0.5 else math.inf)
    rounding = torch.finfo(like.dtype).eps * torch.maximum(largest.abs(), values[:, 0].abs())
    last = torch.maximum(torch.stack(off, 1).gather(1, there - 1)[:, 0], rounding)
    within = last * (math.sqrt(2 * size / math.pi) / third)
    bound = torch.maximum(torch.minimum(missed.nan_to_num(nan=math.inf), within), error)
    vector = torch.einsum("gk,gkn->gn", weights, frame).to(narrow)
    value = values[:, 0].masked_fill(nowhere, torch.inf)
    value, error, bound, largest = (
        part.to(narrow) for part in (value, *(x.masked_fill(nowhere, 0.0) for x in (error, bound, largest)))
    )
    return Lowest(value, vector, error, bound, largest, steps)


def _tridiagonal(diagonal: list[Tensor], off: list[Tensor], frame: Tensor) -> Tensor:
    """The tridiagonal matrices ``[G, k, k]``; a direction that was never there has a large diagonal, not the least."""
    there = frame.norm(dim=2) > 0.5
    main, beside = torch.stack(diagonal, 1), torch.stack(off, 1)[:, :-1]
    bound = 2 * (main.abs().amax(1, keepdim=True) + beside.abs().sum(1, keepdim=True)) + 1
    main = torch.where(there, main, bound)
    beside = torch.where(there[:, 1:], beside, 0)
    return torch.diag_embed(main) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
