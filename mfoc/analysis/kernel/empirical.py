"""The empirical neural tangent kernel of a network: Theta(x, x') = J(x) J(x')^T over its trained parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from mfoc.analysis.jacobians import refusing_checkpoints
from mfoc.analysis.kernel.doors import (
    check_alike,
    check_fits,
    check_outputs,
    check_samples,
    free_memory,
    private_copy,
    usable,
)
from mfoc.analysis.kernel.jacobians import Jacobians, Misfit
from mfoc.analysis.kernel.layers import Share
from mfoc.analysis.kernel.products import block
from mfoc.checks import check_flag, check_integer
from mfoc.errors import InvalidValue

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

_BUDGET = 2**28  # bytes that the gradients of one batch may take


def empirical_ntk(
    net: nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    trace: bool = False,
    batch_size: int | None = None,
    memory: int | None = None,
) -> Tensor:
    """The empirical neural tangent kernel (Jacot, Gabriel & Hongler 2018, arXiv:1806.07572, sec. 4).

    Theta[i, j, a, b] = <d f_a(x1_i) / d theta, d f_b(x2_j) / d theta> over the parameters that require grad, where
    f_1 .. f_C are the entries of one sample's output. Linear, convolutional, normalising and embedding layers add
    their share from their inputs and the gradients at their outputs (Novak, Sohl-Dickstein & Schoenholz 2022,
    arXiv:2206.08720); all else is differentiated by ``vmap`` of vector-Jacobian products. A parameter that is used in
    several places counts once, with all its uses. The network is not changed.

    Args:
        net: any module that treats the samples of a batch one by one; its training mode is kept.
        x1: samples ``[N1, ...]``; whole numbers for a network that begins with an embedding.
        x2: samples ``[N2, ...]``; ``x1`` again when None.
        trace: the sum over outputs, sum_a Theta[i, j, a, a], which takes C^2 times less memory. (Divided by C it is
            what neural-tangents calls the kernel with ``trace_axes=(-1,)``.)
        batch_size: how many samples are differentiated at once; as many as 256 MiB hold when None.
        memory: how many bytes the kernel may take; half of what is free on its device when None.

    Returns:
        ``[N1, N2, C, C]``, or ``[N1, N2]`` where it is the trace, of the dtype and on the device of the output.

    Raises:
        InvalidType: no module, no tensors, or an output that is no tensor.
        InvalidValue: no samples, or of two kinds; nothing to train; samples that interact, as by batch norm in training
            mode; dropout in training mode; a kernel that would not fit.
    """
    check_samples(x1=x1)
    if x2 is not None:
        check_samples(x2=x2)
        check_alike(x1, x2)
    check_flag(trace=trace)
    check_integer(1, optional=True, batch_size=batch_size)
    check_integer(1, 2**63 - 1, optional=True, memory=memory)
    x1, x2 = usable(x1), None if x2 is None else usable(x2)
    source = Source.of(net, x1, batch_size)
    room = free_memory(source.like.device) // 2 if memory is None else memory
    columns = x1 if x2 is None else x2
    shape = (len(x1), len(columns)) if trace else (len(x1), len(columns), source.outputs, source.outputs)
    cures = "take trace=True, fewer samples, or NTKOperator(net, x), which multiplies with it without forming it"
    check_fits(shape, source.like.dtype, room, cures=cures.removeprefix("take trace=True, ") if trace else cures)
    return source.attempt(lambda: _kernel(source, x1, x2, source.like.new_zeros(shape), trace, room))


@dataclass(eq=False)
class Source:
    """A network whose kernel is asked for, and how its gradients are taken.

    Attributes:
        jacobians: of a private copy of the network.
        like: three outputs ``[3, C]``: dtype and device.
        batch_size: samples at once, or None.
    """

    jacobians: Jacobians
    like: Tensor
    batch_size: int | None

    @classmethod
    def of(cls, net: nn.Module, x: Tensor, batch_size: int | None) -> Source:
        """Checks the network on a few samples, and looks how they go through it.

        Raises:
            InvalidType, InvalidValue: see ``empirical_ntk``.
        """
        private = private_copy(net)
        like = check_outputs(private, x).reshape(3, -1)
        try:
            with refusing_checkpoints("a kernel"):
                jacobians = Jacobians.of(private, x, like.shape[1])
        except RuntimeError as error:  # torch's word for a graph that has no derivative
            raise InvalidValue(
                f"net cannot be differentiated in its parameters: {error}. If it uses torch.utils.checkpoint, turn "
                "checkpointing off meanwhile: call its parts directly"
            ) from error
        return cls(jacobians, like, batch_size)

    @property
    def outputs(self) -> int:
        """C, the entries of one sample's output."""
        return self.like.shape[1]

    def attempt(self, compute: Callable[[], Result]) -> Result:
        """What is computed; in the general way where a batch goes through the layers as the probe did not."""
        try:
            with refusing_checkpoints("a kernel"):
                return compute()
        except Misfit as misfit:
            logger.info("%s: all parameters are differentiated in the general way", misfit)
            self.jacobians = self.jacobians.generally()
            return compute()

    def at_once(self) -> int:
        """How many samples are differentiated at once."""
        each = self.like.dtype.itemsize * self.jacobians.numbers()
        return self.batch_size or max(
            1, min(_BUDGET // each, int((_BUDGET / self.like.dtype.itemsize) ** 0.5) // self.outputs)
        )

    def shares(self, x: Tensor) -> list[Share]:
        """The shares of the layers for a batch."""
        return self.jacobians.shares(x, _BUDGET // self.like.dtype.itemsize)


def _kernel(source: Source, x1: Tensor, x2: Tensor | None, out: Tensor, trace: bool, room: int) -> Tensor:
    """Block by block: the gradients of the columns are kept where they fit, and taken anew for each row if not."""
    columns = x1 if x2 is None else x2
    source.jacobians.choose(len(columns), trace=trace)
    size, outputs = source.at_once(), source.outputs
    fits = len(columns) * source.jacobians.numbers() * out.dtype.itemsize <= room // 4
    kept: dict[int, list[Share]] = {}

    def shares(first: int) -> list[Share]:
        found = kept.get(first) or source.shares(columns[first : first + size])
        if fits:
            kept[first] = found
        return found

    for i in range(0, len(x1), size):
        left = source.shares(x1[i : i + size]) if x2 is not None else shares(i)
        rows = slice(i, i + size)
        for j in range(0 if x2 is not None else i, len(columns), size):
            right = left if x2 is None and j == i else shares(j)
            n1, n2 = len(x1[rows]), len(columns[j : j + size])
            made = block(left, right, out.new_zeros((n1, n2) if trace else (n1, outputs, n2, outputs)), trace=trace)
            made = made if trace else made.transpose(1, 2)
            if right is left:  # to the last digit, for whoever takes eigenvalues
                made = (made + (made.mT if trace else made.permute(1, 0, 3, 2))) / 2
            out[rows, j : j + size] = made
            if x2 is None and j != i:
                out[j : j + size, rows] = made.transpose(0, 1) if trace else made.permute(1, 0, 3, 2)
        if x2 is None:
            kept.pop(i, None)
    return out
