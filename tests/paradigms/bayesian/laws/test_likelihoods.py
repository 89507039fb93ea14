"""One likelihood, one sign: every door reads it alike, accepts the same and refuses the same."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms import bayesian
from paradigms.bayesian import (
    LogLikelihood,
    NegativeLogLikelihood,
    as_model,
    ensemble,
    log_density,
    nll,
    predict,
    rmse,
    variational,
)
from paradigms.bayesian.laws.likelihoods import likelihood_of
from tests.problems import D, normal, seeded

pyro = pytest.importorskip("pyro")

pytestmark = pytest.mark.filterwarnings("ignore:log_density reads a function:UserWarning")

X = normal(12, 3, seed=1)
N = len(X)


def net(outputs):
    return seeded(lambda: nn.Sequential(nn.Linear(3, outputs)), 3)


def flat_net():
    """Outputs ``[N]``."""
    return seeded(lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), 3)


def squared(output, y):
    """A negative log likelihood: least where the output is y."""
    return 0.5 * (output - y).square().sum(1)


def test_weights_that_fit_have_the_higher_density_and_the_lower_nll():
    """Through every door by which the same function comes."""
    truth, make = torch.tensor([[1.0, -2.0, 0.5]], dtype=D), lambda: nn.Linear(3, 1, bias=False).double()
    y = X @ truth.mT
    density = log_density(make(), (X, y), likelihood=squared)
    right, wrong = density(torch.cat([truth, -truth]))
    assert right > wrong
    for good, bad in (
        [nll(predict(ensemble(make(), {"weight": w[None]}, likelihood=squared), X), y) for w in (truth, -truth)],
        [-float(log_density(as_model(make(), likelihood=squared), (X, y))(w)) for w in (truth, -truth)],
    ):
        assert good < bad


# ---- the doors: each gives the log likelihood of all observations at the network's own weights


def by_variational(net, y, **given):
    f = variational(net, (X, y), **given)
    return -N * float(f.problem.terminal_cost(net(X).detach()[None], {"y": y[None]}))


def at_own_weights(density, net):
    """The log density there without that of the standard normal prior."""
    weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    return float(density(weights[None])) - float(torch.distributions.Normal(0.0, 1.0).log_prob(weights).sum())


def by_log_density(net, y, **given):
    return at_own_weights(log_density(net, (X, y), **given), net)


def by_ensemble(net, y, **given):
    draws = {name: p.detach()[None] for name, p in net.named_parameters()}
    return -N * nll(predict(ensemble(net, draws, **given), X), y)


def by_as_model(net, y, **given):
    return at_own_weights(log_density(as_model(net, **given), (X, y)), net)


def by_posterior_model(net, y, **given):
    f = variational(net, (X, y), **given)
    model = f.readout(f.problem).model
    own = {f"net.{name}": p.detach() for name, p in net.named_parameters()}
    trace = pyro.poutine.trace(pyro.condition(model, own)).get_trace(X, y)
    trace.compute_log_prob()
    return float(trace.nodes["obs"]["log_prob_sum"])


DOORS = [by_variational, by_log_density, by_ensemble, by_as_model, by_posterior_model]


def gaussian(net, y, noise):
    return torch.distributions.Normal(net(X).detach().view(y.shape), noise).log_prob(y).sum()


def poisson(full):
    """The log likelihood that torch's loss leaves: without the constant unless it is full."""
    return lambda net, y: -F.poisson_nll_loss(net(X), y, full=full, reduction="sum")


COUNTS = torch.arange(N, dtype=D)[:, None] % 3
COLUMN, PAIRS = normal(N, 1, seed=2), normal(N, 2, seed=4)
WIDTHS = torch.tensor([0.5, 2.0], dtype=D)
LABELS = torch.arange(N) % 4

ACCEPTED = {
    "a negative log likelihood": (net(1), COLUMN, {"likelihood": squared}, lambda n, y: -squared(n(X), y).sum()),
    "said to be one": (
        net(1), COLUMN, {"likelihood": NegativeLogLikelihood(squared)}, lambda n, y: -squared(n(X), y).sum(),
    ),
    "a log likelihood": (
        net(1), COLUMN, {"likelihood": LogLikelihood(lambda out, y: -squared(out, y))},
        lambda n, y: -squared(n(X), y).sum(),
    ),
    "a loss of torch": (net(1), COUNTS, {"likelihood": nn.PoissonNLLLoss(full=True)}, poisson(True)),
    "a loss of torch as a function": (net(1), COUNTS, {"likelihood": F.poisson_nll_loss}, poisson(False)),
    "numbers [N] for outputs [N, 1]": (
        net(1), COLUMN[:, 0], {"likelihood": "gaussian", "noise": 0.3}, lambda n, y: gaussian(n, y, 0.3),
    ),
    "numbers [N, 1] for outputs [N]": (
        flat_net(), COLUMN, {"likelihood": "gaussian", "noise": 0.3}, lambda n, y: gaussian(n, y, 0.3),
    ),
    "numbers [N] for outputs [N]": (
        flat_net(), COLUMN[:, 0], {"likelihood": "gaussian", "noise": 2}, lambda n, y: gaussian(n, y, 2.0),
    ),
    "numbers that are integers": (
        net(1), LABELS, {"likelihood": "gaussian", "noise": 0.3}, lambda n, y: gaussian(n, y.double(), 0.3),
    ),
    "a noise for each output": (
        net(2), PAIRS, {"likelihood": "gaussian", "noise": WIDTHS}, lambda n, y: gaussian(n, y, WIDTHS),
    ),
    "a noise that is a tensor": (
        net(2), PAIRS, {"likelihood": "gaussian", "noise": WIDTHS[0].float()}, lambda n, y: gaussian(n, y, 0.5),
    ),
    "labels": (net(4), LABELS, {"likelihood": "categorical"}, lambda n, y: -F.cross_entropy(n(X), y, reduction="sum")),
    "labels of another integer type": (
        net(4), LABELS.int(), {"likelihood": "categorical"},
        lambda n, y: -F.cross_entropy(n(X), y.long(), reduction="sum"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", ACCEPTED)
def test_every_door_reads_a_likelihood_alike(case, door):
    net, y, given, expected = ACCEPTED[case]
    assert door(net, y, **given) == pytest.approx(float(expected(net, y).detach()), rel=1e-6)


class Student(nn.Module):
    """A module that is no loss of torch: it has no ``reduction``."""

    def forward(self, output, y):
        return squared(output, y)


REFUSED = {
    "a name": (net(1), COLUMN, {"likelihood": "poisson"}, "likelihood is 'poisson'"),
    "a class": (net(1), COLUMN, {"likelihood": nn.MSELoss}, "likelihood is the class MSELoss"),
    "a noise that is not positive": (net(1), COLUMN, {"likelihood": "gaussian", "noise": -1.0}, "noise is -1.0"),
    "a noise that is infinite": (net(1), COLUMN, {"likelihood": "gaussian", "noise": math.inf}, "noise is inf"),
    "a noise that is no number": (net(1), COLUMN, {"likelihood": "gaussian", "noise": "a"}, "noise is 'a'"),
    "a noise with a zero": (net(2), PAIRS, {"likelihood": "gaussian", "noise": 0 * WIDTHS}, "noise is tensor"),
    "a noise of another shape": (
        net(2), PAIRS, {"likelihood": "gaussian", "noise": torch.ones(3)}, r"noise has shape \(3,\)",
    ),
    "a noise of classes": (net(4), LABELS, {"likelihood": "categorical", "noise": 1.0}, "only a Gaussian"),
    "a noise of a function": (net(1), COLUMN, {"likelihood": squared, "noise": 1.0}, "only a Gaussian"),
    "other outputs": (net(2), COLUMN, {"likelihood": "gaussian", "noise": 1.0}, "must agree"),
    "more numbers": (net(1), PAIRS, {"likelihood": "gaussian", "noise": 1.0}, "must agree"),
    "NaN": (net(1), COLUMN * math.nan, {"likelihood": "gaussian", "noise": 1.0}, "NaN|within the support"),
    "no class": (net(4), LABELS + 1, {"likelihood": "categorical"}, "4 classes|within the support"),
    "labels that are no integers": (
        net(4), COLUMN[:, 0], {"likelihood": "categorical"}, "integer labels|within the support",
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", REFUSED)
def test_every_door_refuses_the_same(case, door):
    net, y, given, words = REFUSED[case]
    with pytest.raises(mfoc.MfocError, match=words):
        door(net, y, **given)


@pytest.mark.parametrize("door", [by_variational, by_log_density, by_ensemble])
def test_a_function_is_one_number_for_each_observation(door):
    with pytest.raises(mfoc.InvalidValue, match="one number for each observation"):
        door(net(2), PAIRS, likelihood=lambda out, y: (out - y).square())


@pytest.mark.parametrize("noise", [None, 0.3])
def test_metrics_take_numbers_with_and_without_a_last_axis(noise):
    f = variational(net(1), (X, COLUMN[:, 0]), likelihood="gaussian", noise=noise)
    prediction = predict(f.readout(f.problem), X, samples=3)
    for metric in (nll, rmse):
        assert metric(prediction, COLUMN[:, 0]) == pytest.approx(metric(prediction, COLUMN))


def test_a_learned_noise_starts_at_the_residuals_whatever_the_shape():
    made = [variational(net(1), (X, y), likelihood="gaussian").problem.controls[-1] for y in (COLUMN, COLUMN[:, 0])]
    assert torch.equal(made[0]["noise"], made[1]["noise"])


# ---- the sign, said aloud


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "likelihood",
    [NegativeLogLikelihood(squared), LogLikelihood(squared), nn.PoissonNLLLoss(), F.poisson_nll_loss],
)
def test_a_likelihood_that_says_its_sign_is_taken_in_silence(likelihood):
    assert log_density(net(1), (X, COUNTS), likelihood=likelihood).size == len(X)


@pytest.mark.parametrize("likelihood", [squared, Student()])
def test_log_density_warns_of_a_function_whose_sign_it_has_changed(likelihood):
    with pytest.warns(UserWarning, match=r"NEGATIVE log likelihood.*LogLikelihood\(function\)") as caught:
        log_density(net(1), (X, COLUMN), likelihood=likelihood)
    assert caught[0].filename == __file__


def test_the_other_doors_have_always_read_it_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for door in (by_variational, by_ensemble, by_posterior_model):
            door(net(1), COLUMN, likelihood=squared)


def test_a_likelihood_that_is_read_is_a_likelihood():
    for what in ("categorical", squared, LogLikelihood(squared)):
        assert likelihood_of(likelihood_of(what)) == likelihood_of(what)


def test_labels_of_another_shape_are_refused_by_the_pyro_model_of_a_network_too(double):
    net, (x, y) = seeded(lambda: nn.Linear(3, 2)), (normal(8, 3), torch.arange(8) % 2)
    model = bayesian.as_model(net, likelihood="categorical")
    bayesian.log_density(model, (x, y))
    for wrong in (y[:, None], y.double()):
        with pytest.raises(mfoc.MfocError, match=r"integer labels \[N\]"):
            bayesian.log_density(model, (x, wrong))


@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_a_prior_without_a_density_is_refused(scale):
    prior = torch.distributions.Normal(0.0, scale, validate_args=False)
    data = (normal(8, 3), normal(8, 1))
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 1)))
    with pytest.raises(mfoc.InvalidValue, match=r"prior of .* NaN or infinite"):
        bayesian.variational(net, data, likelihood="gaussian", prior=prior)


def test_class_weights_and_ignored_labels_of_an_observation_have_nothing_to_do_with_the_others():
    """A loss of torch divides by the weights of the batch; a likelihood is one factor for each observation."""
    weight, y = torch.tensor([0.2, 1.5, 3.0], dtype=D), torch.tensor([0, 2, -100, 1])
    output = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=D)
    law = likelihood_of(nn.CrossEntropyLoss(weight))
    found = law.log_prob(output, y.expand(1, 4))
    expected = -torch.stack([nn.CrossEntropyLoss(weight, reduction="none")(o, y) for o in output])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(law.log_prob(output[:, :2], y[None, :2]), expected[:, :2])


@pytest.mark.parametrize("noise", [0.7, torch.tensor(0.7, dtype=D), torch.tensor([0.7], dtype=D)])
def test_a_noise_of_one_number_costs_what_the_normal_density_says(noise):
    output, y = normal(4, 5, 3, seed=1), normal(1, 5, 3, seed=2)
    expected = -torch.distributions.Normal(output, 0.7).log_prob(y).sum(-1).mean(-1)
    torch.testing.assert_close(likelihood_of("gaussian", noise).cost(output, y), expected)


def test_a_noise_that_its_owner_changes_is_read_anew():
    noise, output, y = torch.tensor(0.7, dtype=D), normal(4, 5, seed=1), normal(1, 5, seed=2)
    likelihood = likelihood_of("gaussian", noise)
    likelihood.cost(output, y)
    noise.fill_(2.0)
    expected = -torch.distributions.Normal(output, 2.0).log_prob(y).mean(-1)
    torch.testing.assert_close(likelihood.cost(output, y), expected)


def test_a_noise_that_is_differentiated_keeps_its_derivative():
    noise, output, y = torch.tensor(0.7, dtype=D, requires_grad=True), normal(4, 5, seed=1), normal(1, 5, seed=2)
    found = likelihood_of("gaussian", noise).cost(output, y).sum()
    expected = -torch.distributions.Normal(output, noise).log_prob(y).mean(-1).sum()
    torch.testing.assert_close(torch.autograd.grad(found, noise), torch.autograd.grad(expected, noise))
