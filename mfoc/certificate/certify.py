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
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mfoc import tree
from mfoc.certificate.report import Certificate, StageCertificate
from mfoc.certificate.study import Bootstrap, Study, memberships
from mfoc.checks import check_between, check_instance, check_integer
from mfoc.errors import InvalidType, InvalidValue
from mfoc.frozen import Sweep
from mfoc.minimisers import LBFGS, Minimiser, check_minimiser
from mfoc.networks import Loss, from_module, named_stages
from mfoc.populations import population as as_population
from mfoc.problem import HasControls, Problem, RunningCost, controls_of
from mfoc.tree import Tree


def certify(
    problem: Problem,
    controls: HasControls | Tree,
    population: Any,
    *,
    inner: Minimiser | None = None,
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
        controls: the controls to certify; or a solution or iterate that has them.
        population: what ``mfoc.population`` takes.
        inner: minimiser for the gap; ``mfoc.minimisers.LBFGS(steps=100)`` when None.
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
    check_integer(0, 2**63 - 1, seed=seed)
    if inner is not None:
        check_minimiser(inner)
    if torch.is_inference_mode_enabled():
        raise InvalidValue("torch.inference_mode() is on and a certificate needs derivatives; leave it")
    cloud = as_population(population).cloud()
    controls = tree.detached(controls_of(controls))
    problem.validate(cloud, controls)
    sweep, generator = Sweep.at(problem, controls, cloud), torch.Generator().manual_seed(seed)
    value = float(sweep.cost.mean())
    if not math.isfinite(value):
        raise InvalidValue(f"controls: J is {value} at them, so there is nothing to certify")
    study = Study(
        memberships(len(cloud), min(groups, len(cloud)), generator, sweep.cost),
        Bootstrap(replicates, confidence, generator),
        LBFGS(steps=100, history=20) if inner is None else inner,
        lanczos,
        generator,
    )
    found: dict[int, StageCertificate] = {}
    passes = 1.0
    for block, (rows, used) in sweep.each(study.block):
        passes += used * len(block.stages) / problem.stages
        for stage, row in zip(block.stages, rows, strict=False):  # a shared control has one row for all stages
            label = "shared" if not problem.per_stage else str(stage) if names is None else names[stage]
            found[stage] = StageCertificate(label, block.start.shape[1], *row)
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

    Choose ``stages`` so that a layer and its activation are one: the Hamiltonian of a linear layer alone is affine in
    the weights, so that its gap and curvature say no more than its residual and the weight decay.

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


def _check_settings(
    problem: Any, lanczos: int, groups: int, replicates: int, confidence: float, names: Sequence[str] | None
) -> None:
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_integer(1, lanczos=lanczos, groups=groups, replicates=replicates)
    check_between(0, 1, confidence=confidence)
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InvalidType(f"names is {names!r}; expected a list of strings, one for each stage")
    if len(names) != problem.stages:
        raise InvalidValue(f"names has {len(names)} entries; the problem has {problem.stages} stages")
