"""Ways in which a posterior could quietly be another one: global state, shared names, silent defaults."""

from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from paradigms.bayesian import langevin, log_density, sample, variational
from tests.problems import normal, seeded

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2))


def regression_posterior(scale):
    x = normal(11, 3).float()
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 1))).float()
    formulation = variational(net, (x, scale * x[:, :1]), likelihood="gaussian")
    return x, formulation.readout(formulation.solve(ADAM, steps=3))


def test_two_posteriors_keep_their_own_noise():
    (x, quiet), (_, loud) = regression_posterior(1), regression_posterior(100)
    pyro.clear_param_store()
    with pyro.get_param_store().scope():
        for posterior in (quiet, loud):
            scale = pyro.poutine.trace(posterior.model).get_trace(x).nodes["obs"]["fn"].base_dist.scale
            assert torch.allclose(scale.flatten()[0], posterior.observation_noise.flatten()[0])


def coin(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("flips", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("make", [log_density, variational])
def test_the_flag_of_torch_is_left_as_it_was(make, checked):
    before = torch.distributions.Distribution._validate_args
    try:
        torch.distributions.Distribution.set_default_validate_args(checked)
        make(coin, (torch.ones(5),))
        assert torch.distributions.Distribution._validate_args is checked
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


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


def test_labels_that_are_no_class_are_refused():
    x, y = normal(6, 3).float(), torch.tensor([0, 1, -100, 1, 0, 1])
    with pytest.raises(mfoc.InvalidValue):
        log_density(seeded(lambda: nn.Linear(3, 2)), (x, y), likelihood="categorical")


def test_where_particles_start_is_copied():
    start = normal(5, 2).float()
    target = log_density(lambda x: -0.5 * x.square().sum(1), like=torch.zeros(2))
    made = langevin(target, step=0.1, steps=3, particles=start)
    before = made.population(0).state
    kept = before.clone() if isinstance(before, torch.Tensor) else {k: v.clone() for k, v in before.items()}
    start.mul_(100)
    after = made.population(0).state
    for a, b in zip(torch.utils._pytree.tree_leaves(kept), torch.utils._pytree.tree_leaves(after), strict=True):
        assert torch.equal(a, b)


def test_a_sampler_takes_solutions_and_refuses_what_is_not_its_own():
    target = log_density(lambda x: -0.5 * x.square().sum(1), like=torch.zeros(2))
    made = {method: langevin(target, step=0.1, steps=2, particles=3, method=method) for method in ("ula", "mala")}
    ula, mala = made.values()
    solution = ula.solve(ADAM, steps=1)
    assert torch.equal(sample(ula, controls=solution).x, sample(ula, controls=solution.controls).x)
    assert torch.equal(ula.readout(solution)["x"], ula.readout(solution.controls)["x"])
    others = sample(langevin(target, step=0.1, steps=2, particles=4))
    for words, wrong in (
        ("another sampler", lambda: sample(mala, start=sample(ula))),
        ("another sampler", lambda: sample(ula, start=others)),
        ("log_step", lambda: sample(ula, controls={"a": torch.zeros(())})),
        ("solution is a NoneType", lambda: ula.readout(None)),
    ):
        with pytest.raises(mfoc.MfocError, match=words):
            wrong()


def test_seeds_and_priors_out_of_range_are_refused():
    x = normal(6, 3).float()
    for seed, error in (
        ("a", mfoc.InvalidType),
        (-1, mfoc.InvalidValue),
        (1.5, mfoc.InvalidType),
        (True, mfoc.InvalidType),
    ):
        with pytest.raises(error, match="seed is"):
            variational(coin, (torch.ones(5),), seed=seed)
    prior = dist.Normal(0.0, float("nan"), validate_args=False)
    with pytest.raises(mfoc.InvalidValue, match="NaN or infinite"):
        variational(nn.Sequential(seeded(lambda: nn.Linear(3, 3)).float()), (x, x), likelihood="gaussian", prior=prior)
