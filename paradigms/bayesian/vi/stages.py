"""Stages of a network whose weights are random, run on S draws at once.

A weight is w = loc + softplus(scale) * noise, with the noise given from outside (Kingma & Welling 2014). Three ways to
draw: "weights", one draw for all inputs of a particle; "local", the activations of each input instead of the weights
(Kingma, Salimans & Welling 2015, arXiv:1506.02557, eq. 6); "flipout", one draw for each particle whose signs are
flipped for each input (Wen et al. 2018, arXiv:1803.04386, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import InvalidValue, tree
from mfoc.networks.inspection import ELEMENTWISE, hooked
from mfoc.vectorisation import Mapper, misled
from paradigms.bayesian.vi.products import product

Weights = dict[str, Tensor]
Run = Callable[[Any, Weights], Any]

ESTIMATORS = ("weights", "local", "flipout")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class RandomStage:
    """One stage: ``stage(x, u, noise)`` on states ``[S, B, ...]``, from ``run(x, weights)`` of the network itself.

    Layers other than linear and convolutional ones draw weights whatever the estimator.
    """

    def __init__(self, run: Run, module: nn.Module, weights: Weights, estimator: str) -> None:
        self._run, self._module = run, module
        self._mapper = Mapper(f"a {type(module).__name__} of the network", "draw", unfit=misled(module))
        self._shapes = {key: tuple(value.shape) for key, value in weights.items()}
        self._sizes = [value.numel() for value in weights.values()]
        plain = not hooked(module) and all(parameter.requires_grad for parameter in module.parameters())
        self._linear = plain and type(module) is nn.Linear
        self._convolution = plain and type(module) in _CONVOLUTIONS
        self._elementwise = plain and type(module) in ELEMENTWISE
        self._rows = self._linear and "bias" in weights
        layered = self._linear or self._convolution
        self.estimator = estimator if layered else "weights"

    def quieted(self, other: RandomStage) -> RandomStage:
        """This stage, which does not say again what another of the same layer has said."""
        self._mapper = other._mapper.beside(unfit=misled(self._module))
        return self

    @property
    def random(self) -> bool:
        """Whether the stage has weights."""
        return bool(self._shapes)

    @property
    def size(self) -> int:
        """How many weights the stage has."""
        return sum(self._sizes)

    def flat(self, weights: Weights) -> Tensor:
        """Weights by name ``{name: [...]}`` as one vector ``[n]``; of a linear layer row by row, bias last."""
        if self._rows:
            return torch.cat([weights["weight"], weights["bias"].unsqueeze(1)], 1).flatten()
        return torch.cat([weights[key].reshape(-1) for key in self._shapes])

    def split(self, flat: Tensor) -> Weights:
        """Vectors of weights ``[..., n]`` by name, ``{name: [..., *shape]}``."""
        lead = flat.shape[:-1]
        if self._rows:
            out, width = self._shapes["weight"]
            w, b = torch.split(flat.view(*lead, out, width + 1), [width, 1], -1)
            return {"weight": w, "bias": b.squeeze(-1)}
        parts = torch.split(flat, self._sizes, -1)
        return {key: part.view((*lead, *shape)) for (key, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def noise(self, samples: int, entering: tuple[int, ...], leaving: tuple[int, ...]) -> tuple[Any, Any]:
        """Shapes of the normals and of the signs it wants, each by name, for states of these shapes ``[B, ...]``."""
        if not self.random:
            return {}, {}
        if self.estimator == "local":
            return {"activations": (samples, *leaving)}, {}
        normals = {"weights": (samples, self.size)}
        if self.estimator == "weights":
            return normals, {}
        axis = 1 - len(self._shapes["weight"])  # of the channels

        def kept(shape: tuple[int, ...]) -> tuple[int, ...]:
            """The shape with every axis but the first (the inputs) and that of the channels set to 1."""
            return tuple(n if k in (0, len(shape) + axis) else 1 for k, n in enumerate(shape))

        return normals, {"in": (samples, *kept(entering)), "out": (samples, *kept(leaving))}

    def __call__(self, x: Any, u: Any, noise: Weights) -> Any:
        """The next states ``[S, B, ...]``."""
        if not self.random:
            return self._run(x, {}) if self._elementwise else self._mapper(self._run, x, {})
        if self.estimator == "local":
            if self._convolution or x.dim() != 3:
                raise InvalidValue(
                    "estimator='local' draws each activation for itself, which is exact only where no two share a "
                    "weight: linear layers on [N, d]. Use 'flipout' or 'weights'"
                )
            mean, scale = self._merged(x, self.split(u["loc"])), self.split(F.softplus(u["scale"]))
            variance = self._merged(x, {key: value.square() for key, value in scale.items()}, square=True)
            # The least positive number keeps the slope of the root finite where no weight is active.
            return torch.addcmul(mean, (variance + torch.finfo(x.dtype).tiny).sqrt(), noise["activations"])
        if self.estimator == "flipout":
            mean = self._merged(x, self.split(u["loc"]))
            spread = self.at(x * noise["in"], F.softplus(u["scale"]) * noise["weights"])
            return torch.addcmul(mean, spread, noise["out"])
        return self.at(x, drawn(u, noise["weights"]))

    def at(self, x: Any, weights: Tensor) -> Any:
        """The next states at given weights ``[S, n]``."""
        if not self._linear:
            return self._mapper(self._run, x, self.split(weights))
        if x.dim() == 3 and len(weights) > 1 and shared(x):
            return self._product(x[0], weights)
        # Products are made as W x^T, so that activations lie in memory as [S, features, B] on the way there and back:
        # the long axis is the last one, and no gradient has to be laid out anew.
        columns = x.flatten(1, -2).mT
        if self._rows:
            out, width = self._shapes["weight"]
            w, b = torch.split(weights.view(-1, out, width + 1), [width, 1], -1)
            y = product(w, b, columns).mT
        else:
            w = self.split(weights)["weight"]
            y = product(w, None, columns).mT
        return y if x.dim() == 3 else y.reshape(*x.shape[:-1], w.shape[1])

    def _product(self, x: Tensor, weights: Tensor) -> Tensor:
        """The layer at S weights on one input ``[B, in]``, as a single product of matrices: ``[S, B, out]``.

        The bias is one more column, which spares a pass over the output each way. The weights are laid out by columns:
        their gradient is then a product of the small matrix with the large one, which BLAS does several times faster.
        """
        out, width = self._shapes["weight"]
        if self._rows:
            x, width = F.pad(x, (0, 1), value=1.0), width + 1
        rows = weights.view(-1, width).mT.contiguous().mT
        return (rows @ x.mT).view(len(weights), out, -1).mT

    def _merged(self, x: Tensor, weights: Weights, *, square: bool = False) -> Tensor:
        """The layer at one set of weights for all draws: ``[S, B, ...]``; ``[1, B, ...]`` when the draws share x."""
        one = x[:1] if shared(x) else x
        flat = one.flatten(0, 1).square() if square else one.flatten(0, 1)
        w, b = weights["weight"], weights.get("bias")
        y = F.linear(flat, w, b) if self._linear else self._module._conv_forward(flat, w, b)  # type: ignore[operator]
        return y.view(*one.shape[:2], *y.shape[1:])


def drawn(u: Weights, noise: Tensor) -> Tensor:
    """Weights ``[S, n]`` from their law, ``{"loc": [n], "scale": [n]}``, and normals ``[S, n]``."""
    return torch.addcmul(u["loc"], noise, F.softplus(u["scale"]))


def shared(x: Tensor) -> bool:
    """Whether all draws hold one and the same tensor, which nobody differentiates by."""
    if x.requires_grad or (x.shape[0] > 1 and x.stride(0) != 0):
        return False
    return torch.autograd.forward_ad.unpack_dual(x).tangent is None  # type: ignore[no-untyped-call]


def first(x: Any) -> Tensor:
    """The first tensor of a pytree."""
    leaf: Tensor = tree.leaves(x)[0]
    return leaf


def softplus_inverse(value: float) -> float:
    """The r with softplus(r) = value."""
    return value + math.log(-math.expm1(-value))
