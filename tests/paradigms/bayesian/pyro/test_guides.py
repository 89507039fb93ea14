"""Which guides of Pyro are taken for a model, what of them is kept, and what is refused at the door."""

import pytest
import torch

import mfoc
from paradigms.bayesian import log_density, variational
from tests.problems import D, normal

pyro = pytest.importorskip("pyro")
dist = pyro.distributions
guides = pyro.infer.autoguide
GAUSSIAN = (guides.AutoNormal, guides.AutoDiagonalNormal, guides.AutoMultivariateNormal)
POINTS = (guides.AutoDelta, guides.AutoLaplaceApproximation)
GUIDES = (*GAUSSIAN, guides.AutoLowRankMultivariateNormal, *POINTS)
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


def in_a_plate(x, y=None):
    with pyro.plate("k", 3):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", gaussian(x @ w), obs=y)


def column(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("y", gaussian((x @ w)[:, 0]), obs=y)


OTHERS = {
    "support": (regression(lambda: dist.LogNormal(torch.zeros(3), 1.0).to_event(1), gaussian), "has support"),
    "bounds": (regression(lambda: dist.Uniform(-torch.ones(3), 1.0).to_event(1), gaussian), "has support"),
    "likelihood": (regression(plain, lambda mean: dist.StudentT(3.0, mean, 0.3)), "observes 'y' as StudentT"),
    "plate of the data": (regression(plain, gaussian, plate="rows"), r"in plates \['rows'\]"),
    "plate of a latent": (in_a_plate, "has support|has plates"),
    "shape": (column, "has shape"),
}


def instance(guide, of, used):
    made = guide(of)
    if used:
        made(X, Y)
    return made


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("other", OTHERS)
def test_a_guide_of_another_model_is_refused(other, guide, used):
    wrong, words = OTHERS[other]
    with pytest.raises(mfoc.InvalidValue, match=words):
        variational(model, (X, Y), guide=instance(guide, wrong, used))


def test_bounds_that_are_the_same_are_the_same_support():
    """HalfNormal and LogNormal live on the same half-line; Beta and Uniform(0, 1) on the same interval."""
    pairs = [(dist.HalfNormal(ONE), dist.LogNormal(0 * ONE, 1.0)), (dist.Beta(ONE, 2.0), dist.Uniform(0 * ONE, 1.0))]
    for left, right in pairs:
        made, other = (regression(lambda law=law: law.expand([3]).to_event(1), gaussian) for law in (left, right))
        f = variational(made, (X, Y), guide=guides.AutoNormal(other))
        assert f.readout(f.problem).median()["w"].shape == (3,)


@pytest.mark.parametrize("guide", GAUSSIAN)
def test_an_instance_keeps_its_settings(guide):
    start = torch.tensor([1.0, 2.0, 3.0])
    mine = guide(model, init_scale=0.7, init_loc_fn=guides.init_to_value(values={"w": start}))
    f = variational(model, (X, Y), guide=mine)
    made = f.readout(f.problem)
    torch.testing.assert_close(made.median()["w"], start)
    scale = made.scales.w if guide is guides.AutoNormal else made.scale
    torch.testing.assert_close(scale.detach(), torch.full((3,), 0.7))
    assert mine.prototype_trace is None  # the user's own is not touched


@pytest.mark.parametrize("guide", POINTS)
def test_a_point_starts_where_it_was_told_to(guide):
    start = torch.tensor([1.0, 2.0, 3.0])
    f = variational(model, (X, Y), guide=guide(model, init_loc_fn=guides.init_to_value(values={"w": start})))
    (found,) = f.readout(f.problem).parameters()
    torch.testing.assert_close(found.detach(), start)


@pytest.mark.parametrize("used", [False, True])
def test_a_low_rank_keeps_its_rank(used):
    mine = guides.AutoLowRankMultivariateNormal(model, rank=3, init_scale=0.7)
    if used:
        mine(X, Y)
    made = (f := variational(model, (X, Y), guide=mine)).readout(f.problem)
    assert made.cov_factor.shape == (3, 3)
    torch.testing.assert_close(made.scale.detach(), torch.full((3,), 0.7 * 0.5**0.5))
    if used:
        assert torch.equal(made.cov_factor, mine.cov_factor)


def test_a_guide_that_was_set_up_on_other_data_is_refused():
    def local(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    mine = guides.AutoNormal(local)
    mine(Y)
    with pytest.raises(mfoc.InvalidValue, match="shape"):
        variational(local, (Y[:4],), guide=mine)


def test_a_support_that_depends_on_a_latent_is_refused_at_the_door():
    def moving(y):
        top = pyro.sample("top", dist.Gamma(3 * ONE, 1.0))
        below = pyro.sample("below", dist.Uniform(torch.zeros(()), top))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(below, 1.0), obs=y)

    with pytest.raises(mfoc.InvalidValue, match="support of latent 'below' depends on another latent"):
        variational(moving, (Y,))
    density = log_density(moving, (Y,))
    assert density(density.initial(3)).isfinite().all()


def test_latents_that_come_and_go_are_refused():
    def growing(y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        if w > 0:
            pyro.sample("v", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w, 1.0).expand([len(y)]).to_event(1), obs=y)

    with pytest.raises(mfoc.InvalidValue, match=r"depends on their values \(\['v'\]\)"):
        variational(growing, (Y,))


def test_a_subclass_with_settings_of_its_own():
    class Narrow(guides.AutoNormal):
        def __init__(self, model):
            super().__init__(model, init_scale=0.3)

    f = variational(model, (X, Y), guide=Narrow(model))
    made = f.readout(f.problem)
    assert type(made) is Narrow
    torch.testing.assert_close(made.scales.w.detach(), torch.full((3,), 0.3))
