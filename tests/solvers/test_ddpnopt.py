"""DDPNOpt is differential dynamic programming with dense matrices, and without feedback an optimiser of torch."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.networks import Residual
from mfoc.solvers.ddpnopt.gradients import is_linear
from mfoc.testing import check_solver
from tests.architectures import mlp_net, seeded
from tests.devices import CUDA
from tests.oracles.ddpnopt import DenseDDP
from tests.oracles.training import trained
from tests.problems import CATALOGUE, distance, labels, mlp, normal, same_bits
from tests.ranks import on_ranks

CURVATURES = ("identity", "rmsprop", "kronecker")
NETWORKS = ("mlp", "conv", "decayed")
CASES = [
    (name, curvature) for name in NETWORKS for curvature in CURVATURES if name == "mlp" or curvature != "kronecker"
]


def settings(curvature):
    return {} if curvature == "identity" else {"decay": 0.9, "damping": 0.05}


def wide_mlp():
    """Costs steep enough that the clip and the outer max are met."""
    return mfoc.from_module(mlp_net(), F.cross_entropy), mfoc.Particles(4 * normal(7, 3), labels(7, 2))


def taken(solver, problem, particles, steps):
    controls, state = problem.controls, solver.init(problem, problem.controls)
    for _ in range(steps):
        controls, state, _ = solver.step(problem, controls, state, particles)
    return controls


@pytest.mark.parametrize("clip", [math.inf, 0.02], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("lr", [0.05, 1.0])
@pytest.mark.parametrize(("name", "curvature"), CASES, ids=lambda value: value)
def test_is_ddp_with_dense_matrices(name, curvature, lr, clip):
    problem, particles = CATALOGUE[name]()
    dense = DenseDDP(lr, curvature, clip=clip, **settings(curvature))
    expected = problem.controls
    for _ in range(2):
        expected = dense.step(problem, expected, particles)
    found = taken(mfoc.DDPNOpt(lr, curvature, clip=clip, **settings(curvature)), problem, particles, 2)
    plain = taken(mfoc.DDPNOpt(lr, curvature, feedback=False, **settings(curvature)), problem, particles, 2)
    assert distance(found, expected) < 1e-9
    assert distance(found, plain) > 1e-5


def test_a_particle_that_is_answered_in_full_leaves_nothing_to_answer():
    """Where g' Q_uu^-1 g exceeds one V_xx would be negative: its nearest positive matrix is zero."""
    problem, particles = wide_mlp()
    expected, last = DenseDDP(20.0).step(problem, problem.controls, particles), len(problem.controls) - 1
    found, state, _ = mfoc.DDPNOpt(20.0, clip=math.inf).step(
        problem, problem.controls, {"steps": 0, "curvature": [{}] * 5}, particles
    )
    assert distance(found, expected) < 1e-9
    assert state["steps"] == 1
    assert distance(found[last], problem.controls[last]) > 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("curvature", "make"),
    [
        ("identity", partial(torch.optim.SGD, lr=0.1)),
        ("rmsprop", partial(torch.optim.RMSprop, lr=0.02, alpha=0.9, eps=1e-6)),
    ],
    ids=["sgd", "rmsprop"],
)
def test_without_feedback_it_is_an_optimiser_of_torch(name, curvature, make):
    problem, particles = CATALOGUE[name]()
    more = {} if curvature == "identity" else {"decay": 0.9, "damping": 1e-6}
    solver = mfoc.DDPNOpt(make.keywords["lr"], curvature, feedback=False, **more)
    expected, values = trained(problem, make, lambda n: particles, 8)
    solution = mfoc.solve(problem, solver, particles, steps=8)
    assert distance(solution.controls, expected) < 1e-12
    assert [record["value"] for record in solution.history] == pytest.approx(values, rel=1e-12)


def test_without_feedback_it_is_kfac_with_the_gradients_of_the_data():
    problem, particles = mlp()
    dense, expected = DenseDDP(0.1, "kronecker", feedback=False), problem.controls
    for _ in range(3):
        expected = dense.step(problem, expected, particles)
    solver = mfoc.DDPNOpt(0.1, "kronecker", feedback=False, decay=0.9, damping=1e-2)
    assert distance(taken(solver, problem, particles, 3), expected) < 1e-10


@pytest.mark.parametrize("curvature", ["identity", "rmsprop"])
def test_a_linear_layer_is_treated_as_any_stage(curvature):
    """Layers and the functions behind them as one stage: the same steps, by the gradient of each particle."""
    net, particles = mlp_net(), mlp()[1]
    apart = mfoc.from_module(net, F.cross_entropy)
    joined = mfoc.from_module(net, F.cross_entropy, stages=[["0", "1"], ["2", "3"], "4"])
    assert is_linear(apart, 0, apart.controls[0])
    assert not is_linear(joined, 0, joined.controls[0])
    solver = mfoc.DDPNOpt(0.3, curvature)
    left, right = (taken(solver, problem, particles, 3) for problem in (apart, joined))
    assert distance(mfoc.tree.leaves(left), mfoc.tree.leaves(right)) < 1e-12


def test_only_linear_layers_are_taken_for_linear_layers():
    """A stage with the controls of a linear layer, of the shape of one, that is none."""

    class Squared(nn.Linear):
        def forward(self, x):
            return super().forward(x).square()

    net = seeded(lambda: nn.Sequential(Squared(3, 4), Squared(4, 2)))
    problem, particles = mfoc.from_module(net, F.cross_entropy), mlp()[1]
    assert not is_linear(problem, 0, problem.controls[0])
    expected = DenseDDP(0.1).step(problem, problem.controls, particles)
    assert distance(taken(mfoc.DDPNOpt(0.1, clip=math.inf), problem, particles, 1), expected) < 1e-10


def test_weights_of_particles_stay_between_zero_and_two():
    """At any rate the feedback at most doubles the gradient of a particle: with one particle, that of the batch."""
    problem, particles = wide_mlp()
    one = particles[:1]
    gradient = mfoc.evaluate(problem, problem.controls, one).gradient
    for lr in (0.1, 1.0, 10.0):
        new = taken(mfoc.DDPNOpt(lr), problem, one, 1)
        for t in (2, 4):
            step = (problem.controls[t]["bias"] - new[t]["bias"]) / lr
            weight = step / gradient[t]["bias"]
            assert float(weight.std()) < 1e-6
            assert -1e-12 <= float(weight.mean()) <= 2 + 1e-12


@pytest.mark.parametrize(("name", "curvature"), CASES, ids=lambda value: value)
def test_keeps_the_laws_of_solvers(name, curvature):
    problem, particles = CATALOGUE[name]()
    check_solver(mfoc.DDPNOpt(0.1, curvature), problem, particles)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_order_of_particles_changes_nothing(curvature):
    problem, particles = mlp()
    solver = mfoc.DDPNOpt(0.5, curvature)
    order = torch.arange(len(particles) - 1, -1, -1)
    assert distance(taken(solver, problem, particles, 3), taken(solver, problem, particles[order], 3)) < 1e-12


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_keeps_dtype_and_device(curvature, dtype, device):
    problem, particles = mlp()
    problem = replace(problem, controls=mfoc.tree.map(lambda leaf: leaf.to(device, dtype), problem.controls))
    solution = mfoc.solve(problem, mfoc.DDPNOpt(0.01, curvature), particles.to(device, dtype), steps=2)
    assert solution.status is mfoc.Status.MAX_STEPS
    assert all(leaf.dtype == dtype and leaf.device.type == device for leaf in mfoc.tree.leaves(solution.controls))


def test_a_state_of_integers_enters_the_first_stage():
    net = seeded(lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)))
    problem = mfoc.from_module(net, F.cross_entropy)
    particles = mfoc.Particles(torch.arange(14).view(7, 2) % 5, labels(7, 2))
    for curvature in ("identity", "rmsprop"):
        check_solver(mfoc.DDPNOpt(0.1, curvature), problem, particles)


def test_state_is_plain_and_resumes(tmp_path):
    problem, particles = mlp()
    solver = mfoc.DDPNOpt(0.1, "kronecker")
    whole = mfoc.solve(problem, solver, particles, steps=6)
    half = mfoc.solve(problem, solver, particles, steps=3)
    torch.save(half.last.state, tmp_path / "state.pt")
    start = replace(half.last, state=torch.load(tmp_path / "state.pt", weights_only=True))
    assert same_bits(mfoc.solve(problem, solver, particles, steps=6, start=start).controls, whole.controls)


def test_reports_the_share_of_weights_that_are_clipped():
    problem, particles = mlp()
    for clip, share in ((math.inf, 0.0), (1e-12, 1.0)):
        assert mfoc.solve(problem, mfoc.DDPNOpt(0.1, clip=clip), particles, steps=1).history[0]["clipped"] == share


def test_what_is_not_finite_ends_the_solve():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    problem = mfoc.from_module(net, nn.MSELoss())
    for curvature in CURVATURES:
        solution = mfoc.solve(
            problem, mfoc.DDPNOpt(1e200, curvature), mfoc.Particles(normal(5, 3), normal(5, 2)), steps=20
        )
        assert solution.status in (mfoc.Status.NONFINITE, mfoc.Status.DIVERGED)


# ---- ranks


def solved():
    problem, particles = mlp()
    return [
        mfoc.solve(problem, mfoc.DDPNOpt(0.5, curvature), mfoc.population(particles), steps=3).controls
        for curvature in CURVATURES
    ]


def test_ranks_change_nothing(tmp_path):
    expected = solved()
    left, right = on_ranks(tmp_path, solved)
    assert same_bits(left, right)
    assert distance(left[0], expected) < 1e-11


# ---- refusals


def law_problem():
    """Coupled by the law's name, which no attribute says."""
    return mfoc.Problem(
        lambda t, x, u, z: x + u * (mfoc.mean(x) - x),
        lambda x, z: x.square().sum(1),
        [normal(2, seed=t) for t in range(2)],
    )


def own_controls():
    return mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), [normal(6, 2)], per_particle=True)


@pytest.mark.parametrize(
    ("problem", "curvature", "message"),
    [
        (lambda: CATALOGUE["tied"]()[0], "identity", "the stages share their control"),
        (own_controls, "identity", "each particle has a control of its own"),
        (lambda: CATALOGUE["batch_norm"]()[0], "identity", "each batch is a population of its own"),
        (law_problem, "identity", "the particles interact"),
        (lambda: mfoc.Equilibrium(law_problem()), "identity", "an equilibrium is no minimum of J"),
        (lambda: CATALOGUE["linear_quadratic"]()[0], "identity", "stage 0: running_cost depends on the state"),
        (lambda: CATALOGUE["conv"]()[0], "kronecker", "stage 0 has weights and is not known to be an nn.Linear"),
    ],
    ids=["tied", "per particle", "batch norm", "law", "equilibrium", "running cost", "kronecker"],
)
def test_refuses_what_it_is_not_made_for(problem, curvature, message):
    particles = mfoc.Particles(normal(6, 2), normal(6, 2, seed=1))
    problem = problem()
    if "batch" in message:
        particles = CATALOGUE["batch_norm"]()[1]
    solver = mfoc.DDPNOpt(0.1, curvature)
    with pytest.raises(mfoc.InvalidValue, match=message):
        solver.step(problem, problem.controls, solver.init(problem, problem.controls), particles)


def test_kronecker_refuses_sequences():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 2)))
    problem = mfoc.from_module(net, F.cross_entropy)
    with pytest.raises(mfoc.InvalidValue, match=r"needs states \[N, d\]"):
        mfoc.solve(problem, mfoc.DDPNOpt(0.1, "kronecker"), (normal(6, 2, 3), labels(6, 2)), steps=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"curvature": "newton"}, "curvature is 'newton'"),
        ({"feedback": 1}, "feedback is 1"),
        ({"clip": 0.0}, "clip is 0"),
        ({"curvature": "rmsprop", "decay": 1.0}, "decay is 1"),
        ({"curvature": "kronecker", "damping": -1.0}, "damping is -1"),
        ({"damping": 0.1}, "damping is given"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_refuses_settings(given, message):
    with pytest.raises(mfoc.MfocError, match=message):
        mfoc.DDPNOpt(**{"lr": 0.1, **given})


def test_residual_blocks_are_stages():
    net = seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 2))
    )
    problem, particles = mfoc.from_module(net, F.cross_entropy), mlp()[1]
    expected = DenseDDP(0.5).step(problem, problem.controls, particles)
    assert distance(taken(mfoc.DDPNOpt(0.5, clip=math.inf), problem, particles, 1), expected) < 1e-10
