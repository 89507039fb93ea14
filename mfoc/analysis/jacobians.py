"""Products with Jacobians of what autograd has recorded, and what random ones say of them.

Nothing here asks what lies between two tensors: a layer, a block with its residual stream, a whole network. The gain of
a map y = f(x) with n_in inputs and n_out outputs is that of a perturbation's mean square,

    chi = ||J||_F^2 / n_out = E_v (||J v||^2 / n_out) / (||v||^2 / n_in),      v of unit covariance

which for a wide dense layer y = W phi(x) is sigma_w^2 E phi'^2, the chi_1 of Schoenholz et al. (2017), eq. 6. Since
E_w ||J^T w||^2 = ||J||_F^2 as well (Hutchinson 1990), products from the left measure it: they need one derivative only,
which every layer has, also attention and what is marked once-differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from mfoc import tree
from mfoc.checks import check_instance, check_integer
from mfoc.derivatives import gradients, twice_differentiable  # noqa: F401  (twice_differentiable was public here)
from mfoc.errors import InvalidValue
from mfoc.printing import by_identity
from mfoc.tree import Tree

Several = Tensor | Sequence[Tensor]


@by_identity
class Gain(NamedTuple):
    """The mean-square gain of a map.

    Attributes:
        value: chi = ||J||_F^2 / n_out.
        error: its standard error over particles and probes; NaN with one of them in all.
    """

    value: float
    error: float


def pull(outputs: Several, inputs: Several, cotangents: Several) -> list[Tensor]:
    """J^T w: the vector-Jacobian product, a tensor for each input; the graph is kept.

    Args:
        outputs: what was computed from the inputs.
        inputs: tensors of the graph, leaves or not; zeros are found where no path leads to one.
        cotangents: w, shaped as the outputs.
    """
    return gradients(_several(outputs), _several(inputs), _several(cotangents), retain_graph=True)


def push(outputs: Several, inputs: Several, tangents: Several) -> list[Tensor]:
    """J v: the Jacobian-vector product, a tensor for each output; the graph is kept.

    By two products from the left (w -> J^T w is linear, and v times its derivative is J v), so everything between must
    have a second derivative: attention must have run under ``twice_differentiable()``.

    Args:
        outputs: what was computed from the inputs.
        inputs: tensors of the graph, leaves or not.
        tangents: v, shaped as the inputs.
    """
    outputs = _several(outputs)
    dummies = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    with torch.enable_grad():
        pulled = gradients(outputs, _several(inputs), dummies, create_graph=True)
    return gradients(pulled, dummies, _several(tangents), retain_graph=True)


def random_like(tensors: Several, generator: torch.Generator) -> list[Tensor]:
    """Random tensors of these shapes, dtypes and devices: uncorrelated entries of mean zero and variance one.

    Each particle's, ``[...]`` of ``[N, ...]``, are uniform on a sphere: its radius tells nothing, so it is not random.
    The numbers are the same in every dtype and on every device.
    """
    return [_on_sphere(each, generator) for each in _several(tensors)]


def mean_square_gain(outputs: Several, inputs: Several, *, generator: torch.Generator, probes: int = 1) -> Gain:
    """The gain chi = ||J||_F^2 / n_out of what leads from inputs to outputs, by ``probes`` backward passes.

    Args:
        outputs: ``[N, ...]``, what was computed from the inputs; the graph is kept.
        inputs: ``[N, ...]``, tensors of the graph, leaves or not.
        generator: what the probes are drawn from.
        probes: how many.

    Returns:
        The gain, zero where no path leads from the inputs to the outputs. Each particle of each probe is one reading;
        a particle reads all that its input moves, also other particles' outputs (batch norm in training mode).

    Raises:
        InvalidType, InvalidValue: no positive number of probes, or an output without numbers.
    """
    check_integer(1, probes=probes)
    outputs, inputs = _several(outputs), _several(inputs)
    units = sum(output.numel() for output in outputs)
    if not units or not inputs:
        raise InvalidValue("outputs hold no numbers; a gain needs at least one input and one output")
    return gain([squares(pull(outputs, inputs, random_like(outputs, generator))) for _ in range(probes)], units)


def gain(pulled: Sequence[Tensor], units: int) -> Gain:
    """The gain from products with random cotangents.

    Args:
        pulled: the squared norms of J^T w, for each probe those of the particles ``[N]``.
        units: how many outputs there are in all, n_out of all particles together.
    """
    readings = torch.cat(list(pulled))
    readings = readings * (len(readings) / len(pulled) / units)
    error = float(readings.std()) / len(readings) ** 0.5 if len(readings) > 1 else float("nan")
    return Gain(float(readings.mean()), error)


def gain_of(function: Callable[[Tree], Tree], x: Tree, *, generator: torch.Generator, probes: int = 1) -> Gain:
    """The gain of a function, such as a module, at x ``[N, ...]``: one call and ``probes`` backward passes.

    Args:
        function: a map of trees of tensors; it is called with a copy of x that is cut from its graph.
        x: where.
        generator: what the probes are drawn from.
        probes: how many.

    Raises:
        InvalidValue: x or what is returned holds no floating-point tensor.
    """
    check_instance(torch.Generator, "a torch.Generator", generator=generator)
    start = tree.detached(x, requires_grad=True)
    with torch.enable_grad():
        # Copies, since a function may write over what it is given, which a leaf refuses.
        end = function(tree.map(lambda leaf: leaf.clone() if tree.differentiable(leaf) else leaf, start))
    inputs, outputs = tree.tensors(start), tree.tensors(end)
    if not inputs or not outputs:
        raise InvalidValue(f"the function maps {tree.describe(x)} to {tree.describe(end)}; expected floating point")
    return mean_square_gain(outputs, inputs, generator=generator, probes=probes)


def squares(tensors: Several) -> Tensor:
    """The squared norm of each particle ``[N]``, over all tensors ``[N, ...]``, summed in float64 where there is one.

    Tensors that do not share their leading axis have one norm together, ``[1]``.
    """
    wide = [each.detach().abs().to(_wide(each)).square() for each in _several(tensors)]
    if len({each.shape[:1] for each in wide}) > 1:
        wide = [each.sum().reshape(1) for each in wide]
    total: Tensor = torch.stack([each.reshape(len(each), -1).sum(1) if each.dim() else each[None] for each in wide])
    return total.sum(0)


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64  # which has no float64


def _on_sphere(like: Tensor, generator: torch.Generator) -> Tensor:
    kind = torch.complex64 if like.is_complex() else torch.float32
    shape = like.shape if like.dim() else (1,)
    drawn = torch.randn(shape, generator=generator, dtype=kind, device=generator.device).reshape(shape[0], -1)
    drawn *= drawn.shape[1] ** 0.5 / drawn.norm(dim=1, keepdim=True)
    placed: Tensor = drawn.reshape(like.shape).to(like.device, like.dtype)
    return placed


def _several(tensors: Several) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


@contextmanager
def refusing_checkpoints(what: str) -> Iterator[None]:
    """Refuses a network whose checkpoints cannot be run again, with what to do.

    Args:
        what: what needs its graph as it is.

    Raises:
        InvalidValue: torch.utils.checkpoint ran a part of the network again, on other numbers than before.
    """
    try:
        yield
    except CheckpointError as error:
        raise InvalidValue(
            f"net uses torch.utils.checkpoint, which runs parts of it a second time, and {what} runs it with other "
            "weights than its own, which are gone by then; turn checkpointing off meanwhile: call those parts directly"
        ) from error
