"""One net of the coordinate check: made, measured, trained for a few steps and measured again."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.propagation.width.mup import root_mean_square
from mfoc.checks import check_plain, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import refuse_lazy
from mfoc.seeding import mixed_seed, seeded

MakeNet = Callable[[int], nn.Module]
Loss = Callable[[Any, Any], Tensor]
Groups = Callable[[nn.Module], Iterable[Any]]
Outputs = dict[str, list[Tensor]]

_SMALLER = (
    "expected steps that the widest net survives: lower the learning rate (or look at the narrower widths alone: what "
    "breaks only at large ones grows with width)"
)
WHOLE = "(net)"  # what the whole net returns, where that is the output of no layer

# What muP calls SGD (updates linear in the gradient) and Adam (normalised, entry by entry).
_SGD_LIKE = (torch.optim.SGD, torch.optim.ASGD)
_ADAM_LIKE = (
    torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop,
    torch.optim.Adagrad, torch.optim.SparseAdam,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trial:
    """What was seen of one net.

    Attributes:
        net: the net, trained, or another of its width.
        kinds: the class of each layer, by name, in the order of execution.
        starts, changes: root mean squares of the layers' outputs before training, and of their changes by it.
        sizes: root mean squares of the trained parameters before training, by name.
        rule: what the optimiser is to muP, "sgd" or "adam"; None where it is neither.
        rates: learning rates of the parameters that the optimiser has, by name.
    """

    net: nn.Module
    kinds: dict[str, str]
    starts: dict[str, float]
    changes: dict[str, float]
    sizes: dict[str, float]
    rule: str | None
    rates: dict[str, float]


@dataclass(frozen=True, eq=False)
class Study:
    """What is the same for every net: see ``width_check``."""

    make_net: MakeNet
    x: Any
    target: Any
    optimizer: Callable[..., torch.optim.Optimizer]
    groups: Groups | None
    loss: Loss | None
    steps: int
    seen: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        # Without the history that the user's tensors may have.
        for name in ("x", "target"):
            # A copy, since autograd saves no tensor that was made in inference mode.
            object.__setattr__(self, name, tree.copy(_finite(getattr(self, name), name)))

    def trial(self, width: int, key: int) -> Trial:
        """Makes the net of a width, from a seed, and trains it; the target is that of the seed."""
        device = next((leaf.device for leaf in tree.leaves(self.x) if isinstance(leaf, Tensor)), None)
        with seeded(mixed_seed(key, width), device), torch.enable_grad():
            net = _checked_net(self.make_net(width), width)
        if net in self.seen:
            raise InvalidValue("make_net returned the same net twice; expected a fresh one at each call")
        self.seen.add(net)
        sizes = {name: root_mean_square(p) for name, p in net.named_parameters() if p.requires_grad}
        # The same numbers for random layers in each pass; and the same target at every width.
        with seeded(key, device), torch.enable_grad():
            before, output = self._outputs(net)
        self._refuse_infinite(
            before,
            f"at width {width} before the first step, though its weights are",
            "look at the net and the scale of x",
        )
        target = self.target if self.target is not None else self._random_target(output, key)
        optimizer = self._optimizer(net)
        for step in range(self.steps):
            with seeded(key, device), torch.enable_grad():
                where = f"at width {width} in step {step + 1}"
                optimizer.step(functools.partial(self._closure, net, optimizer, target, where))
        with seeded(key, device), torch.enable_grad():
            after, _ = self._outputs(net)
        self._refuse_infinite(after, f"at width {width} after {self.steps} steps")
        starts = {name: root_mean_square(*outputs) for name, outputs in before.items()}
        moved = {name: _change(before[name], after[name]) for name in before}
        parts = dict(net.named_modules())
        kinds = {name: type(parts.get(name, net)).__name__ for name in before}
        optimizer.zero_grad()
        return Trial(net, kinds, starts, moved, sizes, *_rates(net, optimizer))

    def _outputs(self, net: nn.Module) -> tuple[Outputs, Any]:
        """What each layer returns, in the order of execution, and what the net does."""
        seen: Outputs = {}

        def hook(name: str) -> Callable[..., None]:
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                # Copied at once: what follows may write over it.
                seen.setdefault(name, []).extend(leaf.detach().clone() for leaf in _floats(output))

            return keep

        layers = [
            (name, part) for name, part in net.named_modules() if name and any(True for _ in part.parameters(False))
        ]
        handles = [part.register_forward_hook(hook(name)) for name, part in layers]
        try:
            output = net(tree.copy(self.x))  # a first layer may work in place
        finally:
            for handle in handles:
                handle.remove()
        found = {name: outputs for name, outputs in seen.items() if outputs}
        last = [leaf.detach().clone() for leaf in _floats(output)]
        ends = list(found.values())[-1] if found else []
        if last and not (len(last) == len(ends) and all(map(torch.equal, last, ends))):
            found[WHOLE] = last
        if not found:
            raise InvalidValue(
                "make_net: no layer of the net returns a tensor of floating dtype; nothing can be measured"
            )
        return found, output

    def _random_target(self, output: Any, key: int) -> Tensor:
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            raise InvalidType(f"the net returns {kind_of(output)}; give x as (x, y) and a loss(output, y)")
        generator = torch.Generator().manual_seed(key)
        return torch.randn(output.shape, generator=generator, dtype=torch.float32, device="cpu").to(output)

    def _optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        given = [p for p in net.parameters() if p.requires_grad] if self.groups is None else self.groups(net)
        try:
            made: object = self.optimizer(given)
        except (TypeError, ValueError) as error:  # as torch says what it cannot train
            raise InvalidValue(f"optimizer cannot be made of what groups(net) returned: {error}") from error
        if not isinstance(made, torch.optim.Optimizer):
            raise InvalidType(f"optimizer(...) returned {kind_of(made)}; expected a torch.optim.Optimizer")
        return made

    def _closure(self, net: nn.Module, optimizer: torch.optim.Optimizer, target: Any, where: str) -> float:
        optimizer.zero_grad()
        output = net(tree.copy(self.x))
        value = _default_loss(output, target) if self.loss is None else self.loss(output, target)
        if not isinstance(value, Tensor):
            raise InvalidType(f"loss returned {kind_of(value)}; expected a tensor, a scalar or [N]")
        mean = value.mean()
        self._refuse_infinite({"loss": [mean]}, where)
        mean.backward()  # type: ignore[no-untyped-call]
        return float(mean.detach())

    @staticmethod
    def _refuse_infinite(found: Outputs, where: str, cure: str = _SMALLER) -> None:
        for name, outputs in found.items():
            if not all(bool(output.isfinite().all()) for output in outputs):
                what = "the loss" if name == "loss" else f"the output of {name!r}"
                raise InvalidValue(f"{what} is not finite {where}; {cure}")


def _default_loss(output: Any, target: Any) -> Tensor:
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        raise InvalidType(
            f"the net returns {kind_of(output)} the target is {kind_of(target)}; expected tensors, or a loss(output, y)"
        )
    if not target.is_floating_point():
        return F.cross_entropy(output, target)
    if output.shape != target.shape:
        raise InvalidValue(
            f"the net returns {list(output.shape)} and the target is {list(target.shape)}; expected the same shape"
        )
    return F.mse_loss(output, target)


def _floats(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree.tensors(output) if leaf.is_floating_point()]


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The root mean square of the difference; zero where it is that of rounding."""
    change = root_mean_square(*(new - old for old, new in zip(before, after, strict=True)))
    rounding = 4 * max(torch.finfo(leaf.dtype).eps for leaf in before) * root_mean_square(*before)
    return change if change > rounding else 0.0


def _rates(net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[str | None, dict[str, float]]:
    """What the optimiser is to muP, and the learning rate of each parameter it has."""
    rule = "sgd" if isinstance(optimizer, _SGD_LIKE) else "adam" if isinstance(optimizer, _ADAM_LIKE) else None
    by_id = {id(p): float(group["lr"]) for group in optimizer.param_groups if "lr" in group for p in group["params"]}
    return rule, {name: by_id[id(p)] for name, p in net.named_parameters() if id(p) in by_id}


def _finite(values: Any, name: str) -> Any:
    """The same values without their history, refused where they are not finite."""
    if values is None:
        return None
    found = [leaf for leaf in tree.leaves(values) if isinstance(leaf, Tensor)]
    if not found:
        raise InvalidType(f"{name} is {kind_of(values)}; expected a tensor, or a tree of tensors")
    for leaf in found:
        check_plain("a tensor of samples [N, ...], or a tree of them", **{name: leaf})
    if not all(leaf.numel() for leaf in found):
        raise InvalidValue(f"{name} is empty; expected at least one sample, [N, ...]")
    if not all(bool(leaf.isfinite().all()) for leaf in found):
        raise InvalidValue(f"{name} is not finite; expected numbers")
    return tree.detached(values)


def _checked_net(net: object, width: int) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise InvalidType(f"make_net({width}) returned {kind_of(net)}; expected a torch.nn.Module")
    if isinstance(net, torch.jit.ScriptModule):
        raise InvalidType(f"make_net({width}) returned a scripted module: it takes no hooks; return the plain one")
    refuse_lazy(net)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise InvalidValue(f"make_net({width}) has no parameter that requires grad; expected something to train")
    for name, parameter in net.named_parameters():
        if parameter.is_inference():
            raise InvalidValue(
                f"make_net({width}): the weights {name!r} were made in torch.inference_mode(), and cannot be trained; "
                "expected a net that is made outside of it"
            )
        if not bool(parameter.isfinite().all()):
            raise InvalidValue(
                f"make_net({width}): the weights {name!r} are not finite before any step; expected numbers: look at "
                "how they are initialised"
            )
    return net
