"""learn2learn in both directions: its algorithms as formulations, solutions as its algorithms."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, require
from mfoc.checks import kind_of
from mfoc.networks import place
from paradigms.meta.algorithms import learned_update, maml, meta_sgd
from paradigms.meta.formulations import MetaFormulation, checked_controls
from paradigms.meta.learner import Learner as Learner
from paradigms.meta.losses import Loss


def from_learn2learn(
    algorithm: Any, tasks: Any, loss: Loss | nn.Module, *, inner_steps: int, **options: Any
) -> MetaFormulation:
    """A learn2learn algorithm as a formulation: module, step sizes and ``first_order`` are read, nothing is changed.

    Args beside those of ``maml``:
        algorithm: ``learn2learn.algorithms.MAML``, ``MetaSGD`` or ``GBML``, whose transforms are a rule that the steps
            share, or adapt where it has ``adapt_transform=True``. With ``first_order=True`` as well its own ``adapt``
            fails from the second step on (it frees a graph that it needs again); here it means what it says there: the
            derivatives in the transforms are constants, and those in the network are not.
        inner_steps: how often ``adapt`` is called.
        **options: of ``maml``, ``meta_sgd`` or ``learned_update``, such as ``step_losses``.

    Raises:
        InvalidType: another object.
        InvalidValue: transforms that share parameters, or mix tasks by batch norm.
        MissingExtra: learn2learn is not installed.
    """
    known = require("learn2learn", "meta").algorithms  # takes seconds and prints a banner of gym
    settings = {"inner_steps": inner_steps, "first_order": bool(getattr(algorithm, "first_order", False)), **options}
    if isinstance(algorithm, known.MAML):
        return maml(algorithm.module, loss, tasks, inner_lr=float(algorithm.lr), **settings)
    if isinstance(algorithm, known.MetaSGD):
        rates = {
            name: rate
            for (name, p), rate in zip(algorithm.module.named_parameters(), algorithm.lrs, strict=True)
            if p.requires_grad
        }
        return meta_sgd(algorithm.module, loss, tasks, inner_lr=rates, **settings)
    if isinstance(algorithm, known.GBML):
        rule, adapt = _transforms(algorithm), bool(algorithm.adapt_transform)
        lr = float(algorithm.lr)
        made = learned_update(
            algorithm.module, loss, tasks, **{"rule": rule, "inner_lr": lr, "adapt_rule": adapt, **settings}
        )
        return replace(made, origin=algorithm)
    raise InvalidType(f"algorithm is {kind_of(algorithm)}; expected learn2learn's MAML, MetaSGD or GBML")


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
        solution: a solution, an iterate or controls.

    Raises:
        InvalidValue: a formulation that learn2learn has no algorithm for.
        MissingExtra: learn2learn is not installed.
    """
    controls = checked_controls(formulation, solution)
    known, loop = require("learn2learn", "meta").algorithms, formulation.loop
    if formulation.origin is not None:
        solved = copy.deepcopy(formulation.origin)
        place(solved.module, controls["phi"])
        place(_transforms(solved), controls["rule"])  # whose parameters are those of the copy
        return solved
    net = formulation.readout(controls)
    plain = loop.move is not None and loop.move.direction is None
    if not plain or set(loop.adapted) != set(controls["phi"]):
        raise InvalidValue(
            "learn2learn has no algorithm for this inner loop (a learned rule, an equilibrium or an adapted head "
            "alone); use paradigms.meta.Learner, which has its clone() and adapt(loss)"
        )
    if formulation.inner_lr is not None:
        frozen = not all(p.requires_grad for p in net.parameters())
        return known.MAML(net, formulation.inner_lr, first_order=formulation.first_order, allow_nograd=frozen)
    rates = controls["alpha"]
    if any(rates[name].shape != leaf.shape for name, leaf in controls["phi"].items()):
        raise InvalidValue("learn2learn's MetaSGD has one step size a weight; this has others for each inner step")
    if rates.keys() != dict(net.named_parameters()).keys():
        raise InvalidValue("learn2learn's MetaSGD adapts every parameter; this network has some that require no grad")
    lrs = nn.ParameterList([nn.Parameter(rates[name].detach().clone()) for name, _ in net.named_parameters()])
    return known.MetaSGD(net, lrs=lrs, first_order=formulation.first_order)
