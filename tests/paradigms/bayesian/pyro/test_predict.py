"""Predictions of Pyro guides: the store is left alone, wrapped laws are recognised, what does not fit is refused."""

import math

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import accuracy, ensemble, log_density, nll, predict, rmse, variational
from tests.problems import normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
guides = pyro.infer.autoguide

X = normal(10, 3, seed=1)
Y = X.sum(1) + 0.1 * normal(10, seed=2)
LABELS = torch.arange(10) % 4

pytestmark = pytest.mark.usefixtures("double")


def with_parameter(x, y=None):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


def trained(model, steps=50):
    guide = guides.AutoNormal(model)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    for _ in range(steps):
        svi.step(X, Y)
    return guide


def stored():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def test_learned_parameters_are_used_and_left_as_they_are():
    guide, before = trained(with_parameter), stored()
    random = torch.get_rng_state()
    prediction = predict(guide, (X,), samples=30)
    assert stored().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in stored().items())
    assert torch.equal(random, torch.get_rng_state())
    assert float(before["scale"]) < 1.5
    torch.testing.assert_close(prediction.aleatoric, before["scale"].square().expand(10))


def test_parameters_that_are_nowhere_yet_are_not_put_into_the_store():
    def model(x, y=None):
        pyro.param("new", torch.tensor(1.0))
        plain(x, y)

    guide = read_out(plain, (X, Y))
    guide._model = (model,)
    names = set(stored())
    predict(guide, (X,), samples=2)
    assert set(stored()) == names


def test_the_density_of_a_model_with_parameters_is_that_of_their_learned_values():
    before = set(stored())
    fresh = log_density(with_parameter, (X, Y))
    assert set(stored()) == before
    trained(with_parameter)
    kept = stored()
    learned, w = log_density(with_parameter, (X, Y)), normal(4, 3, seed=5)
    for density, scale in ((fresh, torch.tensor(2.0)), (learned, kept["scale"])):
        likelihood = torch.distributions.Normal(w @ X.mT, scale).log_prob(Y).sum(1)
        expected = likelihood + torch.distributions.Normal(0.0, 1.0).log_prob(w).sum(1)
        torch.testing.assert_close(density(w), expected)
    assert stored().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in stored().items())
    pyro.clear_param_store()
    torch.testing.assert_close(learned(w[:1]), learned(w)[:1])  # another shape, recorded later


def plain(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def read_out(model, data):
    f = variational(model, data)
    return f.readout(f.problem)


WRAPPED = {
    "plate": lambda law: law,
    "event": lambda law: law.to_event(1),
    "mask": lambda law: law.mask(torch.arange(10) < 5),
    "masked event": lambda law: law.mask(torch.arange(10) < 5).to_event(1),
}


def wrapped(how, law):
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3, 4), 1.0).to_event(2))
        if how in ("plate", "mask"):
            with pyro.plate("data", len(x)):
                pyro.sample("y", WRAPPED[how](law(x @ w)), obs=y)
        else:
            pyro.sample("y", WRAPPED[how](law(x @ w)), obs=y)

    return model


@pytest.mark.parametrize("how", WRAPPED)
def test_classes_are_recognised_however_they_are_wrapped(how):
    expected, found = (
        predict(read_out(wrapped(way, lambda out: dist.Categorical(logits=out)), (X, LABELS)), (X,), samples=7)
        for way in ("plate", how)
    )
    assert found.classes
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.epistemic, expected.epistemic)
    assert found.mean.shape == (10, 4)
    assert nll(found, LABELS) == pytest.approx(float(-found.mean.log()[torch.arange(10), LABELS].mean()))
    assert accuracy(found, LABELS) == float((found.mean.argmax(1) == LABELS).double().mean())


@pytest.mark.parametrize("how", WRAPPED)
def test_numbers_have_one_density_for_each_observation(how):
    guide = read_out(wrapped(how, lambda out: dist.Normal(out[:, 0], 0.5)), (X, Y))
    found = predict(guide, (X, Y), samples=50, seed=3)
    assert not found.classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        means = torch.stack([X @ guide()["w"].detach()[:, 0] for _ in range(50)])
    torch.testing.assert_close(found.mean, means.mean(0))
    each = torch.distributions.Normal(means, 0.5).log_prob(Y)
    torch.testing.assert_close(found.log_prob(Y), each.logsumexp(0) - math.log(50))


def test_what_is_computed_is_not_what_is_observed():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        mean = pyro.deterministic("mean", x @ w)
        pyro.factor("penalty", -w.square().sum())
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    guide = read_out(model, (X, Y))
    torch.testing.assert_close(predict(guide, (X,), samples=3).aleatoric, torch.full((10,), 0.25))
    for site in ("mean", "penalty", "w", "z"):
        with pytest.raises(mfoc.InvalidValue, match=r"besides its latents are \['y'\]"):
            predict(guide, (X,), site=site)


# ---- what is refused


def net():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 2)))


def many():
    weights = {name: normal(5, *p.shape) for name, p in net().named_parameters()}
    return ensemble(net(), weights, likelihood="categorical")


def posterior():
    f = variational(net(), (X, normal(10, 2)), likelihood="gaussian")
    return f.readout(f.problem)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (posterior, r"shape \(4, 2\); expected \[B, 3\]"),
        (many, r"shape \(4, 2\); expected .*in_features=3"),
    ],
)
def test_inputs_of_another_width_are_refused(make, words):
    with pytest.raises(mfoc.InvalidValue, match=words):
        predict(make(), X[:4, :2])


def test_arguments_that_the_model_cannot_take_are_refused():
    guide = read_out(plain, (X, Y))
    with pytest.raises(mfoc.InvalidValue, match="cannot be run on these arguments"):
        predict(guide, (X[:, :2],))
    with pytest.raises(mfoc.InvalidValue, match="cannot be run on these arguments"):
        predict(guide, ())


def test_observations_that_do_not_fit_are_refused():
    numbers = predict(read_out(plain, (X, Y)), (X,), samples=2)
    model = wrapped("plate", lambda out: dist.Categorical(logits=out))
    labels = predict(read_out(model, (X, LABELS)), (X,), samples=2)
    for prediction, y, words in (
        (numbers, Y[:, None], r"shape \(10, 1\)"),
        (numbers, Y[:3], r"shape \(3,\)"),
        (numbers, Y * torch.nan, "outside"),
        (labels, LABELS + 1, "from 0 to 3"),
        (predict(posterior(), X, samples=2), normal(10, 2) * torch.nan, "NaN"),
    ):
        with pytest.raises(mfoc.InvalidValue, match=words):
            nll(prediction, y)
    for prediction, y, words in ((numbers, 3.0, "is a float"), (labels, LABELS.double(), "integer labels")):
        with pytest.raises(mfoc.InvalidType, match=words):
            nll(prediction, y)
    with pytest.raises(mfoc.InvalidType, match="list"):
        rmse(numbers, [1.0] * 10)


def test_a_guide_without_its_model_says_so():
    guide = read_out(plain, (X, Y))
    guide._model = None  # what pickling leaves
    with pytest.raises(mfoc.InvalidValue, match="lost its model"):
        predict(guide, (X,))


def test_no_draws_are_refused():
    with pytest.raises(mfoc.InvalidValue, match="no draw"):
        ensemble(net(), {"0.weight": torch.zeros(0, 2, 3), "0.bias": torch.zeros(0, 2)}, likelihood="categorical")
