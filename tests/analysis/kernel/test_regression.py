"""Kernel prediction against scikit-learn, scipy and the differential equation that gradient flow is."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.stats import multivariate_normal

import mfoc
from mfoc.analysis.kernel import KernelPredictor, fitted, infinite_kernels

NET = {"activation": "relu", "depth": 3, "weight_variance": 2.0, "bias_variance": 0.1}


def data(n=12, m=5, outputs=None, seed=0):
    """Training inputs and targets, and new inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + m, 3, dtype=torch.float64, generator=generator)
    y = torch.stack([x[:n, 0].sin(), x[:n, 1] * x[:n, 2]], 1)[:, : outputs or 1]
    return x[:n], y[:, 0] if outputs is None else y, x[n:]


def kernels(*x):
    return [part.numpy() for part in infinite_kernels(*x, **NET)]


# ---- the Gaussian process


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_the_posterior_is_that_of_scikit_learn(ridge):
    gaussian_process = pytest.importorskip("sklearn.gaussian_process")

    class Given(gaussian_process.kernels.Kernel):
        """The kernel as scikit-learn calls it."""

        def __init__(self):
            pass

        def __call__(self, x, y=None, eval_gradient=False):
            other = None if y is None else torch.from_numpy(y)
            return infinite_kernels(torch.from_numpy(x), other, **NET).nngp.numpy()

        def diag(self, x):
            return self(x).diagonal()

        def is_stationary(self):
            return False

        theta = bounds = np.empty(0)

    x, y, new = data()
    regressor = gaussian_process.GaussianProcessRegressor(Given(), alpha=max(ridge, 1e-14), optimizer=None)
    regressor.fit(x.numpy(), y.numpy())
    mean, deviation = regressor.predict(new.numpy(), return_std=True)
    ours = KernelPredictor(**NET, ridge=ridge).fit(x, y)
    assert torch.allclose(ours.predict(new).mean, torch.from_numpy(mean), atol=1e-9)
    assert torch.allclose(ours.predict(new).variance, torch.from_numpy(deviation**2), atol=1e-9)
    assert ours.log_marginal_likelihood() == pytest.approx(regressor.log_marginal_likelihood_value_, rel=1e-9)


def test_the_marginal_likelihood_is_a_normal_density_over_all_outputs():
    x, y, _ = data(outputs=2)
    law = multivariate_normal(np.zeros(len(x)), kernels(x)[0] + 0.1 * np.eye(len(x)))
    exact = sum(law.logpdf(column) for column in y.T.numpy())
    assert KernelPredictor(**NET, ridge=0.1).fit(x, y).log_marginal_likelihood() == pytest.approx(exact)


def test_without_noise_the_data_are_certain():
    x, y, _ = data()
    mean, variance = KernelPredictor(**NET).fit(x, y).predict(x)
    assert torch.allclose(mean, y, atol=1e-9)
    assert float(variance.max()) < 1e-9


# ---- the ensemble of trained networks


@pytest.mark.parametrize("time", [0.0, 0.3, 4.0])
def test_training_for_a_time_is_the_linear_flow(time):
    """d f(x) / dt = -Theta(x, X) (f(X) - y), from f ~ N(0, K): its transition matrix by scipy."""
    x, y, new = data()
    nngp, ntk = kernels(torch.cat([x, new]))
    n, total = len(x), len(x) + len(new)
    rate = np.zeros((total + 1, total + 1))  # the last coordinate is 1
    rate[:total, :n] = -ntk[:, :n]
    rate[:total, -1] = ntk[:, :n] @ y.numpy()
    moved = expm(rate * time)
    mean, variance = KernelPredictor(**NET, kernel="ntk").fit(x, y).predict(new, time=time)
    exact = moved[:total, :total] @ nngp @ moved[:total, :total].T
    assert torch.allclose(mean, torch.from_numpy(moved[n:total, -1]), atol=1e-10)
    assert torch.allclose(variance, torch.from_numpy(exact.diagonal()[n:].copy()), atol=1e-10)


@pytest.mark.parametrize("time", [0.5, math.inf])
def test_a_ridge_draws_the_parameters_back_to_where_they_began(time):
    """Features phi with phi phi^T = Theta: d theta / dt = -phi^T (f - y) - r (theta - theta_0), f = f_0 + phi theta."""
    x, y, new = data()
    nngp, ntk = kernels(torch.cat([x, new]))
    n, ridge = len(x), 0.2
    features = np.linalg.cholesky(ntk)
    rate = -(features[:n].T @ features[:n]) - ridge * np.eye(len(ntk))
    done = np.linalg.inv(rate) @ ((0 if time == math.inf else expm(rate * time)) - np.eye(len(ntk)))
    weights = features[n:] @ done @ features[:n].T  # of y - f_0(X)
    mean, variance = KernelPredictor(**NET, kernel="ntk", ridge=ridge).fit(x, y).predict(new, time=time)
    blend = np.concatenate([-weights, np.eye(len(new))], 1)
    assert torch.allclose(mean, torch.from_numpy(weights @ y.numpy()), atol=1e-10)
    assert torch.allclose(variance, torch.from_numpy((blend @ nngp @ blend.T).diagonal().copy()), atol=1e-10)


def test_a_network_of_width_4096_is_trained_to_what_is_predicted():
    """Gradient descent on the sum, less the outputs at the start, whose mean over initialisations is zero."""
    x, y, new = data()
    x, y, new = x.float(), y.float(), new.float()
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((3, 4096), (4096,), (4096,), ())]

    def forward(w, b, v, a, at):
        return (2 / 4096) ** 0.5 * ((2 / 3) ** 0.5 * at @ w + 0.1**0.5 * b).relu() @ v + 0.1**0.5 * a

    start_x, start_new, rate, steps = forward(*weights, x), forward(*weights, new), 0.02, 60
    for _ in range(steps):
        weights = [weight.requires_grad_() for weight in weights]
        loss = (forward(*weights, x) - start_x - y).square().sum() / 2
        slopes = torch.autograd.grad(loss, weights)
        weights = [(weight - rate * slope).detach() for weight, slope in zip(weights, slopes, strict=True)]
    network = {"activation": "relu", "depth": 2, "weight_variance": 2.0, "bias_variance": 0.1, "kernel": "ntk"}
    machine = KernelPredictor(**network).fit(x, y)
    early, mean = (machine.predict(new, time=time).mean for time in (0.5 * rate * steps, rate * steps))
    off = (forward(*weights, new) - start_new - mean).norm()
    assert off < 0.05 * mean.norm()
    assert off < 0.3 * (early - mean).norm()  # the time is the right one


def test_long_training_is_training_to_the_end():
    x, y, new = data()
    trained = KernelPredictor(**NET, kernel="ntk", ridge=0.01).fit(x, y)
    for late, last in zip(trained.predict(new, time=1e6), trained.predict(new), strict=True):
        assert torch.allclose(late, last, atol=1e-9)


# ---- leave-one-out, and the ridge


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_leaving_one_out_is_fitting_without_it(kernel):
    x, y, _ = data(outputs=2)
    predictor = KernelPredictor(**NET, kernel=kernel, ridge=0.05)
    out = predictor.fit(x, y).leave_one_out()
    for i in range(len(x)):
        kept = torch.arange(len(x)) != i
        assert torch.allclose(out[i], predictor.fit(x[kept], y[kept]).predict(x[i : i + 1]).mean[0], atol=1e-10)


@pytest.mark.parametrize("by", ["leave_one_out", "likelihood"])
def test_the_best_ridge_is_that_of_fitting_with_each(by):
    x, y, _ = data(outputs=2)
    y = y + 0.3 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    predictor, ridges = KernelPredictor(**NET), [1e-4, 1e-2, 0.1, 0.5, 3.0, 20.0]

    def loss(ridge):
        one = KernelPredictor(**NET, ridge=ridge).fit(x, y)
        if by == "likelihood":
            return -one.log_marginal_likelihood()
        return float((one.leave_one_out() - y).square().mean())

    best = predictor.with_best_ridge(x, y, by=by, ridges=ridges)
    assert best.ridge == min(ridges, key=loss)
    assert best.ridge not in (ridges[0], ridges[-1])  # the data have an opinion
    free = predictor.with_best_ridge(x, y, by=by)
    assert loss(free.ridge) <= loss(best.ridge) + 1e-3 * abs(loss(best.ridge))


# ---- classes


def test_classes_are_indicators_less_their_share():
    x, y, new = data(n=30)
    labels = torch.tensor([3, 7, 11])[(y > 0).long() + (y > 0.5).long()]
    machine = KernelPredictor(**NET, kernel="ntk", ridge=1e-3).fit(x, labels)
    indicators = (labels[:, None] == torch.tensor([3, 7, 11])).double() - 1 / 3
    by_hand = KernelPredictor(**NET, kernel="ntk", ridge=1e-3).fit(x, indicators)
    assert torch.allclose(machine.predict(new).mean, by_hand.predict(new).mean, atol=1e-12)
    assert torch.equal(machine.classify(new), torch.tensor([3, 7, 11])[by_hand.predict(new).mean.argmax(1)])
    assert float((machine.classify(x) == labels).double().mean()) > 0.9


def test_yes_and_no_are_classes():
    x, y, new = data(n=20)
    found = KernelPredictor(**NET, ridge=1e-3).fit(x, y > 0).classify(new)
    assert found.dtype == torch.bool


# ---- shapes, types, printing


def test_shapes_and_types_follow_the_inputs():
    x, y, new = data(outputs=2)
    wide = KernelPredictor(**NET, ridge=0.1).fit(x, y).predict(new)
    narrow = KernelPredictor(**NET, ridge=0.1).fit(x.float(), y.float()).predict(new.float())
    assert narrow.mean.dtype == narrow.variance.dtype == torch.float32
    assert narrow.mean.shape == (5, 2)
    assert narrow.variance.shape == (5,)
    assert torch.allclose(narrow.mean.double(), wide.mean, atol=1e-5)
    assert KernelPredictor(**NET, ridge=0.1).fit(x, y[:, 0]).predict(new).mean.shape == (5,)
    image = KernelPredictor(**NET, ridge=0.1).fit(x[:, None], y).predict(new[:, None])
    assert torch.equal(image.mean, wide.mean)


def test_new_inputs_in_parts_are_the_same(monkeypatch):
    x, y, new = data()
    machine = KernelPredictor(**NET, kernel="ntk").fit(x, y)
    whole = machine.predict(new)
    monkeypatch.setattr(fitted, "_AT_ONCE", 30)
    for one, other in zip(whole, machine.predict(new), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_what_was_fitted_does_not_follow_its_data():
    x, y, new = data()
    machine = KernelPredictor(**NET, ridge=0.1).fit(x, y)
    before = machine.predict(new).mean
    x.zero_(), y.zero_()
    assert torch.equal(machine.predict(new).mean, before)
    again = pickle.loads(pickle.dumps(machine))
    assert torch.equal(again.predict(new).mean, before)


def test_it_says_how_well_it_predicts_and_what_it_is():
    x, y, _ = data(n=40)
    said = str(KernelPredictor(**NET, ridge=0.01).fit(x, y))
    assert said.startswith("leave-one-out RMSE")
    assert said.endswith(
        "NNGP of 3 dense layers, relu, weight variance 2, bias variance 0.1, ridge 0.01; 40 points, 1 output"
    )
    said = repr(KernelPredictor(**NET, kernel="ntk", residual=True, ridge=0.01).fit(x, (y > 0).long()))
    assert said.startswith("leave-one-out accuracy")
    assert "NTK of 3 residual dense layers" in said
    assert "tensor" not in said


# ---- refusals


def test_repeated_inputs_are_named_with_a_cure():
    x, y, new = data()
    x, y = torch.cat([x, x[2:3]]), torch.cat([y, y[2:3]])
    with pytest.raises(mfoc.InvalidValue, match=r"x\[2\] is x\[12\].*Take a ridge"):
        KernelPredictor(**NET).fit(x, y)
    assert torch.isfinite(KernelPredictor(**NET, ridge=1e-6).fit(x, y).predict(new).mean).all()


def test_a_linear_model_of_too_many_points_is_refused():
    x, y, _ = data()
    with pytest.raises(mfoc.InvalidValue, match="low rank"):
        KernelPredictor("relu", 1).fit(x, y)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kernel": "rbf"}, mfoc.InvalidValue, "'nngp', 'ntk'"),
        ({"ridge": -1.0}, mfoc.InvalidValue, "ridge is -1.0"),
        ({"ridge": "1"}, mfoc.InvalidType, "ridge"),
        ({"depth": 0}, mfoc.InvalidValue, "depth is 0"),
        ({"activation": "no such"}, mfoc.InvalidValue, "no such"),
    ],
)
def test_what_is_no_predictor_is_refused_when_it_is_made(change, error, words):
    with pytest.raises(error, match=words):
        KernelPredictor(**(NET | change))


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (torch.ones(2, 3), [1.0, 2.0], mfoc.InvalidType, "y is a list"),
        (torch.ones(2, 3), torch.ones(3), mfoc.InvalidValue, r"shape \(3,\) for 2 inputs"),
        (torch.ones(2, 3), torch.tensor(1.0), mfoc.InvalidValue, "shape"),
        (torch.ones(2, 3), torch.ones(2, 2, 2), mfoc.InvalidValue, "shape"),
        (torch.ones(2, 3), torch.tensor([1.0, math.inf]), mfoc.InvalidValue, "infinity"),
        (torch.ones(2, 3), torch.ones(2, 2, dtype=torch.long), mfoc.InvalidValue, "classes"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.long), mfoc.InvalidValue, "one class"),
        (torch.ones(2, 3), torch.ones(2, dtype=torch.complex64), mfoc.InvalidType, "real"),
        (torch.ones(2, 3, dtype=torch.long), torch.ones(2), mfoc.InvalidType, "x is of torch.int64"),
    ],
)
def test_what_is_no_data_is_refused(x, y, error, words):
    with pytest.raises(error, match=words):
        KernelPredictor(**NET, ridge=0.1).fit(x, y)


def test_questions_that_make_no_sense_are_refused():
    x, y, new = data()
    prior, trained = (KernelPredictor(**NET, kernel=kernel, ridge=0.1) for kernel in ("nngp", "ntk"))
    with pytest.raises(mfoc.InvalidValue, match="does not train"):
        prior.fit(x, y).predict(new, time=1.0)
    with pytest.raises(mfoc.InvalidValue, match="time is -1"):
        trained.fit(x, y).predict(new, time=-1.0)
    with pytest.raises(mfoc.InvalidValue, match="samples of shape"):
        trained.fit(x, y).predict(new[:, :2])
    with pytest.raises(mfoc.InvalidValue, match="numbers"):
        trained.fit(x, y).classify(new)
    with pytest.raises(mfoc.InvalidValue, match="which the NTK is not"):
        trained.fit(x, y).log_marginal_likelihood()
    with pytest.raises(mfoc.InvalidValue, match="which the NTK is not"):
        trained.with_best_ridge(x, y, by="likelihood")
    with pytest.raises(mfoc.InvalidValue, match="ridges is 0"):
        prior.with_best_ridge(x, y, ridges=[0.0])
    with pytest.raises(mfoc.InvalidValue, match="empty"):
        prior.with_best_ridge(x, y, ridges=[])
