"""Runs a network with the weights of known layers cut off, and keeps what they were called with."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.kernel.layers import has_sample_axis, is_known
from mfoc.derivatives import twice_differentiable

logger = logging.getLogger(__name__)

PROBED = 3  # samples by which it is seen how a layer treats them


@contextmanager
def plainly() -> Iterator[None]:
    """Attention without the fast paths that have no derivative, or none under ``vmap``."""
    with twice_differentiable(), torch.enable_grad():
        yield


@dataclass(eq=False)
class Call:
    """One call of a layer: its input, and where the gradients at its output are to be had."""

    inputs: Tensor
    version: int
    output: Any  # the gradient edge
    shape: torch.Size
    sampled: bool

    @property
    def written(self) -> bool:
        """Whether the input was written over since."""
        return self.inputs._version != self.version


class Taps:
    """Runs a network with the known layers' weights cut off; what each was called with is kept."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.calls = net, dict[str, list[Call]]()

    def run(self, x: Tensor, layers: dict[str, nn.Module]) -> tuple[Tensor, dict[str, list[Call]]]:
        """The output, and the calls of each layer in order."""
        self.calls = {name: [] for name in layers}
        for name, layer in layers.items():
            layer.__dict__["forward"] = self._tapped(name, layer)
        try:
            return self.net(x), self.calls
        finally:
            for layer in layers.values():
                del layer.__dict__["forward"]

    def _tapped(self, name: str, layer: Any) -> Callable[[Tensor], Tensor]:
        frozen = copy.copy(layer)
        frozen.__dict__["_parameters"] = {k: None if p is None else p.detach() for k, p in layer._parameters.items()}
        forward = type(layer).forward

        def run(input: Tensor) -> Tensor:  # noqa: A002 - what every layer of torch calls it
            output: Tensor = forward(frozen, input)
            if not output.requires_grad:  # nothing before it is trained; a leaf could not be written into
                output = tree.free(output).clone()
            edge = torch.autograd.graph.get_gradient_edge(output)
            sampled = has_sample_axis(layer, output)
            self.calls[name].append(Call(input.detach(), input._version, edge, output.shape, sampled))
            return output

        return run


def candidates(net: nn.Module) -> dict[str, nn.Module]:
    """Known layers with trained parameters of their own, which no other module has, by name."""
    owners: dict[int, int] = {}
    for part in net.modules():
        for parameter in part._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1

    def fit(part: nn.Module) -> bool:
        own = own_parameters(part)
        return bool(own) and is_known(part) and "forward" not in part.__dict__ and all(owners[id(p)] == 1 for p in own)

    return {name: part for name, part in net.named_modules() if fit(part)}


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a module itself."""
    return [p for p in module._parameters.values() if p is not None and p.requires_grad]


def fits(calls: list[Call]) -> bool:
    """Whether the samples may lie in the first axis at each call, and its input is what it was."""
    return all(call.sampled and call.shape[0] % PROBED == 0 and not call.written for call in calls)


def entries_of(calls: list[Call], samples: int) -> int:
    """How many numbers the outputs of a layer have for each sample."""
    return sum(call.shape.numel() for call in calls) // samples


def apart(out: Tensor, calls: dict[str, list[Call]]) -> dict[str, bool]:
    """Of each layer, whether the slope of one sample's output is nonzero in the place of that sample, and there alone.

    A layer that no output depends on passes. One whose slopes vanish does not: nothing is seen there.
    """
    edges = [call.output for made in calls.values() for call in made]
    if not edges or not out.requires_grad:
        return dict.fromkeys(calls, True)
    seeds = torch.diag_embed(normal_like(out).mT).permute(1, 2, 0)  # [samples, samples, C]
    found_apart = [True] * len(edges)
    for i, seed in enumerate(seeds):
        found = torch.autograd.grad(out, edges, seed, retain_graph=True, allow_unused=True)
        for k, slope in enumerate(found):
            if slope is not None:
                own = slope.reshape(len(out), -1).ne(0).any(1).tolist()
                found_apart[k] = found_apart[k] and own == [j == i for j in range(len(out))]
    each = iter(found_apart)
    return {name: False not in [next(each) for _ in made] for name, made in calls.items()}


def stays_apart(out: Tensor, calls: list[Call]) -> bool:
    """Whether slopes of about half of the samples of a batch, at random, are in the places of those samples alone."""
    chosen = normal_like(out)[:, :1].gt(0)
    found = torch.autograd.grad(
        out, [call.output for call in calls], normal_like(out) * chosen, retain_graph=True, allow_unused=True
    )
    reached = [slope.reshape(len(out), -1).ne(0).any(1) for slope in found if slope is not None]
    return not any(bool((there & ~chosen[:, 0]).any()) for there in reached)


def slopes_at(out: Tensor, calls: list[Call], columns: range) -> list[Tensor]:
    """The gradients of some outputs of all samples at the outputs of layers: ``[c, m, ...]`` each.

    Args:
        out: outputs ``[n, C]``.
        calls: of the layers.
        columns: which outputs.
    """
    edges = [call.output for call in calls]
    chosen = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)[list(columns)]
    seeds = chosen[:, None].expand(-1, len(out), -1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            found = torch.autograd.grad(out, edges, seeds, is_grads_batched=True, retain_graph=True, allow_unused=True)
    except RuntimeError as error:  # an operation that has no batched derivative
        logger.debug("the backward pass cannot be vectorised: %s", error)
        each = [torch.autograd.grad(out, edges, seed, retain_graph=True, allow_unused=True) for seed in seeds]
        found = tuple(None if c[0] is None else torch.stack(c) for c in zip(*each, strict=True))  # type: ignore[misc]
    return [
        seeds.new_zeros(len(columns), *call.shape) if slope is None else slope
        for slope, call in zip(found, calls, strict=True)
    ]


def normal_like(like: Tensor) -> Tensor:
    """Normal numbers, the same each time, of the shape of a tensor."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like)
