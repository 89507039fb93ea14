"""Models with discrete latents as users write them: the log joint and its slopes are those of TraceEnum_ELBO."""

import pytest
import torch

from paradigms.bayesian import log_density

pyro = pytest.importorskip("pyro")
dist, poutine = pyro.distributions, pyro.poutine
Vindex = pyro.ops.indexing.Vindex
pytestmark = pytest.mark.usefixtures("double")


def clusters(x):
    """Components of their own mean and spread."""
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        mean, spread = pyro.sample("mean", dist.Normal(0.0, 3.0)), pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(shares))
        pyro.sample("x", dist.Normal(mean[z], spread[z]), obs=x)


def two_channels(x):
    """A hidden Markov chain that is seen as a number and as a coin."""
    coins = (x > 0).double()
    with pyro.plate("states", 3):
        rows, mean = pyro.sample("rows", dist.Dirichlet(2 * torch.ones(3))), pyro.sample("mean", dist.Normal(0.0, 1.0))
    odds = pyro.sample("odds", dist.Beta(2 * torch.ones(3), 2.0).to_event(1))
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(rows[z]))
        pyro.sample(f"number{t}", dist.Normal(mean[z], 1.0), obs=x[t])
        pyro.sample(f"coin{t}", dist.Bernoulli(odds[z]), obs=coins[t])


def topics(x):
    """Latent Dirichlet allocation: words in documents, and topics that all share."""
    words = (x.abs() * 10).long().reshape(3, 2) % 4
    with pyro.plate("topics", 2):
        vocabulary = pyro.sample("vocabulary", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("documents", 3, dim=-2):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("words", 2, dim=-1):
            topic = pyro.sample("topic", dist.Categorical(shares))
            pyro.sample("word", dist.Categorical(Vindex(vocabulary)[topic]), obs=words)


def rows_and_cells(x):
    """A class for each row, and one for each cell, which depends on it."""
    shares = pyro.sample("shares", dist.Beta(1.0, 1.0))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        r = pyro.sample("r", dist.Bernoulli(shares)).long()
    with rows, columns:
        c = pyro.sample("c", dist.Categorical(Vindex(torch.tensor([[0.2, 0.8], [0.6, 0.4]]))[r]))
        pyro.sample("x", dist.Normal(Vindex(mean)[r, c], 1.0), obs=x.reshape(3, 2))


def switched(x):
    """A continuous latent that depends on a discrete one, and a scale on what is observed."""
    c = pyro.sample("c", dist.Bernoulli(0.3))
    mean = pyro.sample("mean", dist.Normal(2 * c, 1.0))
    with pyro.plate("data", len(x)):
        d = pyro.sample("d", dist.Bernoulli(mean.sigmoid()))
        pyro.sample("x", dist.Normal(3 * d + c, 1.0), obs=x)


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
@pytest.mark.parametrize("model", [clusters, two_channels, topics, rows_and_cells, switched], ids=lambda m: m.__name__)
def test_the_log_joint_is_that_of_traceenum_elbo(model):
    x = torch.tensor([-2.0, -1.5, 2.5, 1.8, 0.3, -0.4])
    model = pyro.infer.config_enumerate(model)
    density = log_density(model, (x,))
    points = density.initial(2, seed=4)
    value, score = density.value_and_score(points)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    laws = poutine.trace(model).get_trace(x).nodes
    for i, point in enumerate(points):
        free = point.clone().requires_grad_()
        values, volume = {}, 0.0
        for name, part in density.unravel(free).items():
            to = torch.distributions.biject_to(laws[name]["fn"].support)
            values[name] = to(part)
            volume = volume + to.log_abs_det_jacobian(part, values[name]).sum()
        total = volume - elbo.differentiable_loss(pyro.condition(model, values), lambda x: None, x)
        torch.testing.assert_close(value[i], total.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(score[i], torch.autograd.grad(total, free)[0], rtol=1e-10, atol=1e-10)
