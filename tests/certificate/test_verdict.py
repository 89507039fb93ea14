"""What a certificate concludes, where the truth is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.certificate import Standing
from tests.architectures import seeded
from tests.problems import D, normal, open_loop_lq


def ones(n=4, d=1):
    return torch.ones(n, d, dtype=D)


def scalars(*values):
    return [torch.tensor([value], dtype=D) for value in values]


def well(u, cost, terminal=lambda x, z: 0 * x[:, 0], **options):
    """One stage that does nothing, and a cost of its control."""
    problem = mfoc.Problem(
        lambda t, x, u, z: 1 * x, terminal, [u], running_cost=lambda t, x, u, z: cost(u).sum().expand(len(x))
    )
    return mfoc.certify(problem, problem, ones(), **options)


def product(*values, weight=0.05, scale=1.0):
    """x_T is the product of the controls, and is wanted to be 1."""
    return mfoc.Problem(
        lambda t, x, u, z: x * u,
        lambda x, z: scale * (x[:, 0] - 1) ** 2,
        scalars(*values),
        running_cost=lambda t, x, u, z: (scale * weight * u.square().sum()).expand(len(x)),
    )


# ---- what is not a minimum


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_strict_saddle_that_no_stage_alone_shows(scale):
    problem = product(0.0, 0.0, scale=scale)
    found = mfoc.certify(problem, problem, ones())
    assert found.verdict.standing is found.verdict.sample is Standing.SADDLE
    assert found.hessian.value == pytest.approx(-1.9 * scale)
    assert all(stage.curvature.value == pytest.approx(0.1 * scale) for stage in found.stages)
    assert found.residual == found.gap == 0
    first = str(found).splitlines()[0]
    assert "stationary" in first
    assert "but a saddle (in stages 0, 1): lowest curvature -1.9" in first


@pytest.mark.parametrize("steep", [10.0, 1e4])
def test_a_saddle_beside_a_steep_direction(steep):
    problem = mfoc.Problem(
        lambda t, x, u, z: x * u[0],
        lambda x, z: (x[:, 0] - 1) ** 2,
        [torch.zeros(2, dtype=D)] * 2,
        running_cost=lambda t, x, u, z: (0.05 * u[0] ** 2 + steep * u[1] ** 2).expand(len(x)),
    )
    found = mfoc.certify(problem, problem, ones())
    assert found.verdict.standing is found.verdict.sample is Standing.SADDLE
    assert found.hessian.value == pytest.approx(-1.9)


def test_the_hessian_is_that_of_all_controls_together():
    problem = product(0.7, -0.3, 1.2)
    leaves = [u.clone().requires_grad_() for u in problem.controls]
    dense = torch.autograd.functional.hessian(
        lambda *u: mfoc.rollout(problem, list(u), ones()).cost.mean(), tuple(leaves)
    )
    matrix = torch.tensor([[float(block) for block in row] for row in dense])
    found = mfoc.certify(problem, problem, ones())
    assert found.hessian.value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[0]))
    assert found.hessian_bound < 1e-9


def test_a_maximum_is_called_one():
    found = well(torch.zeros(2, dtype=D), lambda u: -u.square() + u**4)
    assert found.verdict.standing is Standing.SADDLE
    assert "but a maximum" in str(found.verdict)


def moved_to(cost, size, **options):
    """x_T is the control, which is zero, and costs what the function says."""
    control = torch.zeros(size, dtype=D)
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: cost(x), [control], **options)
    return mfoc.certify(problem, problem, torch.zeros(6, size, dtype=D))


@pytest.mark.parametrize("low", [-1e-6, -1.0, -100.0])
@pytest.mark.parametrize("options", [{}, {"schedule": lambda controls, t: controls[0], "horizon": 1}])
def test_a_saddle_that_bends_down_little_beside_its_largest_curvature(low, options):
    found = moved_to(lambda x: low * x[:, 0] ** 2 + abs(low) * 1e5 * x[:, 1] ** 2, 2, **options)
    assert found.verdict.standing is Standing.SADDLE
    assert found.hessian.value == pytest.approx(2 * low)


@pytest.mark.parametrize("higher", [lambda a: a**3, lambda a: -(a**4), lambda a: 10 * a**4 - a.abs() ** 3])
def test_a_direction_without_curvature_in_which_j_falls(higher):
    found = moved_to(lambda x: x[:, 0] ** 2 + higher(x[:, 1]), 2)
    assert found.verdict.standing is Standing.LOWER_FOUND
    assert "lowers J by" in str(found.verdict)
    assert found.improvement.value > 0
    assert found.where in ("", "all")


def test_a_direction_without_curvature_in_which_j_rises():
    found = moved_to(lambda x: x[:, 0] ** 2 + x[:, 1] ** 4, 2)
    assert found.verdict.standing is Standing.MINIMUM
    assert found.improvement.value == 0


@pytest.mark.parametrize("stages", [3, 4, 6, 9])
def test_a_product_of_equal_controls_is_a_minimum_though_its_mirror_is_no_scale(stages):
    """At u_t = 1 for all t, steps of the controls' size would put each on 0 or 2, where the product does not slope."""
    problem = product(*[1.0 + 1e-9] * stages, weight=0.0)
    assert mfoc.certify(problem, problem, ones()).verdict.standing is Standing.MINIMUM


def test_a_control_off_its_optimum_is_named():
    problem = product(1.0, 1.0, 1.0, weight=0.0)
    assert mfoc.certify(problem, problem, ones()).verdict.standing is Standing.MINIMUM
    names = ["first", "second", "third"]
    moved = scalars(1.0, 1.0, 1.1)
    found = mfoc.certify(problem, moved, ones(), names=names)
    assert found.verdict.standing is Standing.NOT_STATIONARY
    assert str(found).startswith("not stationary: stages ")
    far = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x[:, 0] * 0,
        scalars(0, 0.1, 0),
        running_cost=lambda t, x, u, z: u**2 + 0 * x[:, 0],
    )
    assert str(mfoc.certify(far, far, ones())).startswith("not stationary: stage 1 (residual 0.2, scale ")


@pytest.mark.parametrize(("at", "depth", "shift"), [(0.9601, 1.0, 0.3), (2.0, 4.0, 0.1), (-2.0, 4.0, -0.1)])
def test_the_worse_of_two_minima(at, depth, shift):
    def cost(u):
        return (u**2 - depth) ** 2 + shift * u

    def newton(u):
        for _ in range(50):
            u = u - (4 * u * (u**2 - depth) + shift) / (12 * u**2 - 4 * depth)
        return u

    worse, better = newton(torch.tensor([at], dtype=D)), newton(torch.tensor([-at], dtype=D))
    found = well(worse, cost)
    assert found.verdict.standing is Standing.LOWER_FOUND
    assert "another control at stage 0 lowers J by" in str(found.verdict)
    fall = (cost(worse) - cost(better)).item()
    assert found.gap == pytest.approx(fall)
    assert found.improvement.value == pytest.approx(fall)
    assert well(worse, cost, starts=1).verdict.standing is Standing.MINIMUM  # one start sees one well


@pytest.mark.parametrize("dimension", [2, 3, 10])
@pytest.mark.parametrize("schedule", [mfoc.per_stage, mfoc.tied])
def test_one_coordinate_in_the_worse_of_its_wells(dimension, schedule):
    def cost(u):
        return (u**2 - 1) ** 2 + 0.3 * u

    roots = np.roots([4, 0, -4, 0.3]).real
    u = torch.full((dimension,), roots.min(), dtype=D)
    u[dimension // 2] = roots.max()
    problem = mfoc.Problem(
        lambda t, x, u, z: 1 * x,
        lambda x, z: 0 * x[:, 0],
        [u] if schedule is mfoc.per_stage else u,
        running_cost=lambda t, x, u, z: cost(u).sum().expand(len(x)),
        schedule=schedule,
        horizon=1,
    )
    found = mfoc.certify(problem, problem, ones())
    assert found.verdict.standing is Standing.LOWER_FOUND
    assert found.improvement.value == pytest.approx(cost(roots.max()) - cost(roots.min()))


def test_a_lower_minimum_of_j_that_the_hamiltonian_does_not_show():
    """H is linear in u; J = (x - 2)^2 (x - 5)^2 - x / 2 is lower next to 5 than next to 2."""
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u, lambda x, z: ((x - 2) ** 2 * (x - 5) ** 2 - 0.5 * x)[:, 0], scalars(2.02794)
    )
    u = torch.tensor([2.0], dtype=D)
    for _ in range(50):
        slope = 2 * (u - 2) * (u - 5) ** 2 + 2 * (u - 2) ** 2 * (u - 5) - 0.5
        u = u - slope / (2 * (u - 5) ** 2 + 8 * (u - 2) * (u - 5) + 2 * (u - 2) ** 2)
    found = mfoc.certify(problem, [u], torch.zeros(4, 1, dtype=D))
    assert found.verdict.standing is Standing.LOWER_FOUND
    assert found.improvement.value == pytest.approx(1.5, rel=0.05)


# ---- what must not be condemned


@pytest.mark.parametrize("horizon", [1, 8])
def test_a_tied_control_is_not_judged_by_the_maximum_principle(horizon):
    """J = u^2 + u^4, with a Hamiltonian that is concave at its minimum."""
    problem = mfoc.continuous(
        lambda t, x, u, z: u.expand_as(x),
        lambda x, z: 2 * x[:, 0] ** 2,
        torch.zeros(1, dtype=D),
        running_cost=lambda t, x, u, z: (-(u**2) + u**4).expand(len(x)),
        schedule=mfoc.tied,
        horizon=horizon,
    )
    found = mfoc.certify(problem, problem, torch.zeros(4, 1, dtype=D))
    assert found.verdict.standing is Standing.MINIMUM
    assert found.principle.name == "TIED"
    assert found.gap == pytest.approx(0, abs=1e-12)  # J's own
    assert found.stages[0].curvature.value == pytest.approx(2)
    assert "the maximum principle does not apply" in str(found)


def test_a_hamiltonian_that_is_concave_at_a_minimum_of_j_condemns_nothing():
    problem = mfoc.Problem(
        lambda t, x, u, z: torch.stack([u.expand(len(x)), -(u**2).expand(len(x)) / 2], 1),
        lambda x, z: x[:, 0].square() + x[:, 1],
        [torch.zeros((), dtype=D)],
    )
    found = mfoc.certify(problem, problem, normal(5, 2))
    assert found.stages[0].curvature.value == pytest.approx(-1)
    assert found.gap > 0
    assert found.improvement.value == 0
    assert found.verdict.standing is Standing.MINIMUM


def test_an_interpolating_network_is_not_flat_though_its_hamiltonian_is():
    """At a perfect fit the costates vanish, and H does not depend on the weights: J does."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = normal(30, 2)
    with torch.no_grad():
        y = net(x)
    found = mfoc.certify_module(net, F.mse_loss, (x, y))
    assert found.gap == 0
    assert not any(stage.flat for stage in found.stages)
    assert found.verdict.standing is Standing.MINIMUM


# ---- what cannot be told


@pytest.mark.parametrize("function", [lambda u: u.clamp(-1, 1), lambda u: torch.tanh(8 * u)])
def test_a_saturated_control_is_no_certificate_of_zeros(function):
    problem = mfoc.Problem(lambda t, x, u, z: x + function(u), lambda x, z: 40 * (x[:, 0] + 1) ** 2, scalars(5.0))
    cloud = torch.zeros(10, 1, dtype=D)
    stuck = mfoc.certify(problem, problem, cloud, starts=1)
    assert stuck.residual < 1e-10
    assert stuck.stages[0].flat == "saturated"
    assert stuck.verdict.standing is Standing.CANNOT_TELL
    assert "saturated at stage 0" in str(stuck).splitlines()[0]
    assert mfoc.certify(problem, problem, cloud).verdict.standing is Standing.LOWER_FOUND  # searched from elsewhere


def test_a_control_that_nothing_depends_on_is_unused():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + (u if t == 0 else 0 * u), lambda x, z: (x[:, 0] - 1) ** 2, scalars(0.0, 3.0)
    )
    found = mfoc.certify(problem, problem, ones())
    assert [stage.flat for stage in found.stages] == ["", "unused"]
    assert "unused at stage 1" in str(found.verdict)


def test_a_sample_that_is_too_small_to_tell():
    problem, _, _, _ = open_loop_lq(stages=1)
    cloud = normal(30, 2, seed=3)
    optimum = [torch.zeros(2, dtype=D)]  # of the population, centred at zero
    found = mfoc.certify(problem, optimum, cloud)
    assert found.verdict.standing is Standing.CANNOT_TELL
    assert found.verdict.sample is Standing.NOT_STATIONARY
    assert "intervals straddle" in str(found.verdict)
    assert found.stationarity.low == 0 < found.stationarity.value < found.stationarity.high


def test_one_particle_says_nothing_of_a_population():
    problem, cloud, b, weight = open_loop_lq(stages=1)
    x = cloud.state[:1]
    optimum = torch.linalg.solve(b.mT @ b + weight * torch.eye(2, dtype=D), -(b.mT @ x[0]))
    found = mfoc.certify(problem, [optimum], x)
    assert found.verdict.standing is Standing.CANNOT_TELL
    assert found.verdict.sample is Standing.MINIMUM
    assert str(found).startswith("on this particle first-order stationary")
    assert found.stationarity.high == found.stages[0].gap.high == math.inf


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_the_cost_changes_no_word(scale):
    def standing(factor, u):
        problem = mfoc.Problem(
            lambda t, x, u, z: x + u, lambda x, z: factor * (x[:, 0] ** 2 + (x[:, 0] - 1) ** 2), scalars(u)
        )
        return mfoc.certify(problem, problem, torch.zeros(5, 1, dtype=D)).verdict.standing

    assert standing(scale, 0.5) is standing(1.0, 0.5) is Standing.MINIMUM
    assert standing(scale, 0.4) is standing(1.0, 0.4) is Standing.NOT_STATIONARY


# ---- what is missing is said


class Attention(nn.Module):
    """Self-attention by torch's fused kernels, which have no second derivative."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_has_a_curvature(dtype):
    net = seeded(lambda: nn.Sequential(Attention(), nn.Flatten(), nn.Linear(12, 2))).to(dtype)
    data = (normal(12, 3, 4).to(dtype), torch.arange(12) % 2)
    settings = {"lanczos": 3, "groups": 3, "starts": 1, "inner": mfoc.minimisers.LBFGS(steps=3)}
    found = mfoc.certify_module(net, F.cross_entropy, data, running_cost=mfoc.weight_decay(0.1), **settings)
    assert all(math.isfinite(stage.curvature.value) and not math.isnan(stage.gap.value) for stage in found.stages)
    assert math.isfinite(found.hessian.value)


def test_without_second_derivatives_there_are_still_residual_and_gap():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x[:, 0].square(),
        scalars(0.1, 0.2),
        running_cost=lambda t, x, u, z: F.hardsigmoid(u).sum().expand(len(x)),
    )
    found = mfoc.certify(problem, problem, ones())
    gradient = mfoc.evaluate(problem, problem, ones()).gradient
    assert found.residual == pytest.approx(float(mfoc.tree.norm(gradient)))
    assert math.isnan(found.hessian.value)
    assert all("curvature not available: " in stage.note for stage in found.stages)
    assert all(not math.isnan(stage.gap.value) for stage in found.stages)


class Downhill(torch.autograd.Function):
    """-x^2, with a derivative that cannot be differentiated: autograd would take it for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return -2 * slope * ctx.saved_tensors[0]


def test_a_function_that_is_differentiable_once_has_no_curvature():
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: Downhill.apply(x)[:, 0], scalars(0.0))
    found = mfoc.certify(problem, problem, 0 * ones())  # a maximum
    assert found.verdict.standing is not Standing.MINIMUM
    assert math.isnan(found.hessian.value)
    assert "Downhill is marked once_differentiable" in found.hessian_note


def test_infinity_is_explained_where_it_is_printed():
    net = nn.Sequential(nn.Linear(3, 2)).double()
    text = str(mfoc.certify_module(net, F.cross_entropy, (normal(20, 3), torch.arange(20) % 2)))
    line = next(line for line in text.splitlines() if "inf" in line.split("gap infinite")[0] and "gap infinite" in line)
    assert "no running cost holds it" in line
