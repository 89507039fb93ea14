"""The empirical kernel as a linear map, for kernels that do not fit: products, diagonal, largest eigenvalues."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mfoc.analysis.kernel.doors import check_samples, usable
from mfoc.analysis.kernel.empirical import Source
from mfoc.analysis.kernel.products import squares
from mfoc.analysis.kernel.taps import normal_like, plainly
from mfoc.checks import check_instance, check_integer, check_positive
from mfoc.derivatives import gradients, no_derivative
from mfoc.errors import InvalidValue
from mfoc.networks.inspection import trainable
from mfoc.printing import by_identity

logger = logging.getLogger(__name__)

_SPARE = 2  # directions beyond those asked for, which make the search for eigenvalues faster


@by_identity
class Top(NamedTuple):
    """Largest eigenpairs."""

    values: Tensor  # Ritz values, descending, none above the eigenvalue it stands for [k]
    vectors: Tensor  # Ritz vectors of unit length [N, C, k]
    errors: Tensor  # ||Theta v - value v||: an eigenvalue lies within this of each value [k]
    products: int  # products taken


class NTKOperator:
    """Theta(x, x) of a network, which is never formed: ``NTKOperator(net, x) @ v``.

    A product is J (J^T v): a forward and a backward pass, and a forward pass with tangents, over all samples. The
    network is copied; what is done to it later is not seen.

    Args:
        net: as for ``empirical_ntk``.
        x: samples ``[N, ...]``.
        batch_size: how many samples pass at once; as many as 256 MiB hold when None.

    Raises:
        InvalidType, InvalidValue: as ``empirical_ntk``.
    """

    def __init__(self, net: nn.Module, x: Tensor, *, batch_size: int | None = None) -> None:
        check_samples(x=x)
        check_integer(1, optional=True, batch_size=batch_size)
        self._x = usable(x)
        self._source = Source.of(net, self._x, batch_size)
        self._net = self._source.jacobians.net
        self._size = batch_size or min(len(x), self._source.at_once() * self._source.outputs)
        self._forward_mode = self._is_linear()

    @property
    def outputs(self) -> int:
        """C, the entries of one sample's output."""
        return self._source.outputs

    @property
    def shape(self) -> tuple[int, int]:
        """(N C, N C), as a matrix whose rows are the outputs of the first sample, of the second, ..."""
        return len(self._x) * self.outputs, len(self._x) * self.outputs

    @property
    def dtype(self) -> torch.dtype:
        """That of the outputs."""
        return self._source.like.dtype

    @property
    def device(self) -> torch.device:
        """That of the outputs."""
        return self._source.like.device

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"NTKOperator({len(self._x)} samples, {self.outputs} outputs, {kind} on {self.device})"

    def __matmul__(self, v: Tensor) -> Tensor:
        """Theta v.

        Args:
            v: ``[N, C]`` or ``[N C]``; with a further axis, several at once.

        Returns:
            A tensor of its shape.

        Raises:
            InvalidType: no tensor.
            InvalidValue: another shape.
        """
        check_instance(Tensor, "a tensor [N, C]", v=v)
        n, outputs = len(self._x), self.outputs
        fits = v.shape[:2] == (n, outputs) or v.shape[:1] == (n * outputs,)
        if not fits or v.dim() > 3:
            raise InvalidValue(f"v has shape {tuple(v.shape)}; expected {(n, outputs)} or {(n * outputs,)}")
        columns = v.reshape(n, outputs, -1).to(self._source.like).unbind(2)
        return torch.stack([self._product(column) for column in columns], 2).reshape(v.shape)

    def _product(self, v: Tensor) -> Tensor:
        free = trainable(self._net)
        slope = [torch.zeros_like(p) for p in free.values()]
        with plainly():
            for part, x in self._batches():
                out = self._net(x).reshape(len(x), -1)
                for total, more in zip(slope, gradients(out, list(free.values()), [v[part]]), strict=True):
                    total += more
            return torch.cat([self._pushed(x, dict(zip(free, slope, strict=True))) for _, x in self._batches()])

    def _pushed(self, x: Tensor, tangent: dict[str, Tensor]) -> Tensor:
        """J w of a batch: by forward mode, or as the derivative of J^T u in u where an operation has none."""
        values = {name: p.detach() for name, p in trainable(self._net).items()}
        rest = {
            k: t.detach() for k, t in [*self._net.named_parameters(), *self._net.named_buffers()] if k not in values
        }

        def outputs(weights: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(self._net, {**rest, **weights}, (x,))
            return found.reshape(len(x), -1)

        if self._forward_mode:
            try:
                with warnings.catch_warnings():  # torch compiles some of its own rules, in a way it has deprecated
                    warnings.simplefilter("ignore", FutureWarning)
                    pushed: Tensor = jvp(outputs, (values,), (tangent,))[1].detach()
                    return pushed
            except Exception as error:  # whatever a module of the user's raises in forward mode
                logger.debug("the network cannot be differentiated in forward mode: %s", error)
                self._forward_mode = False
        out = self._net(x).reshape(len(x), -1)
        u = torch.zeros_like(out).requires_grad_()
        try:
            back = gradients(out, list(trainable(self._net).values()), [u], create_graph=True)
            return gradients(back, [u], list(tangent.values()))[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # as of nn.EmbeddingBag
            why = no_derivative(error) or error
            raise InvalidValue(
                f"net has neither forward-mode nor second derivatives, which products with its kernel need: {why} "
                "(empirical_ntk needs first derivatives only)"
            ) from error

    def _is_linear(self) -> bool:
        """Whether forward mode is the transpose of the backward pass, <u, J w> = <J^T u, w>, on a few samples.

        It is not where torch.func cannot give a module other parameters, and says nothing.
        """
        few, free = self._x[:3], trainable(self._net)
        tangent = {name: normal_like(p) for name, p in free.items()}
        self._forward_mode = True
        with plainly():
            pushed = self._pushed(few, tangent)
            out = self._net(few).reshape(len(few), -1)
            u = normal_like(out)
            slope = gradients(out, list(free.values()), [u])
        terms = [g.double() * t.double() for g, t in zip(slope, tangent.values(), strict=True)]
        gap = abs(float((u * pushed).double().sum()) - sum(float(term.sum()) for term in terms))
        size = sum(float(term.abs().sum()) for term in terms)
        return self._forward_mode and gap <= 10 * torch.finfo(out.dtype).eps ** 0.5 * size

    def _batches(self) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(self._x), self._size):
            part = slice(first, first + self._size)
            yield part, self._x[part]

    def diagonal(self) -> Tensor:
        """Theta[i, i, a, a], the squared length of each output's gradient: ``[N, C]``."""
        source = self._source
        source.jacobians.choose(1, trace=True)
        size = source.at_once()

        def compute() -> Tensor:
            out = source.like.new_zeros(len(self._x), self.outputs)
            for first in range(0, len(self._x), size):
                for share in source.shares(self._x[first : first + size]):
                    out[first : first + size] += squares(share)
            return out

        return source.attempt(compute)

    def trace(self) -> Tensor:
        """The sum of the diagonal: a scalar."""
        return self.diagonal().sum()

    def top(self, count: int = 1, *, tol: float = 1e-3, steps: int = 50, seed: int = 0) -> Top:
        """The largest eigenvalues by block Krylov iteration (Musco & Musco 2015, arXiv:1504.05477, algorithm 2).

        A block, as a kernel of C outputs has eigenvalues that are C times the same, or nearly, in wide networks: of
        those a single vector would find one. (It must not be smaller than that: count >= C finds them all.)

        Args:
            count: how many.
            tol: their errors are at most this share of the largest.
            steps: at most so many products with the block; the errors say how far they came.
            seed: of the random start.

        Raises:
            InvalidType, InvalidValue: no such count, tolerance or steps.
        """
        size = self.shape[0]
        check_integer(1, size, count=count)
        check_integer(1, steps=steps)
        check_integer(0, seed=seed)
        check_positive(tol=tol)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(size, min(size, count + _SPARE), generator=generator, dtype=torch.float64, device="cpu")
        like = self._source.like.to(torch.promote_types(self.dtype, torch.float32))  # half precision has no eigh
        fresh = torch.linalg.qr(start.to(like))[0]
        basis, image = fresh[:, :0], fresh[:, :0]
        for _ in range(steps):
            basis, image = torch.cat([basis, fresh], 1), torch.cat([image, (self @ fresh).to(like)], 1)
            values, turns = torch.linalg.eigh(basis.mT @ image)
            values, turns = values.flip(0)[:count], turns.flip(1)[:, :count]
            errors = (image @ turns - basis @ turns * values).norm(dim=0)
            fresh = _new_directions(image[:, -fresh.shape[1] :], basis)
            found = len(values) == count and bool((errors <= tol * values[0]).all())
            if found or not fresh.shape[1]:
                break
        vectors = (basis @ turns).reshape(len(self._x), self.outputs, -1)
        return Top(values, vectors, errors, basis.shape[1])


def _new_directions(image: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what the columns of ``image`` add to ``basis``; without columns where that is nothing."""
    scale = image.norm(dim=0).max()
    for _ in range(2):  # once is not enough in finite precision
        image = image - basis @ (basis.mT @ image)
    left, sizes, _ = torch.linalg.svd(image, full_matrices=False)
    kept = left[:, sizes > 1e2 * torch.finfo(image.dtype).eps * scale]
    kept = kept[:, : image.shape[0] - basis.shape[1]]
    fresh: Tensor = torch.linalg.qr(kept - basis @ (basis.mT @ kept))[0] if kept.shape[1] else kept
    return fresh
