"""Bounds of a problem: which leaf they are of, and what is refused."""

import pytest
import torch
from torch import nn

import mfoc
from mfoc.bounds import L1, Box, EuclideanBall, Simplex, region
from tests.problems import D, distance, normal, seeded

BOX = Box(-1.0, 1.0)


def stages():
    return [{"w": normal(2, 3, seed=1), "b": normal(3, seed=2)}, {}, {"w": normal(3, 1, seed=3)}]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (BOX, [BOX, BOX, BOX]),
        ({"w": BOX}, [BOX, None, BOX]),
        ([{"w": BOX}, None, L1(1.0)], [BOX, None, L1(1.0)]),
        (lambda name, leaf: BOX if leaf.dim() > 1 else None, [BOX, None, BOX]),
        (lambda name, leaf: BOX if name == "2.w" else None, [None, None, BOX]),
    ],
    ids=["one for all", "by key", "by stage", "by shape", "by name"],
)
def test_bounds_are_spread_over_the_leaves(bounds, expected):
    assert list(region(bounds, stages(), per_stage=True).sets) == expected


def test_the_adversary_s_ball_is_a_set_of_controls():
    assert region(mfoc.Ball(2.0, "l2"), [normal(3)]).sets == (EuclideanBall(2.0),)
    cube = region(mfoc.Ball(2.0), [normal(3)]).sets[0]
    assert (cube.low, cube.high) == (-2.0, 2.0)


@pytest.mark.parametrize(
    ("bounds", "error", "says"),
    [
        ({"v": BOX}, mfoc.InvalidValue, "bounds has v"),
        ([BOX], mfoc.InvalidValue, "bounds has 1 entries"),
        ([(-1, 1)] * 3, mfoc.InvalidType, r"bounds\[0\] is a tuple"),
        (3.0, mfoc.InvalidType, "expected Box"),
        (Box, mfoc.InvalidType, "expected Box"),
        ({"w": "small"}, mfoc.InvalidType, r"bounds\['w'\]"),
    ],
)
def test_bounds_that_fit_no_leaf_are_refused(bounds, error, says):
    with pytest.raises(error, match=says):
        region(bounds, stages(), per_stage=True)


def test_a_pair_of_numbers_is_no_box_but_the_box_is_named():
    with pytest.raises(mfoc.InvalidValue, match=r"mfoc\.Box\(-1, 1\)"):
        problem((-1, 1))


def problem(bounds, controls=None, **more):
    controls = [torch.zeros(2, dtype=D) for _ in range(3)] if controls is None else controls
    return mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: x.square().sum(1), controls, bounds=bounds, **more)


def test_controls_outside_are_refused_with_the_leaf_and_the_cure():
    with pytest.raises(mfoc.InvalidValue, match=r"controls\[1\] is not admissible.*start inside"):
        problem(BOX, [torch.zeros(2), torch.full((2,), 1.5), torch.zeros(2)])
    with pytest.raises(mfoc.InvalidValue, match="not admissible"):
        mfoc.certify(problem(BOX), [torch.full((2,), 2.0, dtype=D)] * 3, normal(4, 2))


def test_bounds_of_another_shape_are_refused():
    with pytest.raises(mfoc.InvalidValue, match="broadcasts"):
        problem(Box(torch.zeros(3), torch.ones(3)))
    with pytest.raises(mfoc.InvalidValue, match="last axis"):
        problem(Simplex(), [torch.tensor(1.0)] * 3)


def test_limits_are_those_of_the_flattened_control():
    low = torch.tensor([-1.0, -2.0], dtype=D)
    own = problem([Box(low, 3.0), None, BOX])
    assert [side.tolist() for side in own.limits(0)] == [[-1.0, -2.0], [3.0, 3.0]]
    assert own.limits(1)[1].isinf().all()
    own = problem(BOX, [torch.zeros(4, 2, dtype=D)] * 3, per_particle=True)
    assert own.limits(0)[0].shape == (4, 2)
    with pytest.raises(mfoc.InvalidValue, match="expected Box"):
        problem(L1(0.1)).limits(0)


def test_a_row_of_controls_for_each_particle_is_asked_for():
    with pytest.raises(mfoc.InvalidValue, match="row i of every leaf"):
        problem(None, [torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(4, 2)], per_particle=True)
    own = problem(None, [torch.zeros(4, 2, dtype=D)] * 3, per_particle=True)
    adam = mfoc.Gradient(lambda p: torch.optim.Adam(p, lr=0.1))
    with pytest.raises(mfoc.InvalidValue, match="4 particles"):
        mfoc.solve(own, adam, mfoc.population(normal(8, 2), batch_size=2), steps=1)


def test_a_network_starts_from_the_nearest_admissible_weights():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    own = mfoc.from_module(net, nn.functional.cross_entropy, bounds={"weight": Box(-0.1, 0.1)})
    assert own.controls[0]["weight"].abs().max() <= 0.1
    torch.testing.assert_close(own.controls[0]["bias"], net[0].bias.detach())


def test_a_solver_that_knows_no_bounds_is_refused():
    class Blind(mfoc.Gradient):
        respects_bounds = False

    with pytest.raises(mfoc.InvalidValue, match="Blind knows no bounds"):
        mfoc.solve(problem(BOX), Blind(lambda p: torch.optim.SGD(p, lr=0.1)), normal(4, 2), steps=1)


def test_rows_are_bounded_as_the_stages_they_are_of():
    """Rows of a block whose stages have bounds of their own."""
    controls = [normal(2, seed=t) for t in range(3)]
    sets = [Box(-0.1, 0.1), None, L1(0.3)]
    whole = region(sets, controls)
    rows = whole.rows([0, 1, 2], [controls[0]])
    stacked, slopes = torch.stack(controls), normal(3, 2, seed=9)
    each = whole.stationary(controls, list(slopes))
    assert distance(list(rows.stationary(stacked, slopes)), each) == 0
    assert distance(list(rows.project(stacked)), whole.project(controls)) == 0
    assert rows.penalty(stacked).tolist() == [0, 0, pytest.approx(0.3 * float(controls[2].abs().sum()))]
