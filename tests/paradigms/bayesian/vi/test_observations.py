"""Observations: those that do not fit are found wherever they are, and a batch stands for all of them or is refused."""

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import log_density, variational
from paradigms.bayesian.vi import draws
from tests.problems import D, normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
X = normal(10, 3, seed=1)
Y = X.sum(1) + 0.1 * normal(10, seed=2)
ONE = torch.ones((), dtype=D)
pytestmark = pytest.mark.usefixtures("double")


def regression(weights, law, plate="data"):
    """A model of ``X @ w`` with this prior and this law of an observation."""

    def model(x, y=None):
        w = pyro.sample("w", weights())
        with pyro.plate(plate, len(x)):
            pyro.sample("y", law(x @ w), obs=y)

    return model


def plain():
    return dist.Normal(torch.zeros(3), 1.0).to_event(1)


def gaussian(mean):
    return dist.Normal(mean, 0.3)


model = regression(plain, gaussian)


def spoiled(values, bad):
    values = values.clone()
    values[-1] = bad
    return values


LABELS = torch.arange(10) % 4


def classes(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


def net(outputs):
    return seeded(lambda: nn.Sequential(nn.Linear(3, outputs)))


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("bad", [4, -1])
def test_a_label_that_is_no_class_is_found_wherever_it_is(bad, batch_size):
    data = X, spoiled(LABELS, bad)
    for source in (data, list(data), torch.utils.data.TensorDataset(*data), mfoc.Particles(*data)):
        with pytest.raises(mfoc.InvalidValue, match="4 classes"):
            variational(net(4), source, likelihood="categorical", batch_size=batch_size)
    with pytest.raises(mfoc.InvalidValue, match="within the support"):
        variational(classes, data, batch_size=batch_size)
    with pytest.raises(mfoc.InvalidValue, match="4 classes"):
        log_density(net(4), data, likelihood="categorical")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_target_that_is_nan_is_found_wherever_it_is(batch_size):
    y = spoiled(Y, torch.nan)
    with pytest.raises(mfoc.InvalidValue, match="NaN or infinite values, first at observation 9"):
        variational(net(1), (X, y[:, None]), likelihood="gaussian", batch_size=batch_size)
    with pytest.raises(mfoc.InvalidValue, match="within the support"):
        variational(model, (X, y), batch_size=batch_size)
    with pytest.raises(mfoc.InvalidValue, match="NaN or infinite"):
        log_density(net(1), (X, y), likelihood="gaussian")


def test_no_data_are_refused():
    with pytest.raises(mfoc.InvalidValue, match="empty"):
        variational(model, (X[:0], Y[:0]))
    with pytest.raises(mfoc.InvalidValue, match="empty"):
        variational(net(1), (X[:0], Y[:0, None]), likelihood="gaussian")
    with pytest.raises(mfoc.InvalidValue, match="at least one"):
        log_density(net(1), (X[:0], Y[:0]), likelihood="gaussian")


@pytest.mark.parametrize("batch_size", [5, 4, 3])
def test_a_certificate_is_of_all_observations_whatever_the_batches(batch_size):
    """Its J is the mean over the draws of the cost on all the data, unequal batches included."""
    for make in (
        lambda **more: variational(model, (X, Y), samples=6, **more),
        lambda **more: variational(net(1), (X, Y[:, None]), likelihood="gaussian", noise=0.3, samples=6, **more),
    ):
        whole, parts = make(), make(batch_size=batch_size)
        settings = {"groups": 3, "lanczos": 3}
        found, expected = (
            mfoc.certify(f.problem, f.problem.controls, f.population, **settings) for f in (parts, whole)
        )
        assert found.particles == 6
        assert found.value == pytest.approx(expected.value, rel=1e-12)
        assert found.residual == pytest.approx(expected.residual, rel=1e-9)
        (cloud,) = parts.population.epoch()
        cost = mfoc.rollout(whole.problem, whole.problem.controls, cloud).cost
        assert found.value == pytest.approx(float(cost.mean()), rel=1e-12)


def test_a_model_that_observes_nothing_of_its_data_is_refused():
    with pytest.raises(mfoc.InvalidValue, match="observes nothing"):
        variational(model, (X,))


def test_a_support_that_depends_on_the_batch_is_refused():
    def bounded(y):
        top = pyro.sample("top", dist.Uniform(y.max(), y.max() + 5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(top, 1.0), obs=y)

    assert variational(bounded, (Y,)).problem.stages == 1
    with pytest.raises(mfoc.InvalidValue, match="depends on the data"):
        variational(bounded, (Y,), batch_size=2)


def test_an_observation_that_is_not_of_the_batch_is_refused_with_batches():
    """It would count N / B times."""

    def with_side(x, y, z=None):
        w = pyro.sample("w", plain())
        if z is None:
            pyro.sample("side", dist.Normal(w[0], 0.1), obs=ONE)
        else:
            with pyro.plate("others", len(z)):
                pyro.sample("side", dist.Normal(w[0], 0.1), obs=z)
        with pyro.plate("data", len(x)):
            pyro.sample("y", gaussian(x @ w), obs=y)

    for data in ((X, Y), (X, Y, Y[:4])):
        variational(with_side, data, size=10)
        variational(with_side, data, size=10, batch_size=10)
        log_density(with_side, data)
        with pytest.raises(mfoc.InvalidValue, match="'side' is observed once for all data"):
            variational(with_side, data, size=10, batch_size=5)
        with pytest.raises(mfoc.InvalidValue, match="'side' is observed once for all data"):
            log_density(with_side, data, size=10)


def test_a_factor_outside_of_plates_is_refused_with_batches():
    def penalised(y):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        pyro.factor("penalty", -50 * (m - 5) ** 2)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    y = normal(12).float()
    variational(penalised, (y,))
    with pytest.raises(mfoc.InvalidValue, match="penalty"):
        variational(penalised, (y,), batch_size=3)


@pytest.mark.parametrize(
    "make", [lambda m: variational(m, (X, Y), batch_size=5), lambda m: log_density(m, (X, Y), size=10)]
)
def test_a_model_that_scales_its_batches_itself_is_refused(make):
    def scaled(x, y):
        w = pyro.sample("w", plain())
        with pyro.poutine.scale(scale=10 / len(x)), pyro.plate("data", len(x)):
            pyro.sample("y", gaussian(x @ w), obs=y)

    with pytest.raises(mfoc.InvalidValue, match="scales its observations"):
        make(scaled)


@pytest.mark.parametrize("estimator", ["weights", "local", "flipout"])
def test_shares_of_a_batch_are_weighed(estimator, monkeypatch):
    """Seven observations on three ranks: the mean over ranks of what each says is what one process says."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = variational(net, (x, x.sum(1)), likelihood="gaussian", samples=2, estimator=estimator)
    expected = mfoc.rollout(made.problem, made.problem.controls, made.population(0)).cost
    found = []
    for rank in range(3):
        monkeypatch.setattr(draws, "world_size", lambda: 3)
        monkeypatch.setattr(draws, "share", lambda index, rank=rank: index[rank::3])
        cloud = made.population(0)
        assert cloud.state.shape == (2, len(range(rank, 7, 3)), 2)
        found.append(mfoc.rollout(made.problem, made.problem.controls, cloud).cost)
    torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_goes_on_at_a_batch_of_another_size(at, monkeypatch):
    """Seven observations in batches of three: the third has one; and on other ranks it goes on as well."""
    net = seeded(lambda: nn.Linear(2, 1))
    x = normal(7, 2)
    made = variational(net, (x, x.sum(1)), likelihood="gaussian", samples=2, batch_size=3)
    solver = mfoc.Gradient(torch.optim.Adam)
    whole, start = made.solve(solver, steps=5), made.solve(solver, steps=at).last
    assert made.solve(solver, steps=5, start=start).value == whole.value
    monkeypatch.setattr(draws, "world_size", lambda: 2)
    monkeypatch.setattr(draws, "share", lambda index: index[::2])
    assert made.solve(solver, steps=5, start=start).last.step == 5


def test_the_old_check_of_shares_says_that_it_is_none():
    with pytest.warns(DeprecationWarning, match="need not be split evenly"):
        draws.check_shares(mfoc.population(torch.arange(10.0), batch_size=3))
