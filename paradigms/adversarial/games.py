"""Adversarial training written as a game."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_callable, check_instance, check_positive, kind_of
from mfoc.formulation import Formulation
from mfoc.networks import NetworkProblem
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import copied, training_norms, unwrapped
from mfoc.problem import RunningCost, controls_of
from paradigms.adversarial.certificate import GameCertificate, certify, check_inside

Loss = Callable[..., Tensor]
Stages = Sequence[str | Sequence[str]]

_IN_MEMORY = (tuple, list, Tensor, np.ndarray, torch.utils.data.TensorDataset, mfoc.Particles, mfoc.Population)


@dataclass(frozen=True)
class TRADES:
    """The loss of TRADES: loss(f(x), y) + beta KL(f(x) || f(x + eta)), a game on pairs (x, x').

    Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan (2019), "Theoretically principled trade-off between robustness and
    accuracy", arXiv:1901.08573, eq. (5); their 1/lambda is beta. Only x' is disturbed, so the adversary sees the KL
    term alone. Give it to ``game`` in the place of a loss. Its maximiser needs a random start: without a disturbance
    the KL term has no gradient.

    Attributes:
        beta: weight of the KL term.
        loss: the loss on the undisturbed input; the network returns logits ``[N, classes]``.
    """

    beta: float = 6.0
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)
        check_callable("a function loss(output, z) -> [N]", loss=self.loss)

    def over(self, problem: mfoc.Problem) -> mfoc.Problem:
        """The problem on pairs, from the problem of the loss alone."""
        running = problem.running_cost

        def dynamics(t: int, x: Any, u: Any, z: Any) -> tuple[Any, Any]:
            return problem.dynamics(t, x[0], u, z), problem.dynamics(t, x[1], u, z)

        def terminal_cost(x: Any, z: Any) -> Tensor:
            return problem.terminal_cost(x[0], z) + self.beta * _divergence(*x)

        return dataclasses.replace(
            problem,
            dynamics=dynamics,
            terminal_cost=terminal_cost,
            running_cost=None if running is None else lambda t, x, u, z: running(t, x[0], u, z),
            noise=None,  # that of a pair is no tensor [N, d]
        )


def _divergence(natural: Tensor, disturbed: Tensor) -> Tensor:
    """KL(softmax(natural) || softmax(disturbed)) ``[N]``."""
    if natural.dim() != 2:
        raise InvalidValue(f"TRADES needs logits [N, classes]; the network's output has shape {tuple(natural.shape)}")
    return F.kl_div(disturbed.log_softmax(1), natural.log_softmax(1), reduction="none", log_target=True).sum(1)


@dataclass(frozen=True, eq=False, repr=False)
class GameFormulation(Formulation):
    """Adversarial training written as a game.

    Attributes:
        problem: the game.
        net: the network the game was made from, or None when it was made from a problem.
        pairs: whether states are pairs (x, x'), as for TRADES.
        remake: the same game for another network of this architecture.
    """

    problem: mfoc.Game
    net: nn.Module | None = None
    pairs: bool = False
    remake: Callable[[nn.Module], mfoc.Game] | None = None

    def __repr__(self) -> str:
        of = "a problem" if self.net is None else f"a {type(self.net).__name__}"
        return f"GameFormulation({of}, {self.problem.ball} at stage {self.problem.stage} of {self.problem.stages})"

    def cloud(self, x: Tensor, z: Any) -> mfoc.Particles:
        """Inputs and targets as particles of this game."""
        return mfoc.Particles((x, x) if self.pairs else x, z)

    def certify(self, solution: Any, *, maximiser: Any = None, **settings: Any) -> GameCertificate:  # type: ignore[override]
        """How near a solution is to the saddle point of the game: ``paradigms.adversarial.certify`` and its arguments.

        The maximiser must be given. ``mfoc.certify`` on this problem and population would certify the problem without
        an adversary.
        """
        return certify(self, solution, maximiser=maximiser, **settings)


def game(
    net: nn.Module | mfoc.Problem,
    loss: Loss | nn.Module | TRADES | None,
    data: Any,
    *,
    epsilon: float,
    norm: str = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    at: int = 0,
    stages: Stages | None = None,
    running_cost: RunningCost | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    part: int | str | None = None,
) -> GameFormulation:
    """Adversarial training as a differential game: min over weights, max over ||eta|| <= epsilon, of E[loss].

    Zhang et al. (2019), arXiv:1905.00877, eq. (1)-(4). Solve it with ``mfoc.Minimax(inner=PGD(10), outer=...)``.

    Batch norm in training mode uses the statistics of the disturbed batch, and no running average is advanced while
    the game is solved; the readout's averages are those of one pass over the undisturbed population. In evaluation mode
    the network's own averages are constants.

    Args:
        net: a network as ``mfoc.from_module`` takes it (an unmodified ``nn.Sequential``, whose first layer becomes the
            first stage, or any module with ``stages``), or an ``mfoc.Problem``. It is copied, never changed.
        loss: ``loss(output, z) -> [N]``, any torch loss, or ``TRADES(beta)``; None with a problem, which has its own.
        data: what ``mfoc.population`` takes; the state is the input, a floating-point tensor ``[N, ...]``, or has one:
            see ``part``.
        epsilon: radius of the ball of disturbances, in units of the input.
        norm: "linf" or "l2".
        bounds: least and largest value of a disturbed input; None where there are none.
        at: the stage whose incoming state is disturbed: 0 is the input. Hidden states have no bounds: pass None.
        stages: see ``mfoc.from_module``.
        running_cost: see ``mfoc.from_module``; for example ``mfoc.weight_decay(1e-4)``.
        batch_size: particles in a batch; all of them when None.
        seed: of the batches.
        part: the entry of the state that is disturbed, of a network of several arguments, whose inputs are a tuple in
            their order or a dict by their names.

    Returns:
        A formulation; its ``readout(solution)`` is the robust network in evaluation mode (for a problem: the controls).

    Raises:
        InvalidType, InvalidValue: wrong arguments, data that exceed the bounds, or that do not fit the network.
    """
    ball = mfoc.Ball(epsilon, norm, bounds)
    if isinstance(loss, TRADES) and part is not None:
        raise InvalidValue(
            "TRADES is a game on pairs (x, x') of one tensor, and part names one of several: give a module of one "
            "input, whose forward pass takes the others out of it, or another loss"
        )
    trades, plain = (loss, loss.loss) if isinstance(loss, TRADES) else (None, loss)
    drawn = mfoc.population(data, batch_size=batch_size, seed=seed)
    source = _Pairs(drawn) if trades else drawn
    if isinstance(net, mfoc.Problem):
        if loss is not None or stages is not None or running_cost is not None:
            raise InvalidType("net is an mfoc.Problem, which has costs and stages of its own; pass loss=None")
        made = mfoc.Game.of(net, ball, stage=at, part=part)
        _check_data(made, source, data)
        return GameFormulation(made, source, controls_of)
    check_instance(nn.Module, "a torch.nn.Module or an mfoc.Problem", net=net)
    if loss is None:
        raise InvalidType("loss is None; expected a function loss(output, z) -> [N], a torch loss or TRADES(beta)")

    def trained(module: nn.Module) -> mfoc.Problem:
        if any(parameter.requires_grad for parameter in module.parameters()):
            return mfoc.from_module(module, plain, stages=stages, running_cost=running_cost)  # type: ignore[arg-type]
        return frozen(module, plain)  # type: ignore[arg-type]

    def played(problem: mfoc.Problem) -> mfoc.Game:
        problem = trades.over(problem) if trades else problem
        return mfoc.Game.of(problem, ball, stage=at, part=1 if trades else part)

    def remake(module: nn.Module) -> mfoc.Game:
        return played(trained(module))

    own = trained(net)

    def readout(solution: Any) -> nn.Module:
        if isinstance(own, NetworkProblem):
            return own.readout(controls_of(solution), population=drawn).eval()
        return copied(net).eval()

    made = played(own)
    _check_batches(net, source)
    _check_data(made, source, data)
    return GameFormulation(made, source, readout, net, trades is not None, remake)


def frozen(net: nn.Module, loss: Loss | nn.Module) -> mfoc.Problem:
    """A network to be attacked, not trained: one stage, whose control does nothing. It is copied."""
    fixed = mfoc.networks.functional(copied(unwrapped(net)).requires_grad_(False))
    arguments = Arguments.of(fixed.module)
    weights = [leaf for leaf in [*net.parameters(), *net.buffers()] if leaf.is_floating_point()]
    control = weights[0].new_zeros(1) if weights else torch.zeros(1, device="cpu")
    return mfoc.Problem(
        lambda t, x, u, z: arguments.call(partial(fixed, {}), x), mfoc.networks.per_sample(loss), [control]
    )


class _Pairs(mfoc.Population):
    """A population whose states x are doubled to (x, x)."""

    def __init__(self, source: mfoc.Population) -> None:
        self._source, self.size = source, source.size
        self.batch_size, self.batches_per_epoch = source.batch_size, source.batches_per_epoch

    @property
    def runs_user_code(self) -> bool:
        return self._source.runs_user_code

    def described(self) -> dict[str, Any]:
        return {"kind": "Pairs", "of": self._source.described()}

    def close(self) -> None:
        self._source.close()

    def __call__(self, step: int) -> mfoc.Particles:
        return _doubled(self._source(step))

    def epoch(self) -> Iterator[mfoc.Particles]:
        return map(_doubled, self._source.epoch())


def _doubled(particles: mfoc.Particles) -> mfoc.Particles:
    return mfoc.Particles((particles.state, particles.state), particles.data, particles.index)


def _check_data(made: mfoc.Game, source: mfoc.Population, data: Any) -> None:
    """Refuses data that do not fit the network, or exceed the bounds: all of them where they are in memory."""
    first = source(0)
    few = first[:2]
    inputs = few.state
    if made.stage == 0 and made.part is not None:
        inputs = inputs[0] if isinstance(source, _Pairs) else made.target(inputs)
    if made.stage == 0 and isinstance(inputs, tuple | list | dict):
        names = list(inputs if isinstance(inputs, dict) else range(len(inputs)))
        raise InvalidType(
            f"the input of the network is {kind_of(inputs)} of several tensors; expected a floating-point tensor "
            f"[N, ...], or the one that is disturbed named by part=, one of {names} (with TRADES, a module of one "
            "input)"
        )
    if made.stage == 0 and (not isinstance(inputs, Tensor) or not inputs.is_floating_point()):
        what = f"a {inputs.dtype} tensor" if isinstance(inputs, Tensor) else kind_of(inputs)
        raise InvalidType(
            f"the input of the network is {what}; expected a floating-point tensor [N, ...]. Cut the network where its "
            "states are one (after an embedding) and disturb that: stages=[...], at=1, bounds=None"
        )
    made.validate(few)
    with torch.no_grad():
        made.target(mfoc.rollout(made, made.controls, few).states[made.stage])
        whole = made.ball.bounds is not None and made.stage == 0 and isinstance(data, _IN_MEMORY)
        for particles in source.epoch() if whole else [first]:
            check_inside(made, particles)


def _check_batches(net: nn.Module, source: mfoc.Population) -> None:
    """Refuses a batch of one particle where batch norm needs the statistics of the batch."""
    if source.size is None or source.batch_size is None:
        return
    last = source.size % source.batch_size or source.batch_size  # of the readout's pass, whatever the order of a solve
    if last == 1 and any(training_norms(net, instance=False)):
        raise InvalidValue(
            f"the last batch of {source.size} particles in batches of {source.batch_size} holds one, and batch norm in "
            "training mode needs more; choose another batch_size"
        )
