"""What mean-field theory says of one layer of a network: its variances read off the weights, and its activation.

For h = W phi(x) + b, sigma_w^2 = n_in E W_ij^2 and sigma_b^2 = E b_i^2 (Poole et al. 2016, eq. 2), so that

    q' = sigma_w^2 E x^2 + sigma_b^2,      chi = sigma_w^2 E phi'(sqrt(q') z)^2

with E x^2 = V(q) behind a layer of which theory is told, and as measured elsewhere. The part of a filter that lies over
a padding of zeros carries nothing; its share of the squared weights is taken off sigma_w^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mfoc.analysis.gaussian import GaussianMoments
from mfoc.analysis.propagation.recording.blocks import Block, has_weights, is_passive
from mfoc.analysis.propagation.recording.cuts import between
from mfoc.analysis.propagation.recording.record import Point
from mfoc.errors import InvalidType, InvalidValue

# Nodes of the autograd graph that hand every number on, and activations that are written as functions.
_HANDED_ON = (
    "View", "UnsafeView", "ReshapeAlias", "Clone", "Alias", "Transpose", "Permute", "Squeeze", "Unsqueeze", "T",
    "UnsafeReshape", "Contiguous", "AsStrided", "Flatten",
)  # fmt: skip
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], dict[str, str]]] = {
    "Relu": (torch.relu, {}),
    "Tanh": (torch.tanh, {}),
    "Sigmoid": (torch.sigmoid, {}),
    "Erf": (torch.erf, {}),
    "Sin": (torch.sin, {}),
    "Silu": (F.silu, {}),
    "Mish": (F.mish, {}),
    "Gelu": (F.gelu, {"approximate": "_saved_approximate"}),
    "LeakyRelu": (F.leaky_relu, {"negative_slope": "_saved_negative_slope"}),
    "Hardtanh": (F.hardtanh, {"min_val": "_saved_min_val", "max_val": "_saved_max_val"}),
    "Softplus": (F.softplus, {"beta": "_saved_beta", "threshold": "_saved_threshold"}),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense or convolutional layer and the activation after it.

    Attributes:
        weight_variance: sigma_w^2, read off the weights.
        bias_variance: sigma_b^2, read off the biases; zero without.
        seen: the share of a filter that lies over the image, on average; below 1 at zero padding.
        activation: phi; None where nothing follows.
    """

    weight_variance: float
    bias_variance: float
    seen: float
    activation: Any

    def predict(self, mean_square: float) -> tuple[float, float, float]:
        """Of inputs with a mean square: q of the pre-activations, the gain chi, and V(q), the next mean square.

        Raises:
            InvalidType, InvalidValue: no theory of this activation.
        """
        gain = self.weight_variance * self.seen
        q = gain * mean_square + self.bias_variance
        if self.activation is None:
            return q, gain, q
        moments, at = GaussianMoments.of(self.activation), torch.tensor([q], dtype=torch.float64, device="cpu")
        return q, gain * float(moments.slope_moment(at)), float(moments.second_moment(at))


def read_layer(block: Block) -> Layer | None:
    """The layer that a block is; None where it is more, or something else, than a layer and its activation."""
    core = block.core
    if core is None or not block.whole or not core.ends:
        return None
    module: Any = core.module
    dense = isinstance(module, nn.Linear)
    if not dense and not (isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd)):
        return None
    known, activation = _activation(block)
    if not known:
        return None
    weight, bias = module.weight.detach().cpu().double(), module.bias
    variance = float(weight.square().mean()) * weight[0].numel()
    shift = 0.0 if bias is None else float(bias.detach().cpu().double().square().mean())
    return Layer(variance, shift, 1.0 if dense else _seen(module, core.starts[0].tensor), activation)


def _activation(block: Block) -> tuple[bool, Any]:
    """Whether what follows the layer is known, and the activation, if any."""
    core = block.core
    assert core is not None
    outside = [call for call in block.calls if call is not core and not is_passive(call)]
    nodes = _worked(core.ends[0], block.ends[0])
    if len(nodes) == 1 and _kind(nodes[0]) in _ACTIVATIONS and len(outside) <= 1:
        function, settings = _ACTIVATIONS[_kind(nodes[0])]
        return True, _with(function, tuple((key, getattr(nodes[0], saved)) for key, saved in settings.items()))
    if not outside:
        return not nodes, None
    one = outside[0]
    alone = len(outside) == 1 and bool(one.starts) and bool(one.ends)
    if not alone or _worked(core.ends[0], one.starts[0]) or _worked(one.ends[0], block.ends[0]):
        return False, None
    return True, one.module  # what is no activation, such as a norm, is refused when its moments are asked for


@cache
def _with(function: Callable[..., Tensor], settings: tuple[tuple[str, Any], ...]) -> Callable[[Tensor], Tensor]:
    """One object for one activation, whose moments are then found once."""
    return partial(function, **dict(settings)) if settings else function


def _worked(first: Point, last: Point) -> list[Any]:
    """The nodes between two places that change numbers."""
    return [node for node in between(first, last) if _kind(node) not in _HANDED_ON]


def _kind(node: Any) -> str:
    """The name of a node's operation: ``"Relu"`` of ReluBackward0."""
    return str(node.name()).partition("Backward")[0].rpartition("::")[2]


def averages(block: Block) -> bool:
    """Whether a block averages over tokens or pixels all that passes through it, as is done before a readout."""
    last = next((call for call in reversed(block.calls) if has_weights(call)), None)
    if last is None or not last.ends:
        return False
    begun = block.starts[0] if block.core is not None else last.ends[0]
    kinds = [_kind(node) for node in between(begun, block.ends[0])]
    return any(kind.startswith("Mean") or "Avg" in kind for kind in kinds)


def _seen(module: Any, x: Tensor) -> float:
    if module.padding_mode != "zeros":
        return 1.0
    ones = (
        torch.ones(1, 1, *x.shape[2:], device="cpu")
        if x.dim() == module.weight.dim()
        else torch.ones(1, 1, *x.shape[1:], device="cpu")
    )
    # Each tap counts by its weights: the centre, where delta-orthogonal kernels have all of theirs, is always seen.
    kernel = module.weight.detach().cpu().float().square().sum((0, 1), keepdim=True)
    total = float(kernel.sum())
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(module.kernel_size) - 1]
    over = convolve(ones, kernel, None, module.stride, module.padding, module.dilation)
    return float(over.mean()) / total if total > 0 else 1.0


def predictions(blocks: list[Block], layers: list[Layer | None]) -> list[tuple[float, float] | None]:
    """What theory says of q and chi of each block, from layer to layer; from measured inputs where it begins anew."""
    found: list[tuple[float, float] | None] = []
    carried: float | None = None
    for block, layer in zip(blocks, layers, strict=True):
        if layer is None or block.core is None:
            found.append(None)
            carried = None
            continue
        start = block.core.starts[0].seen.q if carried is None else carried
        try:
            q, chi, carried = layer.predict(start)
        except (InvalidType, InvalidValue):  # an activation that theory does not know
            found.append(None)
            carried = None
        else:
            found.append((q, chi))
    return found
