"""Public functions, each with inputs in float64 on the CPU: what comes out on a device is held against these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.analysis import information, kernel, noise, propagation
from tests.problems import Case, D, labels, lq_matrices, mlp_net, normal, scalar_game, seeded, swarm, tied

Put = Callable[[Any], Any]
SGD = partial(torch.optim.SGD, lr=0.05)
# Each part of a certificate, as little of it as can be: on paper an operation takes ten times as long.
CHEAP: dict[str, Any] = {"lanczos": 2, "groups": 2, "starts": 1, "inner": mfoc.minimisers.LBFGS(1, trials=2)}


def scalar_net(width: int = 6) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)))


def moved(case: Case, put: Put) -> Case:
    """A problem and its particles, with their numbers there."""
    problem, particles = case
    cloud = mfoc.Particles(put(particles.state), put(particles.data))
    return replace(problem, controls=put(problem.controls)), cloud


def classified(put: Put) -> tuple[nn.Module, Any, tuple[Any, Any]]:
    return put(mlp_net()), F.cross_entropy, (put(normal(12, 3)), put(labels(12, 2)))


def numbers(made: Any) -> list[Any]:
    """The tensors and numbers of a record."""
    return [value for value in vars(made).values() if isinstance(value, float | torch.Tensor)]


# ---- linear-quadratic, schemes, games, hjb


def lq_discrete(put: Put) -> Any:
    spec, mean, covariance = put(lq_matrices())
    problem = mfoc.lq.LinearQuadratic.discrete(**spec, horizon=4)
    game = mfoc.lq.equilibrium(problem, mean, covariance)
    return [*problem.riccati(), *problem.path(mean), problem.value(mean, covariance), *game]


def lq_continuous(put: Put) -> Any:
    spec, mean, covariance = put(lq_matrices())
    problem = mfoc.lq.LinearQuadratic.continuous(**spec, T=1.0, steps=6)
    return [*problem.riccati(), *problem.path(mean), problem.value(mean, covariance)]


def scheme(which: Any, put: Put) -> Any:
    problem, particles = moved(tied(), put)
    made = mfoc.continuous(
        lambda t, x, u, z: torch.tanh(x @ u["W"].mT) + u["b"],
        lambda x, z: (x - z).square().sum(1),
        problem.controls,
        horizon=4,
        schedule=mfoc.tied,
        scheme=which,
    )
    return mfoc.evaluate(made, made, particles)


def peng(put: Put) -> Any:
    """An SDE with a controlled diffusion, whose Hamiltonian has the second-order term."""
    x, noises = put(normal(5, 2)), put(0.3 * normal(5, 3, 2, seed=1))
    problem = mfoc.continuous(
        lambda t, x, u, z: u - x,
        lambda x, z: x.square().sum(1),
        put([0.1 * normal(2, seed=k) for k in range(3)]),
        diffusion=lambda t, x, u, z: 0.2 + u.square(),
    )
    return mfoc.evaluate(problem, problem, mfoc.Particles(x, {"noise": noises}))


def prices(put: Put) -> Any:
    lq = scalar_game()
    moved_lq = mfoc.lq.LinearQuadratic.discrete(
        **{name: put(getattr(lq, name)) for name in ("A", "B", "Q", "R", "QT", "Abar", "Qbar", "S", "QbarT", "ST")},
        horizon=4,
    )
    solver = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
    found = mfoc.price_of_anarchy(moved_lq.problem(), solver, put(normal(20, 1) + 1), steps=5)
    return [found.value]


def equilibrium(put: Put) -> Any:
    problem, particles = moved(swarm(), put)
    game = mfoc.Equilibrium(problem)
    picard = mfoc.meanfield.Picard(mfoc.Gradient(SGD), steps=2, damping=0.5)
    return mfoc.solve(game, picard, particles, steps=2).controls


def pursuit(adversary: Any, put: Put) -> Any:
    net, loss, data = classified(put)
    game = mfoc.Game.of(mfoc.from_module(net, loss), mfoc.Ball(0.1, "l2"))
    return mfoc.solve(game, mfoc.Minimax(adversary, SGD), data, steps=2).controls


def dynamic_programming(put: Put) -> Any:
    problem = steered(put)
    value = mfoc.hjb.solve(problem, [put(torch.linspace(-2, 2, 9, dtype=D))])
    x = put(torch.linspace(-1, 1, 5, dtype=D)[:, None])
    return [value(0, x), value.gradient(0, x), value.policy(0, x), *numbers(mfoc.hjb.verify(problem, value, x))]


def steered(put: Put, **more: Any) -> mfoc.Problem:
    return mfoc.continuous(
        lambda t, x, u, z: u.expand_as(x),
        lambda x, z: x.square().sum(1),
        put([torch.zeros(1, dtype=D)] * 3),
        running_cost=lambda t, x, u, z: u.square().sum().expand(len(x)),
        **more,
    )


def bounded(put: Put) -> Any:
    problem = steered(put, bounds=mfoc.Box(-0.1, put(torch.tensor([0.2], dtype=D))))
    return mfoc.solve(problem, mfoc.NewtonCG(), put(normal(6, 1)), steps=2).controls


def constrained(put: Put) -> Any:
    problem = steered(put, terminal=mfoc.Equality(lambda x, z: x.mean(0, keepdim=True).expand_as(x)))
    solver = mfoc.AugmentedLagrangian(mfoc.Gradient(SGD))
    return mfoc.solve(problem, solver, put(normal(6, 1)), steps=3).controls


def policy(put: Put) -> Any:
    made = mfoc.feedback(steered(put), put(seeded(lambda: nn.Linear(1, 1))))
    return mfoc.evaluate(made, made, put(normal(6, 1)))


def laws(put: Put) -> Any:
    x = put(normal(6, 2))
    near = mfoc.kernel_mean(lambda a, b: (-(a - b).square().sum(-1)).exp(), x)
    return [mfoc.mean(x), mfoc.variance(x), mfoc.covariance(x), near]


# ---- certificates and analysis


def certificate(put: Put) -> Any:
    net, loss, data = classified(put)
    found = mfoc.certify_module(net, loss, data, **CHEAP)
    return [found.value, *(measure.value for stage in found.stages for measure in (stage.residual, stage.gap))]


def bounded_certificate(put: Put) -> Any:
    problem = steered(put, bounds=mfoc.Box(-0.1, 0.2))
    return [mfoc.certify(problem, problem, put(normal(8, 1)), **CHEAP).value]


def kernels(put: Put) -> Any:
    x, new = put(normal(5, 3)), put(normal(4, 3, seed=1))
    found = [
        *kernel.infinite_kernels(x, activation="relu", depth=3),
        *kernel.infinite_kernels(x, activation="tanh", depth=2),
    ]
    fitted = kernel.KernelPredictor("erf", 2, weight_variance=1.5, ridge=0.1, kernel="ntk").fit(x, put(labels(5, 2)))
    return [*found, *fitted.predict(new), *fitted.predict(new, time=2.0), fitted.classify(new)]


def tangents(put: Put) -> Any:
    net, x = put(mlp_net()), put(normal(5, 3))
    operator = kernel.NTKOperator(net, x)
    v = put(normal(5, 2, seed=3))
    found = kernel.ntk_convergence(put(scalar_net()), x, put(normal(5, 1)), nn.MSELoss(), steps=3)
    return [kernel.empirical_ntk(net, x), kernel.empirical_ntk(net, x, trace=True), operator @ v, *numbers(found)]


def lazy(put: Put) -> Any:
    net, loss, (x, y) = classified(put)
    problem = mfoc.from_module(net, loss)
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, y), steps=2)
    return numbers(kernel.laziness(net, [problem.controls, solution.controls], x))


def noises(put: Put) -> Any:
    net, loss, data = classified(put)
    found = noise.gradient_noise(net, loss, data, curvature=True, probes=3)
    scale = noise.noise_scale(net, loss, data, draws=12, groups=8)
    edge = noise.sharpness(net, loss, data, top=2)
    full = noise.gradient_noise(net, loss, data, covariance="full")
    return [*numbers(found), *numbers(full), scale.simple.value, edge.eigenvalues, edge.trace]


def equations(put: Put) -> Any:
    problem, cloud = moved(
        (mfoc.from_module(mlp_net(), F.cross_entropy), mfoc.Particles(normal(8, 3), labels(8, 2))), put
    )
    made = noise.modified_equation_of(problem, cloud, lr=0.1, batch_size=2)
    h = put(torch.eye(2, dtype=D) + 0.1)
    at = mfoc.tree.ravel(problem.controls)
    return [
        made.drift(0.0, at[None], None, None),
        noise.ou_stationary_covariance(h, h, 0.1),
        noise.sgd_stationary_covariance(h, h, 0.1),
    ]


def sdes(put: Put) -> Any:
    net, loss, data = classified(put)
    return numbers(noise.valid_sde(net, loss, data, lr=0.1, steps=2, batch_size=2, l=(1, 2), seeds=2))


def signals(put: Put) -> Any:
    net = put(seeded(lambda: nn.Sequential(*(p for _ in range(4) for p in (nn.Linear(6, 6), nn.Tanh())))))
    x = put(normal(8, 6))
    propagation.critical_init_(net, x)
    found = propagation.diagnose(net, x, probes=1)
    return [*net.parameters(), *(n for block in found.blocks for n in (block.q, block.c, block.chi))]


def widths(put: Put) -> Any:
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1)).double()

    found = propagation.width_check(
        lambda width: put(make(width)), [4, 8], put(normal(6, 3)), partial(torch.optim.SGD, lr=0.1), steps=2, seeds=2
    )
    return [found.tolerance]


def orthogonal(put: Put) -> Any:
    draw = torch.Generator(put(torch.zeros(1)).device).manual_seed(0)
    weight, conv = put(torch.zeros(4, 3, dtype=D)), put(torch.zeros(4, 4, 3, 3, dtype=D))
    propagation.orthogonal_(weight, generator=draw)
    propagation.delta_orthogonal_(conv, generator=draw)
    return [weight.mT @ weight, conv[..., 1, 1] @ conv[..., 1, 1].mT]


def planes(put: Put) -> Any:
    net, _, (x, y) = classified(put)
    found = []
    for estimator in (information.KDE(0.1), information.Binned(5)):
        plane = information.information_plane(net, x, y, estimator=estimator)
        found += [bound for layer in plane.layers for bound in (layer.about_input.lower, layer.about_labels.upper)]
    return [*found, plane.label_entropy]


def gaussian_bottleneck(put: Put) -> Any:
    whole = normal(5, 5)
    whole = put(whole @ whole.mT + torch.eye(5, dtype=D))
    return numbers(information.gaussian_bottleneck(whole[:3, :3], whole[:3, 3:], whole[3:, 3:], 5.0))


# ---- optimisers


def trained(make: Any, put: Put) -> Any:
    net, loss, (x, y) = classified(put)
    optimizer = make(net.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    return list(net.parameters())


def annealed(put: Put) -> Any:
    net, loss, (x, y) = classified(put)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    control = mfoc.optim.LearningRateControl(optimizer, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        control.step(lambda: loss(net(x), y))
    return list(net.parameters())


def batches(put: Put) -> Any:
    net, loss, data = classified(put)
    problem = mfoc.from_module(net, loss)
    source = mfoc.optim.AdaptiveBatch(data, problem, batch_size=2, every=2, draws=8)
    return mfoc.solve(problem, mfoc.Gradient(SGD), source, steps=4, hooks=[source.measure]).controls


PUBLIC: dict[str, Callable[[Put], Any]] = {
    "lq, discrete": lq_discrete,
    "lq, continuous": lq_continuous,
    **{
        f"scheme {name}": partial(scheme, which)
        for name, which in {
            "euler": mfoc.euler, "heun": mfoc.heun, "rk4": mfoc.rk4, "rk38": mfoc.rk38, "dopri5": mfoc.dopri5(),
        }.items()
    },
    "controlled diffusion": peng,
    "price of anarchy": prices,
    "equilibrium": equilibrium,
    **{
        f"adversary {name}": partial(pursuit, adversary)
        for name, adversary in {
            "PGD": mfoc.maximisers.PGD(2, random_start=False),
            "FGSM": mfoc.maximisers.FGSM(),
            "YOPO": mfoc.maximisers.YOPO(2, 2),
            "Free": mfoc.maximisers.Free(2),
        }.items()
    },
    "hjb.solve": dynamic_programming,
    "bounds": bounded,
    "constraints": constrained,
    "feedback": policy,
    "the law": laws,
    "certify_module": certificate,
    "certify, bounds": bounded_certificate,
    "infinite kernels": kernels,
    "tangent kernels": tangents,
    "laziness": lazy,
    "noise": noises,
    "modified equations": equations,
    "valid_sde": sdes,
    "propagation": signals,
    "width_check": widths,
    "orthogonal": orthogonal,
    "information plane": planes,
    "gaussian bottleneck": gaussian_bottleneck,
    "CSGD": partial(trained, partial(mfoc.optim.CSGD, lr=0.1)),
    "CSGD, loops": partial(trained, partial(mfoc.optim.CSGD, lr=0.1, foreach=False)),
    "CMSGD": partial(trained, partial(mfoc.optim.CMSGD, lr=0.1)),
    "LearningRateControl": annealed,
    "AdaptiveBatch": batches,
}  # fmt: skip
