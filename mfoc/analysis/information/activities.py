"""The activity of a network's layers on given inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfoc.analysis.kernel.taps import plainly
from mfoc.checks import check_instance, check_plain
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import ELEMENTWISE, pure_copy, random_parts, refuse_lazy, unwrapped, without_inplace

_ACTIVATIONS = tuple(kind for kind in ELEMENTWISE if kind is not nn.Identity)
OUTPUT = "output"  # the name of what the network returns


def activities(net: nn.Module, x: Tensor, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """What leaves the layers of a network, by name, in the order they run: ``[N, ...]`` each.

    Args:
        net: any module that takes one tensor. A private copy is run, in the network's own mode.
        x: inputs ``[N, ...]``.
        layers: names of submodules; when None all activation functions that are modules (without any, all modules that
            hold no others), and the output of the network, "output". Of a module that is called again each call counts.

    Raises:
        InvalidType: no module, no tensor, no list of names.
        InvalidValue: fewer than two inputs, a network that fails on them or is random, names that are no submodules or
            that were not called, a layer that does not keep the inputs on its first axis.
    """
    _refuse_unfit(net, x)
    private = without_inplace(pure_copy(unwrapped(net), type(net).__name__))  # what is recorded is kept
    chosen = _chosen(private, layers)
    kept = _Kept(len(x), asked=layers is not None)
    handles = [module.register_forward_hook(kept.hook(name)) for name, module in chosen.items()]
    with plainly(), torch.no_grad():
        out = _run(private, x.detach().clone())
    for handle in handles:
        handle.remove()
    if layers is None:
        kept.asked = not kept.found  # without any other layer this one has to do
        kept.keep(OUTPUT, out)
    for name in chosen if layers is not None else []:
        if name not in kept.found:
            raise InvalidValue(f"layer {name!r} was not called on x; name others")
    return kept.found


def _refuse_unfit(net: nn.Module, x: Tensor) -> None:
    check_instance(nn.Module, "a torch.nn.Module", net=net)
    check_plain("a tensor of inputs [N, ...]", x=x)
    if x.dim() == 0 or len(x) < 2:
        raise InvalidValue(f"x has shape {tuple(x.shape)}; expected two inputs or more, [N, ...]")
    if (x.is_floating_point() or x.is_complex()) and not bool(x.isfinite().all()):
        raise InvalidValue("x holds NaN or infinite values")
    refuse_lazy(net)
    for name, part in random_parts(net):
        raise InvalidValue(
            f"module {name!r} ({type(part).__name__}) is random in training mode, so that a layer is no function of "
            "the input; call .eval() on it"
        )


class _Kept:
    """What left the layers, each call of a module under a name of its own."""

    def __init__(self, samples: int, *, asked: bool) -> None:
        self.samples, self.asked = samples, asked
        self.found: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A forward hook that keeps what a module returns."""
        return lambda _module, _given, out: self.keep(name, out)

    def keep(self, name: str, out: Any) -> None:
        """A copy, since later layers may write over it; layers that were not asked for by name may be no activity."""
        activity = isinstance(out, Tensor) and out.is_floating_point() and out.dim() > 0
        if activity and len(out) == self.samples:
            self._calls[name] = self._calls.get(name, 0) + 1
            again = f" (call {self._calls[name]})" if self._calls[name] > 1 else ""
            self.found[name + again] = out.detach().clone()
        elif self.asked:
            what = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise InvalidValue(
                f"layer {name!r} returned {what}; expected floating-point numbers with the {self.samples} inputs on "
                "the first axis: name other layers"
            )


def _run(net: nn.Module, x: Tensor) -> Any:
    try:
        return net(x)
    except (InvalidType, InvalidValue):  # from the hooks
        raise
    except Exception as error:  # whatever the user's modules raise
        raise InvalidValue(
            f"net cannot be evaluated on x, {str(x.dtype).removeprefix('torch.')}{list(x.shape)}: {error}"
        ) from error


def _chosen(net: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    named: dict[str, nn.Module] = {name: part for name, part in net.named_modules() if name}
    if layers is None:
        found = {k: part for k, part in named.items() if isinstance(part, _ACTIVATIONS)}
        return found or {k: part for k, part in named.items() if not any(True for _ in part.children())}
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise InvalidType(f"layers is {layers!r}; expected a list of names of submodules")
    if not layers:
        raise InvalidValue(f"layers is empty; expected names out of {list(named)}")
    for name in layers:
        if name not in named:
            raise InvalidValue(
                f"layers names {name!r}, which is no submodule of the network; it has {list(named)} (one that stands "
                "in several places goes by its first name)"
            )
    return {name: named[name] for name in layers}
