"""learn2learn in both directions: its algorithms as formulations, solutions as its algorithms."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, require
from paradigms.meta.algorithms import maml, meta_sgd
from paradigms.meta.formulations import MetaFormulation, to_module
from paradigms.meta.inner import Loss
from paradigms.meta.rules import learned_update
from paradigms.meta.stacked import pure_copy


def from_learn2learn(
    algorithm: Any, tasks: Any, loss: Loss | nn.Module, *, inner_steps: int, **options: Any
) -> MetaFormulation:
    """A learn2learn algorithm as a formulation: module, step sizes and ``first_order`` are read, nothing is changed.

    Args:
        algorithm: ``learn2learn.algorithms.MAML``, ``MetaSGD`` or ``GBML`` (whose transforms are shared by the steps).
        tasks: see ``maml``.
        loss: see ``maml``.
        inner_steps: how often ``adapt`` is called.
        **options: of ``maml``, ``meta_sgd`` or ``learned_update``, such as ``step_losses``.

    Raises:
        InvalidType: another object.
        InvalidValue: a GBML that adapts its transforms, which is another law of the inner loop.
        MissingExtra: learn2learn is not installed.
    """
    known = require("learn2learn", "meta").algorithms  # takes seconds and prints a banner of gym
    settings = {"inner_steps": inner_steps, "first_order": bool(getattr(algorithm, "first_order", False)), **options}
    if isinstance(algorithm, known.MAML):
        return maml(algorithm.module, loss, tasks, inner_lr=float(algorithm.lr), **settings)
    if isinstance(algorithm, known.MetaSGD):
        names = [name for name, _ in algorithm.module.named_parameters()]
        rates = {name: rate.detach() for name, rate in zip(names, algorithm.lrs, strict=True)}
        return meta_sgd(algorithm.module, loss, tasks, inner_lr=rates, **settings)
    if isinstance(algorithm, known.GBML):
        if algorithm.adapt_transform:
            raise InvalidValue("algorithm adapts its transform in the inner loop; only adapt_transform=False is a rule")
        rule = _transforms(algorithm)
        made = learned_update(algorithm.module, loss, tasks, rule=rule, inner_lr=float(algorithm.lr), **settings)
        return replace(made, origin=algorithm)
    raise InvalidType(f"algorithm is a {type(algorithm).__name__}; expected learn2learn's MAML, MetaSGD or GBML")


class _Transform(nn.Module):
    """A transform of GBML on slopes of all tasks; the identity where a parameter has none."""

    def __init__(self, transform: nn.Module | None) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, slope: Tensor, weight: Tensor) -> Tensor:
        """Slopes ``[tasks, ...]`` to directions."""
        out: Tensor = slope if self.transform is None else torch.func.vmap(self.transform)(slope.contiguous())
        return out


def _transforms(algorithm: Any) -> nn.ModuleDict:
    update = algorithm.compute_update
    names = [name.replace(".", "_") for name, _ in algorithm.module.named_parameters()]
    parts = [None if i is None else update.transforms_modules[i] for i in update.transforms_indices]
    return nn.ModuleDict({name: _Transform(part) for name, part in zip(names, parts, strict=True)})


def to_learn2learn(formulation: MetaFormulation, solution: Any) -> Any:
    """A solution as an algorithm of learn2learn that holds its controls.

    Args:
        formulation: what ``maml``, ``reptile`` (MAML), ``meta_sgd`` (MetaSGD) or ``from_learn2learn`` returned.
        solution: the solution, or anything with ``controls``.

    Raises:
        InvalidType: a formulation that learn2learn has no algorithm for.
        MissingExtra: learn2learn is not installed.
    """
    if not isinstance(formulation, MetaFormulation):
        raise InvalidType(f"formulation is a {type(formulation).__name__}; expected what paradigms.meta.maml returns")
    known, loop, controls = require("learn2learn", "meta").algorithms, formulation.loop, solution.controls
    if formulation.origin is not None:
        return _gbml(formulation, controls)
    net = to_module(formulation.net, controls["phi"])
    plain = loop.move is not None and loop.move.direction is None
    if not plain or set(loop.adapted) != set(controls["phi"]):
        raise InvalidType(
            "learn2learn has no algorithm for this inner loop (a learned rule, an equilibrium or an adapted head "
            "alone); use paradigms.meta.Learner, which has its clone() and adapt(loss)"
        )
    if formulation.inner_lr is not None:
        frozen = not all(p.requires_grad for p in net.parameters())
        return known.MAML(net, formulation.inner_lr, first_order=formulation.first_order, allow_nograd=frozen)
    rates = controls["alpha"]
    if any(rates[name].shape != leaf.shape for name, leaf in controls["phi"].items()):
        raise InvalidType("learn2learn's MetaSGD has one step size a weight; this has others for each inner step")
    if rates.keys() != dict(net.named_parameters()).keys():
        raise InvalidType("learn2learn's MetaSGD adapts every parameter; this network has some that require no grad")
    lrs = nn.ParameterList([nn.Parameter(rates[name].detach().clone()) for name, _ in net.named_parameters()])
    return known.MetaSGD(net, lrs=lrs, first_order=formulation.first_order)


def _gbml(formulation: MetaFormulation, controls: Any) -> Any:
    solved = copy.deepcopy(formulation.origin)
    rule = _transforms(solved)  # its parameters are those of the copy
    with torch.no_grad():
        for module, weights in ((solved.module, controls["phi"]), (rule, controls["rule"])):
            own = dict(module.named_parameters())
            for name, value in weights.items():
                own[name].data = value.detach().clone()
    return solved


class Learner(nn.Module):
    """The inner loop one call at a time: ``clone()``, ``adapt(loss)``, ``learner(x)``, as learners of learn2learn have.

    Its parameters are the controls, so that a torch optimiser can train it; ``controls()`` gives them back. Clones hold
    the fast weights of one task and derive into them. Batch norm takes its statistics from the call's own batch and no
    running average is advanced: clones share nothing that is written to.

    Args:
        formulation: an inner loop of steps: what ``maml``, ``meta_sgd``, ``anil``, ``learned_update`` or ``reptile``
            returned.
        solution: where the controls are taken from; the initial guess when None.

    Raises:
        InvalidType: an equilibrium (iMAML), which has no steps.
    """

    def __init__(self, formulation: MetaFormulation, solution: Any = None) -> None:
        super().__init__()
        if not isinstance(formulation, MetaFormulation) or formulation.loop.move is None:
            raise InvalidType("formulation has no inner steps; expected what paradigms.meta.maml(...) returns")
        self._formulation = formulation
        self._net = [pure_copy(formulation.net)]  # in a list: its own parameters are not this module's
        controls = formulation.problem.controls if solution is None else solution.controls
        leaves, self._spec = torch.utils._pytree.tree_flatten(controls)
        self.values = nn.ParameterList([nn.Parameter(leaf.detach().clone()) for leaf in leaves])
        self._fast: dict[str, Tensor] | None = None
        self._parent: list[Learner] = []
        self._step = 0

    def controls(self) -> Any:
        """The controls: a tree of the parameters."""
        owner = self._parent[0] if self._parent else self
        return torch.utils._pytree.tree_unflatten(list(owner.values), self._spec)

    def clone(self) -> Learner:
        """A learner with fast weights of its own, which derive into the parameters of this one."""
        twin = Learner.__new__(Learner)
        nn.Module.__init__(twin)
        twin._formulation, twin._net, twin._spec = self._formulation, self._net, self._spec
        twin._parent = self._parent or [self]
        twin._fast, twin._step = {name: leaf.clone() for name, leaf in self._weights().items()}, self._step
        return twin

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        """One inner step on the loss of the task's support.

        Args:
            loss: a scalar computed with this learner.
            first_order: treat the slopes as constants; as the formulation has it when None.

        Raises:
            InvalidType, InvalidValue: no scalar, or the learner is no clone.
        """
        if self._fast is None:
            raise InvalidValue("adapt was called on the learner itself; call clone() first, and adapt the clone")
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InvalidValue(f"loss is no scalar tensor ({what}); pass the mean over the support")
        loop = self._formulation.loop
        assert loop.move is not None
        onward = not (loop.inner.first_order if first_order is None else first_order)
        fast = {name: self._fast[name] for name in loop.adapted}
        slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=onward, allow_unused=True)
        wide = {
            name: (torch.zeros_like(leaf) if slope is None else slope)[None]
            for (name, leaf), slope in zip(fast.items(), slopes, strict=True)
        }
        moved = loop.move(self._step, {name: leaf[None] for name, leaf in fast.items()}, wide, self.controls())
        self._fast = {**self._fast, **{name: leaf[0] for name, leaf in moved.items()}}
        self._step += 1

    def forward(self, *inputs: Any) -> Any:
        """The network with the present weights."""
        return torch.func.functional_call(self._net[0], self._weights(), inputs)

    def _weights(self) -> dict[str, Tensor]:
        if self._fast is not None:
            return self._fast
        phi: dict[str, Tensor] = self.controls()["phi"]
        return phi
