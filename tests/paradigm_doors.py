"""Doors of the paradigms, each with small inputs in float64: walked under modes and devices that are torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms import adversarial, bayesian, meta
from tests.devices.public import Put, classified
from tests.problems import D, normal, seeded

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def robust(put: Put) -> Any:
    net, loss, data = classified(put)
    made = adversarial.game(net, loss, data, epsilon=0.1, bounds=None)
    return made.solve(mfoc.Minimax(adversarial.PGD(2), partial(torch.optim.SGD, lr=0.1)), steps=1).controls


def attacked(put: Put) -> Any:
    net, _, data = classified(put)
    return [adversarial.evaluate(net, data, epsilon=0.1, bounds=None, attacks={"PGD": adversarial.PGD(2)})["PGD"].value]


def game_certificate(put: Put) -> Any:
    net, loss, data = classified(put)
    made = adversarial.game(net, loss, data, epsilon=0.1, bounds=None)
    return [made.certify(made.problem, maximiser=adversarial.PGD(2), lanczos=2, groups=2).present]


def wave() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)))


def adapted(make: Any, put: Put) -> Any:
    made = make(put(wave()), F.mse_loss, meta.sinusoids(tasks=2, dtype=D, device="cpu"), inner_steps=2, inner_lr=0.01)
    x = put(normal(5, 1))
    return list(meta.adapt(made, made.problem, (x, put(normal(5, 1, seed=1)))).parameters())


def learned(make: Any, put: Put) -> Any:
    tasks = meta.sinusoids(tasks=2, dtype=D, device="cpu")
    return make(put(wave()), F.mse_loss, tasks, inner_steps=2, inner_lr=0.01).solve(ADAM, steps=1).controls


def posterior(put: Put) -> Any:
    x = put(normal(6, 3))
    net = put(seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))))
    made = bayesian.variational(net, (x, x.sum(1, keepdim=True)), likelihood="gaussian", samples=2)
    found = made.readout(made.solve(ADAM, steps=1))
    return [bayesian.predict(found, x, samples=2).mean]


def target(put: Put) -> bayesian.LogDensity:
    return bayesian.log_density(lambda x: -x.square().sum(1), like=put(torch.zeros(2, dtype=D, device="cpu")))


def drawn(make: Any, put: Put) -> Any:
    return [bayesian.sample(make(target(put), step=0.1, steps=2, particles=4)).x]


def score(put: Put) -> Any:
    return [target(put).score(put(normal(4, 2)))]


def follmer(put: Put) -> Any:
    sampler = bayesian.follmer(target(put), steps=3, particles=8)
    return sampler.solve(ADAM, steps=1).controls


def discrepancy(put: Put) -> Any:
    return [bayesian.discrepancy(put(normal(4, 2)), put(normal(4, 2, seed=1)))]


PARADIGMS: dict[str, Callable[[Put], Any]] = {
    "adversarial.game": robust,
    "adversarial.evaluate": attacked,
    "adversarial.certify": game_certificate,
    "meta.adapt, maml": partial(adapted, meta.maml),
    "meta.adapt, imaml": partial(adapted, partial(meta.imaml, strength=2.0)),
    "meta.maml": partial(learned, meta.maml),
    "meta.imaml": partial(learned, partial(meta.imaml, strength=2.0)),
    "variational": posterior,
    "langevin": partial(drawn, partial(bayesian.langevin, method="mala")),
    "svgd": partial(drawn, bayesian.svgd),
    "follmer": follmer,
    "discrepancy": discrepancy,
    "score": score,
}
