"""Bridge matching and the cross-entropy method, against closed forms and bridges written out by hand."""

import math
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import CrossEntropy, Drift, GaussianDrift, PathProblem, bridge_matching, follmer, log_density
from tests.paradigms.bayesian.targets import COVARIANCE, LOG_Z, MEAN, Constant, gaussian, wild
from tests.problems import D

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.01))


def draws(n, seed=0):
    """Exact ones from the Gaussian target."""
    noise = torch.randn(n, 2, dtype=D, generator=torch.Generator().manual_seed(seed))
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).mT


@pytest.mark.parametrize(("steps", "spacing"), [(1, 1.0), (6, 1.0), (9, 2.0)])
def test_the_optimal_drift_is_stationary_on_any_grid(steps, spacing):
    """E*[X_T - X_t | X_t] / (T - t) is the optimal drift, so the regression finds it whatever the steps are."""
    made = follmer(
        gaussian(), GaussianDrift(MEAN, COVARIANCE, sigma=1.2, T=0.7), sigma=1.2, T=0.7, steps=steps, spacing=spacing
    )
    matched = bridge_matching(made, draws(200_000), particles=200_000)
    gradient = mfoc.evaluate(matched.problem, matched.problem.controls, matched.population(0)).gradient
    wrong = {name: leaf + 0.3 for name, leaf in matched.problem.controls.items()}
    away = mfoc.evaluate(matched.problem, wrong, matched.population(0)).gradient
    for name, leaf in gradient.items():
        assert float(leaf.norm()) < 0.06 * float(away[name].norm()), name


def test_its_objective_is_the_divergence_from_the_optimal_law_up_to_a_constant():
    """J(u) - J(v) = E* log dP_v / dP_u, along whole bridges made step by step."""
    sigma, T, steps = 0.9, 0.8, 5
    policies = wild(), Constant(MEAN)
    made = [follmer(gaussian(), policy, sigma=sigma, T=T, steps=steps, spacing=1.5) for policy in policies]
    ends = draws(100_000)
    values = [
        float(mfoc.evaluate(m.problem, m.problem.controls, m.population(0)).value)
        for m in (bridge_matching(one, ends, particles=100_000) for one in made)
    ]
    times = made[0].diffusion.times
    generator = torch.Generator().manual_seed(1)
    x, ratio = torch.zeros_like(ends), torch.zeros(len(ends), dtype=D)
    for k in range(steps):
        h, rest = times[k + 1] - times[k], T - times[k]
        spread = sigma * math.sqrt(max(h * (rest - h) / rest, 0.0))
        after = x + h / rest * (ends - x) + spread * torch.randn(x.shape, dtype=D, generator=generator)
        for sign, policy in zip((-1, 1), policies, strict=True):
            with torch.no_grad():
                mean = x + h * policy(torch.tensor(times[k], dtype=D), x)
            ratio = ratio + sign * torch.distributions.Normal(mean, sigma * math.sqrt(h)).log_prob(after).sum(1)
        x = after
    error = float(ratio.std()) / math.sqrt(len(ends))
    assert values[0] - values[1] == pytest.approx(float(ratio.mean()), abs=6 * error)
    assert abs(values[0] - values[1]) > 20 * error


@pytest.mark.parametrize("policy", [wild(), Drift(2, hidden=8).double(), Constant(MEAN)])
def test_drifts_at_many_times_are_the_drift_at_each(policy):
    made = follmer(gaussian(), policy, steps=4, spacing=2.0)
    diffusion, controls = made.diffusion, {k: v + 0.1 for k, v in made.problem.controls.items()}
    x, stages = draws(9), torch.arange(9) % 4
    times = torch.tensor(diffusion.times, dtype=D)[stages]
    found = diffusion.drifts(controls, times, x)
    for i, t in enumerate(stages.tolist()):
        one = diffusion.drift(controls, t, x[i : i + 1], diffusion.score(x[i : i + 1]))
        torch.testing.assert_close(found[i : i + 1], one, rtol=1e-12, atol=1e-12)


class ByName(Constant):
    """A drift that takes the gradient by name only, after an argument of its own."""

    def forward(self, t, x, other=None, *, score):
        assert other is None
        return self.u * score


def test_the_gradient_is_given_by_name():
    """Wherever the argument stands, and in bridge matching, too."""
    made, x = follmer(gaussian(), ByName(MEAN), steps=3), torch.ones(4, 2, dtype=D)
    wanted = MEAN * made.density.score(x)
    torch.testing.assert_close(made.diffusion.drift(made.problem.controls, 1, x, made.diffusion.score(x)), wanted)
    torch.testing.assert_close(made.diffusion.drifts(made.problem.controls, x[:, 0] / 3, x), wanted)


def test_bridges_leave_the_formulation_as_it_was():
    made = follmer(gaussian(), wild(), steps=3)
    matched = bridge_matching(made, draws(10), particles=7)
    assert (
        matched.evaluate(made.problem, n=5).log_weights.tolist()
        == made.evaluate(made.problem, n=5).log_weights.tolist()
    )
    assert len(matched.population(0)) == 7
    assert torch.equal(matched.population(3).state, matched.population(3).state)
    assert not torch.equal(matched.population(3).state, matched.population(4).state)


def two_modes():
    """Two narrow Gaussians far apart, with weights 3 to 1 and log Z = 2."""
    shift = torch.tensor([[4.0], [-4.0]])
    logs = torch.tensor([0.75, 0.25]).log()

    def density(x):
        return 2 + torch.logsumexp(
            logs - 0.5 * (x[:, None] - shift).square().sum(2) / 0.1 - 0.5 * math.log(2 * math.pi * 0.1), 1
        )

    return log_density(density, like=torch.zeros(1))


@pytest.mark.slow
def test_cross_entropy_covers_modes_far_apart():
    made = follmer(two_modes(), Drift(1, hidden=32), sigma=3.0, steps=25, spacing=2.0, seed=1)
    solver = CrossEntropy(mfoc.Gradient(partial(torch.optim.Adam, lr=5e-3)), every=60)
    solution = made.solve(solver, steps=360)
    before, after = made.evaluate(made.problem, n=4000), made.evaluate(solution, n=4000)
    assert solution.status is mfoc.Status.MAX_STEPS
    assert after.log_z == pytest.approx(2, abs=4 * after.error)
    assert after.ess > 2 * before.ess
    assert float((after.resampled() > 0).float().mean()) == pytest.approx(0.75, abs=0.05)
    assert float((after.x > 0).float().mean()) == pytest.approx(0.75, abs=0.15)


def test_cross_entropy_finds_the_gaussian_drift():
    made = follmer(gaussian(), GaussianDrift(MEAN + 0.5, 2 * COVARIANCE), steps=5)
    solution = made.solve(CrossEntropy(ADAM, every=8, paths=200, particles=256), steps=100)
    start, end = (made.evaluate(at, n=4000) for at in (made.problem, solution))
    assert end.J < start.J - 0.1
    assert end.log_z == pytest.approx(LOG_Z, abs=4 * end.error)
    matched = bridge_matching(made, solution.last.state["ends"], particles=50_000)
    assert solution.value == pytest.approx(made_value(matched, solution.controls), rel=0.1)


def made_value(made, controls):
    return float(mfoc.evaluate(made.problem, controls, made.population(0)).value)


def test_cross_entropy_resumes_to_the_bit(tmp_path):
    made = follmer(gaussian(), wild(), steps=5)
    solver = CrossEntropy(ADAM, every=4, paths=50, particles=32, keep=3)
    whole = made.solve(solver, steps=14)
    made.solve(solver, steps=7, hooks=[mfoc.hooks.Checkpoint(tmp_path / "at.pt", every=7)])
    rest = made.solve(solver, steps=14, start=mfoc.hooks.load(tmp_path / "at.pt"))
    assert all(torch.equal(whole.controls[k], rest.controls[k]) for k in whole.controls)
    assert torch.equal(whole.last.state["ends"], rest.last.state["ends"])


def test_cross_entropy_takes_moves_and_keeps_so_many_end_points():
    seen = []

    def moves(x, k):
        seen.append((len(x), k))
        return x

    made = follmer(gaussian(), wild(), steps=3)
    made.solve(CrossEntropy(ADAM, every=2, paths=10, keep=2, moves=moves, particles=4), steps=7)
    assert seen == [(10, 0), (20, 2), (20, 4), (20, 6)]


class Exploding(nn.Module):
    """A drift that sends some paths to infinity."""

    def __init__(self, beyond):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(2, dtype=D))
        self.beyond = beyond

    def forward(self, t, x):
        return self.u + torch.where(x[:, :1] >= self.beyond, 1e200 * (1 + x.square()), 0.0)


def test_cross_entropy_leaves_out_paths_that_explode():
    made = follmer(gaussian(), Exploding(0.5), steps=4)
    with pytest.raises(mfoc.InvalidValue, match="weights are not finite"):
        made.evaluate(made.problem)
    seen = []
    made.solve(CrossEntropy(ADAM, paths=500, moves=lambda x, k: seen.append(x) or x, particles=4), steps=1)
    assert bool(seen[0].isfinite().all())
    nowhere = follmer(gaussian(), Exploding(-1e9), steps=4)
    solution = nowhere.solve(CrossEntropy(ADAM, paths=500), steps=1)
    solver, (problem, start) = CrossEntropy(ADAM, paths=50), (nowhere.problem, nowhere.problem.controls)
    info = solver.step(problem, start, solver.init(problem, start), nowhere.population(0))[2]
    assert mfoc.tree.same_structure(info.gradient, start)
    assert solution.status is mfoc.Status.NONFINITE
    assert solution.last.step == 0


class Cubic(Constant):
    """A drift by which paths explode, and points of bridges do not."""

    def forward(self, t, x):
        return self.u * x**3


def test_a_drift_that_comes_to_explode_is_still_regressed_on_the_end_points_it_has(caplog):
    made = follmer(gaussian(), Cubic(-0.1 * MEAN.abs()), steps=8)
    huge = mfoc.Gradient(partial(torch.optim.SGD, lr=1e-4), lr_schedule=lambda k: 1e30 if k == 2 else 1.0)
    stream = mfoc.iterate(made.problem, CrossEntropy(huge, every=3, paths=50, particles=32, keep=9), made.population)
    last = [next(stream) for _ in range(4)][-1]
    assert "none of 50 paths has a finite weight" in caplog.text
    assert last.state["ends"].shape == (50, 2)


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda x: 1 / 0, ZeroDivisionError),
        (lambda x: x * math.nan, mfoc.InvalidValue),
        (lambda x: x[:, :1], mfoc.InvalidValue),
        (lambda x: None, mfoc.InvalidValue),
    ],
)
def test_moves_that_fail_lose_nothing(act, error):
    made = follmer(gaussian(), wild(), steps=3)
    solver = partial(CrossEntropy, ADAM, every=4, paths=20, particles=8)
    with pytest.raises(error) as caught:
        made.solve(solver(moves=lambda x, k: act(x) if k >= 8 else x), steps=12)
    whole = made.solve(solver(moves=lambda x, k: x), steps=8)
    assert caught.value.last_iterate.step == 8
    assert all(torch.equal(caught.value.last_iterate.controls[k], whole.controls[k]) for k in whole.controls)


def test_it_is_a_solver_like_any_other():
    made = follmer(gaussian(), wild(), steps=3)
    solver = CrossEntropy(ADAM, every=3, paths=20, particles=8)
    kept = {k: v.clone() for k, v in made.problem.controls.items()}
    one, two = (list(zip(range(5), mfoc.iterate(made.problem, solver, made.population), strict=False)) for _ in "ab")
    assert all(torch.equal(one[-1][1].controls[k], two[-1][1].controls[k]) for k in kept)
    assert all(torch.equal(made.problem.controls[k], kept[k]) for k in kept)


def test_a_problem_that_knows_no_paths_is_refused():
    made = follmer(gaussian(), wild(), steps=3)
    matched = bridge_matching(made, draws(10))
    assert isinstance(made.problem, PathProblem)
    for problem in (matched.problem, mfoc.Problem(lambda t, x, u, z: x, lambda x, z: x.sum(1), [MEAN])):
        with pytest.raises(mfoc.InvalidType, match=r"follmer\(\.\.\.\)\.solve\(CrossEntropy\(inner\)"):
            mfoc.solve(problem, CrossEntropy(ADAM), matched.population, steps=1)


@pytest.mark.parametrize(
    "spell",
    [
        lambda made, **more: CrossEntropy(made, ADAM, 3, **more),
        lambda made, **more: CrossEntropy(made=made, inner=ADAM, every=3, **more),
    ],
)
def test_the_sampler_may_still_be_given_as_it_was(spell):
    made, more = follmer(gaussian(), wild(), steps=3), {"paths": 20, "particles": 8}
    with pytest.warns(DeprecationWarning, match=r"is now CrossEntropy\(inner, \.\.\.\)") as caught:
        old = spell(made, **more)
    assert caught[0].filename == __file__
    one, two = (made.solve(solver, steps=4).controls for solver in (old, CrossEntropy(ADAM, every=3, **more)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(mfoc.InvalidValue, match="not the sampler's problem"):
        follmer(gaussian(), wild(), steps=3).solve(old, steps=1)


class Branching(Constant):
    """A drift that cannot run at many times at once."""

    def forward(self, t, x):
        return self.u.expand_as(x) if t < 0.5 else 0 * x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda made: bridge_matching(gaussian(), draws(3)), mfoc.InvalidType, "follmer"),
        (lambda made: bridge_matching(made, [1.0]), mfoc.InvalidType, "ends is a list"),
        (lambda made: bridge_matching(made, draws(3)[:0]), mfoc.InvalidValue, "empty"),
        (lambda made: bridge_matching(made, draws(3)[:, :1]), mfoc.InvalidValue, "2"),
        (lambda made: bridge_matching(made, draws(3), particles=0), mfoc.InvalidValue, "particles is 0"),
        (lambda made: bridge_matching(made, draws(3), seed=-1), mfoc.InvalidValue, "seed is -1"),
        (lambda made: bridge_matching(made, torch.tensor(1.0)), mfoc.InvalidValue, "particles of dimension 2"),
        (
            lambda made: bridge_matching(follmer(gaussian(), Branching(MEAN)), draws(3)),
            mfoc.InvalidValue,
            "cannot be run under torch.vmap",
        ),
        (lambda made: CrossEntropy(ADAM, made=gaussian()), mfoc.InvalidType, "follmer"),
        (lambda made: CrossEntropy("adam"), mfoc.InvalidType, "inner is a str"),
        (lambda made: CrossEntropy(mfoc.Gradient), mfoc.InvalidType, "inner is the class Gradient"),
        (lambda made: CrossEntropy(ADAM, every=0), mfoc.InvalidValue, "every is 0"),
        (lambda made: CrossEntropy(ADAM, keep=True), mfoc.InvalidType, "keep is True"),
        (lambda made: CrossEntropy(ADAM, paths=1), mfoc.InvalidValue, "paths is 1"),
        (lambda made: CrossEntropy(ADAM, particles=0), mfoc.InvalidValue, "particles is 0"),
        (lambda made: CrossEntropy(ADAM, moves="mala"), mfoc.InvalidType, "moves is a str"),
        (
            lambda made: follmer(gaussian(), Branching(MEAN)).solve(CrossEntropy(ADAM), steps=1),
            mfoc.InvalidValue,
            "torch.vmap",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call(follmer(gaussian(), wild(), steps=2))
