"""Meta-learning written as a control problem over a law of tasks.

    phi_0 = u.phi for every task                                     stage 0: the control is lifted into fast weights
    phi_(k+1) = phi_k - alpha_k d_k,  d_k = P grad L_S(phi_k)        stages 1..K
    J = E_task[ L_Q(phi_K) + sum_k w_k L_Q(phi_k) ]

The costate of the fast weights follows p_k = (I - alpha H_S)^T p_(k+1): the Hessian-vector recursion of MAML (Finn,
Abbeel, Levine 2017, arXiv:1703.03400), and dJ/dphi_0 = E p_1. First-order MAML sets that Jacobian to I.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_flag, check_instance, check_integer, check_non_negative, kind_of
from mfoc.formulation import Formulation
from mfoc.networks import place, refresh_averages
from mfoc.networks.inspection import copied
from mfoc.networks.reparametrised import settle
from mfoc.problem import controls_of
from paradigms.meta.loop import Loop, Rule, TaskObjective
from paradigms.meta.losses import Loss, TaskLoss
from paradigms.meta.stacked import StackedNetwork, Weights
from paradigms.meta.task_laws import as_tasks


@dataclass(frozen=True, eq=False, repr=False)
class MetaFormulation(Formulation):
    """Meta-learning written as a control problem.

    Attributes:
        net: the network it was made from.
        loop: the inner loop: losses, slopes and the rule of the fast weights.
        inner_steps: inner steps K of the problem.
        adapt_steps: gradient steps of an adaptation: those towards the equilibrium, for iMAML.
        inner_lr: the step size where it is a constant; None where it is a control.
        remake: the same problem with another number of inner steps, all weight on the last.
        origin: the object it was read from, where it was; see ``from_learn2learn``.
        shared: the user's own parameters of the controls beside "phi", in the order of their leaves, where there are
            such: step sizes that are parameters, a rule; see ``Learner(copy=False)``.
    """

    net: nn.Module = field(kw_only=True)
    loop: Loop = field(kw_only=True)
    inner_steps: int = field(kw_only=True)
    adapt_steps: int = field(kw_only=True)
    inner_lr: float | None = field(kw_only=True)
    remake: Callable[[int], mfoc.Problem] = field(kw_only=True)
    origin: Any = field(default=None, kw_only=True)
    shared: dict[str, list[nn.Parameter]] = field(default_factory=dict, kw_only=True)

    def __repr__(self) -> str:
        size = sum(leaf.numel() for leaf in tree.leaves(self.problem.controls))
        return f"MetaFormulation({type(self.net).__name__}, {size} controls, adapted in {self.adapt_steps} inner steps)"

    @property
    def first_order(self) -> bool:
        """Whether the inner slopes are constants for the adjoint (those in the rule's weights, where it is adapted)."""
        return self.loop.objective.first_order or bool(getattr(self.loop.move, "first_order", False))


def build(
    model: StackedNetwork,
    loss: Loss | nn.Module,
    tasks: Any,
    rule: Rule,
    inner_steps: int,
    first_order: bool,
    step_losses: Sequence[float] | None,
    *,
    extra: dict[str, Any] | None = None,
    inner_lr: float | None = None,
    adapted: Sequence[str] | None = None,
) -> MetaFormulation:
    """The formulation of any rule, in the terms of ``maml``.

    ``extra`` are controls beside the initial weights; ``adapted`` names the weights that move, all when None.
    """
    check_integer(1, inner_steps=inner_steps)
    check_flag(first_order=first_order)
    weights = check_step_weights(step_losses, inner_steps)
    names = tuple(model.names if adapted is None else adapted)
    loop = Loop(TaskObjective(model, TaskLoss(loss), first_order, _split_at(model, names)), names, rule)
    return assemble(loop, {"phi": model.initial(), **(extra or {})}, tasks, inner_steps, weights, inner_lr=inner_lr)


def assemble(
    loop: Loop,
    controls: dict[str, Any],
    tasks: Any,
    inner_steps: int,
    step_losses: Sequence[float] | None = None,
    *,
    adapt_steps: int | None = None,
    inner_lr: float | None = None,
    remake: Callable[[int], mfoc.Problem] | None = None,
) -> MetaFormulation:
    """The formulation of an inner loop, checked on its first batch of tasks."""
    net, source = loop.objective.network.net, as_tasks(tasks)
    first = source(0)
    problem = loop.problem(controls, inner_steps, step_losses)  # which refuses weights that are not finite, say
    loop.check(controls, first.data)
    problem.validate(first)
    loop.check_twice(controls, first.data)
    return MetaFormulation(
        problem,
        source,
        partial(_readout, net, source),
        net=net,
        loop=loop,
        inner_steps=inner_steps,
        adapt_steps=adapt_steps or inner_steps,
        inner_lr=inner_lr,
        remake=remake or (lambda steps: loop.problem(controls, steps, None)),
    )


def checked_controls(formulation: Any, solution: Any) -> Any:
    """The controls of a solution, an iterate or a problem, or the controls themselves.

    Raises:
        InvalidType: no formulation of this paradigm, no solution.
        InvalidValue: controls of another formulation, or such as are not finite.
    """
    check_instance(MetaFormulation, "what paradigms.meta.maml returns", formulation=formulation)
    controls = controls_of(solution)
    found, expected = (_shapes(part) for part in (controls, formulation.problem.controls))
    if found != expected:
        names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        raise InvalidValue(
            f"solution is of another formulation: {names[0]} has shape {found.get(names[0], 'none (it is missing)')}; "
            f"expected {expected.get(names[0], 'no such control')}"
        )
    formulation.problem.check_controls(controls)
    return controls


def check_step_weights(weights: Any, steps: int) -> list[float] | None:
    """Weights of the multi-step loss."""
    if weights is None:
        return None
    if not isinstance(weights, Iterable):
        raise InvalidType(f"step_losses is {kind_of(weights)}; expected {steps} weights, or None")
    found = list(weights)
    for weight in found:
        check_non_negative(step_losses=weight)
    if len(found) != steps or not any(found):
        raise InvalidValue(f"step_losses is {weights!r}; expected {steps} non-negative weights, not all zero")
    return found


def _shapes(controls: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in tree.dotted(controls).items() if isinstance(leaf, Tensor)}


def to_module(net: nn.Module, weights: Weights) -> nn.Module:
    """A copy of a network with these weights; parameters that are not named stay."""
    solved = copied(net)
    place(solved, weights)
    settle(solved)
    return solved


def _readout(net: nn.Module, source: mfoc.Population, solution: Any) -> nn.Module:
    """The network with the initial weights of a solution, its running averages those of one pass over the tasks.

    Support and query of each task are batches of their own, as they are in the solve.
    """
    solved = to_module(net, controls_of(solution)["phi"])
    refresh_averages(
        solved, (x for b in source.epoch() for part in ("support", "query") for x in _by_task(b.data[part][0]))
    )
    return solved


def _by_task(x: Any) -> Iterator[Any]:
    """The inputs of each task, of a network of one argument or of several."""
    return (tree.rebuild(x, row) for row in zip(*tree.leaves(x), strict=True))


def _split_at(model: StackedNetwork, adapted: tuple[str, ...]) -> int:
    """The first layer with an adapted weight, if no later one has a weight that is not; 0 when layers cannot be cut."""
    if not model.layers:
        return 0
    layer = {name: model.layers.index(name.rpartition(".")[0]) for name in model.names}
    fixed = [layer[name] for name in model.names if name not in adapted]
    moving = [layer[name] for name in model.names if name in adapted]
    return min(moving) if fixed and moving and max(fixed) < min(moving) else 0
