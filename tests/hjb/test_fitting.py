"""A fitted value function in six dimensions against Riccati; what it refuses."""

import dataclasses

import pytest
import torch

import mfoc
from mfoc import hjb
from tests.hjb.problems import D, diffusion, lq, square
from tests.problems import normal


def six():
    n = 6
    A = torch.eye(n, dtype=D) + 0.05 * normal(n, n, seed=1)
    B = 0.2 * normal(n, 2, seed=2)
    eye = torch.eye(n, dtype=D)
    return mfoc.lq.LinearQuadratic.discrete(A, B, 0.1 * eye, 0.2 * eye[:2, :2], eye, horizon=6)


@pytest.mark.slow
def test_six_states_are_riccati():
    exact = six()
    problem = exact.problem()
    value = hjb.fit(problem, normal(200, 6, seed=3), steps=250)
    assert value.converged == 1.0
    assert value.value_error < 0.02
    assert value.gradient_error < 0.03
    P, x = exact.riccati().P, 0.7 * normal(200, 6, seed=4)
    for t in range(6):
        V, slope, u = (x * (x @ P[t])).sum(1), 2 * x @ P[t], exact.feedback(t, x)
        if t in (0, 3):
            assert float((value(t, x) - V).norm() / (V - V.mean()).norm()) < 0.02
            assert float((value.gradient(t, x) - slope).norm() / slope.norm()) < 0.03
        if t == 0:
            assert float((value.policy(0, x) - u).norm() / u.norm()) < 0.06
        x = x @ exact.A.T + u @ exact.B.T
    found = hjb.verify(problem, value, 0.7 * normal(200, 6, seed=4))
    best = exact_value(exact, 0.7 * normal(200, 6, seed=4)).mean()
    assert 0 <= float(found.cost.mean() - best) < 2e-3 * float(best)


def exact_value(exact, x):
    return (x * (x @ exact.riccati().P[0])).sum(1)


@pytest.fixture(scope="module")
def small():
    return hjb.fit(lq(3).problem(), 2 * normal(40, 2, seed=5), steps=150, seed=1)


def test_two_states_are_riccati_and_exact_at_the_end(small):
    x, exact = square(5), lq(3)
    torch.testing.assert_close(small(3, x), x.square().sum(1))
    assert float((small(0, x) - exact_value(exact, x)).abs().max()) < 0.05
    torch.testing.assert_close(small.policy(2, x), exact.feedback(2, x), atol=1e-9, rtol=0)  # V_3 is exact
    assert float((small.policy(0, x) - exact.feedback(0, x)).abs().max()) < 0.05
    assert repr(small).startswith("FittedValue(3 stages, 2 states; held-out error")


def test_the_labels_are_riccatis():
    """Values and costates of the open-loop paths, before any network."""
    from mfoc.hjb.bellman import bellman
    from mfoc.hjb.fitting import optimal_paths

    exact, x = lq(3), normal(6, 2, seed=6)
    paths, converged = optimal_paths(bellman(exact.problem(), x, None, None, 2, None), x)
    assert converged == 1.0
    P = exact.riccati().P
    for t in range(3):
        at = paths.state[:, t]
        torch.testing.assert_close(paths.value[:, t], (at * (at @ P[t])).sum(1), atol=1e-9, rtol=0)
        torch.testing.assert_close(paths.costate[:, t], 2 * at @ P[t], atol=1e-6, rtol=0)


def test_the_seed_decides_and_the_users_network_is_left_alone(small):
    again = hjb.fit(lq(3).problem(), 2 * normal(40, 2, seed=5), steps=150, seed=1)
    assert torch.equal(again(0, square(3)), small(0, square(3)))
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Softplus(), torch.nn.Linear(8, 1)).to(D)
    before = [leaf.clone() for leaf in net.parameters()]
    value = hjb.fit(lq(3).problem(), normal(20, 2), net=net, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))
    assert value.net is not net


def test_bounds_are_kept():
    problem = dataclasses.replace(lq(3).problem(), bounds=mfoc.Box(-0.4, 0.4))
    value = hjb.fit(problem, 2 * normal(60, 2, seed=5), steps=200)
    assert value.converged == 1.0
    assert float(value.policy(0, 2 * square(3)).abs().max()) == 0.4
    on_grid = hjb.solve(problem, [torch.linspace(-4, 4, 61, dtype=D)] * 2)
    assert float((value(0, square(3)) - on_grid(0, square(3))).abs().max()) < 0.1


def test_refusals():
    with pytest.raises(mfoc.InvalidValue, match="open-loop paths"):
        hjb.fit(diffusion(3, 0.1), normal(20, 1))
    with pytest.raises(mfoc.InvalidType, match=r"expected initial states"):
        hjb.fit(lq(3).problem(), normal(20))
    with pytest.raises(mfoc.InvalidValue, match="expected five at least"):
        hjb.fit(lq(3).problem(), normal(3, 2))
    with pytest.raises(mfoc.InvalidType, match="net"):
        hjb.fit(lq(3).problem(), normal(20, 2), net=lambda x: x)
    with pytest.raises(mfoc.InvalidValue, match="make one"):
        hjb.fit(lq(3).problem(), normal(20, 2).float())


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (torch.nn.Linear(5, 1), r"net fails on \[N, 3\]"),
        (torch.nn.Linear(3, 2), r"expected one value each"),
        (torch.nn.Identity(), "nothing to fit"),
    ],
    ids=["input", "output", "empty"],
)
def test_networks_that_do_not_fit_are_refused(net, words):
    with pytest.raises(mfoc.InvalidValue, match=words):
        hjb.fit(lq(3).problem(), normal(20, 2), net=net)
