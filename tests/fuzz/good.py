"""Arguments that fit: by the name of the parameter, and by the name of the door where it means something else there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc import analysis, hjb, hooks, lq, maximisers, meanfield, minimisers, optim
from mfoc.analysis import information, kernel, noise, propagation
from paradigms import adversarial, bayesian, meta
from paradigms.adversarial.evaluation import Accuracy

Make = Callable[[], Any]
D = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(n: int = 8, classes: int = 2) -> Tensor:
    return torch.arange(n) % classes


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def net(outputs: int = 2) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)))


def problem(**changes: Any) -> mfoc.Problem:
    parts: dict[str, Any] = {
        "dynamics": dynamics,
        "terminal_cost": terminal_cost,
        "controls": controls(),
        "running_cost": running_cost,
    }
    return mfoc.Problem(**(parts | changes))


def dynamics(t: Any, x: Any, u: Any, z: Any) -> Any:
    return x + 0.1 * u - 0.1 * x


def terminal_cost(x: Any, z: Any) -> Any:
    return (x - 1).square().sum(1)


def running_cost(t: Any, x: Any, u: Any, z: Any) -> Any:
    return (0.1 * u.square().sum()).expand(len(x))


def controls() -> list[Tensor]:
    return [torch.zeros(2) for _ in range(2)]


def cloud() -> mfoc.Particles:
    return mfoc.Particles(normal(6, 2))


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def solver() -> mfoc.Gradient:
    return mfoc.Gradient(sgd)


def solution() -> mfoc.Solution:
    return mfoc.solve(problem(), solver(), normal(6, 2), steps=1)


def data() -> tuple[Tensor, Tensor]:
    return normal(8, 3), labels()


def numbers() -> tuple[Tensor, Tensor]:
    return normal(8, 3), normal(8, 2, seed=1)


def matrices() -> dict[str, Tensor]:
    eye = torch.eye(2, dtype=D)
    return {"A": 0.5 * eye, "B": eye, "Q": eye, "R": eye}


def linear_quadratic() -> lq.LinearQuadratic:
    return lq.LinearQuadratic.discrete(**matrices(), horizon=3)


def robustness() -> Any:
    rows = [Accuracy(name, right, 8, *adversarial.wilson(right, 8), 0.1) for name, right in (("clean", 7), ("FGSM", 3))]
    return adversarial.Robustness(rows, mfoc.Ball(0.1), 0.95)


def density() -> bayesian.LogDensity:
    return bayesian.log_density(lambda x: -0.5 * x.square().sum(-1), like=torch.zeros(2))


def line(**changes: Any) -> mfoc.Problem:
    parts: dict[str, Any] = {
        "dynamics": lambda t, x, u, z: x + 0.5 * u,
        "terminal_cost": lambda x, z: x.square().sum(1),
        "controls": [torch.zeros(1, dtype=D) for _ in range(2)],
        "running_cost": lambda t, x, u, z: 0.1 * u.square().sum(-1) + 0 * x.sum(1),
        "bounds": mfoc.Box(-1.0, 1.0),
    }
    return mfoc.Problem(**(parts | changes))


def axes() -> list[Tensor]:
    return [torch.linspace(-2, 2, 9, dtype=D)]


def grid_value() -> Any:
    return hjb.solve(line(), axes(), candidates=torch.linspace(-1, 1, 3, dtype=D)[:, None])


@cache
def _fitted() -> Any:
    return hjb.fit(line(), normal(8, 1, dtype=D), steps=2, candidates=torch.linspace(-1, 1, 3, dtype=D)[:, None])


def game(bounds: Any = None) -> Any:
    x = 0.5 + 0.1 * normal(8, 3).clamp(-1, 1)
    return adversarial.game(net(), F.cross_entropy, (x, labels()), epsilon=0.1, bounds=bounds)


def game_solution() -> Any:
    return game().solve(mfoc.Minimax(maximisers.FGSM(), sgd), steps=1)


def attack() -> Any:
    return maximisers.PGD(1)


def task_cloud() -> mfoc.Particles:
    return meta.tasks((normal(3, 5, 3), normal(3, 5, 2, seed=1)), (normal(3, 5, 3, seed=2), normal(3, 5, 2, seed=3)))


def maml() -> Any:
    return meta.maml(net(), F.mse_loss, task_cloud(), inner_steps=1, inner_lr=0.1)


def imaml() -> Any:
    return meta.imaml(net(), F.mse_loss, task_cloud(), inner_steps=1, inner_lr=0.1, strength=1.0)


_CLONES: list[Any] = []  # the one that the last loss was computed with


def loss_of_clone() -> Tensor:
    """The loss of a task's support, with the clone that ``clone`` returns next."""
    _CLONES[:] = [meta.Learner(maml()).clone()]
    return F.mse_loss(_CLONES[0](normal(5, 3)), normal(5, 2, seed=1))


def clone() -> Any:
    return _CLONES.pop() if _CLONES else meta.Learner(maml()).clone()


def of_one_step(make: Callable[[], Any]) -> Any:
    made = make()
    return made.solve(mfoc.Gradient(sgd), steps=1)


def variational() -> Any:
    return bayesian.variational(net(), data(), likelihood="categorical")


def posterior() -> Any:
    made = variational()
    return made.readout(made.solve(mfoc.Gradient(sgd), steps=1))


def prediction() -> Any:
    return bayesian.predict(posterior(), normal(8, 3), samples=3)


def follmer() -> Any:
    return bayesian.follmer(density(), steps=3, particles=4, policy=bayesian.Drift(2, hidden=4, layers=1))


def evidence() -> Any:
    made = follmer()
    return made.evaluate(made.solve(mfoc.Gradient(sgd), steps=1), n=8)


def langevin() -> Any:
    return bayesian.langevin(density(), step=0.01, steps=3, particles=4)


def open_loop(**changes: Any) -> mfoc.Problem:
    return mfoc.Problem(dynamics, terminal_cost, [torch.zeros(2)] * 2, running_cost=running_cost, **changes)


def policy() -> nn.Module:
    return nn.Linear(3, 2)


class Steer(nn.Module):
    """A policy u(t, x)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t: Any, x: Any) -> Any:
        return self.linear(x)


def played(t: Any, x: Any, u: Any, z: Any) -> Any:
    return x + 0.1 * u


def checkpoint() -> str:
    folder = tempfile.mkdtemp()
    mfoc.solve(problem(), solver(), normal(6, 2), steps=1, hooks=[hooks.Checkpoint(f"{folder}/a.pt")])
    return f"{folder}/a.pt"


def regression() -> Any:
    made = bayesian.variational(nn.Linear(1, 1), (normal(8, 1), normal(8, 1)), likelihood="gaussian", noise=0.1)
    found = made.readout(made.solve(mfoc.Gradient(sgd), steps=1))
    return bayesian.predict(found, torch.linspace(-1, 1, 8)[:, None], samples=3)


def bottleneck() -> Any:
    return information.information_bottleneck(nn.Linear(3, 4), nn.Linear(2, 2), F.cross_entropy, beta=0.1, latent=2)


def closed_loop() -> Any:
    return mfoc.feedback(per_row(), seeded(Steer))


def per_row() -> mfoc.Problem:
    return mfoc.Problem(
        played,
        terminal_cost,
        [torch.zeros(2) for _ in range(2)],
        running_cost=lambda t, x, u, z: 0.1 * u.square().sum(-1) + 0 * x.sum(1),
    )


def double_well(x: Any) -> Any:
    return x**4 / 4 - x**2 / 2


def quadratic(x: Any) -> Any:
    return 0.5 * x.square().sum()


def density_problem() -> Any:
    x = torch.linspace(-2, 2, 21, dtype=D)
    start = torch.exp(-x.square())
    return meanfield.DensityProblem(x, start / start.sum() / 0.2, 0.2, 4, 0.5)


def train(made: Any, x: Any = None, *rest: Any) -> Any:
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.01)
    return made


def widths_of(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


class TaskSet:
    """Tasks drawn afresh, as learn2learn would give them."""

    num_tasks = -1

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Any:
        return torch.randn(4, 3), labels(4)

    def sample(self) -> Any:
        return self[0]


def controlled() -> Any:
    return optim.CSGD([nn.Parameter(torch.ones(2))], lr=0.1)


BY_NAME: dict[str, Make] = {
    "problem": problem,
    "controls": controls,
    "dynamics": lambda: dynamics,
    "drift": lambda: dynamics,
    "terminal_cost": lambda: terminal_cost,
    "running_cost": lambda: running_cost,
    "particles": cloud,
    "population": cloud,
    "source": cloud,
    "solver": solver,
    "inner": solver,
    "outer": lambda: sgd,
    "optimizer": lambda: sgd,
    "steps": lambda: 2,
    "solution": solution,
    "net": net,
    "module": net,
    "loss": lambda: F.cross_entropy,
    "data": data,
    "x": lambda: normal(8, 3),
    "x1": lambda: normal(4, 3),
    "y": labels,
    "u": lambda: torch.zeros(2),
    "p": lambda: normal(6, 2, seed=1),
    "z": lambda: None,
    "t": lambda: 0,
    "s": lambda: 0.0,
    "h": lambda: 0.1,
    "seed": lambda: 0,
    "n": lambda: 4,
    "dim": lambda: 2,
    "lr": lambda: 0.1,
    "epsilon": lambda: 0.1,
    "weight": lambda: 0.1,
    "coefficient": lambda: 0.1,
    "radius": lambda: 1.0,
    "low": lambda: -1.0,
    "high": lambda: 1.0,
    "function": lambda: terminal_cost,
    "features": lambda: lambda x: x,
    "state": lambda: normal(6, 2),
    "readout": lambda: lambda found: found,
    "diffusion": lambda: 0.1,
    "kernel": lambda: lambda x, y: torch.exp(-(x - y).square().sum(-1)),
    "policy": lambda: seeded(Steer),
    "head": lambda: nn.Linear(2, 2),
    "A": lambda: matrices()["A"],
    "B": lambda: matrices()["B"],
    "Q": lambda: matrices()["Q"],
    "R": lambda: matrices()["R"],
    "horizon": lambda: 2,
    "T": lambda: 1.0,
    "mean0": lambda: torch.ones(2, dtype=D),
    "m0": lambda: torch.ones(2, dtype=D),
    "cov0": lambda: torch.eye(2, dtype=D),
    "N": lambda: 5,
    "trajectory": lambda: mfoc.rollout(problem(), controls(), cloud()),
    "step_size": lambda: 0.05,
    "m": lambda: 1,
    "axes": axes,
    "candidates": lambda: None,
    "formulation": maml,
    "tasks": task_cloud,
    "inner_steps": lambda: 1,
    "inner_lr": lambda: 0.1,
    "shots": lambda: 1,
    "ways": lambda: 2,
    "queries": lambda: 1,
    "activation": lambda: "tanh",
    "weight_variance": lambda: 1.5,
    "bias_variance": lambda: 0.1,
    "depth": lambda: 2,
    "widths": lambda: [4, 8],
    "make_net": lambda: widths_of,
    "potential": lambda: double_well,
    "minimum": lambda: -1.0,
    "barrier": lambda: 0.0,
    "curvature": lambda: 1.0,
    "hessian": lambda: torch.eye(2, dtype=D),
    "batch_size": lambda: 2,
    "momentum": lambda: 0.5,
    "target": density,
    "density": density,
    "confidence": lambda: 0.95,
    "prediction": prediction,
    "likelihood": lambda: "categorical",
    "params": lambda: [nn.Parameter(torch.ones(2))],
    "beta": lambda: 2.0,
    "iterate": lambda: solution().last,
    "samples": lambda: 3,
    "base_net": net,
}

# door.parameter, without "mfoc." and "paradigms."; or the name of the last part alone.
BY_DOOR: dict[str, Make] = {
    "AugmentedLagrangian.solver": solver,
    "Formulation.population": lambda: mfoc.population(normal(6, 2)),
    "Formulation.certify.controls": lambda: variational().problem.controls,
    "plot.curves.series": lambda: {"a": ([0.0, 1.0], [2.0, 1.0])},
    "plot.look.name": lambda: "E-MSA",
    "plot.solutions.found": lambda: {"a": solution()},
    "plot.animate.trajectories": lambda: mfoc.rollout(problem(), controls(), cloud()),
    "plot.animate.path": lambda: f"{tempfile.mkdtemp()}/cloud.gif",
    "plot.animate.frames": lambda: 2,
    "plot.cloud.states": lambda: mfoc.rollout(problem(), controls(), cloud()).states,
    "plot.principal_components.trajectory": lambda: mfoc.rollout(problem(), controls(), cloud()),
    "analysis.noise.NoiseScale.net": net,
    "analysis.noise.NoiseScale.loss": lambda: F.cross_entropy,
    "analysis.noise.NoiseScale.data": data,
    "analysis.noise.valid_sde.lr": lambda: 0.1,
    "analysis.noise.valid_sde.loss": lambda: F.cross_entropy,
    "analysis.noise.valid_sde.data": data,
    "analysis.noise.valid_sde.seeds": lambda: 2,
    "bayesian.variational.likelihood": lambda: "categorical",
    "Game.of.problem": problem,
    "Game.of.ball": lambda: mfoc.Ball(0.1),
    "information_bottleneck.loss": lambda: F.cross_entropy,
    "Minimax.inner": attack,
    "EMSA.inner": lambda: minimisers.LBFGS(2),
    "MSA.inner": lambda: minimisers.Descent(0.1),
    "certify.inner": lambda: None,
    "meanfield.Picard.inner": solver,
    "FreeTime.start": lambda: 1.0,
    "FreeTime.least": lambda: 0.5,
    "analysis.noise.kramers_time.diffusion": lambda: 0.5,
    "euler_maruyama.diffusion": lambda: 0.1,
    "Box.high": lambda: 1.0,
    "Particles.__getitem__.index": lambda: slice(0, 2),
    "Population.__call__.k": lambda: 0,
    "Population.__call__.step": lambda: 0,
    "optim.AdaptiveBatch.source": lambda: normal(16, 2),
    "optim.AdaptiveBatch.problem": problem,
    "optim.LearningRateControl.optimizer": lambda: sgd([nn.Parameter(torch.ones(2))]),
    "optim.OptimalAnnealing.optimizer": lambda: sgd([nn.Parameter(torch.ones(2))]),
    "optim.OptimalAnnealing.curvature": lambda: 1.0,
    "optim.OptimalAnnealing.noise": lambda: 0.1,
    "optim.OptimalAnnealing.m0": lambda: 1.0,
    "controls_of.source": solution,
    "covariance.x": lambda: normal(6, 2),
    "hamiltonian.x": lambda: normal(6, 2),
    "euler.x": lambda: normal(6, 2),
    "heun.x": lambda: normal(6, 2),
    "rk4.x": lambda: normal(6, 2),
    "rk38.x": lambda: normal(6, 2),
    "dopri5.__call__.x": lambda: normal(6, 2),
    "feedback.problem": per_row,
    "policy_of.problem": closed_loop,
    "policy_of.solution": lambda: mfoc.solve(closed_loop(), solver(), cloud(), steps=1),
    "with_head.problem": lambda: mfoc.from_module(net(), F.cross_entropy),
    "linear_policy.features": lambda: lambda t, x: x,
    "linear_policy.weight": lambda: torch.zeros(2, 2),
    "certify_module.data": data,
    "to_module.controls": lambda: mfoc.from_module(net(), F.cross_entropy).controls,
    "hjb.Grid.axes": lambda: tuple(axes()),
    "hjb.solve.problem": line,
    "hjb.fit.problem": line,
    "hjb.verify.problem": line,
    "hjb.fit.population": lambda: normal(8, 1, dtype=D),
    "hjb.fit.steps": lambda: 2,
    "hjb.fit.candidates": lambda: torch.linspace(-1, 1, 3, dtype=D)[:, None],
    "hjb.solve.candidates": lambda: torch.linspace(-1, 1, 3, dtype=D)[:, None],
    "hjb.verify.value": grid_value,
    "hjb.verify.population": lambda: normal(4, 1, dtype=D).clamp(-1, 1),
    "hjb.solve_bvp.drift": lambda: lambda t, x, u, z: u,
    "hjb.solve_bvp.terminal_cost": lambda: lambda x, z: x.square().sum(-1),
    "hjb.solve_bvp.running_cost": lambda: lambda t, x, u, z: u.square().sum() + 0 * x.sum(1),
    "hjb.solve_bvp.x0": lambda: torch.ones(1, dtype=D),
    "hjb.solve_bvp.control": lambda: torch.zeros(1, dtype=D),
    "hjb.Grid.coefficients.values": lambda: torch.ones(9, dtype=D),
    "hjb.Grid.evaluate.coefficients": lambda: torch.ones(11, dtype=D),
    "hjb.Grid.inside.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.Grid.nearest.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.GridValue.__call__.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.GridValue.closed_loop.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.GridValue.gradient.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.FittedValue.__call__.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.FittedValue.closed_loop.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.FittedValue.gradient.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.FittedValue.above_terminal.x": lambda: torch.ones(3, 1, dtype=D),
    "hjb.FittedValue.above_terminal.t": lambda: torch.zeros(3, 1, dtype=D),
    "hooks.Checkpoint.path": lambda: "/nowhere-at-all.pt"[1:],
    "hooks.Record.function": lambda: lambda iterate: 0.0,
    "hooks.CSV.path": lambda: f"{tempfile.mkdtemp()}/run.csv",
    "hooks.CSV.function": lambda: lambda iterate: {"half": iterate.step / 2},
    "hooks.Progress.quiet": lambda: True,
    "kernel_mean.x": lambda: normal(6, 2),
    "lq.LinearQuadratic.feedback.x": lambda: torch.ones(4, 2, dtype=D),
    "lq.equilibrium.problem": linear_quadratic,
    "meanfield.DensityProblem.x": lambda: torch.linspace(-2, 2, 21, dtype=D),
    "meanfield.DensityProblem.density": lambda: torch.full((21,), 1 / 4.2, dtype=D),
    "meanfield.DensityProblem.T": lambda: 0.2,
    "meanfield.DensityProblem.sigma": lambda: 0.5,
    "meanfield.DensityProblem.drift": lambda: None,
    "meanfield.DensityProblem.terminal_cost": lambda: None,
    "meanfield.DensityProblem.running_cost": lambda: None,
    "minimisers.check_minimiser.inner": lambda: minimisers.Descent(0.1),
    "networks.MaskedDropout.p": lambda: 0.5,
    "networks.MaskedDropout.key": lambda: "mask",
    "networks.Residual.block": lambda: nn.Linear(3, 3),
    "networks.refresh_averages.net": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    "networks.refresh_averages.batches": lambda: [normal(8, 3)],
    "population.source": lambda: normal(6, 2),
    "populations.as_particles.source": lambda: normal(6, 2),
    "populations.shuffled.size": lambda: 6,
    "populations.shuffled.epoch": lambda: 1,
    "seeding.mixed_seed.seed": lambda: 0,
    "seeding.seeded.seed": lambda: 0,
    "per_stage.controls": controls,
    "solvers.ddp.tracking.problem": per_row,
    "testing.check_formulation.formulation": variational,
    "tracking.solution": lambda: mfoc.solve(per_row(), mfoc.DDP(), cloud(), steps=1),
    "mean.x": lambda: normal(6, 2),
    "variance.x": lambda: normal(6, 2),
    "plot.certificate.certificates": lambda: mfoc.certify(problem(), solution(), cloud(), replicates=0),
    # analysis
    "analysis.information.gaussian_bottleneck.covariance_x": lambda: torch.eye(2, dtype=D),
    "analysis.information.gaussian_bottleneck.covariance_xy": lambda: 0.5 * torch.eye(2, dtype=D),
    "analysis.information.gaussian_bottleneck.covariance_y": lambda: torch.eye(2, dtype=D),
    "analysis.information.gaussian_information.covariance": lambda: torch.eye(2, dtype=D),
    "analysis.information.gaussian_information.noise": lambda: 0.5,
    "analysis.information.information_bottleneck.encoder": lambda: nn.Linear(3, 4),
    "analysis.information.information_bottleneck.decoder": lambda: nn.Linear(2, 2),
    "analysis.information.information_bottleneck.latent": lambda: 2,
    "analysis.information.information_bottleneck.beta": lambda: 0.1,
    "analysis.information.with_noise.latent": lambda: 2,
    "analysis.information.with_noise.source": data,
    "analysis.information.GaussianBottleneck.curve.betas": lambda: torch.tensor([1.5, 3.0], dtype=D),
    "analysis.kernel.infinite_kernels.activation": lambda: "relu",
    "analysis.kernel.KernelPredictor.activation": lambda: "relu",
    "analysis.kernel.KernelPredictor.fit.y": lambda: normal(8, 2, seed=1),
    "analysis.kernel.KernelPredictor.with_best_ridge.y": lambda: normal(8, 2, seed=1),
    "analysis.kernel.drift_against_width.train": lambda: train,
    "analysis.kernel.drift_against_width.x": lambda: normal(3, 3),
    "analysis.kernel.laziness.trajectory": lambda: [dict(net().state_dict()), dict(net().state_dict())],
    "analysis.kernel.laziness.y": lambda: None,
    "analysis.kernel.ntk_convergence.loss": lambda: F.mse_loss,
    "analysis.kernel.ntk_convergence.y": lambda: normal(8, 2, seed=1),
    "analysis.noise.stationary_density.grid": lambda: torch.linspace(-2, 2, 21, dtype=D),
    "analysis.noise.annealing_control.m": lambda: 1.0,
    "analysis.noise.momentum_control.m": lambda: 1.0,
    "analysis.noise.optimal_annealing.m0": lambda: 1.0,
    "analysis.noise.flat_against_sharp.flat": lambda: 1.0,
    "analysis.noise.flat_against_sharp.sharp": lambda: 4.0,
    "analysis.noise.flat_against_sharp.height": lambda: 1.0,
    "analysis.noise.flat_against_sharp.diffusion": lambda: 0.3,
    "analysis.noise.mean_first_passage_time.start": lambda: -1.0,
    "analysis.noise.mean_first_passage_time.end": lambda: 0.5,
    "analysis.noise.escape_time.end": lambda: 0.5,
    "analysis.noise.escape_time.diffusion": lambda: 0.3,
    "analysis.noise.mean_first_passage_time.diffusion": lambda: 0.3,
    "analysis.noise.linear_regression_excess_risk.noise_variance": lambda: 0.1,
    "analysis.noise.linear_regression_excess_risk.second_moment": lambda: torch.eye(2, dtype=D),
    "analysis.noise.linear_regression_excess_risk.lr": lambda: 0.1,
    "analysis.noise.modified_equation.gradient": lambda: lambda x: x,
    "analysis.noise.modified_equation.covariance": lambda: 0.1,
    "analysis.noise.momentum_stationary_variance.hessian_eigenvalue": lambda: 1.0,
    "analysis.noise.momentum_stationary_variance.noise": lambda: 0.1,
    "analysis.noise.annealing_control.noise": lambda: 0.1,
    "analysis.noise.momentum_control.noise": lambda: 0.1,
    "analysis.noise.optimal_annealing.noise": lambda: 0.1,
    "analysis.noise.ou_stationary_covariance.noise": lambda: torch.eye(2, dtype=D),
    "analysis.noise.sgd_stationary_covariance.noise": lambda: torch.eye(2, dtype=D),
    "analysis.noise.stationary_density.noise": lambda: 0.5,
    "analysis.noise.svag_weights.l": lambda: 2,
    "analysis.noise.ModifiedEquation.start.weights": lambda: torch.ones(3, 2, dtype=D),
    "analysis.noise.DoubleWell.__call__.x": lambda: torch.linspace(-1, 1, 3, dtype=D),
    "analysis.noise.valid_sde.steps": lambda: 3,
    "analysis.propagation.critical_line.bias_variance": lambda: 0.1,
    "analysis.propagation.phase_diagram.weight_variances": lambda: torch.tensor([0.5, 2.0], dtype=D),
    "analysis.propagation.phase_diagram.bias_variances": lambda: torch.tensor([0.1, 0.2], dtype=D),
    "analysis.propagation.ResidualPropagation.branch_weight_variance": lambda: 1.0,
    "analysis.propagation.ResidualPropagation.branch_bias_variance": lambda: 0.1,
    "analysis.propagation.ResidualPropagation.gradient_factor.p": lambda: 1.0,
    "analysis.propagation.SignalPropagation.correlation_map.c": lambda: 0.5,
    "analysis.propagation.SignalPropagation.length_map.q": lambda: 1.0,
    "analysis.propagation.delta_orthogonal_.weight": lambda: torch.zeros(4, 4, 3, 3),
    "analysis.propagation.orthogonal_.weight": lambda: torch.zeros(4, 4),
    "analysis.propagation.mup_groups.optimizer": lambda: "adam",
    "analysis.propagation.width_check.optimizer": lambda: sgd,
    "analysis.propagation.width_check.loss": lambda: None,
    "analysis.propagation.PhaseDiagram.phase.row": lambda: 0,
    "analysis.propagation.PhaseDiagram.phase.column": lambda: 0,
    "analysis.propagation.PhaseDiagram.share.phase": lambda: "ordered",
    "analysis.propagation.diagnose.loss": lambda: None,
    "InformationBottleneck.rates.solution": lambda: bottleneck().controls,
    "InformationBottleneck.rates.source": lambda: information.with_noise(data(), 2),
    "ModifiedEquation.problem.steps": lambda: 2,
    "ModifiedEquation.simulate.weights": lambda: torch.ones(3, 2, dtype=D),
    "ModifiedEquation.weights.state": lambda: torch.ones(3, 2, dtype=D),
    "ModifiedEquation.diffusion.x": lambda: torch.ones(3, 2, dtype=D),
    "ModifiedEquation.drift.x": lambda: torch.ones(3, 2, dtype=D),
    "NetworkProblem.readout.solution": lambda: mfoc.from_module(net(), F.cross_entropy).controls,
    "networks.NetworkProblem.readout.solution": lambda: mfoc.from_module(net(), F.cross_entropy).controls,
    "Problem.validate.particles": cloud,
    "adversarial.GameFormulation.certify.maximiser": attack,
    "certify.replicates": lambda: 0,
    "adversarial.certify.restarts": lambda: 1,
    "hooks.load.path": checkpoint,
    "band.x": lambda: torch.linspace(-1, 1, 8),
    "band.prediction": lambda: regression(),
    "Robustness.__getitem__.attack": lambda: "FGSM",
    "Robustness.under.attack": lambda: "FGSM",
    "meta.Learner.adapt.allow_nograd": lambda: True,
    "meta.Learner.adapt.allow_unused": lambda: True,
    "meta.Learner.adapt.loss": loss_of_clone,
    # paradigms
    "adversarial.FromTorchattacks.attack": lambda: lambda model: model,
    "adversarial.YOPO.m": lambda: 1,
    "adversarial.YOPO.n": lambda: 1,
    "adversarial.Free.replays": lambda: 1,
    "adversarial.as_attack.formulation": lambda: game((0.0, 1.0)),
    "adversarial.as_attack.maximiser": attack,
    "adversarial.certify.formulation": game,
    "adversarial.certify.solution": game_solution,
    "adversarial.certify.maximiser": attack,
    "adversarial.evaluate.data": lambda: (0.5 + 0.1 * normal(8, 3).clamp(-1, 1), labels()),
    "adversarial.game.data": lambda: (0.5 + 0.1 * normal(8, 3).clamp(-1, 1), labels()),
    "adversarial.wilson.successes": lambda: 3,
    "adversarial.wilson.trials": lambda: 5,
    "adversarial.GameFormulation.certify.solution": game_solution,
    "bayesian.CrossEntropy.inner": solver,
    "bayesian.GaussianDrift.mean": lambda: torch.zeros(2),
    "bayesian.GaussianDrift.covariance": lambda: torch.eye(2),
    "bayesian.Stein.kernel": lambda: bayesian.RBF(),
    "bayesian.Stein.rule": lambda: bayesian.PlainRule(),
    "bayesian.svgd.kernel": lambda: bayesian.RBF(),
    "bayesian.LogDensity.function": lambda: lambda x: -x.square().sum(-1),
    "bayesian.LogDensity.shapes": lambda: {"x": torch.Size([2])},
    "bayesian.LogDensity.like": lambda: torch.zeros(2),
    "bayesian.LogDensity.__call__.x": lambda: normal(4, 2),
    "bayesian.LogDensity.score.x": lambda: normal(4, 2),
    "bayesian.LogDensity.named.x": lambda: normal(4, 2),
    "bayesian.LogDensity.unravel.x": lambda: normal(4, 2),
    "bayesian.LogDensity.initial.n": lambda: 4,
    "bayesian.LogDensity.ravel.parameters": lambda: {"x": normal(4, 2)},
    "bayesian.LogLikelihood.function": lambda: lambda output, y: -(output - y).square().sum(-1),
    "bayesian.NegativeLogLikelihood.function": lambda: lambda output, y: (output - y).square().sum(-1),
    "bayesian.bridge_matching.made": follmer,
    "bayesian.bridge_matching.ends": lambda: normal(8, 2),
    "accuracy_curves.tables": lambda: {"net": robustness()},
    "accuracy_curves.attack": lambda: "FGSM",
    "bayesian.calibration.curves": lambda: {"net": bayesian.reliability(prediction(), labels())},
    "bayesian.discrepancy.score": lambda: normal(8, 3, seed=1),
    "bayesian.ensemble.draws": lambda: {k: torch.stack([v, v]) for k, v in net().state_dict().items()},
    "bayesian.langevin.step": lambda: 0.01,
    "bayesian.svgd.step": lambda: 0.01,
    "bayesian.langevin.steps": lambda: 2,
    "bayesian.log_density.source": lambda: lambda x: -x.square().sum(-1),
    "bayesian.log_density.like": lambda: torch.zeros(2),
    "bayesian.log_density.data": lambda: None,
    "bayesian.predict.posterior": posterior,
    "bayesian.rmse.prediction": lambda: normal(8, 2),
    "bayesian.rmse.y": lambda: normal(8, 2, seed=1),
    "bayesian.sample.formulation": langevin,
    "bayesian.variational.model": net,
    "bayesian.to_potential.data": lambda: None,
    "bayesian.Evidence.posterior.n": lambda: 4,
    "bayesian.Prediction.log_prob.y": labels,
    "bayesian.Potential.posterior.samples": lambda: {"x": normal(4, 2)},
    "bayesian.Follmer.evaluate.solution": lambda: of_one_step(follmer),
    "bayesian.follmer.policy": lambda: bayesian.Drift(2, hidden=4, layers=1),
    "load.name": lambda: "meta",
    "meta.Coordinatewise.net": lambda: nn.Linear(2, 1),
    "meta.adapt.solution": lambda: of_one_step(maml),
    "meta.evaluate.solution": lambda: of_one_step(maml),
    "meta.to_learn2learn.solution": lambda: of_one_step(maml),
    "meta.residuals.formulation": imaml,
    "meta.residuals.solution": lambda: of_one_step(imaml),
    "meta.adapt.support": lambda: (normal(5, 3), normal(5, 2, seed=1)),
    "meta.few_shot.x": lambda: normal(12, 3),
    "meta.few_shot.y": lambda: labels(12, 3),
    "meta.few_shot.tasks": lambda: 2,
    "meta.from_learn2learn.algorithm": lambda: _learn2learn(),
    "meta.from_taskset.taskset": TaskSet,
    "meta.from_taskset.tasks": lambda: 2,
    "meta.sinusoids.tasks": lambda: 2,
    "meta.learned_update.rule": lambda: meta.Coordinatewise(nn.Linear(2, 1)),
    "meta.imaml.strength": lambda: 1.0,
    "meta.tasks.support": lambda: (normal(3, 5, 3), normal(3, 5, 2, seed=1)),
    "meta.tasks.query": lambda: (normal(3, 5, 3), normal(3, 5, 2, seed=1)),
    "meta.Adaptation.__getitem__.steps": lambda: 1,
    **{
        f"meta.{name}.loss": lambda: F.mse_loss
        for name in ("maml", "anil", "meta_sgd", "reptile", "imaml", "learned_update", "from_learn2learn")
    },
    **{f"meta.{name}.{part}": lambda: None for name in ("evaluate", "residuals") for part in ("tasks",)},
}

# What a method is called on.
INSTANCES: dict[str, Make] = {
    "Particles": cloud,
    "Population": lambda: mfoc.population(normal(6, 2), batch_size=2),
    "Problem": problem,
    "Formulation": variational,
    "dopri5": lambda: mfoc.dopri5(),
    "Record": lambda: hooks.Record(lambda iterate: 0.0),
    "Grid": lambda: hjb.Grid(tuple(axes())),
    "GridValue": grid_value,
    "FittedValue": lambda: _fitted(),
    "LinearQuadratic": linear_quadratic,
    "DensityProblem": density_problem,
    "DoubleWell": lambda: noise.flat_against_sharp(1.0, 4.0, 1.0, diffusion=0.3).well,
    "NTKOperator": lambda: kernel.NTKOperator(net(), normal(4, 3)),
    "KernelPredictor": lambda: kernel.KernelPredictor("relu", 2, ridge=0.1),
    "FittedKernel": lambda: kernel.KernelPredictor("relu", 2, ridge=0.1).fit(normal(8, 3), labels()),
    "GaussianBottleneck": lambda: information.gaussian_bottleneck(
        torch.eye(2, dtype=D), 0.5 * torch.eye(2, dtype=D), torch.eye(2, dtype=D), beta=8.0
    ),
    "Annealing": lambda: noise.optimal_annealing(1.0, 0.1, 1.0, 0.1),
    "PhaseDiagram": lambda: propagation.phase_diagram(
        "tanh", torch.tensor([0.5, 2.0], dtype=D), torch.tensor([0.1, 0.2], dtype=D)
    ),
    "SignalPropagation": lambda: propagation.SignalPropagation("tanh", 1.5, 0.1),
    "ResidualPropagation": lambda: propagation.ResidualPropagation("tanh", 1.5, 0.1, 1.0, 0.1),
    "LogDensity": density,
    "Evidence": evidence,
    "Follmer": follmer,
    "NetworkPosterior": posterior,
    "Ensemble": lambda: bayesian.ensemble(
        net(), {k: torch.stack([v, v]) for k, v in net().state_dict().items()}, likelihood="categorical"
    ),
    "Draws": lambda: bayesian.sample(langevin(), steps=2),
    "Sampler": langevin,
    "GameFormulation": game,
    "MetaFormulation": maml,
    "Adaptation": lambda: meta.evaluate(maml(), of_one_step(maml), steps=(1,), progress=False),
    "Potential": lambda: bayesian.to_potential(density()),
    "Learner": clone,
    "Equilibrium": lambda: mfoc.Equilibrium(problem()),
    "Game": lambda: mfoc.Game.of(problem(), mfoc.Ball(0.1)),
    "WithHead": lambda: mfoc.with_head(problem(), lambda x, u, z: x @ u, torch.eye(2)),
    "Feedback": closed_loop,
    "InformationBottleneck": bottleneck,
    "ModifiedEquation": lambda: noise.modified_equation(lambda x: x, 0.1, lr=0.1),
    "NoiseScales": lambda: noise.noise_scale(net(), F.cross_entropy, (normal(64, 3), labels(64)), draws=8, groups=8),
    "NetworkProblem": lambda: mfoc.from_module(net(), F.cross_entropy),
    "Robustness": lambda: adversarial.evaluate(
        net(), (normal(8, 3).sigmoid(), labels()), epsilon=0.1, attacks={"FGSM": maximisers.FGSM()}, progress=False
    ),
}

_unused = (analysis, cache, partial)


def warm_up() -> None:
    """Imports what is imported where it is used, so that no call's time goes into it."""
    import importlib
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in ("matplotlib.figure", "scipy.integrate", "pyro.infer", "torchattacks", "rich.progress"):
            importlib.import_module(module)
        solution()
        _learn2learn()


def _learn2learn() -> Any:
    import learn2learn

    return learn2learn.algorithms.MAML(net(), lr=0.1)


def maker(door: str, parameter: str) -> Make | None:
    """How to make a good argument; None when nobody said how."""
    return next((BY_DOOR[key] for key in _keys(door, parameter) if key in BY_DOOR), BY_NAME.get(parameter))


def is_own(door: str, parameter: str) -> bool:
    """Whether a door has an argument of its own, which is given even where there is a default."""
    return any(key in BY_DOOR for key in _keys(door, parameter))


def _keys(door: str, parameter: str) -> list[str]:
    parts = door.removeprefix("mfoc.").removeprefix("paradigms.").split(".")
    return [f"{'.'.join(parts[k:])}.{parameter}" for k in range(len(parts))]
