"""Certificates where the answer is known, and where it must not be zero."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import mlp_net
from tests.problems import D, interacting, mlp, normal, open_loop_lq, tied


def optimum(problem, cloud):
    solver = mfoc.Gradient(lambda p: torch.optim.LBFGS(p, max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16))
    return mfoc.solve(problem, solver, cloud, steps=3).controls


def test_off_the_optimum_the_closed_form():
    problem, cloud, b, weight = open_loop_lq()
    found = mfoc.certify(problem, problem.controls, cloud, lanczos=2)
    end = cloud.state + sum(u @ b.mT for u in problem.controls)
    pull = b.mT @ (2 * end).mean(0)  # E B'p: the costate is 2 x_T at every stage
    for stage, u in zip(found.stages, problem.controls, strict=True):
        slope = 2 * weight * u + pull
        assert stage.residual.value == pytest.approx(slope.norm().item(), rel=1e-10)
        # H is a quadratic of curvature 2 weight: the gap is |slope|^2 / (4 weight)
        assert stage.gap.value == pytest.approx(slope.square().sum().item() / (4 * weight), rel=1e-8)
        assert stage.curvature.value == pytest.approx(2 * weight, rel=1e-10)
        assert stage.curvature_error < 1e-10
        for measure in (stage.residual, stage.gap, stage.curvature):
            assert measure.low <= measure.value <= measure.high
    assert min(found.residual, found.gap) > 0
    assert found.value == pytest.approx(mfoc.evaluate(problem, problem.controls, cloud).value.item())


def test_at_the_optimum_all_is_zero():
    problem, cloud, _, weight = open_loop_lq()
    found = mfoc.certify(problem, optimum(problem, cloud), cloud)
    assert found.residual < 1e-8
    assert found.gap < 1e-12
    assert all(stage.curvature.value == pytest.approx(2 * weight) for stage in found.stages)


def test_mean_field_lq_optimum():
    """The Riccati feedback is certified optimal, and a perturbed one is not."""
    a, b = 0.9 * torch.eye(2, dtype=D), normal(2, 1, seed=1)
    eye = torch.eye(2, dtype=D)
    lq = mfoc.lq.LinearQuadratic.discrete(A=a, B=b, Q=eye, R=torch.eye(1, dtype=D), QT=eye, horizon=4)
    solved = lq.riccati()
    problem = lq.problem(feedback=True)
    controls = [{"K": solved.K[t], "Kbar": solved.Kbar[t]} for t in range(4)]
    cloud = mfoc.Particles(normal(60, 2, seed=7))
    assert mfoc.certify(problem, controls, cloud).residual < 1e-10
    worse = [{name: gain + 0.1 for name, gain in stage.items()} for stage in controls]
    assert mfoc.certify(problem, worse, cloud).residual > 1e-3


def test_a_random_network_is_not_optimal_and_a_solved_one_is():
    x, y = normal(50, 3), torch.arange(50) % 2
    decay = mfoc.weight_decay(0.05)
    first = mfoc.certify_module(mlp_net(), F.cross_entropy, (x, y), running_cost=decay)
    assert all(stage.residual.value > 1e-4 and stage.gap.value > 1e-6 for stage in first.stages)
    assert [stage.name for stage in first.stages] == ["0", "2", "4"]
    problem = mfoc.from_module(mlp_net(), F.cross_entropy, running_cost=decay)
    solved = mfoc.certify(problem, optimum(problem, mfoc.Particles(x, y)), (x, y))
    assert solved.residual < 1e-6 * first.residual
    assert solved.gap < 1e-6 * first.gap


def test_a_linear_layer_without_decay_has_an_unbounded_hamiltonian():
    net = nn.Sequential(nn.Linear(3, 2)).double()
    found = mfoc.certify_module(net, F.cross_entropy, (normal(20, 3), torch.arange(20) % 2))
    assert found.stages[0].gap.value == math.inf
    assert found.stages[0].curvature.value == 0
    assert "inf" in str(found)


@pytest.mark.parametrize("decay", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_gap_of_a_linear_stage_is_exact_however_small_its_decay(scale, decay):
    """H = scale (a u + decay |u|^2 / 2) is least at -a / decay: the gap from u = 0 is scale |a|^2 / (2 decay)."""
    a = normal(4, seed=3)
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: scale * (x @ a),
        [torch.zeros(4, dtype=D) for _ in range(2)],
        running_cost=lambda t, x, u, z: (scale * decay / 2 * u.square().sum()).expand(len(x)),
    )
    found = mfoc.certify(problem, problem.controls, normal(5, 4), groups=2)
    for stage in found.stages:
        assert stage.gap.value == pytest.approx(scale * a.square().sum().item() / (2 * decay), rel=1e-9)


@pytest.mark.parametrize("make", [interacting, tied, mlp])
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**30])
def test_gaps_scale_with_the_problem(scale, make):
    problem, cloud = make()
    scaled = replace(
        problem,
        terminal_cost=lambda x, z: scale * problem.terminal_cost(x, z),
        running_cost=problem.running_cost and (lambda *at: scale * problem.running_cost(*at)),
    )
    effort = {"inner": mfoc.minimisers.LBFGS(5), "lanczos": 2, "groups": 2}
    plain, times = (mfoc.certify(each, each.controls, cloud, **effort) for each in (problem, scaled))
    for one, other in zip(plain.stages, times.stages, strict=True):
        assert other.gap.value == pytest.approx(scale * one.gap.value, rel=1e-9)


@pytest.mark.parametrize("make", [interacting, tied, mlp])
def test_residual_is_the_gradient(make):
    problem, cloud = make()
    found = mfoc.certify(problem, problem.controls, cloud, lanczos=5, groups=4)
    gradient = mfoc.evaluate(problem, problem.controls, cloud).gradient
    squares = sum(leaf.square().sum() for leaf in mfoc.tree.leaves(gradient))
    assert found.residual == pytest.approx(squares.sqrt().item(), rel=1e-10)
    assert len(found.stages) == (1 if make is tied else len([u for u in problem.controls if len(u)]))


def test_curvature_is_the_smallest_eigenvalue():
    problem, cloud = mlp()
    found = mfoc.certify(problem, problem.controls, cloud, lanczos=200)
    with torch.no_grad():
        trajectory = mfoc.rollout(problem, problem.controls, cloud)
    costates = mfoc.costates(problem, problem.controls, trajectory, cloud)
    numbers = [t for t, u in enumerate(problem.controls) if u]
    for stage, t in zip(found.stages, numbers, strict=True):
        u = problem.controls[t]
        sizes = {name: leaf.shape for name, leaf in u.items()}

        def mean_hamiltonian(row, t=t, sizes=sizes):
            parts = row.split([shape.numel() for shape in sizes.values()])
            tree = {name: part.view(shape) for (name, shape), part in zip(sizes.items(), parts, strict=True)}
            return mfoc.hamiltonian(problem, t, trajectory.states[t], costates[t + 1], tree, cloud.data).mean()

        row = torch.cat([leaf.reshape(-1) for leaf in u.values()])
        dense = torch.autograd.functional.hessian(mean_hamiltonian, row)
        lowest = torch.linalg.eigvalsh(dense)[0].item()
        assert stage.curvature.value == pytest.approx(lowest, abs=1e-9)


@pytest.mark.slow
def test_intervals_of_particles_that_interact_cover():
    """The residual of u + E x, whose law a sample knows as badly as its mean, is 0.5 in the population."""
    problem = mfoc.Problem(
        lambda t, x, u, z: u + x.mean(0) + 0 * x, lambda x, z: 0.5 * x.square().sum(1), [torch.tensor([0.5], dtype=D)]
    )
    hits = 0
    for seed in range(50):
        sample = normal(100, 1, seed=seed)
        found = mfoc.certify(problem, problem, sample, lanczos=1, starts=1, inner=mfoc.minimisers.LBFGS(steps=1))
        assert found.interacting
        residual = found.stages[0].residual
        assert residual.value == pytest.approx(abs(0.5 + sample.mean().item()))
        hits += residual.low <= 0.5 <= residual.high
    assert hits >= 45


def test_batches_are_one_cloud_and_the_cost_is_counted():
    problem, cloud, _, _ = open_loop_lq()
    whole = mfoc.certify(problem, problem.controls, cloud)
    batched = mfoc.certify(problem, problem.controls, mfoc.population(cloud, batch_size=7))
    assert batched.stages == whole.stages
    assert whole.particles == 40
    assert whole.backward_passes > 1 + 20 + 2 * 2 + 5


def test_float32_and_one_particle():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = mfoc.certify_module(net, F.cross_entropy, (torch.randn(1, 3), torch.tensor([1])))
    assert all(math.isfinite(stage.residual.value) for stage in found.stages)


def test_a_saddle_of_the_hamiltonian_is_left():
    """J has its minimum at u = 0, where H = -u^2/2: zero slope, negative curvature, no lower bound."""
    problem = mfoc.Problem(
        lambda t, x, u, z: torch.stack([u.expand(len(x)), -(u**2).expand(len(x)) / 2], 1),
        lambda x, z: x[:, 0].square() + x[:, 1],
        [torch.zeros((), dtype=D)],
    )
    found = mfoc.certify(problem, problem.controls, normal(5, 2)).stages[0]
    assert found.residual.value == 0
    assert found.curvature.value == pytest.approx(-1)
    assert found.gap.value > 0


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_do_not_fake_a_certificate(off):
    problem, cloud, _, _ = open_loop_lq()
    expected = mfoc.certify(problem, problem.controls, cloud)
    with off():
        if off is torch.inference_mode:
            with pytest.raises(mfoc.InvalidValue, match="inference_mode"):
                mfoc.certify(problem, problem.controls, cloud)
        else:
            assert mfoc.certify(problem, problem.controls, cloud).stages == expected.stages
            mfoc.testing.check_problem(problem, cloud)


def test_a_failing_inner_minimiser_is_not_a_zero_gap():
    problem, cloud, _, _ = open_loop_lq()
    found = mfoc.certify(problem, problem.controls, cloud, inner=mfoc.minimisers.Descent(lr=100.0, steps=5))
    assert all(math.isnan(stage.gap.value) for stage in found.stages)


class Gate(nn.Module):
    """Equal stages that cannot be evaluated in one batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        h = self.linear(x)
        return torch.tanh(h) if h.abs().max() < 1e6 else h


def test_stages_that_cannot_be_batched_are_taken_one_by_one():
    net = nn.Sequential(Gate(), Gate(), nn.Linear(3, 2)).double()
    data = (normal(20, 3), torch.arange(20) % 2)
    decay = mfoc.weight_decay(1e-2)
    assert len(mfoc.certify_module(net, F.cross_entropy, data, running_cost=decay).stages) == 3
    problem = mfoc.from_module(net, F.cross_entropy, running_cost=decay)
    assert mfoc.solve(problem, mfoc.EMSA(1.0, adaptive=True), data, steps=2).value < 1


def test_half_precision():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).bfloat16()
    data = (normal(20, 3).bfloat16(), torch.arange(20) % 2)
    found = mfoc.certify_module(net, F.cross_entropy, data, running_cost=mfoc.weight_decay(1e-2))
    assert all(0 < stage.residual.value < 10 for stage in found.stages)


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"inner": mfoc.minimisers.LBFGS}, "inner"),
        ({"inner": "x"}, "inner"),
        ({"confidence": "0.9"}, "confidence"),
        ({"seed": "a"}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"names": 3}, "names"),
        ({"names": "abc"}, "names"),
        ({"names": ["a"]}, "names"),
        ({"lanczos": 0}, "lanczos"),
        ({"groups": 1.5}, "groups"),
    ],
)
def test_bad_settings(settings, culprit):
    problem, cloud, _, _ = open_loop_lq()
    with pytest.raises(mfoc.MfocError, match=culprit):
        mfoc.certify(problem, problem.controls, cloud, **settings)
