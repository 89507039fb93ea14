"""A certificate of optimality for controls, however they were found.

By Pontryagin's principle an optimal control minimises E H_t at every stage, with states and costates on its own
trajectory. The certificate measures, stage by stage, how far that is from true: to first order the stationarity
residual ||E dH/du||, to second order the smallest eigenvalue of E d2H/du2, and globally the Hamiltonian gap
E H(u) - min_u E H(u). Each comes with a bootstrap interval over particles.

The residual is the gradient of J and vanishes at every local minimum. That u_t minimises H is necessary in continuous
time; in discrete time it is so where the reachable sets f_t(x, U) and the costs are suitably convex (Halkin 1966), and
else up to the square of the step: a gap or a negative curvature that shrinks with the step size is no defect of
the control. (Take f(u) = (u, -u^2/2) and Phi(a, b) = a^2 + b: J = u^2/2 has its minimum at 0, where H = -u^2/2.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import _tree
from mfoc._blocks import Block, blocks
from mfoc._errors import InvalidType, InvalidValue
from mfoc._lanczos import Lowest, lowest_eigenpair
from mfoc._staging import named_stages
from mfoc._tree import Tree
from mfoc.inner import LBFGS, Inner
from mfoc.networks import Loss, from_module
from mfoc.pontryagin import adjoint, rollout
from mfoc.population import population as as_population
from mfoc.problem import Particles, Problem, RunningCost, per_stage


@dataclass(frozen=True)
class Measure:
    """One quantity at one stage.

    Attributes:
        value: its value on the particles given.
        low, high: bootstrap interval: values it would take on other samples of as many particles. It always holds
            ``value``; at a minimiser of the sample the residual is 0 and ``high`` is its sampling noise.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:9.2e} [{self.low:9.2e}, {self.high:9.2e}]"


@dataclass(frozen=True)
class StageCertificate:
    """What is certified of one stage (of all stages together, when the control is shared by them).

    Attributes:
        name: the stage.
        parameters: how many numbers its control holds.
        residual: ||E dH/du||.
        gap: E H(u) - min_u E H(u), by the inner minimiser from u: a lower bound where H is not convex; infinite where
            H is unbounded below (a linear layer without weight decay).
        curvature: smallest eigenvalue of E d2H/du2, by Lanczos: an upper bound, off by at most ``curvature_error``
            from some eigenvalue.
        curvature_error: the residual norm of the eigenpair.
    """

    name: str
    parameters: int
    residual: Measure
    gap: Measure
    curvature: Measure
    curvature_error: float


@dataclass(frozen=True)
class Certificate:
    """The certificate of a control; print it, or draw it with ``mfoc.plot.certificate``.

    Attributes:
        stages: one entry for each stage that has a control.
        value: J.
        particles: how many particles it is measured on.
        confidence: level of the intervals.
        backward_passes: what it cost, in backward passes over the whole horizon.
    """

    stages: list[StageCertificate]
    value: float
    particles: int
    confidence: float
    backward_passes: float

    @property
    def residual(self) -> float:
        """||E dH/du|| over all stages."""
        return math.hypot(*(stage.residual.value for stage in self.stages))

    @property
    def gap(self) -> float:
        """The sum of the stages' Hamiltonian gaps."""
        return math.fsum(stage.gap.value for stage in self.stages)

    def __str__(self) -> str:
        width = max(5, *(len(stage.name) for stage in self.stages))
        level = f"{100 * self.confidence:.0f}%"
        lines = [
            f"Pontryagin certificate on {self.particles} particles, J = {self.value:.6g} "
            f"({level} bootstrap intervals; {self.backward_passes:.0f} backward passes)",
            f"{'stage':{width}s}  {'controls':>8s}  {'residual ||E dH/du||':^32s}  {'gap E H - min E H':^32s}  "
            f"{'curvature min eig E d2H/du2':^32s}",
        ]
        lines += [
            f"{s.name:{width}s}  {s.parameters:8d}  {s.residual!s:32s}  {s.gap!s:32s}  {s.curvature!s:32s}"
            for s in self.stages
        ]
        return "\n".join([*lines, f"total residual {self.residual:.3g}, total gap {self.gap:.3g}"])


def certify(
    problem: Problem,
    controls: Tree,
    population: Any,
    *,
    inner: Inner | None = None,
    lanczos: int = 30,
    groups: int = 20,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Certificate:
    """Measures how well controls satisfy Pontryagin's minimum principle.

    The particles of one epoch are taken as one cloud: give a subsample of a population that does not fit in memory.

    Args:
        problem: the control problem.
        controls: the controls to certify.
        population: what ``mfoc.population`` takes.
        inner: minimiser for the gap; ``mfoc.inner.LBFGS(steps=100)`` when None.
        lanczos: products with the Hessian for the curvature.
        groups: the particles are split into this many groups, which the bootstrap resamples.
        replicates: bootstrap replicates.
        confidence: level of the intervals.
        seed: of the grouping, the bootstrap and Lanczos.
        names: names of the stages, T of them; their numbers when None.

    Returns:
        The certificate. Its cost is 1 + groups + (evaluations of the inner minimiser) + 2 lanczos + 5 backward passes.

    Raises:
        InvalidType, InvalidValue: arguments out of range, or particles that do not fit the problem.
    """
    _check_settings(problem, lanczos, groups, replicates, confidence, names)
    cloud = _whole(as_population(population).epoch())
    problem.validate(cloud, controls)
    controls = _tree.detached(controls)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        trajectory = rollout(problem, controls, cloud)
    costates = adjoint(problem, controls, trajectory, cloud)[0]
    study = _Study(
        _memberships(len(cloud), min(groups, len(cloud)), generator, trajectory.cost),
        _Bootstrap(replicates, confidence, generator),
        LBFGS(steps=100, history=20) if inner is None else inner,
        lanczos,
        generator,
    )
    found: dict[int, StageCertificate] = {}
    passes = 1.0
    for block in blocks(problem, controls, trajectory.states, costates, cloud.data):
        rows, used = study.block(block)
        passes += used * len(block.stages) / problem.stages
        for stage, row in zip(block.stages, rows, strict=False):  # a shared control has one row for all stages
            label = "shared" if problem.schedule is not per_stage else str(stage) if names is None else names[stage]
            found[stage] = StageCertificate(label, block.start.shape[1], *row)
    value = float(trajectory.cost.mean())
    return Certificate([found[t] for t in sorted(found)], value, len(cloud), confidence, passes)


def certify_module(
    net: nn.Module,
    loss: Loss | nn.Module,
    data: Any,
    *,
    stages: Sequence[str | Sequence[str]] | None = None,
    running_cost: RunningCost | None = None,
    **settings: Any,
) -> Certificate:
    """The certificate of a trained network, however it was trained.

    Args:
        net: see ``mfoc.from_module``.
        loss: the loss it was trained with.
        data: what ``mfoc.population`` takes, a pair (inputs, targets) for example.
        stages: see ``mfoc.from_module``.
        running_cost: ``mfoc.weight_decay(c)``, if it was trained with weight decay c.
        **settings: of ``certify``.

    Raises:
        InvalidType, InvalidValue: as ``mfoc.from_module`` and ``certify``.
    """
    problem = from_module(net, loss, stages=stages, running_cost=running_cost)
    names = [name for name, _ in named_stages(net, stages)]
    return certify(problem, problem.controls, data, **{"names": names, **settings})


@dataclass(frozen=True)
class _Bootstrap:
    """Resamples groups of particles."""

    replicates: int
    confidence: float
    generator: torch.Generator

    def weights(self, groups: int, like: Tensor) -> Tensor:
        """How often each group is drawn in each replicate, over ``groups``: ``[replicates, groups]``."""
        drawn = torch.randint(groups, (self.replicates, groups), generator=self.generator)
        return torch.nn.functional.one_hot(drawn, groups).sum(1).to(like) / groups

    def measure(self, value: Tensor, replicates: Tensor) -> Measure:
        tail = (1 - self.confidence) / 2
        low, high = torch.quantile(
            replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64).to(value.device)
        )
        return Measure(float(value), min(float(low), float(value)), max(float(high), float(value)))


Row = tuple[Measure, Measure, Measure, float]


@dataclass(frozen=True)
class _Study:
    """Measures one block after another."""

    members: Tensor  # [K, N], row k averages over group k
    bootstrap: _Bootstrap
    inner: Inner
    lanczos: int
    generator: torch.Generator

    def block(self, block: Block) -> tuple[list[Row], float]:
        """The measures of each row of a block, and the backward passes they took."""
        weights = self.bootstrap.weights(len(self.members), block.start)
        residuals = self._residuals(block, weights)
        lowest = self._lowest(block)
        curvatures = self._curvatures(block, weights, lowest)
        gaps, evaluations = self._gaps(block, weights, lowest)
        rows = list(zip(residuals, gaps, curvatures, lowest.error.tolist(), strict=True))
        return rows, len(self.members) + evaluations + 2 * lowest.products + 5

    def _residuals(self, block: Block, weights: Tensor) -> list[Measure]:
        point = block.start.clone().requires_grad_()
        with torch.enable_grad():
            means = block.per_particle(point) @ self.members.mT  # [G, K]
        last = means.shape[1] - 1
        slopes = torch.stack(
            [_grad(means[:, k].sum(), point, retain_graph=k < last) for k in range(means.shape[1])], 1
        )  # [G, K, n]
        gram = slopes @ slopes.mT
        sizes = self._sizes()
        return [
            self.bootstrap.measure(_length(g, sizes[None])[0], _length(g, _resampled(weights, sizes))) for g in gram
        ]

    def _gaps(self, block: Block, weights: Tensor, lowest: Lowest) -> tuple[list[Measure], int]:
        # From a saddle or a maximum of H no slope leads away: start a little down the direction of negative curvature.
        start = block.start
        length = 1e-3 * (1 + start.norm(dim=1, keepdim=True)) * (lowest.value < -lowest.error)[:, None]
        uphill = (block.evaluate(start)[1] * lowest.vector).sum(1, keepdim=True) > 0
        found = self.inner.minimise(block.evaluate, start + torch.where(uphill, -length, length) * lowest.vector)
        with torch.no_grad():
            fall = (block.per_particle(block.start) - block.per_particle(found.point)) @ self.members.mT  # [G, K]
        sizes = self._sizes()
        gaps = []
        for row, endless in zip(fall, found.unbounded.tolist(), strict=True):
            value = (row * sizes).sum()
            bounded = self.bootstrap.measure(value.clamp_min(0), (_resampled(weights, sizes) @ row).clamp_min(0))
            gaps.append(Measure(math.inf, math.inf, math.inf) if endless else bounded)
        return gaps, found.evaluations

    def _lowest(self, block: Block) -> Lowest:
        point = block.start.clone().requires_grad_()
        with torch.enable_grad():
            slope = _grad(block.per_particle(point).mean(1).sum(), point, create_graph=True)
        product = _hessian_product(slope, point)
        return lowest_eigenpair(product, block.start, iterations=self.lanczos, generator=self.generator)

    def _curvatures(self, block: Block, weights: Tensor, lowest: Lowest) -> list[Measure]:
        by_group = self._second_derivatives(block, lowest.vector)  # [G, K]
        sizes = self._sizes()
        return [
            self.bootstrap.measure(value, _resampled(weights, sizes) @ row)
            for value, row in zip(lowest.value, by_group, strict=True)
        ]

    def _second_derivatives(self, block: Block, direction: Tensor) -> Tensor:
        """V' E_k d2H/du2 v for every row and every group k: ``[G, K]``, by differentiating in the groups' weights."""
        rows, groups = len(block.start), len(self.members)
        point = block.start.clone().requires_grad_()
        share = torch.ones(rows, groups, dtype=point.dtype, device=point.device, requires_grad=True)
        with torch.enable_grad():
            total = (block.per_particle(point) @ self.members.mT * share).sum()
            first = (_grad(total, point, create_graph=True) * direction).sum()
            second = (_grad(first, point, create_graph=True) * direction).sum()
            return _grad(second, share)

    def _sizes(self) -> Tensor:
        """The share of the particles in each group ``[K]``."""
        counts = (self.members > 0).sum(1).to(self.members)
        return counts / counts.sum()


def _grad(output: Tensor, point: Tensor, *, retain_graph: bool | None = None, create_graph: bool = False) -> Tensor:
    """A derivative that is zero where there is no dependence (an H that is linear in u has no second one)."""
    if not output.requires_grad:
        return torch.zeros_like(point)
    return torch.autograd.grad(
        output, point, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
    )[0]


def _hessian_product(slope: Tensor, point: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: _grad((slope * v).sum(), point, retain_graph=True)


def _resampled(weights: Tensor, sizes: Tensor) -> Tensor:
    """Weights of the groups in each replicate, by the particles they hold: ``[replicates, K]``."""
    scaled = weights * sizes
    return scaled / scaled.sum(1, keepdim=True)


def _length(gram: Tensor, weights: Tensor) -> Tensor:
    """||sum_k w_k g_k|| from the Gram matrix of the g_k, for each row of weights."""
    return torch.einsum("bk,kl,bl->b", weights, gram, weights).clamp_min(0).sqrt()


def _memberships(particles: int, groups: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """A random partition of the particles as averaging rows ``[K, N]``."""
    group = torch.arange(particles) % groups
    member = torch.nn.functional.one_hot(group[torch.randperm(particles, generator=generator)], groups).to(like).mT
    return member / member.sum(1, keepdim=True)


def _whole(batches: Iterable[Particles]) -> Particles:
    """All batches as one cloud."""
    clouds = list(batches)
    if len(clouds) == 1:
        return clouds[0]
    state = _tree.map(lambda *leaves: torch.cat(leaves), *(cloud.state for cloud in clouds))
    data = None
    if clouds[0].data is not None:
        data = _tree.map(lambda *leaves: torch.cat(leaves), *(cloud.data for cloud in clouds))
    return Particles(state, data)


def _check_settings(
    problem: Any, lanczos: int, groups: int, replicates: int, confidence: float, names: Sequence[str] | None
) -> None:
    if not isinstance(problem, Problem):
        raise InvalidType(f"problem is a {type(problem).__name__}; expected mfoc.Problem")
    for name, count in (("lanczos", lanczos), ("groups", groups), ("replicates", replicates)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidValue(f"{name} is {count!r}; expected a positive integer")
    if not 0 < confidence < 1:
        raise InvalidValue(f"confidence is {confidence!r}; expected a level between 0 and 1")
    if names is not None and len(names) != problem.stages:
        raise InvalidValue(f"names has {len(names)} entries; the problem has {problem.stages} stages")
