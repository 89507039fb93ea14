"""Results to draw: ordinary ones, and those at the edge (one point, NaN, all alike, no width, a single class)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import hjb, lq, meanfield
from mfoc.analysis.information import (
    KDE,
    Bounds,
    InformationPlane,
    LayerInformation,
    gaussian_bottleneck,
)
from mfoc.analysis.kernel import (
    FittedKernel,
    KernelPredictor,
    Laziness,
    NTKConvergence,
    WidthDrift,
    infinite_kernels,
)
from mfoc.analysis.kernel.theorem import Theorem
from mfoc.analysis.noise import (
    Alignment,
    GradientNoise,
    NoiseScale,
    NoiseScales,
    Scale,
    Sharpness,
    ValidSDE,
    flat_against_sharp,
    optimal_annealing,
)
from mfoc.analysis.propagation import (
    Initialisation,
    ResidualPropagation,
    SignalPropagation,
    WidthCheck,
    diagnose,
    phase_diagram,
)
from mfoc.analysis.propagation.initialisation.report import InitialisedBlock
from mfoc.analysis.propagation.width.report import LayerWidth, Slope
from mfoc.hjb.bellman import bellman
from mfoc.optim.batch import AdaptiveBatch, Measurement
from paradigms.adversarial.certificate import GameCertificate
from paradigms.adversarial.evaluation import Accuracy, Robustness, wilson
from paradigms.adversarial.plots import accuracy_curves
from paradigms.bayesian.laws.prediction import of_classes, of_numbers
from paradigms.bayesian.metrics import reliability
from paradigms.bayesian.plots import calibration
from paradigms.bayesian.samplers.follmer import Evidence
from paradigms.bayesian.samplers.runs import Draws
from paradigms.meta.evaluation import Adaptation, Adapted
from paradigms.reporting import Estimate
from tests.problems import linear_quadratic, mlp

Case = Callable[[], Any]
SEEN: Any = None  # what is not drawn


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the core


def line() -> mfoc.Problem:
    """A scalar state pushed to zero, with a box around the controls."""
    return mfoc.Problem(
        lambda t, x, u, z: x + 0.5 * u,
        lambda x, z: x.square().sum(1),
        [torch.zeros(1, dtype=torch.float64) for _ in range(2)],
        running_cost=lambda t, x, u, z: 0.1 * u.square().sum(-1) + 0 * x.sum(1),
        bounds=mfoc.Box(-1.0, 1.0),
    )


def solution(steps: int = 2, optimizer: Any = torch.optim.Adam) -> mfoc.Solution:
    """Of a small problem; of no step at all, too."""
    problem, cloud = linear_quadratic()[:2]
    return mfoc.solve(problem, mfoc.Gradient(partial(optimizer, lr=0.1)), cloud, steps=steps)


def interrupted() -> mfoc.Solution:
    """Stopped from outside after a step."""

    def stop(iterate: mfoc.Iterate) -> None:
        if iterate.step:
            raise KeyboardInterrupt

    problem, cloud = linear_quadratic()[:2]
    return mfoc.solve(problem, mfoc.MSA(), cloud, steps=3, hooks=[stop])


def broken() -> mfoc.Solution:
    """Of states that are not finite."""
    problem = mfoc.Problem(lambda t, x, u, z: 1e200 * x + u, lambda x, z: x.square().sum(1), [numbers(2)] * 3)
    return mfoc.solve(problem, mfoc.MSA(), numbers(5, 2), steps=3)


def path(times: int = 5, states: int = 2) -> lq.Path:
    """Of a mean."""
    return lq.Path(numbers(times, states), numbers(max(times - 1, 1), 1), numbers(1)[0])


def lq_equilibrium() -> lq.Equilibrium:
    """Among players of one state."""
    eye = torch.eye(1, dtype=torch.float64)
    problem = lq.LinearQuadratic.discrete(0.5 * eye, eye, Q=eye, R=eye, Qbar=eye, horizon=4)
    return lq.equilibrium(problem, torch.ones(1, dtype=torch.float64))


def extremal(times: int = 12, states: int = 2, converged: bool = True) -> hjb.Extremal:
    """Of so many states, more than six of which are not drawn."""
    t = torch.linspace(0, 1, times, dtype=torch.float64)
    x, p, u = (numbers(times, width, seed=width) for width in (states, states, 1))
    return hjb.Extremal(t, x, p, u, 1.5, 1e-7, converged, "said")


def fitted(dimension: int = 1) -> hjb.FittedValue:
    """A network that was never fitted."""
    zero, one = numbers(dimension), torch.ones(dimension, dtype=torch.float64)
    torch.manual_seed(0)
    net = torch.nn.Linear(1 + dimension, 1).double()
    made = bellman(line(), numbers(4, dimension), None, None, 1, None)
    return hjb.FittedValue(made, net, zero, one, one[0])


def density(nodes: int = 9, times: int = 5, scale: float = 1.0) -> meanfield.DensitySolution:
    """On a grid."""
    m = numbers(times, nodes).abs()
    return meanfield.DensitySolution(
        torch.linspace(0, 1, times).double(), m / m.sum(1, keepdim=True), m, scale * numbers(times - 1, nodes),
        1.0, 3, 1e-7, True,
    )  # fmt: skip


def verification(count: int = 20, error: bool = True) -> hjb.Verification:
    """What the policy pays beside what the value function says."""
    value = numbers(count).abs()
    return hjb.Verification(value, 1.01 * value, numbers(3).abs() if error else None, "it is of noise", 0.0)


CORE: dict[str, Case] = {
    "solution": lambda: solution().plot(),
    "solution of one step": lambda: solution(1).plot(),
    "solution of no step": lambda: solution(0).plot(),
    "solutions": lambda: solution().plot(solution(optimizer=torch.optim.SGD), solution()),
    "solution, interrupted": lambda: interrupted().plot(),
    "solution, not finite": lambda: broken().plot(solution()),
    "anarchy": lambda: meanfield.PriceOfAnarchy(solution(1), solution(2)).plot(),
    "exploitability": lambda: meanfield.Exploitability(0.1, 2.0, solution()).plot(),
    "certificate": lambda: certified().plot(),
    "trajectory": lambda: mfoc.Trajectory([numbers(9, 2), numbers(9, 2, seed=1)], numbers(9)).plot(),
    "mean path": lambda: path().plot(),
    "mean path of one stage": lambda: path(2, 1).plot(),
    "mean path of many states": lambda: path(100, 12).plot(),
    "equilibrium of lq": lambda: lq_equilibrium().plot(),
    "closed loop": lambda: hjb.ClosedLoop([numbers(9, 2)] * 3, [numbers(9, 1)] * 2, numbers(9)).plot(),
    "closed loop of one path": lambda: hjb.ClosedLoop([numbers(1, 1)] * 2, [numbers(1, 1)], numbers(1)).plot(),
    "extremal": lambda: extremal().plot(),
    "extremal, not converged": lambda: extremal(2, 9, False).plot(),
    "verification": lambda: verification().plot(),
    "verification of one path": lambda: verification(1, False).plot(),
    "density": lambda: density().plot(torch.linspace(-1, 1, 9)),
    "density, not finite": lambda: density(scale=math.nan).plot(),
    "value on a grid": lambda: hjb.solve(
        line(), [torch.linspace(-2, 2, 9).double()], candidates=torch.linspace(-1, 1, 3).double()[:, None]
    ).plot(1),
    "fitted value": lambda: fitted().plot(),
    "fitted value of two states": lambda: fitted(2).plot(2),
    "fitted value of nine states": lambda: fitted(9).plot(1),
}


# ---- adversarial


def table(epsilon: float, right: dict[str, int], total: int = 200) -> Robustness:
    """Accuracies of a network at a radius."""
    rows = [Accuracy(name, count, total, *wilson(count, total), 0.1) for name, count in right.items()]
    return Robustness(rows, mfoc.Ball(epsilon), 0.95)


def radii(scale: float = 1.0) -> list[Robustness]:
    """Tables of one network at four radii."""
    return [
        table(e, {"clean": 190, "FGSM": int(190 - 300 * scale * e), "PGD-20": int(190 - 450 * scale * e)})
        for e in (0.1, 0.2, 0.3, 0.4)
    ]


def robustness_curves() -> Any:
    """One network, two attacks, four radii."""
    first, *others = radii()
    return first.plot(*others)


@cache
def certified() -> mfoc.Certificate:
    """Of a small network."""
    problem, cloud = mlp()
    return mfoc.certify(problem, problem.controls, cloud, lanczos=2, groups=2)


def game_certificate(low: float = 0.01, high: float = 0.03) -> GameCertificate:
    """Of a game whose minimiser's part is certified quickly."""
    gap = Estimate(0.02, low, high)
    return GameCertificate(certified(), gap, gap, 0.9, 0.92, 0.4, 0.95)


# ---- Bayesian


def regression(count: int = 50, noise: float | None = 0.2) -> tuple[Tensor, Any]:
    """Inputs of one variable and a prediction, surer in the middle."""
    x = torch.linspace(-3, 3, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)
    means = x.sin() + 0.1 * (1 + x.abs()) * numbers(30, 1)
    variances = None if noise is None else torch.full_like(means, noise**2)
    return x, of_numbers(means, variances, lambda y: y)


def classes(count: int = 60, classes: int = 3) -> tuple[Tensor, Any]:
    """Inputs of one variable and a prediction of classes."""
    x = torch.linspace(-3, 3, count, dtype=torch.float64)
    logits = torch.stack([k * x for k in range(classes)], -1) + (1 + x.abs())[:, None] * numbers(40, 1, classes)
    return x, of_classes(logits.softmax(-1), lambda y: y)


def regression_figure(**settings: Any) -> Any:
    """With observations."""
    x, prediction = regression()
    return prediction.plot(x[:, None], data=(x[::5], x[::5].sin()), x_label="time [s]", y_label="height [m]")


def evidence(count: int = 2000, spread: float = 1.0, dead: int = 0) -> Evidence:
    """Weighted paths with log Z of about zero."""
    logs = spread * numbers(count) - spread**2 / 2
    logs[:dead] = -math.inf
    return Evidence.of(numbers(count, 2), logs, SEEN)


def draws(dimensions: int, clouds: int = 5) -> Draws:
    """Of a sampler."""
    return Draws(numbers(clouds, 40, dimensions), None, torch.linspace(0.5, 0.9, 30), SEEN, 30)


def calibrations() -> Any:
    """Two networks, one of which is too sure."""
    y = torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(1))
    logits = 2 * torch.nn.functional.one_hot(y, 3) + numbers(400, 3)
    return calibration({k: reliability((s * logits).softmax(1), y) for k, s in (("standard", 4.0), ("bayesian", 1.0))})


# ---- meta


def adaptation(*steps: int, scale: float = 1.0, accuracy: bool = False, width: float = 0.2) -> Adaptation:
    """Losses that fall with inner steps."""
    rows = []
    for k in steps:
        value = scale / (1 + k)
        share = Estimate(1 - 0.5 / (1 + k), 0.9 - 0.5 / (1 + k), min(1.0, 1.1 - 0.5 / (1 + k))) if accuracy else None
        rows.append(Adapted(k, Estimate(value, value - width, value + width), share))
    return Adaptation(rows, 100, 0.95)


def beside() -> Any:
    """Three learners."""
    others = {"not meta-learned": adaptation(0, 1, 5, 10, scale=3), "Reptile": adaptation(0, 1, 5, 10, scale=1.5)}
    return adaptation(0, 1, 5, 10).plot(label="MAML", beside=others)


PARADIGMS: dict[str, Case] = {
    "robustness": lambda: radii()[0].plot(),
    "robustness against the radius": robustness_curves,
    "robustness of two networks": lambda: accuracy_curves({"standard": radii(), "adversarial": radii(0.3)}),
    "robustness, no attack": lambda: table(0.1, {"clean": 3}, 3).plot(),
    "robustness, all wrong": lambda: table(0.1, {"clean": 0, "PGD-20": 0}, 1).plot(),
    "game": lambda: game_certificate().plot(),
    "game, unbounded": lambda: game_certificate(-math.inf, math.inf).plot(),
    "prediction of numbers": regression_figure,
    "prediction without noise": lambda: regression(noise=None)[1].plot(regression()[0]),
    "prediction at one input": lambda: regression(1)[1].plot(regression(1)[0]),
    "prediction of several variables": lambda: regression()[1].plot(data=regression()[0].sin()),
    "prediction of classes": lambda: classes()[1].plot(classes()[0], x_label="dose [mg]"),
    "prediction of classes, several variables": lambda: classes()[1].plot(title="Test images"),
    "prediction of a single class": lambda: classes(classes=1)[1].plot(classes()[0]),
    "prediction of classes at one input": lambda: classes(1)[1].plot(),
    "evidence": lambda: evidence().plot(exact=0.0),
    "evidence of one path": lambda: evidence(1).plot(),
    "evidence of equal weights": lambda: evidence(100, 0.0).plot(),
    "evidence with dead paths": lambda: evidence(500, 1.0, 100).plot(),
    "draws": lambda: draws(2).plot(),
    "draws of one variable": lambda: draws(1, 1).plot(),
    "calibration": calibrations,
    "calibration of one": lambda: reliability(torch.ones(4, 1, dtype=torch.float64), torch.zeros(4).long()).plot(),
    "adaptation": lambda: adaptation(0, 1, 5, 10).plot(),
    "adaptations": beside,
    "adaptation of classes": lambda: adaptation(0, 1, 2, 5, accuracy=True).plot(),
    "adaptation over decades": lambda: adaptation(0, 10, 1000, 2000, width=1e-3).plot(),
    "adaptation of one task": lambda: adaptation(1, 5, width=math.inf).plot(),
    "adaptation that diverged": lambda: adaptation(1, scale=math.nan).plot(),
}


# ---- analysis


def ntk(scale: float = 0.9, *, diverging: bool = False, steps: int = 40) -> NTKConvergence:
    """Training beside what the kernel predicts of it."""
    factor = 1.3 if diverging else scale
    predicted = factor ** torch.arange(steps + 1, dtype=torch.float64)
    measured = predicted * (1 + 0.1 * torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    if diverging:
        measured[-5:] = math.inf
    theorem = Theorem(("the activation is not ReLU",), None, None, None, None, None)
    return NTKConvergence(numbers(3).abs(), 0.1, 1.0, 2.0, 1.0, factor, True, predicted, measured, 0.1, theorem)


def lazy(count: int = 6, targets: bool = True) -> Laziness:
    """A kernel that turns a little."""
    t = torch.linspace(0, 1, count, dtype=torch.float64)
    return Laziness(0.4 * t, 0.05 * t, 1 + t, 0.3 + 0.4 * t if targets else None, t)


def width_drift(seeds: int = 3) -> WidthDrift:
    """Drifts that fall as one over the width."""
    widths = (32, 64, 128, 256)
    drifts = 3 / torch.tensor(widths, dtype=torch.float64)[:, None] * (0.2 * numbers(4, seeds)).exp()
    return WidthDrift(widths, drifts, -1.02, (-1.2, -0.8), 0.95)


def kernel_fit(dimensions: int = 1, *, count: int = 12, labels: bool = False) -> FittedKernel:
    """A Gaussian process of an infinitely wide network."""
    x = 2 * numbers(count, dimensions)
    y = (x[:, 0] > 0).long() if labels else x[:, 0].sin()
    return KernelPredictor("relu", depth=3, weight_variance=2.0, bias_variance=0.1, ridge=1e-2).fit(x, y)


def scales(noise: float = 40.0, *, status: str = "resolved") -> NoiseScales:
    """Noise scales, of which the second is less certain."""
    simple = Scale(noise, 0.7 * noise, 1.5 * noise, noise, 1.0, "resolved")
    curved = {
        "resolved": Scale(3 * noise, noise, 9 * noise, 3 * noise, 1.0, "resolved"),
        "unresolved": Scale(3 * noise, noise, math.inf, 3 * noise, 1.0, "unresolved"),
        "none": Scale(math.nan, 0.0, math.inf, 1.0, -1.0, "none"),
    }[status]
    return NoiseScales(simple, curved, 0.3, 1000, 64, 0.95)


def noise_hook(count: int = 5) -> Any:
    """A hook that has measured so many times."""
    hook = NoiseScale(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, (numbers(4, 1), numbers(4, 1)))
    hook.steps = [100 * k for k in range(count)]
    hook.values = [scales(20.0 * (1 + k), status="unresolved" if k == 2 else "resolved") for k in range(count)]
    return hook.plot()


def sharp(count: int = 5, lr: float | None = 0.1) -> Sharpness:
    """Eigenvalues that fall."""
    values = 15.0 / torch.arange(1, count + 1, dtype=torch.float64)
    return Sharpness(values, 0.02 * values, 30.0, 0.5, 100, lr, 0.0)


def sde(*, diverging: bool = False) -> Any:
    """SGD beside SVAG."""
    losses = tuple(1 + 0.1 * numbers(12, 1, seed=k) for k in range(3))
    if diverging:
        losses[0][:2] = math.nan
    gaps = torch.zeros(2, 1, dtype=torch.float64)
    return ValidSDE((1, 2, 4), losses, gaps, gaps - 0.05, gaps + 0.05, 0.1, 0.95, 0.1, 8).plot()


def gradient_noise_figure(kind: str = "full") -> Any:
    """Of twelve parameters, beside the Hessian where the covariance is whole."""
    spectrum = torch.logspace(0, -5, 12, dtype=torch.float64)
    aligned = Alignment(3.0, 2.0, 1.4, 0.1, 0.8, spectrum.sqrt() - 0.01) if kind == "full" else None
    covariance = spectrum.diag() if kind == "full" else {"weight": spectrum}
    return GradientNoise({"weight": numbers(12)}, kind, covariance, 1.0, 0.1, 0.5, 30, 12, aligned).plot()


def plane(count: int = 3) -> Any:
    """Three layers at a few moments, of which the last spans bounds."""
    moments = []
    for k in range(count):
        layers = tuple(
            LayerInformation(
                f"layer {n}",
                5,
                Bounds(3.0 - n + 0.2 * k, 3.2 - n + 0.2 * k),
                Bounds(0.2 + 0.1 * k, 0.3 + 0.1 * k),
                False,
            )
            for n in range(3)
        )
        moments.append(InformationPlane(layers, KDE(0.1), 40, 0.69))
    return moments[0].plot(*moments[1:])


def bottleneck(beta: float = 4.0, correlation: float = 0.8) -> Any:
    """Of two coordinates."""
    eye = torch.eye(2, dtype=torch.float64)
    return gaussian_bottleneck(eye, torch.diag(torch.tensor([correlation, correlation / 2]).double()), eye, beta).plot()


def initialisation(*chi: float) -> Any:
    """Blocks after initialisation."""
    blocks = tuple(InitialisedBlock(f"block {k}", 1.0 + 0.02 * k, value) for k, value in enumerate(chi))
    return Initialisation(blocks, 1.0, 1.0, "by theory", True).plot()


def diagnosed() -> Any:
    """A tanh network in its chaotic phase."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (torch.nn.Linear(20, 20), torch.nn.Tanh())]
    net = torch.nn.Sequential(*layers).double()
    for layer in layers[::2]:
        torch.nn.init.normal_(layer.weight, std=0.5)
    return diagnose(net, numbers(8, 20)).plot()


def widths_check(spread: float = 0.1) -> Any:
    """A layer that keeps its change and one whose change grows."""
    slopes = Slope(0.0, -0.1, 0.1), Slope(0.5, 0.4, 0.6)
    widths = [32, 64, 128]
    layers = []
    for name, slope in zip(("hidden", "output"), slopes, strict=True):
        at = torch.tensor(widths, dtype=torch.float64) ** slope.value
        sizes = at * (spread * numbers(4, 3)).exp()
        layers.append(LayerWidth(name, "Linear", sizes, sizes, slope, slope, slope.verdict(0.15)))
    return WidthCheck(widths, 3, 4, layers, [], [], 0.15, 0.95).plot()


def adaptive(count: int = 4) -> Any:
    """Batches that grew."""
    problem, _ = mlp()
    batches = AdaptiveBatch(numbers(20, 3), problem, batch_size=2)
    batches.measurements = [Measurement(100 * k, 2.0 * k or None, 1.0 * k or None, 2 + k) for k in range(count)]
    return batches.plot()


PROPAGATION: dict[str, Case] = {
    "signals, chaotic": lambda: SignalPropagation("tanh", 2.0, 0.05).plot(),
    "signals, critical relu": lambda: SignalPropagation("relu", 2.0).plot(),
    "signals that die": lambda: SignalPropagation("tanh", 0.5).plot(),
    "signals that diverge": lambda: SignalPropagation("relu", 3.0, 0.1).plot(),
    "course": lambda: SignalPropagation("tanh", 1.5, 0.05).iterate(30).plot(),
    "course of one layer": lambda: SignalPropagation("tanh", 1.5, 0.05).iterate(1).plot(),
    "course that diverges": lambda: SignalPropagation("relu", 9.0).iterate(40).plot(),
    "residual": lambda: ResidualPropagation("relu", 2.0, 0.0, 0.2, 0.0).plot(),
    "residual of one block": lambda: ResidualPropagation("tanh", 1.0, 0.1, 0.2, 0.1).plot(1, c0=None),
    "phases": lambda: phase_diagram("tanh", torch.linspace(0.5, 4, 24), torch.linspace(0, 0.3, 16)).plot(),
    "phases of relu": lambda: phase_diagram("relu", torch.linspace(0.5, 4, 8), torch.linspace(0, 0.3, 8)).plot(),
    "initialisation": lambda: initialisation(1.0, 1.03, 0.98, 1.2, math.nan),
    "initialisation of nothing": lambda: initialisation(math.nan),
    "diagnosis": diagnosed,
    "widths": widths_check,
    "widths, no spread": lambda: widths_check(0.0),
}
KERNELS: dict[str, Case] = {
    "convergence": lambda: ntk().plot(),
    "convergence that diverges": lambda: ntk(diverging=True).plot(),
    "convergence of no step": lambda: ntk(steps=0).plot(),
    "laziness": lambda: lazy().plot(),
    "laziness of two places": lambda: lazy(2, targets=False).plot(),
    "drift against width": lambda: width_drift().plot(),
    "drift of one seed": lambda: width_drift(1).plot(),
    "fitted kernel": lambda: kernel_fit().plot(),
    "fitted kernel, several variables": lambda: kernel_fit(3, count=40).plot(),
    "fitted kernel of classes": lambda: kernel_fit(2, count=40, labels=True).plot(),
    "fitted kernel of one point": lambda: kernel_fit(count=1).plot(),
    "infinite kernels": lambda: infinite_kernels(
        numbers(20, 3), activation="relu", depth=3, weight_variance=2.0
    ).plot(),
    "infinite kernels of one pair": lambda: infinite_kernels(numbers(1, 3), activation="relu", depth=3).plot(),
}
NOISE: dict[str, Case] = {
    "noise": gradient_noise_figure,
    "noise, diagonal": lambda: gradient_noise_figure("diagonal"),
    "noise scales": lambda: scales().plot(),
    "noise scales, one unresolved": lambda: scales(status="unresolved").plot(),
    "noise scales, one missing": lambda: scales(status="none").plot(),
    "noise scales in training": noise_hook,
    "noise scales at one step": lambda: noise_hook(1),
    "sharpness": lambda: sharp().plot(),
    "sharpness without a rate": lambda: sharp(1, None).plot(),
    "stochastic equation": sde,
    "stochastic equation, diverging": lambda: sde(diverging=True),
    "escape": lambda: flat_against_sharp(1.0, 4.0, 1.0, 0.1).plot(),
    "escape from two alike": lambda: flat_against_sharp(1.0, 1.0, 1.0, 1e-4).plot(),
    "annealing": lambda: optimal_annealing(2.0, 1.0, 1.0, 0.1).plot(3.0),
    "annealing for ever": lambda: optimal_annealing(2.0, 0.0, 1.0, 0.1).plot(3.0),
    "adaptive batches": adaptive,
    "adaptive batches, unmeasured": lambda: adaptive(0),
}
INFORMATION: dict[str, Case] = {
    "information plane": plane,
    "information plane at one moment": lambda: plane(1),
    "bottleneck": bottleneck,
    "bottleneck that keeps nothing": lambda: bottleneck(0.5, 0.0),
}
ANALYSIS = {**PROPAGATION, **KERNELS, **NOISE, **INFORMATION}
