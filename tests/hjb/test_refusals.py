"""What the grid solver refuses at the door, and what it says."""

import dataclasses

import pytest
import torch

import mfoc
from mfoc import hjb
from tests.hjb.problems import D, diffusion, grid, lq, square

PROBLEM = lq(3).problem()


@pytest.mark.parametrize(
    ("axes", "kind", "message"),
    [
        (torch.linspace(0, 1, 9), mfoc.InvalidType, "expected a list"),
        ([], mfoc.InvalidValue, "1 to 3 state variables"),
        (grid(9, 4), mfoc.InvalidValue, r"mfoc\.hjb\.fit"),
        ([[0.0, 1.0]], mfoc.InvalidType, "axes"),
        (grid(3), mfoc.InvalidValue, "n >= 4"),
        ([torch.tensor([0.0, 1.0, 2.0, 4.0])] * 2, mfoc.InvalidValue, "equal steps"),
        ([torch.linspace(1, 0, 5)] * 2, mfoc.InvalidValue, "increasing"),
        ([torch.tensor([0.0, torch.nan, 2.0, 3.0])] * 2, mfoc.InvalidValue, r"axes\[0\] holds NaN"),
        (grid(9, 1), mfoc.InvalidValue, "stage 0"),  # the problem has two states
    ],
    ids=["tensor", "none", "four", "lists", "short", "uneven", "decreasing", "nan", "another dimension"],
)
def test_axes(axes, kind, message):
    with pytest.raises(kind, match=message):
        hjb.solve(PROBLEM, axes)


def test_a_grid_that_does_not_fit_in_memory():
    with pytest.raises(mfoc.InvalidValue, match=r"100000 x 100000 points .* 800 GB, more than"):
        hjb.solve(PROBLEM, grid(100_000))


def test_a_grid_that_takes_too_long():
    with pytest.raises(mfoc.InvalidValue, match=r"441 points x 3 .* are 4\.4e\+05 terms, more than most_terms"):
        hjb.solve(PROBLEM, grid(21), most_terms=1e5)


def test_too_many_controls_to_try():
    wide = mfoc.Problem(lambda t, x, u, z: x + u.sum(), lambda x, z: x[:, 0] ** 2, [torch.zeros(8, dtype=D)])
    with pytest.raises(mfoc.InvalidValue, match="6,561 combinations"):
        hjb.solve(wide, grid(9, 1))
    with pytest.raises(mfoc.InvalidValue, match=r"expected finite controls \[C, 8\]"):
        hjb.solve(wide, grid(9, 1), candidates=torch.zeros(1, 2))


def test_controls_that_are_no_single_tensor():
    net = mfoc.from_module(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.functional.mse_loss)
    with pytest.raises(mfoc.InvalidType, match="one tensor"):
        hjb.solve(net, grid(9))
    gains = lq(3).problem(feedback=True)
    with pytest.raises(mfoc.InvalidType, match="one tensor"):
        hjb.solve(gains, grid(9))
    with pytest.raises(mfoc.InvalidType, match="Game"):
        hjb.solve(mfoc.Game.of(PROBLEM, mfoc.Ball(0.1)), grid(9))
    with pytest.raises(mfoc.InvalidType, match=r"mfoc\.Problem"):
        hjb.solve(lq(3), grid(9))


def test_bounds_that_are_no_box():
    with pytest.raises(mfoc.InvalidValue, match="L1"):
        hjb.solve(dataclasses.replace(PROBLEM, bounds=mfoc.L1(0.1)), grid(9))


def test_constraints_are_not_left_out_in_silence():
    held = dataclasses.replace(PROBLEM, terminal=mfoc.Equality(lambda x, z: x[:, :1]))
    for solve in (lambda: hjb.solve(held, grid(9)), lambda: hjb.fit(held, square(3))):
        with pytest.raises(mfoc.InvalidValue, match="constraints"):
            solve()


def test_data_beside_noise():
    with pytest.raises(mfoc.InvalidValue, match="a function of standard normals"):
        hjb.solve(diffusion(3, 0.1), grid(9, 1), z={"noise": torch.zeros(1, 3, 1, dtype=D)})


def test_a_wrong_number_of_normals():
    matrix = torch.ones(1, 1, 2, dtype=D)
    problem = diffusion(3, lambda t, x, u, z: 0.1 * matrix.expand(len(x), 1, 2))
    with pytest.raises(mfoc.InvalidValue, match="noise_dim"):
        hjb.solve(problem, grid(9, 1))
    assert hjb.solve(problem, grid(9, 1), noise_dim=2).bellman.nodes == 9


def test_data_of_one_particle_reach_the_functions():
    problem = mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: (x[:, 0] - z[:, 0]) ** 2,
        [torch.zeros(1, dtype=D)],
        running_cost=lambda t, x, u, z: z[:, 0] * u.square().sum(),
    )
    value, x = hjb.solve(problem, grid(9, 1), z=torch.full((1, 1), 2.0, dtype=D)), torch.zeros(1, 1, dtype=D)
    torch.testing.assert_close(value.policy(0, x), torch.full((1, 1), 2 / 3, dtype=D))
    with pytest.raises(mfoc.InvalidValue, match="stage 0"):
        hjb.solve(problem, grid(9, 1))


def test_a_cost_without_a_least():
    endless = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: -x[:, 0].exp(), [torch.zeros(1, dtype=D)])
    nowhere = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x[:, 0].log(), [torch.zeros(1, dtype=D)])
    with pytest.raises(mfoc.InvalidValue, match="is not finite"):
        hjb.solve(nowhere, grid(9, 1))
    value = hjb.solve(endless, grid(9, 1))  # beyond the grid V is linear: the states run off
    assert float(value.leaving[0]) == 1.0


def test_states_and_stages_asked_for():
    value = hjb.solve(PROBLEM, grid(9))
    for call in (value, value.gradient):
        with pytest.raises(mfoc.InvalidValue, match="t is 4"):
            call(4, square(3))
    with pytest.raises(mfoc.InvalidValue, match="t is 3"):
        value.policy(3, square(3))
    with pytest.raises(mfoc.InvalidValue, match=r"expected states \[N, 2\]"):
        value(0, torch.zeros(2, dtype=D))
    with pytest.raises(mfoc.InvalidType, match="floating-point states"):
        value(0, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(mfoc.InvalidValue, match="float32"):
        value(0, torch.zeros(1, 2))
    with pytest.raises(mfoc.InvalidValue, match="expected 1 or 2"):
        dataclasses.replace(value, grid=hjb.Grid((torch.linspace(0, 1, 4),) * 3)).plot()


@pytest.mark.parametrize("options", [{"interpolation": "quintic"}, {"nodes": 1}, {"most_terms": -1}, {"noise_dim": 0}])
def test_options(options):
    with pytest.raises(mfoc.InvalidValue, match=next(iter(options))):
        hjb.solve(PROBLEM, grid(9), **options)
