"""The algorithms of gradient steps: MAML, Meta-SGD, ANIL, learned update rules and Reptile."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_flag, check_instance, check_integer, check_positive, kind_of
from mfoc.networks.inspection import shared_parameters, trainable, training_norms
from paradigms.meta.formulations import MetaFormulation, assemble, build
from paradigms.meta.loop import Loop, TaskObjective
from paradigms.meta.losses import Loss, TaskLoss
from paradigms.meta.stacked import StackedNetwork, Weights
from paradigms.meta.update_rules import AdaptedRule, Rule


def maml(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    inner_steps: int,
    inner_lr: float,
    first_order: bool = False,
    step_losses: Sequence[float] | None = None,
) -> MetaFormulation:
    """Model-agnostic meta-learning: the initial weights are the control (Finn, Abbeel, Levine 2017, eq. 1).

    Batch norm in training mode uses the statistics of the task's shots, support and query apart (transductive); nothing
    leaks between tasks, and no running average is advanced. In evaluation mode its averages are constants.

    Args:
        net: any module from inputs ``[shots, ...]`` to outputs ``[shots, ...]``; the inputs of one of several
            arguments are a tuple in their order, or a dict by their names. It is copied, never changed. A chain
            (``nn.Sequential``) of common layers is several times faster than other modules; ``paradigms.meta.stacked``
            says which they are. A submodule or a parameter in several places is one weight.
        loss: ``loss(output, target) -> scalar`` for one task, or a torch loss.
        tasks: a population of tasks (``sinusoids``, ``few_shot``, ``from_taskset``), particles made with ``tasks``, or
            a function of the step that returns them.
        inner_steps: gradient steps K on the support.
        inner_lr: their step size alpha.
        first_order: treat the inner slopes as constants (FOMAML).
        step_losses: K weights of the query loss after each inner step, MAML++'s multi-step loss (Antoniou, Edwards,
            Storkey 2019, sec. 4): the first K - 1 are a running cost; None is all weight on the last.

    Returns:
        A formulation whose ``readout(solution)`` is the network with the solved initial weights; running averages are
        those of one pass over the tasks, other buffers those of ``net``.

    Raises:
        InvalidType, InvalidValue: wrong arguments, a network with active dropout, a loss that is not a scalar for
            each task, empty tasks; without ``first_order`` an operation without a second derivative, which is named.
    """
    check_positive(inner_lr=inner_lr)
    rule = Rule(lambda k, u: inner_lr)
    return build(StackedNetwork(net), loss, tasks, rule, inner_steps, first_order, step_losses, inner_lr=inner_lr)


def meta_sgd(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    inner_steps: int,
    inner_lr: float | Sequence[Tensor] | dict[str, Tensor],
    per_step: bool = False,
    first_order: bool = False,
    step_losses: Sequence[float] | None = None,
) -> MetaFormulation:
    """Meta-SGD: a step size for each weight is part of the control (Li, Zhou, Chen, Li 2017, arXiv:1707.09835, eq. 2).

    Args beside those of ``maml``:
        inner_lr: what step sizes start from: a number, or a tensor for each parameter, in order or by name.
        per_step: step sizes of their own for each inner step, ``[K, ...]`` (MAML++ has one a layer and step); steps
            beyond the K-th use the last.

    Returns:
        A formulation; controls are {"phi": weights, "alpha": step sizes}, the readout is the network.
    """
    model = StackedNetwork(net)
    phi = model.initial()
    alpha = _initial_rates(inner_lr, phi)
    check_flag(per_step=per_step)
    if per_step:
        check_integer(1, inner_steps=inner_steps)
        alpha = {name: a.expand(inner_steps, *a.shape).clone() for name, a in alpha.items()}

    def at(k: int, u: Any) -> Weights:
        rates: Weights = u["alpha"]
        return {name: a[min(k, len(a) - 1)] for name, a in rates.items()} if per_step else rates

    made = build(model, loss, tasks, Rule(at), inner_steps, first_order, step_losses, extra={"alpha": alpha})
    own = [] if per_step else _own_rates(inner_lr, phi)
    return replace(made, shared={"alpha": own}) if own else made


def anil(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    inner_steps: int,
    inner_lr: float,
    head: str | Sequence[str] | None = None,
    first_order: bool = False,
    step_losses: Sequence[float] | None = None,
) -> MetaFormulation:
    """Almost no inner loop: only the head is adapted (Raghu, Raghu, Bengio, Vinyals 2020, arXiv:1909.09157).

    When the network is a chain and the head its end, features are computed once, at stage 0, and carried in the state.

    Args beside those of ``maml``:
        head: names of parameters or submodules that are adapted; the last module with parameters when None.
    """
    check_positive(inner_lr=inner_lr)
    model, rule = StackedNetwork(net), Rule(lambda k, u: inner_lr)
    chosen = _head(model.names, head)
    return build(model, loss, tasks, rule, inner_steps, first_order, step_losses, inner_lr=inner_lr, adapted=chosen)


def learned_update(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    rule: nn.Module,
    inner_steps: int,
    inner_lr: float = 1.0,
    adapt_rule: bool = False,
    first_order: bool = False,
    step_losses: Sequence[float] | None = None,
) -> MetaFormulation:
    """A learned update rule: a feedback policy (slope, weight) -> direction with weights of its own in the control.

    Andrychowicz et al. (2016), arXiv:1606.04474, with a rule that has no memory. It includes preconditioners P.

    Args beside those of ``maml``:
        rule: ``rule(slope, weight) -> direction``, called once for each parameter with tensors ``[tasks, ...]``; it
            must keep their shape and treat tasks alike (``Coordinatewise`` does). An ``nn.ModuleDict`` has a rule for
            each parameter, by its name with "." written as "_".
        inner_lr: what directions are multiplied by.
        adapt_rule: the rule's weights are adapted, too: the control is where they start, and from the second step on
            each step first descends the task's loss in them, through the step before (``update_rules.AdaptedRule`` has
            the formulas). With ``first_order`` slopes in the rule's weights are constants, in the network's they are
            not.

    Returns:
        A formulation; controls are {"phi": weights, "rule": the rule's weights}, the readout is the network.
    """
    check_instance(nn.Module, "a torch.nn.Module rule(slope, weight)", rule=rule)
    check_positive(inner_lr=inner_lr)
    if any(shared_parameters(rule)):
        raise InvalidValue("rule shares parameters between its parts; give each part its own copy")
    if any(training_norms(rule)):
        raise InvalidValue(
            "rule has batch norm in training mode, which mixes tasks; call .eval() on it, or use LayerNorm"
        )
    own = copy.deepcopy(rule)
    weights = {name: p.detach().clone() for name, p in trainable(own).items()}
    if not weights:
        raise InvalidValue("rule has no parameter that requires grad; there is nothing to learn in it")

    check_flag(adapt_rule=adapt_rule, first_order=first_order)

    def direction(slopes: Weights, phi: Weights, u: Any) -> Weights:
        return {name: _apply(own, u["rule"], name, slope, phi[name]) for name, slope in slopes.items()}

    def of_each(slopes: Weights, phi: Weights, u: Any) -> Weights:
        def one(rule: Weights, slopes: Weights, phi: Weights) -> Weights:
            wide = {name: leaf[None] for name, leaf in slopes.items()}, {name: leaf[None] for name, leaf in phi.items()}
            return {name: leaf[0] for name, leaf in direction(*wide, {"rule": rule}).items()}

        try:
            found: Weights = torch.func.vmap(one)(u["rule"], slopes, phi)
        except RuntimeError as error:
            raise InvalidValue(
                f"rule cannot be evaluated for all tasks at once, by torch.func.vmap: {error}"
            ) from error
        return found

    made: Rule = Rule(lambda k, u: inner_lr, direction)
    if adapt_rule:
        made = AdaptedRule(made.alpha, of_each, first_order)
    model, constant = StackedNetwork(net), first_order and not adapt_rule
    built = build(model, loss, tasks, made, inner_steps, constant, step_losses, extra={"rule": weights})
    return replace(built, shared={"rule": list(trainable(rule).values())})


class Coordinatewise(nn.Module):
    """An update rule that treats each weight alone: net([slope, weight]) -> direction (Andrychowicz et al. 2016).

    Args:
        net: a module from features ``[..., 2]`` to ``[..., 1]``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, slope: Tensor, weight: Tensor) -> Tensor:
        """Slopes and weights of one shape to directions of that shape."""
        out: Tensor = self.net(torch.stack([slope, weight], -1))
        return out.squeeze(-1)


def reptile(
    net: nn.Module,
    loss: Loss | nn.Module,
    tasks: Any,
    *,
    inner_steps: int,
    inner_lr: float,
    shots_per_step: int | None = None,
) -> MetaFormulation:
    """Reptile: the initial weights move towards the adapted ones, phi += eps E[phi_K - phi].

    Nichol, Achiam, Schulman (2018), arXiv:1803.02999, algorithm 1 in its batch version. That is no gradient of J. It is
    written as one: the value of the problem is the query loss, its gradient is set to E[phi - phi_K], so that SGD of
    rate eps is Reptile and any optimiser may take its place, as in the paper. The query takes no part in learning.

    Args beside those of ``maml``:
        shots_per_step: each inner step uses the next so many shots of the support, in turn; all of them when None.
    """
    check_positive(inner_lr=inner_lr)
    check_integer(1, inner_steps=inner_steps)
    check_integer(1, shots_per_step=shots_per_step, optional=True)
    model, rule = StackedNetwork(net), Rule(lambda k, u: inner_lr)
    objective = TaskObjective(model, TaskLoss(loss), first_order=True)
    loop = Loop(objective, tuple(model.names), rule, toward=True, shots_per_step=shots_per_step)
    made = assemble(loop, {"phi": model.initial()}, tasks, inner_steps, inner_lr=inner_lr)
    shots = made.population(0).data["support"][1].shape[1]
    if shots_per_step is not None and shots_per_step > shots:
        raise InvalidValue(f"shots_per_step is {shots_per_step} and the support has {shots}; expected no more")
    return made


def _head(names: list[str], head: str | Sequence[str] | None) -> list[str]:
    if head is None:
        head = names[-1].rpartition(".")[0] or names[-1]
    expected = "names of parameters or submodules, at least one, or None"
    wanted = [head] if isinstance(head, str) or not isinstance(head, Sequence) else list(head)
    for prefix in wanted:
        check_instance(str, expected, head=prefix)
    if not all(wanted) or not wanted:
        raise InvalidValue(f"head is {head!r}; expected {expected}")
    found = {prefix: [name for name in names if f"{name}.".startswith(f"{prefix}.")] for prefix in wanted}
    for prefix, within in found.items():
        if not within:
            raise InvalidValue(f"head names {prefix!r}; the trainable parameters are {', '.join(names)}")
    return [name for name in names if any(name in within for within in found.values())]


def _initial_rates(inner_lr: Any, phi: Weights) -> Weights:
    if isinstance(inner_lr, int | float):
        check_positive(inner_lr=inner_lr)
        return {name: torch.full_like(leaf, inner_lr) for name, leaf in phi.items()}
    if isinstance(inner_lr, Tensor | str) or not isinstance(inner_lr, Sequence | dict | nn.ParameterList):
        raise InvalidType(
            f"inner_lr is {kind_of(inner_lr)}; expected a number, or a tensor for each parameter, in order or by name"
        )
    rates = dict(inner_lr) if isinstance(inner_lr, dict) else dict(zip(phi, inner_lr, strict=False))
    if len(inner_lr) != len(phi) or rates.keys() != phi.keys():
        raise InvalidValue(f"inner_lr has {len(inner_lr)} entries; expected a tensor for each of {', '.join(phi)}")
    for name, leaf in phi.items():
        check_instance(Tensor, f"a tensor of the shape of {name!r}", inner_lr=rates[name])
        if rates[name].shape != leaf.shape:
            raise InvalidValue(
                f"inner_lr of {name!r} has shape {tuple(rates[name].shape)}; the parameter has {tuple(leaf.shape)}"
            )
        if not rates[name].isfinite().all():
            raise InvalidValue(f"inner_lr of {name!r} holds NaN or infinite values")
    return {name: rates[name].detach().clone().to(leaf) for name, leaf in phi.items()}


def _own_rates(inner_lr: Any, phi: Weights) -> list[nn.Parameter]:
    """Step sizes that are parameters of the user's, if all of them are."""
    if not isinstance(inner_lr, Iterable):
        return []
    rates = [inner_lr[name] for name in phi] if isinstance(inner_lr, dict) else list(inner_lr)
    return rates if all(isinstance(rate, nn.Parameter) for rate in rates) else []


def _apply(rule: nn.Module, weights: Weights, name: str, slope: Tensor, value: Tensor) -> Tensor:
    part, prefix = rule, ""
    if isinstance(rule, nn.ModuleDict):
        prefix = name.replace(".", "_")
        if prefix not in rule:
            raise InvalidValue(f"rule has no entry {prefix!r}; it has {sorted(rule)}")
        part, prefix = rule[prefix], prefix + "."
    own = {key.removeprefix(prefix): leaf for key, leaf in weights.items() if key.startswith(prefix)}
    out: Tensor = torch.func.functional_call(part, own, (slope, value))
    if out.shape != slope.shape:
        raise InvalidValue(f"rule returned shape {tuple(out.shape)} for slopes of {name!r} {tuple(slope.shape)}")
    return out
