"""Losses as terminal costs, weight decay as a running cost: those of torch."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import mlp_net, seeded
from tests.problems import D, distance, generator, labels, normal

SGD = partial(torch.optim.SGD, lr=0.1)


def test_weight_decay_is_that_of_torch():
    net, x, z = mlp_net(), normal(6, 3), labels(6, 2)
    problem = mfoc.from_module(net, F.cross_entropy, running_cost=mfoc.weight_decay(0.03))
    solution = mfoc.solve(problem, mfoc.Gradient(partial(torch.optim.SGD, lr=0.2, momentum=0.9)), (x, z), steps=6)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9, weight_decay=0.03)
    for _ in range(6):
        optimiser.zero_grad()
        F.cross_entropy(net(x), z).backward()
        optimiser.step()
    solved = mfoc.to_module(net, solution.controls)
    assert distance(list(solved.parameters()), list(net.parameters())) < 1e-13


# ---- every loss of torch

N = 6
REALS, POSITIVE = normal(N, 3, seed=7), normal(N, 3, seed=7).exp()
HALVES = (REALS > 0).double()
SIGNS = 2 * HALVES - 1
LOGS = normal(N, 3, seed=8).log_softmax(1)
KINDS = labels(N, 3)
SOME = torch.where(torch.arange(N) % 3 == 1, -100, KINDS)
WEIGHT = torch.tensor([0.2, 1.5, 3.0], dtype=D)
SEVERAL = torch.tensor([[0, 2, -1], [1, -1, 0], [2, 1, 0], [-1, 0, 0], [0, -1, 0], [1, 2, -1]])
FIELDS = torch.randint(0, 3, (N, 2, 4), generator=generator(3))
HOLES = FIELDS.masked_fill(torch.rand(N, 2, 4, generator=generator(4)) < 0.4, -100)
HOLES[2] = -100  # a particle none of whose targets counts
CE, NLL = F.cross_entropy, F.nll_loss
LOSSES = {  # name: (loss, target, what the three outputs [N, 3] become)
    "mse": (F.mse_loss, REALS),
    "mse, entries weighed": (partial(F.mse_loss, weight=POSITIVE), REALS),
    "l1": (F.l1_loss, REALS),
    "l1, entries weighed": (partial(F.l1_loss, weight=POSITIVE), REALS),
    "smooth l1": (partial(F.smooth_l1_loss, beta=0.3), REALS),
    "huber": (partial(F.huber_loss, delta=0.3), REALS),
    "huber, entries weighed": (partial(F.huber_loss, weight=POSITIVE), REALS),
    "bce": (F.binary_cross_entropy, HALVES, torch.sigmoid),
    "bce, weighed": (partial(F.binary_cross_entropy, weight=WEIGHT), HALVES, torch.sigmoid),
    "logits": (F.binary_cross_entropy_with_logits, HALVES),
    "logits, weighed": (partial(F.binary_cross_entropy_with_logits, weight=WEIGHT, pos_weight=WEIGHT), HALVES),
    "kl": (F.kl_div, LOGS.exp(), partial(torch.log_softmax, dim=1)),
    "kl, batchmean": (partial(F.kl_div, reduction="batchmean", log_target=True), LOGS),
    "poisson": (F.poisson_nll_loss, POSITIVE.round()),
    "poisson, full": (partial(F.poisson_nll_loss, full=True, log_input=False), POSITIVE.round(), torch.exp),
    "soft margin": (F.soft_margin_loss, SIGNS),
    "hinge embedding": (F.hinge_embedding_loss, SIGNS),
    "multilabel margin": (F.multilabel_margin_loss, SEVERAL),
    "multilabel soft margin": (partial(F.multilabel_soft_margin_loss, weight=WEIGHT), HALVES),
    "multi margin": (partial(F.multi_margin_loss, p=2, weight=WEIGHT), KINDS),
    "ce": (CE, KINDS),
    "ce, some": (CE, SOME),
    "ce, one class ignored": (partial(CE, ignore_index=0), KINDS),
    "ce, weighed": (partial(CE, weight=WEIGHT), KINDS),
    "ce, weighed, some": (partial(CE, weight=WEIGHT), SOME),
    "ce, smooth": (partial(CE, label_smoothing=0.2), SOME),
    "ce, smooth, weighed": (partial(CE, label_smoothing=0.2, weight=WEIGHT), SOME),
    "ce, probabilities": (partial(CE, weight=WEIGHT, label_smoothing=0.1), LOGS.exp()),
    "ce, fields": (CE, FIELDS, lambda x: x[:, :, None, None] * normal(2, 4)),
    "ce, holes": (CE, HOLES, lambda x: x[:, :, None, None] * normal(2, 4)),
    "ce, holes, weighed": (partial(CE, weight=WEIGHT), HOLES, lambda x: x[:, :, None, None] * normal(2, 4)),
    "ce, bytes": (CE, KINDS.byte()),
    "nll": (NLL, KINDS),
    "nll, some, weighed": (partial(NLL, weight=WEIGHT), SOME),
    "nll, holes": (partial(NLL, weight=WEIGHT), HOLES, lambda x: x[:, :, None, None] * normal(2, 4)),
    "module mse": (nn.MSELoss(), REALS),
    "module l1": (nn.L1Loss(), REALS),
    "module smooth l1": (nn.SmoothL1Loss(), REALS),
    "module huber": (nn.HuberLoss(), REALS),
    "module bce": (nn.BCELoss(WEIGHT), HALVES, torch.sigmoid),
    "module logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), HALVES),
    "module kl": (nn.KLDivLoss(), LOGS.exp()),
    "module kl, batchmean": (nn.KLDivLoss(reduction="batchmean"), LOGS.exp()),
    "module poisson": (nn.PoissonNLLLoss(), POSITIVE),
    "module soft margin": (nn.SoftMarginLoss(), SIGNS),
    "module hinge embedding": (nn.HingeEmbeddingLoss(), SIGNS),
    "module multilabel margin": (nn.MultiLabelMarginLoss(), SEVERAL),
    "module multilabel soft margin": (nn.MultiLabelSoftMarginLoss(WEIGHT), HALVES),
    "module multi margin": (nn.MultiMarginLoss(weight=WEIGHT), KINDS),
    "module ce": (nn.CrossEntropyLoss(label_smoothing=0.1), KINDS),
    "module ce, some, weighed": (nn.CrossEntropyLoss(WEIGHT, ignore_index=2), KINDS),
    "module nll": (nn.NLLLoss(WEIGHT), SOME),
    "own": (lambda x, z: (x - z).square().mean(1), REALS),
}


def case_of(name):
    loss, target, *then = LOSSES[name]
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), Then(*then)))
    return net, loss, normal(N, 3), target


class Then(nn.Module):
    def __init__(self, function=None):
        super().__init__()
        self.function = function

    def forward(self, x):
        return x if self.function is None else self.function(x)


def of_module(net, loss, x, target):
    problem = mfoc.from_module(net, loss)
    return mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, target))


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")
@pytest.mark.parametrize("name", LOSSES)
def test_on_a_whole_cloud_a_loss_is_the_number_of_torch(name):
    net, loss, x, target = case_of(name)
    found = of_module(net, loss, x, target)
    value = loss(net(x), target).mean()
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-13, atol=0)
    slopes = torch.autograd.grad(value, list(net.parameters()))
    assert distance(found.gradient, list(slopes)) < 1e-13
    assert distance(list(slopes), [torch.zeros_like(s) for s in slopes]) > 1e-4


@pytest.mark.parametrize("name", ["mse", "logits, weighed", "ce, some", "ce, holes, weighed", "nll, some, weighed"])
@pytest.mark.parametrize("made", [True, False], ids=["module", "function"])
def test_a_sum_is_taken_within_a_particle(name, made):
    net, loss, x, target = case_of(name)
    given = partial(loss, reduction="sum")
    if made and "mse" in name:
        given = nn.MSELoss(reduction="sum")
    found = of_module(net, given, x, target)
    torch.testing.assert_close(found.value, given(net(x), target).detach() / N, rtol=1e-13, atol=0)


def test_a_loss_with_weights_of_its_own_is_the_number_of_torch():
    made = pytest.importorskip("torch.nn").__dict__.get("LinearCrossEntropyLoss")
    if made is None:
        pytest.skip("a loss of later versions of torch")
    net, _, x, target = case_of("ce, some")
    for settings in ({}, {"weight": WEIGHT, "ignore_index": -100}, {"ignore_index": 0}):
        loss = seeded(lambda settings=settings: made(3, 3, dtype=D, **settings))
        kinds = target if settings.get("weight") is not None else KINDS
        found = of_module(net, loss, x, kinds).value
        torch.testing.assert_close(found, loss(net(x), kinds).detach(), rtol=1e-12, atol=0)


def test_without_a_reduction_it_is_the_mean_over_the_entries():
    net, _, x, target = case_of("ce, some")
    found = of_module(net, nn.CrossEntropyLoss(reduction="none"), x, target)
    torch.testing.assert_close(found.value, F.cross_entropy(net(x), target, reduction="none").mean().detach())


def test_targets_none_of_which_counts_cost_nan_as_in_torch():
    """And say so, where a solve stops."""
    net, x = mlp_net(), normal(5, 3)
    nothing = torch.full((5,), -100)
    assert F.cross_entropy(net(x), nothing).isnan()
    solution = mfoc.solve(mfoc.from_module(net, F.cross_entropy), mfoc.Gradient(SGD), (x, nothing), steps=2)
    assert solution.status is mfoc.Status.NONFINITE
    assert "terminal cost" in solution.message


def test_a_likelihood_weighs_no_observation_by_the_others():
    loss = partial(F.cross_entropy, weight=WEIGHT)
    x = normal(N, 3)
    each = mfoc.networks.per_sample(loss, weigh=False)
    torch.testing.assert_close(each(x, SOME), loss(x, SOME, reduction="none"))
    assert distance(torch.cat([each(x[:2], SOME[:2]), each(x[2:], SOME[2:])]), each(x, SOME)) < 1e-15


@pytest.mark.parametrize(
    "loss",
    [
        F.gaussian_nll_loss, nn.GaussianNLLLoss(), F.ctc_loss, nn.CTCLoss(), F.cosine_embedding_loss,
        nn.CosineEmbeddingLoss(), F.triplet_margin_loss, nn.TripletMarginLoss(), nn.MarginRankingLoss(),
        F.margin_ranking_loss, lambda x: x.sum(1), lambda x, z, w: x.sum(1),
    ],
    ids=lambda loss: getattr(loss, "__name__", type(loss).__name__),
)  # fmt: skip
def test_a_loss_of_other_than_two_arguments_is_refused_with_the_cure(loss):
    with pytest.raises(mfoc.InvalidType, match=r"loss takes \(.*expected two arguments, loss\(output, z\)"):
        mfoc.from_module(mlp_net(), loss)


def test_functions_of_any_arguments_are_losses():
    net, x, z = mlp_net(), normal(5, 3), normal(5, 2)
    values = [of_module(net, loss, x, z).value for loss in (
        lambda *args: (args[0] - args[1]).square().mean(1),
        lambda x, z=None, scale=1.0: scale * (x - z).square().mean(1),
        F.mse_loss,
    )]  # fmt: skip
    assert float(values[0]) == pytest.approx(float(values[2]), rel=1e-14)
    assert float(values[1]) == pytest.approx(float(values[2]), rel=1e-14)


def test_a_broadcast_loss_is_refused():
    problem = mfoc.from_module(nn.Sequential(nn.Linear(3, 1)), nn.MSELoss())
    with pytest.warns(UserWarning, match="broadcasting"), pytest.raises(mfoc.InvalidValue, match="broadcast"):
        mfoc.solve(problem, mfoc.Gradient(SGD), (torch.randn(4, 3), torch.randn(4)), steps=1)


class Focal(nn.CrossEntropyLoss):
    """Is another number of a mean than the mean of its numbers."""

    def forward(self, x, z):
        loss = super().forward(x, z)
        return (1 - torch.exp(-loss)) ** 2 * loss


class Root(nn.MSELoss):
    def forward(self, x, z):
        return super().forward(x, z).sqrt()


def squared():
    loss = nn.CrossEntropyLoss()
    loss.register_forward_hook(lambda module, args, output: output**2)
    return loss


def doors(problem, particles):
    """J by every door: the mean of the costs, and what solvers go by."""
    return [
        float(mfoc.rollout(problem, problem.controls, particles).cost.mean()),
        float(mfoc.evaluate(problem, problem.controls, particles).value),
        float(mfoc.evaluate(problem, problem.controls, particles, recompute=True).value),
    ]


@pytest.mark.filterwarnings("ignore:size_average:UserWarning")
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        Focal(),
        Focal(weight=torch.tensor([1.0, 2.0], dtype=D)),
        Root(),
        squared(),
        nn.CrossEntropyLoss(reduction="sum"),
        partial(F.cross_entropy, reduce=False),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_door_has_the_same_cost(loss):
    y = normal(7, 2, seed=5) if isinstance(loss, nn.MSELoss) else labels(7, 2)
    found = doors(mfoc.from_module(mlp_net(), loss), mfoc.Particles(normal(7, 3), y))
    assert found == pytest.approx([found[0]] * 3, rel=1e-12)


def test_a_loss_that_changes_later_changes_no_problem():
    loss = nn.CrossEntropyLoss()
    problem, particles = mfoc.from_module(mlp_net(), loss), mfoc.Particles(normal(7, 3), labels(7, 2))
    before = doors(problem, particles)
    loss.reduction, loss.label_smoothing = "sum", 0.5
    assert doors(problem, particles) == before


class Centred:
    """The cost of an observation under a law that has a mean."""

    def __init__(self, mean):
        self.mean = mean

    def __call__(self, x, z):
        return (x - 1).square().sum(1)


@pytest.mark.parametrize("mean", [torch.zeros(2, dtype=D), lambda x, z: x.sum()], ids=["a tensor", "a function"])
def test_the_mean_of_a_user_s_cost_is_his_own(mean):
    problem = mfoc.Problem(lambda t, x, u, z: x + u, Centred(mean), [torch.zeros(2, dtype=D)])
    assert doors(problem, mfoc.Particles(torch.zeros(3, 2, dtype=D))) == [2.0] * 3
