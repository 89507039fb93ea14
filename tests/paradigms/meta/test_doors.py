"""What is refused at the door of meta-learning, what is let in, and what evaluations say of tasks that diverge."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import adapt, anil, evaluate, few_shot, imaml, maml, meta_sgd, residuals, sinusoids, tasks
from paradigms.reporting import Estimate
from tests.problems import D, generator, normal, seeded

LR = 0.1
KINDS = torch.randint(0, 3, (3, 4), generator=generator(1))
SPARSE = KINDS.index_put((torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3])), torch.tensor(-100))
SIGNS = 2 * torch.randint(0, 2, (3, 4, 3), generator=generator(3)) - 1
LAW = sinusoids(tasks=4, shots=5, queries=6, dtype=D)


def linear(outputs=3):
    return seeded(lambda: nn.Linear(4, outputs))


def cloud(support, query=None):
    """Tasks with these targets."""
    query = support if query is None else query
    return tasks((normal(3, 4, 4), support), (normal(3, 4, 4, seed=5), query))


def by_hand(net, loss, particles, steps=2):
    """The mean query loss of MAML and its gradient, a task at a time."""
    phi = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    total = 0.0

    def call(weights, x):  # each call with the buffers the network came with
        return torch.func.functional_call(net, {**weights, **{k: b.clone() for k, b in buffers.items()}}, (x,))

    for i in range(len(particles)):
        (x, y), (a, b) = ([leaf[i] for leaf in particles.data[part]] for part in ("support", "query"))
        fast = dict(phi)
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(call(fast, x), y), list(fast.values()), create_graph=True)
            fast = {name: p - LR * s for (name, p), s in zip(fast.items(), slopes, strict=True)}
        total = total + loss(call(fast, a), b) / len(particles)
    return [total.detach(), *torch.autograd.grad(total, list(phi.values()))]


def ours(net, loss, particles):
    made = maml(net, loss, particles, inner_steps=2, inner_lr=LR)
    found = mfoc.evaluate(made.problem, made.problem.controls, particles)
    return [found.value, *found.gradient["phi"].values()]


# ---- targets that are let in


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, SPARSE),
        (nn.CrossEntropyLoss(), SPARSE),
        (nn.CrossEntropyLoss(reduction="sum"), SPARSE),
        (nn.CrossEntropyLoss(label_smoothing=0.1), SPARSE),
        (nn.CrossEntropyLoss(ignore_index=0), KINDS),
        (nn.CrossEntropyLoss(ignore_index=255), SPARSE.masked_fill(SPARSE < 0, 255)),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=D)), SPARSE),
        (lambda output, y: F.cross_entropy(output, y), SPARSE),
        (lambda output, y: F.cross_entropy(output, y) if output.mean() > -9 else output.sum(), SPARSE),
        (nn.SoftMarginLoss(), SIGNS),
        (nn.SoftMarginLoss(), SIGNS.double()),
        (nn.MSELoss(reduction="sum"), SIGNS.double()),
        (nn.KLDivLoss(reduction="batchmean"), SIGNS.double().softmax(-1)),
    ],
)
def test_targets_that_are_legitimate(loss, targets):
    net, particles = linear(), cloud(targets)
    for mine, plain in zip(ours(net, loss, particles), by_hand(net, loss, particles), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-14)


def test_ignored_labels_that_come_later():
    """The first batch has none, and a batch's tensors may be written into."""
    made = maml(linear(), F.cross_entropy, cloud(KINDS), inner_steps=2, inner_lr=LR)
    labels = KINDS.clone()
    particles = cloud(labels)
    for now in (KINDS, SPARSE, KINDS):
        labels.copy_(now)
        value = mfoc.evaluate(made.problem, made.problem.controls, particles).value
        torch.testing.assert_close(value, by_hand(linear(), F.cross_entropy, particles)[0], rtol=1e-12, atol=0)


def test_ignored_labels_are_not_counted_as_wrong():
    net = linear()
    made = maml(net, F.cross_entropy, cloud(SPARSE), inner_steps=1, inner_lr=LR)
    row = evaluate(made, made.problem, steps=(0,), progress=False)[0]
    right = (net(normal(3, 4, 4, seed=5)).argmax(2) == SPARSE).sum(1) / (SPARSE >= 0).sum(1)
    assert row.accuracy.value == pytest.approx(float(right.mean()), rel=1e-6)
    signs = maml(net, nn.SoftMarginLoss(), cloud(SIGNS), inner_steps=1, inner_lr=LR)
    assert evaluate(signs, signs.problem, progress=False)[1].accuracy is None


# ---- targets and inputs that are not


@pytest.mark.parametrize(
    ("loss", "targets", "outputs", "message"),
    [
        (F.cross_entropy, KINDS + 1, 3, "label 3; the network has 3 outputs"),
        (nn.NLLLoss(), KINDS - 1, 3, "label -1"),
        (F.cross_entropy, KINDS.int(), 3, "torch.int64"),
        (F.cross_entropy, F.one_hot(KINDS), 3, "expected integer labels"),
        (lambda a, b: F.cross_entropy(a, b), KINDS + 1, 3, "out of bounds"),
        (F.mse_loss, normal(3, 4), 12, "broadcast"),  # tasks * shots == outputs
        (nn.L1Loss(), KINDS, 12, "broadcast"),
        (F.mse_loss, normal(3, 4), 4, "broadcast"),  # shots == outputs
        (F.mse_loss, normal(3, 4, 1), 3, "broadcast"),
        (F.mse_loss, normal(3, 4, 3) * math.nan, 3, "support y holds NaN"),
        (lambda a, b: F.mse_loss(a, b) + torch.rand(()), normal(3, 4, 3), 3, "random numbers"),
    ],
)
def test_targets_that_cannot_be_right(loss, targets, outputs, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        maml(linear(outputs), loss, cloud(targets), inner_steps=1, inner_lr=LR)


def test_labels_of_the_query_and_inputs_that_are_not_finite():
    with pytest.raises(mfoc.InvalidValue, match="query y holds the label 3"):
        maml(linear(), F.cross_entropy, cloud(KINDS, KINDS + 2), inner_steps=1, inner_lr=LR)
    bad = tasks((normal(3, 4, 4) / 0, KINDS), (normal(3, 4, 4), KINDS))
    with pytest.raises(mfoc.InvalidValue, match="support x holds NaN"):
        maml(linear(), F.cross_entropy, bad, inner_steps=1, inner_lr=LR)


WAVES = maml(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=LR)
CLASSES = maml(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR)
RATES = meta_sgd(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=LR)


@pytest.mark.parametrize(
    ("made", "support", "message"),
    [
        (WAVES, (normal(5, 2), normal(5, 1)), r"cannot run on the support inputs of a task, \(5, 2\)"),
        (WAVES, (normal(5, 1).float(), normal(5, 1).float()), "torch.float64 on cpu"),
        (WAVES, (normal(5, 1), normal(5)), "broadcast"),
        (WAVES, (normal(0, 1), normal(0, 1)), "support is empty"),
        (CLASSES, (normal(4, 4), KINDS[0] + 1), "label 3"),
    ],
)
def test_adapt_and_evaluate_refuse_other_tasks(made, support, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        adapt(made, made.problem, support)
    pair = tuple(part[None] for part in support)
    with pytest.raises(mfoc.InvalidValue, match=message):
        evaluate(made, made.problem, {"support": pair, "query": pair}, progress=False)


@pytest.mark.parametrize(
    ("made", "other", "message"),
    [
        (WAVES, CLASSES.problem, "another formulation: .*weight"),
        (WAVES, RATES.problem, "another formulation: .*alpha"),
        (RATES, WAVES.problem, "another formulation: .*missing"),
        (WAVES, [normal(3)], "another formulation"),
        (WAVES, {"phi": {"weight": normal(1, 1) / 0, "bias": normal(1)}}, "NaN or infinite"),
        (WAVES, None, "solution is a NoneType"),
    ],
)
def test_solutions_of_other_formulations(made, other, message):
    refused = pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message)
    with refused:
        adapt(made, other, (normal(5, 1), normal(5, 1)))
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        evaluate(made, other, progress=False)


@pytest.mark.parametrize("head", [[], "", [""], [3], 5, {"weight"}])
def test_heads_that_name_nothing(head):
    with pytest.raises(mfoc.InvalidValue, match="head is"):
        anil(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR, head=head)


@pytest.mark.parametrize("rates", [None, "a", torch.ones(3), [], {"weight": 1.0}, [normal(3, 4) / 0, normal(3)]])
def test_rates_that_are_none(rates):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match="inner_lr"):
        meta_sgd(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=rates)
    with pytest.raises(mfoc.InvalidType, match="per_step is 1"):
        meta_sgd(linear(), F.cross_entropy, cloud(KINDS), inner_steps=1, inner_lr=LR, per_step=1)


IMAGES, DIGITS = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (IMAGES[:0], DIGITS, "none of them empty"),
        (IMAGES[:, :0], DIGITS, "none of them empty"),
        (IMAGES[:, 0], DIGITS, r"expected examples \[N, ...\]"),
        (np.array(1.0), DIGITS, "expected examples"),
        (np.where(np.arange(20)[:, None] == 7, np.nan, IMAGES), DIGITS, "first in example 7"),
        (IMAGES * 1j, DIGITS, "real numbers"),
        (np.array([[None]] * 20), DIGITS, "x makes no array"),
        (IMAGES, DIGITS * 1.0, "labels of dtype torch.float64"),
        (IMAGES, DIGITS[:, None], "one integer for each input"),
        (IMAGES, np.array(3), "one integer for each input"),
        (IMAGES, np.array(list("abcd") * 5), "y makes no array"),
        ([], None, "x is empty"),
        ([torch.ones(3)] * 3, None, "expected pairs"),
        ([(torch.ones(i + 1), i) for i in range(3)], None, "tensors of one size"),
        ({"a": 1}, None, "map-style"),
    ],
)
def test_odd_data_for_few_shot(x, y, message):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        few_shot(x, y, ways=2, shots=1, queries=1, tasks=1)


@pytest.mark.parametrize(
    "change", [{"ways": 0}, {"ways": 1}, {"shots": 0}, {"queries": 0}, {"tasks": 0}, {"ways": 2.0}]
)
def test_odd_counts_for_few_shot(change):
    name = next(iter(change))
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=f"{name} is {change[name]}"):
        few_shot(IMAGES, DIGITS, **{"ways": 2, "shots": 1, "queries": 1, "tasks": 1, **change})


# ---- the equilibrium


@pytest.mark.parametrize(
    ("rate", "strength", "message"),
    [
        (1.0, 2.0, r"1.0 \* 2.0 = 2"),
        (3.0, 5.0, "below 0.4"),
        (0.99, 2.0, "gradient descent diverges"),
        (9.0, 0.1, "to"),
    ],
)
def test_inner_steps_that_diverge(rate, strength, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        imaml(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=99, inner_lr=rate, strength=strength)


def test_residuals_of_the_equilibrium_and_its_adjoint():
    """Against the dense system of a linear model."""
    net, strength, data = seeded(lambda: nn.Linear(4, 1, bias=False)), 0.7, cloud(normal(3, 4, 1))
    exact = partial(imaml, net, F.mse_loss, data, inner_lr=0.1, strength=strength)
    fine = exact(inner_steps=2000, cg_steps=8, cg_tol=1e-14)
    assert max(residuals(fine, fine.problem).worst) < 1e-10
    rough = exact(inner_steps=3, cg_steps=1)
    found = residuals(rough, rough.problem)
    phi, far, left = net.weight.detach()[0], [], []
    for i in range(3):
        (x, y), (a, b) = ([leaf[i] for leaf in data.data[part]] for part in ("support", "query"))
        hessian, pull, at = x.T @ x / 2, x.T @ y[:, 0] / 2, phi
        for _ in range(3):
            at = at - 0.1 * (hessian @ at - pull + strength * (at - phi))
        far.append(torch.norm(hessian @ at - pull + strength * (at - phi)) / torch.norm(hessian @ phi - pull))
        g, system = a.T @ (a @ at - b[:, 0]), torch.eye(4, dtype=D) + hessian / strength
        p = g * (g @ g) / (g @ system @ g)  # one step of conjugate gradients
        left.append(torch.norm(g - system @ p) / torch.norm(g))
    assert found.equilibrium.value == pytest.approx(float(sum(far)) / 3, rel=1e-9)
    assert found.adjoint.value == pytest.approx(float(sum(left)) / 3, rel=1e-9)
    assert found.worst == pytest.approx((float(max(far)), float(max(left))), rel=1e-9)
    assert "at worst" in str(found)
    with pytest.raises(mfoc.InvalidType, match="no equilibrium"):
        residuals(WAVES, WAVES.problem)
    for level in (0.0, 1.0, 2, math.nan, "a", None):
        with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match="confidence is"):
            residuals(rough, rough.problem, confidence=level)


def test_a_direction_of_negative_curvature_keeps_its_gradient():
    """Where the equilibrium is no minimum the adjoint is the slope itself, not zero, and the residual says so."""
    data, net = cloud(normal(3, 4, 1)), seeded(lambda: nn.Linear(4, 1, bias=False))
    hill = imaml(net, lambda a, b: -((a - b) ** 2).mean(), data, inner_steps=1, inner_lr=0.01, strength=0.01)
    found = mfoc.evaluate(hill.problem, hill.problem.controls, data).gradient["phi"]["weight"]
    at = {"weight": net.weight.detach().requires_grad_()}
    state = hill.loop.states(hill.problem.controls, data.data, [1])
    ((_, settled),) = state
    fast = settled["fast"]["weight"].detach().requires_grad_()
    loss = -((normal(3, 4, 4, seed=5) @ fast.mT - normal(3, 4, 1)) ** 2).flatten(1).mean(1)
    (slope,) = torch.autograd.grad(loss.mean(), fast)
    torch.testing.assert_close(found, slope.sum(0), rtol=1e-10, atol=1e-12)
    assert residuals(hill, {"phi": {k: v.detach() for k, v in at.items()}}).worst[1] > 1


# ---- tasks that diverge


def test_evaluate_says_what_diverged():
    bold = meta_sgd(seeded(lambda: nn.Linear(1, 1)), F.mse_loss, LAW, inner_steps=1, inner_lr=30.0)
    table = evaluate(bold, bold.problem, steps=(0, 1, 500), progress=False)
    assert table[0].diverged == 0
    assert math.isfinite(table[0].loss.value)
    assert table[500].diverged == 4
    assert not math.isfinite(table[500].loss.value)
    assert (table[500].loss.low, table[500].loss.high) == (-math.inf, math.inf)
    assert "(4 of 4 tasks diverged)" in str(table).splitlines()[-1]
    assert "diverged" not in str(table).splitlines()[2]


def test_estimates_of_all_paradigms_are_one():
    from paradigms.adversarial import certificate
    from paradigms.meta import evaluation

    assert certificate.Estimate is evaluation.Estimate is Estimate
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.5 [0.25, 0.75]"
