"""The paradigms on any device: what they are given says where they work."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms import adversarial, bayesian, meta
from tests.devices import CUDA
from tests.problems import leaves, normal, seeded

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))
pytestmark = pytest.mark.parametrize("device", ["cpu", CUDA])


def net(device, out=2) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, out))).to(device)


def data(device):
    return normal(12, 3).to(device), torch.arange(12, device=device) % 2


def is_on(tree, device) -> bool:
    return all(leaf.device.type == device for leaf in leaves(tree) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("loss", [F.cross_entropy, adversarial.TRADES()], ids=["plain", "TRADES"])
def test_adversarial(loss, device):
    formulation = adversarial.game(net(device), loss, data(device), epsilon=0.1, bounds=None, batch_size=5)
    solution = formulation.solve(mfoc.Minimax(adversarial.YOPO(2, 2), partial(torch.optim.SGD, lr=0.1)), steps=2)
    robust = formulation.readout(solution)
    assert is_on(list(robust.parameters()), device)
    found = adversarial.evaluate(robust, data(device), epsilon=0.1, bounds=None, attacks={"PGD": adversarial.PGD(3)})
    assert found["PGD"].total == 12
    certificate = formulation.certify(solution, maximiser=adversarial.PGD(2), lanczos=2, groups=2)
    assert certificate.present >= 0


def test_meta(device):
    tasks = meta.sinusoids(tasks=4, dtype=torch.float64, device=device)
    wave = seeded(lambda: nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))).to(device)
    for made in (
        meta.maml(wave, F.mse_loss, tasks, inner_steps=2, inner_lr=0.01),
        meta.meta_sgd(wave, F.mse_loss, tasks, inner_steps=1, inner_lr=0.01),
        meta.imaml(wave, F.mse_loss, tasks, inner_steps=2, inner_lr=0.01, strength=2.0),
    ):
        solution = made.solve(ADAM, steps=2)
        assert is_on(solution.controls, device)
        assert meta.evaluate(made, solution, steps=(0, 1), progress=False)[1].diverged == 0
        x = torch.linspace(-1, 1, 5, dtype=torch.float64, device=device)[:, None]
        assert is_on(list(meta.adapt(made, solution, (x, x.sin())).parameters()), device)


@pytest.mark.parametrize("estimator", ["weights", "local", "flipout"])
def test_variational(estimator, device):
    x = normal(12, 3).to(device)
    formulation = bayesian.variational(
        net(device, 1), (x, x.sum(1, keepdim=True)), likelihood="gaussian", samples=3, estimator=estimator
    )
    posterior = formulation.readout(formulation.solve(ADAM, steps=2))
    prediction = bayesian.predict(posterior, x, samples=5)
    assert is_on([prediction.mean, prediction.epistemic], device)


def test_samplers(device):
    target = bayesian.log_density(lambda x: -x.square().sum(1), like=torch.zeros(2, dtype=torch.float64, device=device))
    for made in (
        bayesian.langevin(target, step=0.1, steps=4, particles=6, method="mala"),
        bayesian.svgd(target, step=0.1, steps=4, particles=6),
    ):
        assert is_on(bayesian.sample(made).x, device)
    sampler = bayesian.follmer(target, steps=4, particles=16)
    for solver in (ADAM, bayesian.CrossEntropy(ADAM, paths=16, particles=16)):
        solution = sampler.solve(solver, steps=2)
        assert is_on([solution.controls, sampler.evaluate(solution, n=32).x], device)
