"""New tensors follow the input's device and dtype: on a GPU everything stays there, and agrees with the CPU."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc.maximisers import FGSM, PGD, YOPO, Free
from tests.architectures import batch_norm_net, mlp_net
from tests.devices import CUDA
from tests.problems import CATALOGUE, distance, interacting, leaves, mlp, normal, tied

SOLVERS = {
    "sgd": mfoc.Gradient(partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    "adam": mfoc.Gradient(partial(torch.optim.Adam, lr=0.01), recompute=True),
    "lbfgs": mfoc.Gradient(partial(torch.optim.LBFGS, lr=0.5, max_iter=3)),
    "msa": mfoc.MSA(mfoc.minimisers.Descent(0.05, steps=3)),
    "emsa": mfoc.EMSA(1.0, adaptive=True, inner=mfoc.minimisers.LBFGS(3)),
}


def moved(made, device, dtype=torch.float64):
    """A problem of the catalogue and its particles on another device."""
    problem, particles = made()
    controls = mfoc.tree.map(lambda leaf: leaf.to(device, dtype), problem.controls)
    return replace(problem, controls=controls), particles.to(device, dtype)


def is_on(tree, device, dtype) -> bool:
    floats = [leaf for leaf in leaves(tree) if leaf.is_floating_point()]
    return all(leaf.device.type == device for leaf in leaves(tree)) and all(leaf.dtype == dtype for leaf in floats)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", [mlp, interacting, tied])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name, made, dtype, device):
    problem, particles = moved(made, device, dtype)
    source = mfoc.population(particles, batch_size=4, seed=1)
    found = mfoc.solve(problem, SOLVERS[name], source, steps=3)
    assert is_on(found.controls, device, dtype)
    assert all(leaf.device.type in (device, "cpu") for leaf in leaves(found.last.state) if torch.is_tensor(leaf))
    if dtype == torch.float64:
        expected = mfoc.solve(made()[0], SOLVERS[name], mfoc.population(made()[1], batch_size=4, seed=1), steps=3)
        assert distance([leaf.cpu() for leaf in leaves(found.controls)], leaves(expected.controls)) < 1e-9


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_gradients_and_certificates(name, device):
    if name == "linear_quadratic":
        pytest.skip("its dynamics close over matrices on the CPU")
    problem, particles = moved(CATALOGUE[name], device)
    value, gradient = mfoc.evaluate(problem, problem, particles)
    expected = mfoc.evaluate(CATALOGUE[name]()[0], CATALOGUE[name]()[0], CATALOGUE[name]()[1])
    assert is_on([value, gradient], device, torch.float64)
    assert distance([leaf.cpu() for leaf in leaves(gradient)], leaves(expected.gradient)) < 1e-10
    trajectory = mfoc.rollout(problem, problem, particles)
    assert is_on(mfoc.costates(problem, problem, trajectory, particles), device, torch.float64)
    certificate = mfoc.certify(problem, problem, particles, lanczos=3, groups=3)
    assert certificate.value == pytest.approx(float(expected.value), rel=1e-10)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("adversary", [PGD(3), FGSM(), YOPO(2, 2), Free(2)], ids=lambda a: type(a).__name__)
def test_adversaries(adversary, device):
    problem, particles = moved(mlp, device)
    game = mfoc.Game.of(problem, mfoc.Ball(0.1, "l2"))
    solver = mfoc.Minimax(adversary, partial(torch.optim.SGD, lr=0.1))
    found = mfoc.solve(game, solver, mfoc.population(particles, batch_size=4), steps=3)
    assert is_on(found.controls, device, torch.float64)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_noise_and_linear_quadratic_problems(device):
    like = torch.zeros(1, dtype=torch.float64, device=device)
    noise = mfoc.schemes.brownian(5, 4, 2, seed=0, like=like)
    problem = mfoc.continuous(
        lambda t, x, u, z: u - x,
        lambda x, z: x.square().sum(1),
        [like.new_zeros(2) for _ in range(4)],
        scheme=mfoc.euler_maruyama(0.3),
    )
    cloud = mfoc.Particles(like.new_ones(5, 2), {"noise": noise})
    assert is_on(mfoc.solve(problem, SOLVERS["sgd"], cloud, steps=2).controls, device, torch.float64)
    eye = torch.eye(2, dtype=torch.float64, device=device)
    for lq in (
        mfoc.lq.LinearQuadratic.discrete(eye, eye, eye, eye, horizon=20, Qbar=eye, sigma=eye),
        mfoc.lq.LinearQuadratic.continuous(eye, eye, eye, eye, T=1.0, steps=8, Qbar=eye, sigma=eye),
    ):
        m0 = like.new_ones(2)
        found = [*lq.riccati(), *lq.path(m0), lq.value(m0, eye), lq.finite_population_gap(eye, 5)]
        assert is_on(found, device, torch.float64)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_networks_and_checkpoints(device, tmp_path):
    net = batch_norm_net().to(device)
    x, y = normal(8, 3).to(device), torch.arange(8, device=device) % 2
    problem = mfoc.from_module(net, F.cross_entropy, running_cost=mfoc.weight_decay(1e-3))
    hooks = [mfoc.hooks.Checkpoint(tmp_path / "run", every=1)]
    whole = mfoc.solve(problem, SOLVERS["adam"], (x, y), steps=4)
    mfoc.solve(problem, SOLVERS["adam"], (x, y), steps=2, hooks=hooks)
    resumed = mfoc.solve(problem, SOLVERS["adam"], (x, y), steps=4, start=mfoc.hooks.load(tmp_path / "run"))
    assert distance(resumed.controls, whole.controls) == 0
    assert all(leaf.device.type == device for leaf in mfoc.to_module(net, whole).state_dict().values())
    mfoc.testing.check_problem(mfoc.from_module(mlp_net().to(device), F.cross_entropy), (x, y))
