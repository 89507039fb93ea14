"""Results to draw: ordinary ones, and those at the edge (one point, NaN, all alike, no width, a single class)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mfoc
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
from tests.problems import mlp

Case = Callable[[], Any]
SEEN: Any = None  # what is not drawn


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def game_certificate(low: float = 0.01, high: float = 0.03) -> GameCertificate:
    """Of a game whose minimiser's part is certified quickly."""
    problem, cloud = mlp()
    part = mfoc.certify(problem, problem.controls, cloud, lanczos=2, groups=2)
    gap = Estimate(0.02, low, high)
    return GameCertificate(part, gap, gap, 0.9, 0.92, 0.4, 0.95)


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
