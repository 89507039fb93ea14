"""What is solved on one process and on several: a row for every solver, maximiser and paradigm.

Each row is a function without arguments that returns a tree of tensors and numbers; all are run by every rank, in the
order of the table. ``tests/test_ranks_table.py`` compares them and prints the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from mfoc.minimisers import LBFGS, Descent
from mfoc.optim import CMSGD, CSGD, AdaptiveBatch, LearningRateControl
from tests import problems
from tests.architectures import mlp_net, seeded
from tests.problems import D, normal

Row = Callable[[], Any]
ROWS: dict[str, Row] = {}

QUICK: dict[str, Any] = {"starts": 1, "lanczos": 3, "groups": 3, "inner": LBFGS(3, trials=5)}
ADAM = partial(torch.optim.Adam, lr=0.02)
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def add(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
    """One more row."""
    assert name not in ROWS, name
    ROWS[name] = partial(function, *args, **options)


def answer(solution: mfoc.Solution) -> dict[str, Any]:
    """What two ways to the same solution are compared by."""
    # What rounding is a share of is the size of the terms whose difference a residual is: that of the first.
    residual = torch.tensor([solution.residual, solution.history[0]["residual"]], dtype=D)
    return {"controls": solution.controls, "value": solution.value, "residual": residual}


def solved(case: Callable[[], problems.Case], solver: Any, steps: int = 4, batch: int | None = None) -> dict[str, Any]:
    """The solution of a case of the catalogue."""
    problem, particles = case()
    return answer(mfoc.solve(problem, solver, mfoc.population(particles, batch_size=batch, seed=2), steps=steps))


# ---- solvers


def bounded(bounds: Any, solver: Any) -> dict[str, Any]:
    problem = mfoc.Problem(
        lambda t, x, u, z: x + torch.tanh(x) * u,
        lambda x, z: (x - 1.5).square().sum(1),
        [torch.full((3,), 1 / 3, dtype=D) for _ in range(3)],
        running_cost=lambda t, x, u, z: (0.1 * u.square().sum()).expand(len(x)),
        bounds=bounds,
    )
    return answer(mfoc.solve(problem, solver, normal(7, 3), steps=4))


def constrained(solver: Any, **constraints: Any) -> dict[str, Any]:
    problem = mfoc.Problem(
        lambda t, x, u, z: x + 0.5 * u * torch.cos(x),
        lambda x, z: x.square().sum(1),
        [0.1 * normal(2, seed=t) for t in range(3)],
        running_cost=lambda t, x, u, z: (0.1 * u.square().sum()).expand(len(x)),
        **constraints,
    )
    solution = mfoc.solve(problem, mfoc.AugmentedLagrangian(solver, steps=5), normal(7, 2), steps=3)
    return answer(solution) | {"certificate": numbers(mfoc.certify(problem, solution, normal(7, 2), **QUICK))}


def of_feedback(solver: Any) -> dict[str, Any]:
    def plant(t: int, x: Any, u: Any, z: Any) -> Any:
        return x + 0.3 * (torch.sin(x) + u)

    base = mfoc.Problem(plant, lambda x, z: x.square().sum(1), [torch.zeros(2, dtype=D) for _ in range(3)])
    policy = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    return answer(mfoc.solve(mfoc.feedback(base, policy), solver, normal(7, 2), steps=4))


def coupled() -> problems.Case:
    """Particles that interact through each of the laws there are."""

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        crowd = mfoc.kernel_mean(lambda a, b: torch.tanh(b - a) * (-(a - b).square()).exp(), x)
        return x + 0.2 * (u * torch.cos(x) + crowd + mfoc.mean(x) @ mfoc.covariance(x))

    return mfoc.Problem(
        dynamics,
        lambda x, z: (x - 2 * mfoc.mean(x)).square().sum(1) + mfoc.variance(x).sum(),
        [0.3 * normal(2, seed=5 + t) for t in range(3)],
        running_cost=lambda t, x, u, z: (0.5 * u.square().sum()).expand(len(x)),
    ), mfoc.Particles(normal(7, 2, seed=1))


def normed() -> nn.Module:
    """Batch norms after layers without a bias: the slope in one is zero, of which Adam makes steps of any size."""

    def layer(n: int, m: int) -> list[nn.Module]:
        return [nn.Linear(n, m, bias=False), nn.BatchNorm1d(m)]

    return seeded(lambda: nn.Sequential(*layer(3, 6), nn.Tanh(), *layer(6, 2)))


def batch_norms() -> problems.Case:
    data = normal(9, 3), problems.labels(9, 2)
    return mfoc.from_module(normed(), F.cross_entropy), mfoc.Particles(*data)


def weighed(batch: int) -> dict[str, Any]:
    """Targets that are ignored, and classes with weights, which make J a ratio of two means."""
    loss = partial(F.cross_entropy, weight=torch.tensor([0.3, 2.0], dtype=D))
    data = normal(7, 3), torch.tensor([0, 1, 0, 1, 1, 0, 0])
    source = mfoc.population(data, batch_size=batch, seed=1)
    return answer(mfoc.solve(mfoc.from_module(mlp_net(), loss), mfoc.Gradient(ADAM), source, steps=6))


def own_populations(batch: int) -> dict[str, Any]:
    """Each batch is a population of its own, of which the law is."""
    problem, particles = problems.swarm()
    source = mfoc.population(particles, batch_size=batch, seed=1)
    return answer(mfoc.solve(replace(problem, interacting="batch"), mfoc.Gradient(SGD), source, steps=5))


def streamed() -> dict[str, Any]:
    loader = DataLoader(TensorDataset(normal(7, 3), problems.labels(7, 2)), batch_size=3)
    return answer(mfoc.solve(problems.mlp()[0], mfoc.Gradient(ADAM), loader, steps=5))


def drawn(n: int) -> dict[str, Any]:
    def draw(k: int) -> mfoc.Particles:
        return mfoc.Particles(normal(n, 3, seed=k), problems.labels(n, 2))

    return answer(mfoc.solve(problems.mlp()[0], mfoc.Gradient(ADAM), draw, steps=4))


def discretised(levels: str) -> dict[str, Any]:
    solver = mfoc.DiscreteMSA(levels, a=0.5)
    problem = solver.discretised(mfoc.from_module(normed(), F.cross_entropy))
    return answer(mfoc.solve(problem, solver, (normal(9, 3), problems.labels(9, 2)), steps=4))


GRADIENTS = {
    "adam": ADAM,
    "sgd with momentum": SGD,
    "csgd": partial(CSGD, lr=0.02),
    "cmsgd": partial(CMSGD, lr=0.02),
    "lbfgs, whole": partial(torch.optim.LBFGS, max_iter=2, lr=0.1),
}
for made, optimizer in GRADIENTS.items():
    add(f"Gradient, {made}", solved, problems.mlp, mfoc.Gradient(optimizer))
add("Gradient, recompute", solved, problems.decayed, mfoc.Gradient(SGD, recompute=True))
add("Gradient, pytrees", solved, problems.pytrees, mfoc.Gradient(ADAM))
add("Gradient, uneven batches", solved, problems.mlp, mfoc.Gradient(ADAM), 6, 3)
add("Gradient, batches of one", solved, problems.mlp, mfoc.Gradient(ADAM), 6, 1)
add("Gradient, a tail of one", solved, problems.mlp, mfoc.Gradient(ADAM), 6, 6)
add("Gradient, batch norm", solved, batch_norms, mfoc.Gradient(ADAM))
add("Gradient, batch norm after a bias", solved, problems.batch_norm, mfoc.Gradient(SGD))
add("Gradient, Box", bounded, mfoc.Box(-0.2, 0.4), mfoc.Gradient(SGD))
add("Gradient, Simplex", bounded, mfoc.Simplex(), mfoc.Gradient(SGD))
add("Gradient, L1", bounded, mfoc.L1(0.1), mfoc.Gradient(SGD))
add("MSA, L1", bounded, mfoc.L1(0.1), mfoc.MSA(LBFGS(2)))
add("MSA, Simplex", bounded, mfoc.Simplex(), mfoc.MSA(Descent(0.05, steps=2)))
for count in (1, 2, 3, 5):
    add(f"Gradient, swarm, batch {count}", own_populations, count)
add("Gradient, DataLoader", streamed)
for count in (1, 5):
    add(f"Gradient, {count} drawn on demand", drawn, count)
add("Gradient, feedback", of_feedback, mfoc.Gradient(ADAM))
add("Gradient, swarm", solved, problems.swarm, mfoc.Gradient(SGD))
add("Gradient, all laws", solved, coupled, mfoc.Gradient(SGD))
for count in (1, 2, 3):
    add(f"Gradient, classes with weights, batch {count}", weighed, count)
add("MSA", solved, problems.decayed, mfoc.MSA(Descent(0.05, steps=3)))
add("MSA, batches of one", solved, problems.decayed, mfoc.MSA(Descent(0.05, steps=3)), 4, 1)
add("EMSA, fixed", solved, problems.decayed, mfoc.EMSA(1.0, 0.5, inner=LBFGS(2, trials=6), adaptive=False), 2)
add("EMSA, swarm", solved, problems.swarm, mfoc.EMSA(1.0, inner=Descent(0.05, steps=3), adaptive=False), 2)
add("EMSA, tails of one", solved, problems.mlp, mfoc.EMSA(1.0, inner=Descent(0.05, steps=3), adaptive=False), 3, 3)
add("EMSA, Box", bounded, mfoc.Box(-0.2, 0.4), mfoc.EMSA(1.0, adaptive=False))
add("DiscreteMSA, binary", discretised, "binary")
add("DiscreteMSA, ternary", discretised, "ternary")
add("DDP", solved, problems.linear_quadratic, mfoc.DDP(), 3)
add("DDP, swarm", solved, problems.swarm, mfoc.DDP(), 3)
add("DDPNOpt, identity", solved, problems.mlp, mfoc.DDPNOpt(0.05))
add("DDPNOpt, rmsprop", solved, problems.mlp, mfoc.DDPNOpt(0.01, "rmsprop"))
add("DDPNOpt, kronecker", solved, problems.mlp, mfoc.DDPNOpt(0.01, "kronecker"))
add("DDPNOpt, a tail of one", solved, problems.mlp, mfoc.DDPNOpt(0.05), 4, 6)
add("NewtonCG", solved, problems.mlp, mfoc.NewtonCG(), 3)
add("NewtonCG, all laws", solved, coupled, mfoc.NewtonCG(), 3)
add("NewtonCG, uneven batches", solved, problems.mlp, mfoc.NewtonCG(), 5, 3)
NEAR = mfoc.Inequality(lambda x, z: x[:, :1] - 0.5)
add("AugmentedLagrangian, Gradient", constrained, mfoc.Gradient(partial(torch.optim.SGD, lr=0.05)), terminal=NEAR)
FIXED = mfoc.EMSA(1.0, inner=Descent(0.05, steps=3), adaptive=False)
add("AugmentedLagrangian, EMSA", constrained, FIXED, path=mfoc.Inequality(lambda t, x, u, z: u + 0 * x - 0.5))
THERE = mfoc.Equality(lambda x, z: x[:, :1] - 0.2, in_mean=True)
add("AugmentedLagrangian, NewtonCG, in mean", constrained, mfoc.NewtonCG(), terminal=THERE)


# ---- games


def played(inner: Any, *, norm: str = "linf", outer: Any = ADAM, batch: int | None = None) -> dict[str, Any]:
    data = normal(13, 3).clamp(-0.8, 0.8), problems.labels(13, 2)
    game = mfoc.Game.of(mfoc.from_module(mlp_net(), F.cross_entropy), mfoc.Ball(0.3, norm, (-0.8, 0.8)))
    source = mfoc.population(data, batch_size=batch, seed=3)
    solution = mfoc.solve(game, mfoc.Minimax(inner, outer, seed=1), source, steps=4)
    return answer(solution) | {"kept": solution.last.state["disturbance"]}


def attacked() -> dict[str, Any]:
    import torchattacks

    from paradigms.adversarial import FromTorchattacks, game

    data = normal(7, 3).sigmoid(), problems.labels(7, 2)
    made = game(mlp_net(), F.cross_entropy, data, epsilon=0.1)
    attack = FromTorchattacks(lambda net: torchattacks.FGSM(net, eps=0.1))
    return answer(made.solve(mfoc.Minimax(attack, ADAM), steps=2))


def trades() -> dict[str, Any]:
    from paradigms.adversarial import TRADES, game

    data = normal(7, 3).sigmoid(), problems.labels(7, 2)
    made = game(mlp_net(), TRADES(2.0), data, epsilon=0.1, batch_size=3)
    solution = made.solve(mfoc.Minimax(PGD(2), ADAM), steps=3)
    return answer(solution) | {"read out": list(made.readout(solution).state_dict().values())}


def certified_game() -> Any:
    from paradigms.adversarial import certify, game

    made = game(mlp_net(), F.cross_entropy, (normal(7, 3).sigmoid(), problems.labels(7, 2)), epsilon=0.1)
    found = certify(made, made.problem.controls, maximiser=PGD(2), best_response=PGD(3), restarts=1, **QUICK)
    return numbers(found)


MAXIMISERS = {
    "PGD": PGD(2), "FGSM": FGSM(), "FGSM, random": FGSM(0.4, random_start=True), "YOPO": YOPO(2, 2),
    "Free": Free(2, 0.1),
}  # fmt: skip
for made, inner in MAXIMISERS.items():
    add(f"Minimax, {made}", played, inner, batch=5)
    add(f"Minimax, {made}, l2", played, inner, norm="l2")
    add(f"Minimax, {made}, tails of one", played, inner, batch=4)
add("Minimax, PGD and NewtonCG", played, PGD(2), outer=mfoc.NewtonCG())
add("Minimax, YOPO and EMSA", played, YOPO(1, 2), outer=mfoc.EMSA(1.0, inner=Descent(0.02, steps=2), adaptive=False))
add("adversarial, TRADES", trades)
add("adversarial, certify", certified_game)
add("adversarial, FromTorchattacks", attacked)


# ---- certificates and equilibria


def numbers(thing: Any) -> list[float]:
    """All numbers of a frozen dataclass of results, those within its parts included."""
    if isinstance(thing, bool | str) or thing is None:
        return []
    if isinstance(thing, int | float):
        return [float(thing)]
    if isinstance(thing, list | tuple):
        return [n for part in thing for n in numbers(part)]
    return [n for part in vars(thing).values() for n in numbers(part)] if hasattr(thing, "__dataclass_fields__") else []


def certified(case: Callable[[], problems.Case]) -> list[float]:
    problem, particles = case()
    return numbers(mfoc.certify(problem, problem.controls, particles, **QUICK))


def certified_module() -> list[float]:
    data = normal(9, 3), problems.labels(9, 2)
    return numbers(mfoc.certify_module(mlp_net(), F.cross_entropy, data, **QUICK))


def equilibrium(solver: Any) -> dict[str, Any]:
    problem, particles = problems.swarm()
    return answer(mfoc.solve(mfoc.Equilibrium(problem), solver, particles, steps=3))


def anarchy() -> list[Any]:
    problem, particles = problems.swarm()
    found = mfoc.price_of_anarchy(problem, mfoc.Gradient(SGD), particles, steps=3)
    gain = mfoc.exploitability(problem, found.equilibrium, mfoc.Gradient(SGD), particles, steps=3)
    return [found.value, answer(found.equilibrium), answer(found.optimum), gain.value, gain.cost]


def averages() -> list[Tensor]:
    problem, data = batch_norms()
    solution = mfoc.solve(problem, mfoc.Gradient(ADAM), data, steps=3)
    return list(problem.readout(solution).state_dict().values())


add("certify", certified, problems.mlp)
add("certify, swarm", certified, problems.swarm)
add("certify_module", certified_module)
add("Equilibrium", equilibrium, mfoc.Gradient(SGD))
add("Equilibrium, Picard", equilibrium, mfoc.meanfield.Picard(mfoc.Gradient(partial(torch.optim.SGD, lr=0.05)), 3))
add("price_of_anarchy, exploitability", anarchy)
add("readout, averages of batch norm", averages)


# ---- what adapts


def adaptive_batches(scale: str) -> dict[str, Any]:
    from mfoc.analysis.noise.scales import noise_scale
    from tests.optim.test_batch import SGD, bowl, data, exact

    measure = {"exact": exact, "noise_scale": noise_scale}[scale]
    source = AdaptiveBatch(data(), bowl(), scale=measure, batch_size=4, every=2, draws=32, seed=3)
    solution = mfoc.solve(bowl(), SGD, source, steps=6, hooks=[source.measure])
    return answer(solution) | {"sizes": [float(size) for _, size in source.schedule]}


def controlled_rate() -> list[Any]:
    x, rows = torch.full((3,), 4.0, dtype=D), normal(12, 3)  # in equal shares: it is given means, not their sizes
    mine = rows[mfoc.distributed.share(torch.arange(12))]
    control = LearningRateControl(torch.optim.Adam([x.requires_grad_()], lr=0.01), every=2)
    for _ in range(6):
        x.grad = (x.detach() - rows.mean(0)).clone()
        control.step(lambda: (x - mine).square().sum(1).mean())
    return [x.detach(), control.lr]


add("AdaptiveBatch, exact", adaptive_batches, "exact")
add("AdaptiveBatch, noise_scale", adaptive_batches, "noise_scale")
add("LearningRateControl", controlled_rate)


# ---- Bayes


def data_of_regression(n: int = 7) -> tuple[Tensor, Tensor]:
    return normal(n, 2), normal(n, 1, seed=1)


def tiny() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))


def variational_network(estimator: str, batch: int | None, **options: Any) -> dict[str, Any]:
    from paradigms.bayesian import variational

    made = variational(
        tiny(), data_of_regression(), likelihood="gaussian", samples=2, batch_size=batch, estimator=estimator, **options
    )
    return answer(made.solve(mfoc.Gradient(ADAM), steps=5))


def regression_model(x: Tensor, y: Tensor) -> None:
    import pyro
    import pyro.distributions as dist

    w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y[:, 0])


def variational_model(batch: int | None) -> dict[str, Any]:
    from paradigms.bayesian import variational

    made = variational(regression_model, data_of_regression(), samples=3, batch_size=batch)
    return answer(made.solve(mfoc.Gradient(ADAM), steps=5))


def gaussian_density() -> Any:
    from paradigms.bayesian import log_density

    return log_density(
        lambda x: -0.5 * (x * torch.tensor([1.0, 3.0], dtype=D) * x).sum(1), like=torch.zeros(2, dtype=D)
    )


def particle_method(make: Callable[[Any], Any]) -> list[Any]:
    """Step sizes that are solved for, the cloud they end with, and a long run."""
    from paradigms.bayesian import sample

    made = make(gaussian_density())
    solution = made.solve(mfoc.Gradient(ADAM), steps=2)
    draws = sample(made, burn_in=2, controls=solution)
    return [answer(solution), made.readout(solution), draws.x, draws.moved, draws.last]


def of_svgd(density: Any, kernel: Any = None, rule: Any = None, n: int = 7) -> Any:
    from paradigms import bayesian

    kernel = None if kernel is None else getattr(bayesian, kernel)()
    rule = None if rule is None else getattr(bayesian, rule)()
    return bayesian.svgd(density, step=0.2, steps=4, particles=normal(n, 2), kernel=kernel, rule=rule)


def of_langevin(density: Any, method: str) -> Any:
    from paradigms.bayesian import langevin

    return langevin(density, step=0.1, steps=4, particles=normal(7, 2), method=method)


def sgld() -> list[Any]:
    from paradigms.bayesian import ensemble, langevin, log_density, predict, sample

    data = data_of_regression()
    density = log_density(tiny(), data, likelihood="gaussian", noise=0.5)
    made = langevin(density, step=1e-3, steps=3, particles=5, method="sgld", batch_size=3)
    draws = sample(made)
    predicted = ensemble(tiny(), draws.posterior(), likelihood="gaussian", noise=0.5)
    return [draws.x, density(draws.x[-1]), density.score(draws.x[-1]), predict(predicted, data[0]).mean]


def bridged(kind: str) -> list[Any]:
    from paradigms.bayesian import CrossEntropy, bridge_matching, follmer

    made = follmer(gaussian_density(), steps=4, particles=7)
    solver: Any = mfoc.Gradient(partial(torch.optim.SGD, lr=1e-3))  # the drift starts at zero, with slopes of zero
    if kind == "CrossEntropy":
        solver = CrossEntropy(solver, every=2, paths=8, particles=9)
    if kind == "bridge_matching":
        made = bridge_matching(made, normal(9, 2), particles=7)
    solution = made.solve(solver, steps=4)
    return [answer(solution), made.readout(solution)]


for estimator in ("weights", "local", "flipout"):
    for batch in (None, 3):
        add(f"variational, {estimator}, batch {batch}", variational_network, estimator, batch)
add("variational, known noise, sampled KL", variational_network, "weights", 2, noise=0.5, kl="sampled")
add("variational, sticking the landing", variational_network, "weights", 3, stl=True)
add("variational, Pyro model", variational_model, None)
add("variational, Pyro model, batch 3", variational_model, 3)
for kernel in (None, "IMQ", "PyroRBF", "PyroIMQ"):
    add(f"svgd, {kernel or 'RBF, PlainRule'}", particle_method, partial(of_svgd, kernel=kernel))
add("svgd, AdamRule", particle_method, partial(of_svgd, rule="AdamRule"))
add("svgd, AdaGradRule", particle_method, partial(of_svgd, rule="AdaGradRule"))
add("svgd, two particles", particle_method, partial(of_svgd, n=2))
add("langevin, ula", particle_method, partial(of_langevin, method="ula"))
add("langevin, mala", particle_method, partial(of_langevin, method="mala"))
add("langevin, sgld, ensemble", sgld)
for kind in ("follmer", "bridge_matching", "CrossEntropy"):
    add(kind, bridged, kind)


# ---- meta-learning


def learned(algorithm: str, count: int = 3, **options: Any) -> dict[str, Any]:
    from paradigms import meta

    net = seeded(lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)))
    tasks = meta.sinusoids(tasks=count, shots=3, queries=3, dtype=D)
    if options.get("rule") == "Coordinatewise":
        options["rule"] = seeded(
            lambda: meta.Coordinatewise(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
        )
    options = {"inner_steps": 2, "inner_lr": 0.01} | options
    made = getattr(meta, algorithm)(net, F.mse_loss, tasks, **options)
    solution = made.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.01)), steps=3)
    return answer(solution) | {"read out": list(made.readout(solution).state_dict().values())}


add("maml", learned, "maml")
add("maml, one task", learned, "maml", 1)
add("maml, first order", learned, "maml", first_order=True)
add("maml, multi-step", learned, "maml", step_losses=[0.5, 1.0])
add("meta_sgd", learned, "meta_sgd")
add("anil", learned, "anil")
add("learned_update", learned, "learned_update", rule="Coordinatewise", inner_lr=0.1)
add("reptile", learned, "reptile", inner_lr=0.3)
add("imaml", learned, "imaml", strength=2.0)
