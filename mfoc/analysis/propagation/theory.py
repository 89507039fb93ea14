"""Initialisation of a chain of layers by mean-field theory, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfoc.analysis.propagation.chains import Layer
from mfoc.analysis.propagation.drafts import Draft
from mfoc.analysis.propagation.fresh_weights import biases, weights
from mfoc.analysis.propagation.operating_points import Step, lasting_length, step_at
from mfoc.analysis.propagation.tuning import steered
from mfoc.errors import InvalidValue

_STEER, _BARE = 0.02, 0.04  # without biases there is nothing but gains to lead a length back
_LEAK = 0.7  # ln 2: without biases, q may fall by half over the depth


@dataclass(frozen=True)
class Prediction:
    """What theory says of a layer.

    Attributes:
        name: the layer.
        q: the mean square of what comes out.
        chi: its gain; NaN of a layer that reads data.
        note: what was left as it is, and why.
    """

    name: str
    q: float
    chi: float
    note: str = ""


def length_of(layers: list[Layer], q_star: float) -> float:
    """The q that the chain is kept at: the smallest from ``q_star`` on that lasts, for all of its activations."""
    read = list(dict.fromkeys(layer.moments for layer in layers if not layer.first))
    bare = sum(layer.module.bias is None for layer in layers)
    return lasting_length(read, q_star, leak=_LEAK / bare if bare else math.inf)


def initialise(
    draft: Draft,
    layers: list[Layer],
    q_star: float,
    x: Tensor | None,
    *,
    orthogonal: bool,
    generator: torch.Generator,
) -> list[Prediction]:
    """Draws the weights of a chain, so that chi = 1 (or as near to it as lasts) and q = q_star at every layer.

    A layer that reads data, or what a pool leaves of a signal, is scaled so that q = q_star comes out: on x, or without
    x for inputs of mean square one. The others have sw2 = chi / E phi'^2 of the activation that they read, at the
    length that it has there, and biases that make up for q - sw2 V(q). On x both are corrected for the finite width.

    Source: Schoenholz, Gilmer, Ganguli & Sohl-Dickstein 2017, eqs. 3 and 6; Xiao et al. 2018 for convolutions.
    """
    found: list[Prediction] = []
    walk = None if x is None else _Walk(draft, x)
    shared, done = _reused(layers), set[int]()
    q = q_star
    for layer in layers:
        weight = layer.module.weight
        data = layer.first and id(weight) not in shared
        step = step_at(layer.moments, q)
        note = [] if id(weight) not in done else ["shares its weights with an earlier layer"]
        if not note:
            note = _frozen(layer)
            q = _drawn(draft, layer, step, q_star, data, orthogonal=orthogonal, generator=generator)
            if walk is not None and weight.requires_grad:
                _corrected(draft, walk, layer, step, q_star, data)
        done.add(id(weight))
        chi = step.chi
        if walk is not None:
            q, chi = walk.through(layer, chi=not data)
            walk.advance(layer)
        found.append(Prediction(layer.name, q, math.nan if data else chi, ", ".join(note)))
    return found


def _frozen(layer: Layer) -> list[str]:
    module = layer.module
    parts = {"weights": module.weight, "biases": module.bias}
    return [f"{name} frozen" for name, part in parts.items() if part is not None and not part.requires_grad]


def _drawn(
    draft: Draft, layer: Layer, step: Step, q_star: float, data: bool, *, orthogonal: bool, generator: torch.Generator
) -> float:
    """Draws a layer by theory; the q that it then has by theory."""
    module = layer.module
    # An input of mean square one is what a layer without x is made for.
    variance = q_star if data else step.weight_variance
    spare = 0.0 if data else max(q_star - variance * step.second_moment, 0.0)
    if module.weight.requires_grad:
        draft[module.weight] = weights(module, variance, orthogonal=orthogonal, spread=data, generator=generator)
    if module.bias is None or not module.bias.requires_grad:
        spare = 0.0
    else:
        draft[module.bias] = biases(module, spare, generator=generator)
    return q_star if data else variance * step.second_moment + spare


def _corrected(draft: Draft, walk: _Walk, layer: Layer, step: Step, q_star: float, data: bool) -> None:
    """Corrects the scale of a layer for what x and its width make of theory: q* where it sees data, else its gain."""
    weight = layer.module.weight
    q, chi = walk.through(layer, chi=not data)
    if data:
        draft[weight] = draft[weight] * math.sqrt(q_star / q)
    elif math.isfinite(chi) and chi > 0:
        aim = step.chi * steered(q * step.chi / chi, q_star, _BARE if layer.module.bias is None else _STEER)
        draft[weight] = draft[weight] * math.sqrt(aim / chi)


def _reused(layers: list[Layer]) -> set[int]:
    """The weights that several layers share."""
    seen: set[int] = set()
    twice: set[int] = set()
    for layer in layers:
        (twice if id(layer.module.weight) in seen else seen).add(id(layer.module.weight))
    return twice


class _Walk:
    """A batch on its way through a chain, layer by layer."""

    def __init__(self, draft: Draft, x: Tensor) -> None:
        self.draft = draft
        self.u = x.detach()  # what the last layer gave

    def through(self, layer: Layer, *, chi: bool) -> tuple[float, float]:
        """The mean square of what a layer gives, and, if asked for, its gain from the output of the layer before."""
        u = self.u.clone().requires_grad_(chi)
        out = u
        try:
            for part in layer.before:
                out = self.draft(part, out)
            inner, out = out, self.draft(layer.module, out)
        except Exception as error:  # whatever torch raises on a wrong shape or dtype
            raise InvalidValue(f"layer {layer.name!r} fails on x: {error}") from error
        q = float(out.detach().double().square().mean())
        if not (math.isfinite(q) and q > 0):
            raise InvalidValue(
                f"layer {layer.name!r} makes values of mean square {q} of x; expected finite, not all zero"
            )
        return (q, self._gain(layer, u, inner)) if chi else (q, math.nan)

    def _gain(self, layer: Layer, u: Tensor, inner: Tensor) -> float:
        """||J||_F^2 / n_out, exactly: an activation's Jacobian is diagonal, so its square passes squared weights."""
        (slope,) = torch.autograd.grad(inner.sum(), u)
        with torch.no_grad():
            for part in layer.before:
                slope = self.draft(part, slope) if isinstance(part, nn.Flatten | nn.Unflatten) else slope
            module, weight = layer.module, self.draft[layer.module.weight].square()
            square = slope.square()
            dense = isinstance(module, nn.Linear)
            passed = square @ weight.mT if dense else module._conv_forward(square, weight, None)
            return float(passed.double().mean())

    def advance(self, layer: Layer) -> None:
        """On to what the layer gives."""
        with torch.no_grad():
            for part in (*layer.before, layer.module):
                self.u = self.draft(part, self.u)
        self.u = self.u.detach()
