"""Losses of torch as terminal costs: a number for each particle whose mean is the number that torch gives."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfoc.checks import check_callable, check_flag, check_signature
from mfoc.distributed import active, expectation
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import has_own_pass
from mfoc.problem import Averaged, TerminalCost
from mfoc.tree import Tree

Loss = Callable[..., Tensor]

# Those of torch whose mean is over the targets that are counted, each with the weight of its class.
_CLASSES: tuple[Any, ...] = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)
if hasattr(nn, "LinearCrossEntropyLoss"):
    _CLASSES += (nn.LinearCrossEntropyLoss.forward,)
_ENTRIES: tuple[Any, ...] = (F.mse_loss, F.l1_loss)  # the same where entries have weights
# The same number as the mean over all entries.
_PLAIN = (*_ENTRIES, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits, F.binary_cross_entropy)
_PLAIN += (nn.MSELoss.forward, nn.L1Loss.forward, nn.SmoothL1Loss.forward, nn.HuberLoss.forward)
_PLAIN += (nn.BCEWithLogitsLoss.forward, nn.BCELoss.forward)
_SETTINGS = ("reduction", "weight", "ignore_index")
_OLD = ("size_average", "reduce")  # which overrule a reduction
_UNCOUNTED = -100  # torch's default of ignore_index

# What the arguments of losses are called elsewhere.
_OUTPUT = "outputs input inputs prediction predictions pred preds y_pred y_hat yhat logits scores x"
_TARGET = "targets label labels y_true z"
_NAMES = dict.fromkeys(_OUTPUT.split(), "output") | dict.fromkeys(_TARGET.split(), "target")


def per_sample(loss: Loss | nn.Module, *, weigh: bool = True) -> TerminalCost:
    """A loss as a terminal cost ``[N]``.

    A torch loss is evaluated with ``reduction="none"`` and reduced in two steps, within each particle and then, as any
    cost, by the mean over particles. With its own reduction "mean" the outcome is torch's number on the whole cloud,
    also where targets are ignored or classes have weights: the cost of a particle is then divided by the mean weight of
    all particles of the cloud (on all ranks), a function of the targets. As in torch, it is NaN where no target counts.
    With "sum", and "batchmean" of the KL divergence, a particle's cost is the sum over its elements: J is torch's
    "batchmean". With "none" it is the mean over them.

    Args:
        loss: a function (output, target), which is a torch loss if it takes a ``reduction``, or a module that has one.
        weigh: divide by the mean weight; if not, ignored targets count as zeros and class weights are factors, so that
            the cost of a particle has nothing to do with the others.

    Raises:
        InvalidType: no function of two arguments.
    """
    if isinstance(loss, type):
        raise InvalidType(f"loss is the class {loss.__name__}; make an instance, {loss.__name__}()")
    check_callable("a function loss(output, z) -> [N]", loss=loss)
    check_flag(weigh=weigh)
    settings = _settings(loss)
    check_signature(("output", "target"), synonyms=_NAMES, loss=loss)
    if "reduction" not in settings:
        return loss
    kind = settings["reduction"] if settings["reduction"] in ("sum", "batchmean") else "mean"
    whole, each, source = _reductions(loss)
    weight = _Weight(settings.get("weight"), settings.get("ignore_index", _UNCOUNTED))
    weighed = weigh and settings["reduction"] == "mean"
    return _PerSample(whole, each, source, settings.get("weight"), weight if weighed else None, summed=kind != "mean")


@dataclass(frozen=True, eq=False)
class _PerSample(Averaged):
    """A loss of torch as a terminal cost; see ``per_sample``."""

    whole: Loss | None  # the loss with its reduction; None where it may be another function of the particles' losses
    each: Loss  # the loss without its reduction
    source: Any  # the function of torch that it is
    factors: Tensor | None  # its weights
    weighed: _Weight | None  # what a mean divides by
    _: KW_ONLY
    summed: bool

    def __call__(self, x: Tree, z: Tree) -> Tensor:
        target = self._target(x, z)
        found = self.each(x, target)
        if isinstance(x, Tensor) and isinstance(z, Tensor) and found.numel() > x.numel():
            raise InvalidValue(
                f"loss: the output {tuple(x.shape)} and the data {tuple(z.shape)} were broadcast to "
                f"{tuple(found.shape)}; give the data the output's shape"
            )
        if found.dim() > 1:
            found = found.flatten(1).sum(1) if self.summed else found.flatten(1).mean(1)
        if self.weighed is None:
            return found
        if self.source in _ENTRIES and self.factors is not None:
            found = found / self.factors.mean()
        if self.source in _CLASSES and isinstance(target, Tensor) and not target.is_floating_point():
            found = found / self.weighed.mean(z, found.dtype)
        return found

    def _target(self, x: Tree, z: Tree) -> Tree:
        """The data as torch takes them: of bool, which its losses refuse, class indices, or numbers as the output's."""
        if not isinstance(x, Tensor) or not isinstance(z, Tensor) or z.dtype != torch.bool:
            return z
        if self.source in _CLASSES and x.shape != z.shape:
            return z.long()
        return z.to(x.dtype) if self.source in (*_CLASSES, *_PLAIN) else z

    def mean(self, x: Tree, z: Tree) -> Tensor | None:
        """The mean over the particles in the one call that torch has for it; None where it is something else.

        It costs a third of the mean of what the particles pay, and is the same number but for its rounding.
        """
        if self.whole is None or self.weighed is None or not isinstance(x, Tensor) or not isinstance(z, Tensor):
            return None
        target: Any = self._target(x, z)
        classes = self.source in _CLASSES and not target.is_floating_point() and x.shape[:1] + x.shape[2:] == z.shape
        entries = self.source in _PLAIN and self.factors is None and x.shape == z.shape
        return self.whole(x, target) if classes or entries else None

    def weight(self, x: Tree, z: Tree) -> float | Tensor | None:
        """What ``mean`` divides by: how many targets are not ignored, or the number of particles."""
        if self.weighed is None or self.factors is not None or not isinstance(z, Tensor):
            return None
        counts_targets = self.source in _CLASSES and not z.is_floating_point()
        return self.weighed.total(z) if counts_targets else float(len(z))


def _reductions(loss: Loss | nn.Module) -> tuple[Loss | None, Loss, Any]:
    """A loss as it is and without its reduction, and the function of torch that it is, where it is one.

    A subclass with a pass of its own, or hooks, may turn what torch has reduced into something else: a focal loss of a
    mean is not the mean of focal losses. What is not reduced is then all that counts.
    """
    if isinstance(loss, nn.Module):
        whole, made = copy.deepcopy(loss), copy.deepcopy(loss)  # the user's own may change
        made.reduction = "none"  # type: ignore[assignment]
        passes: list[Any] = [getattr(kind, "forward", None) for kind in type(loss).__mro__]
        known = [found for found in passes if found in _CLASSES]  # a subclass may go through that of its base
        exact = passes[0] in (*_CLASSES, *_PLAIN) and not has_own_pass(loss)
        return whole if exact else None, made, known[0] if known else passes[0]
    source: Any = loss
    while hasattr(source, "func"):  # of partials
        source = source.func
    old = inspect.signature(loss).parameters
    exact = all(old[name].default is None for name in _OLD if name in old)
    return loss if exact else None, functools.partial(loss, reduction="none"), source


def _settings(loss: Loss | nn.Module) -> dict[str, Any]:
    """What a loss is called with beside output and target: the attributes of a module, or default arguments."""
    try:
        parameters = dict(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters)
    except (ValueError, TypeError):
        parameters = {}
    else:
        _check_two(list(parameters.values()))
    if isinstance(loss, nn.Module):
        return {name: getattr(loss, name) for name in _SETTINGS if hasattr(loss, name)}
    return {name: parameters[name].default for name in _SETTINGS if name in parameters}


def _check_two(parameters: list[inspect.Parameter]) -> None:
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if len(needed) > 2 or (places < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        raise InvalidType(
            f"loss takes ({', '.join(p.name for p in parameters)}); expected two arguments, loss(output, z) -> [N]: "
            "write a function that takes what else it needs from z"
        )


@dataclass(eq=False)
class _Weight:
    """The mean weight of the targets: of their classes, and zero for those that are ignored."""

    classes: Tensor | None
    ignored: int | None
    last: tuple[Any, ...] = field(
        default=(None, 0, None, None), init=False
    )  # a weak reference to the targets, their version, a dtype, the mean

    @torch.no_grad()
    def mean(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean over the targets ``[N, ...]`` of all ranks, each target's being 1 where classes have no weights.

        Over ranks it is kept for the targets last seen: a rank that evaluates the same cloud again, to look for a NaN
        say, waits for no other.
        """
        if not active():
            return self._of(z, dtype).mean()
        known, version, kept, mean = self.last
        if mean is None or known is None or known() is not z or version != z._version or kept != dtype:
            mean = expectation([self._of(z, dtype).mean()], len(z))[0]
            self.last = (weakref.ref(z), z._version, dtype, mean)
        found: Tensor = mean
        return found

    @torch.no_grad()
    def total(self, z: Tensor) -> Tensor:
        """The sum of the weights of this rank's targets."""
        return self._of(z, torch.float32).sum()

    def _of(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        counted = torch.ones_like(z, dtype=torch.bool) if self.ignored is None else z.ne(self.ignored)
        if self.classes is None:
            return counted.to(torch.promote_types(dtype, torch.float32))
        return torch.where(counted, self.classes[torch.where(counted, z, 0).long()], 0)
