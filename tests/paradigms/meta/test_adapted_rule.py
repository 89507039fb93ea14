"""Rules that are adapted in the inner loop, against ``GBML(adapt_transform=True)`` of learn2learn and by hand."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    Coordinatewise,
    Learner,
    adapt,
    evaluate,
    few_shot,
    from_learn2learn,
    learned_update,
    sinusoids,
    to_learn2learn,
)
from tests.problems import D, generator, seeded

learn2learn = pytest.importorskip("learn2learn")
GBML = learn2learn.algorithms.GBML
optim = learn2learn.optim
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # their clones of recurrent layers
LR, STEPS = 0.3, 3
LAW = sinusoids(tasks=3, shots=5, queries=6, dtype=D)


def mlp():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 1))


def matrices(parameter):
    """A matrix for the slopes of weights; those of biases are not transformed."""
    return optim.MetaCurvatureTransform(parameter) if parameter.dim() > 1 else None


class Deep(nn.Module):
    """A transform that is not linear in its weights or the slope."""

    def __init__(self, n, m):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n, 3), nn.Tanh(), nn.Linear(3, m))

    def forward(self, slope):
        return slope + self.layers(slope)


KRONECKER = learn2learn.nn.KroneckerLinear
TRANSFORMS = {
    "curvature": optim.MetaCurvatureTransform,
    "some": matrices,
    "kronecker": optim.KroneckerTransform(KRONECKER),
    "kronecker, biased": optim.KroneckerTransform(KRONECKER, bias=True, psd=False),
    "linear": optim.ModuleTransform(nn.Linear),
    "deep": optim.ModuleTransform(Deep),
}


def gbml(name, net=None, **options):
    """Transforms away from where they start, the identity as a rule."""
    torch.manual_seed(1)
    made = GBML(seeded(mlp) if net is None else net, TRANSFORMS[name], lr=LR, adapt_transform=True, **options).double()
    with torch.no_grad():
        for weight in made.compute_update.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


@pytest.fixture
def kept(monkeypatch):
    """Their first-order ``adapt`` frees the graph that it differentiates next: here it is kept."""
    plain = torch.autograd.grad

    def grad(*args, retain_graph=None, **options):
        return plain(*args, retain_graph=True, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)


def loop(learner, cloud, loss=F.mse_loss, steps=STEPS):
    """The script of learn2learn: the mean query loss, and its gradient."""
    (x, y), (a, b) = cloud.data["support"], cloud.data["query"]
    total = 0
    for i in range(len(x)):
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss(clone(x[i]), y[i]))
        total = total + loss(clone(a[i]), b[i]) / len(x)
    return total.detach(), torch.autograd.grad(total, list(learner.parameters()))


def close(one, other):
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_value_and_gradient_are_theirs(name, first_order, kept):
    """As a problem, by stored and recomputed states, and as a learner in their own loop."""
    algorithm = gbml(name, first_order=first_order)
    value, slopes = loop(algorithm, LAW(0))
    made = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
    assert made.first_order == first_order
    for recompute in (False, True):
        found = mfoc.evaluate(made.problem, made.problem.controls, LAW(0), recompute=recompute)
        close([found.value, *mfoc.tree.leaves(found.gradient)], [value, *slopes])
    mine, gradient = loop(Learner(made), LAW(0))
    close([mine, *gradient], [value, *slopes])


def test_both_orders_differ(kept):
    """From the second step on the derivatives in the transform matter, and from the third their own derivatives."""
    value = {}
    for adapts in (False, True):
        for first_order in (False, True):
            algorithm = gbml("curvature", first_order=first_order)
            algorithm.adapt_transform = adapts
            made = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
            found = mfoc.evaluate(made.problem, made.problem.controls, LAW(0))
            value[adapts, first_order] = torch.cat([leaf.flatten() for leaf in mfoc.tree.leaves(found.gradient)])
    kinds = list(value.values())
    assert min(float((a - b).norm()) for i, a in enumerate(kinds) for b in kinds[:i]) > 1e-4


def test_one_step_has_nothing_to_adapt():
    made = [
        learned_update(seeded(mlp).to(D), F.mse_loss, LAW, rule=Coordinatewise(seeded(lambda: nn.Linear(2, 1)).to(D)),
                       inner_steps=1, inner_lr=LR, adapt_rule=adapt_rule)
        for adapt_rule in (False, True)
    ]  # fmt: skip
    found = [mfoc.evaluate(f.problem, f.problem.controls, LAW(0)) for f in made]
    close(*([f.value, *mfoc.tree.leaves(f.gradient)] for f in found))


@pytest.mark.parametrize("name", ["curvature", "kronecker", "deep"])
def test_adapted_weights_are_theirs(name):
    """After each step, those of the network and those of the transforms."""
    algorithm = gbml(name)
    made = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
    learner = Learner(made)
    (x, y), states = LAW(0).data["support"], dict(made.loop.states(made.problem.controls, LAW(0).data, range(4)))
    clones = algorithm.clone(), learner.clone()
    start = [leaf.detach().clone() for leaf in clones[0].compute_update.parameters()]
    for k in range(1, 4):
        for clone in clones:
            clone.adapt(F.mse_loss(clone(x[0]), y[0]))
        theirs, mine = clones
        close(theirs.module.parameters(), mine.module.parameters())
        close(theirs.module.parameters(), [leaf[0] for leaf in states[k]["fast"].values()])
        transforms = list(theirs.compute_update.parameters())
        close(transforms, mine.rule)
        close(transforms, [leaf[0] for leaf in states[k]["memory"]["rule"].values()])
        moved = max(float((a - b).detach().abs().max()) for a, b in zip(start, transforms, strict=True))
        assert moved > 1e-4 if k > 1 else moved == 0


def test_convolutions():
    def net():
        return nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

    images = torch.randn(18, 1, 5, 5, generator=generator(0), dtype=D)
    law = few_shot(images, torch.arange(18) // 6, ways=3, shots=1, queries=2, tasks=2)
    algorithm = gbml("curvature", seeded(net))
    value, slopes = loop(algorithm, law(0), F.cross_entropy)
    made = from_learn2learn(algorithm, law, F.cross_entropy, inner_steps=STEPS)
    found = mfoc.evaluate(made.problem, made.problem.controls, law(0))
    close([found.value, *mfoc.tree.leaves(found.gradient)], [value, *slopes])


def test_clones_of_clones(kept):
    """A clone begins where the transforms stand, and adapts them from its own second step on."""
    algorithm = gbml("curvature")
    learner = Learner(from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS))
    x, y = (half[0] for half in LAW(0).data["support"])
    found = []
    for each in (algorithm, learner):
        outer = each.clone()
        for _ in range(2):
            outer.adapt(F.mse_loss(outer(x), y))
        inner = outer.clone()
        for first_order in (False, True):
            inner.adapt(F.mse_loss(inner(x), 2 * y), first_order=first_order)
        outer.adapt(F.mse_loss(outer(x), y))
        found.append(torch.autograd.grad(inner(x).sum() + outer(x).square().sum(), list(each.parameters())))
    close(*found)


def test_there_and_back():
    algorithm = gbml("kronecker")
    made = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
    solution = made.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.05)), steps=3)
    solved = to_learn2learn(made, solution)
    assert type(solved) is GBML
    assert solved.adapt_transform
    found = mfoc.evaluate(made.problem, solution.controls, LAW(4))
    value, slopes = loop(solved, LAW(4))
    close([found.value, *mfoc.tree.leaves(found.gradient)], [value, *slopes])
    assert float(found.value) != pytest.approx(float(loop(algorithm, LAW(4))[0]))


def test_evaluation_and_adaptation_follow_it():
    algorithm = gbml("curvature")
    made = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
    table = evaluate(made, made.problem, LAW, steps=(2, 5), batches=1)
    for steps in (2, 5):
        assert table[steps].loss.value == pytest.approx(float(loop(algorithm, LAW(0), steps=steps)[0]), rel=1e-6)
    x, y = (half[0] for half in LAW(0).data["support"])
    clone = algorithm.clone()
    for _ in range(STEPS):
        clone.adapt(F.mse_loss(clone(x), y))
    close(adapt(made, made.problem, (x, y)).parameters(), clone.module.parameters())


def test_some_weights_are_frozen():
    """Theirs needs ``allow_unused`` and ``allow_nograd`` for it."""
    net = seeded(mlp)
    net[2].weight.requires_grad_(False)
    algorithm = gbml("some", net, allow_nograd=True, allow_unused=True)
    made = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
    found = mfoc.evaluate(made.problem, made.problem.controls, LAW(0))
    (x, y), (a, b) = LAW(0).data["support"], LAW(0).data["query"]
    total = 0
    for i in range(len(x)):
        clone = algorithm.clone()
        for _ in range(STEPS):
            clone.adapt(F.mse_loss(clone(x[i]), y[i]))
        total = total + F.mse_loss(clone(a[i]), b[i]) / len(x)
    wanted = [p for p in algorithm.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(total, wanted, materialize_grads=True)
    close([found.value, *mfoc.tree.leaves(found.gradient)], [total.detach(), *theirs])


@pytest.mark.parametrize("first_order", [False, True])
def test_a_rule_of_slope_and_weight_by_hand(first_order):
    """Such a rule is beyond learn2learn's transforms; plain autograd through the whole graph, task by task."""
    net, rule = seeded(lambda: nn.Linear(1, 1)).to(D), Coordinatewise(seeded(lambda: nn.Linear(2, 1), seed=3).to(D))
    made = learned_update(
        net, F.mse_loss, LAW, rule=rule, inner_steps=STEPS, inner_lr=LR, adapt_rule=True, first_order=first_order
    )
    phi, w = ([p.detach().clone().requires_grad_() for p in part.parameters()] for part in (net, rule))
    (x, y), (a, b) = LAW(0).data["support"], LAW(0).data["query"]
    total = 0
    for i in range(len(x)):
        fast, own = phi, w
        for k in range(STEPS):
            loss = F.mse_loss(F.linear(x[i], *fast), y[i])
            if k > 0:
                slopes = torch.autograd.grad(loss, own, create_graph=not first_order, retain_graph=True)
                own = [leaf - LR * slope for leaf, slope in zip(own, slopes, strict=True)]
            slopes = torch.autograd.grad(loss, fast, create_graph=True)
            moves = [F.linear(torch.stack([s, p], -1), *own).squeeze(-1) for s, p in zip(slopes, fast, strict=True)]
            fast = [p - LR * move for p, move in zip(fast, moves, strict=True)]
        total = total + F.mse_loss(F.linear(a[i], *fast), b[i]) / len(x)
    found = mfoc.evaluate(made.problem, made.problem.controls, LAW(0))
    close([found.value, *mfoc.tree.leaves(found.gradient)], [total.detach(), *torch.autograd.grad(total, [*phi, *w])])


def test_what_cannot_be_a_rule_is_refused():
    class Branching(nn.Linear):
        def forward(self, slope):
            return super().forward(slope) if float(slope.sum()) > 0 else slope

    TRANSFORMS["branching"] = optim.ModuleTransform(Branching)
    with pytest.raises(mfoc.InvalidValue, match=r"all tasks at once, by torch\.func\.vmap"):
        from_learn2learn(gbml("branching"), LAW, F.mse_loss, inner_steps=2)
    one = optim.ModuleTransform(nn.Identity)
    shared = nn.Linear(1, 1)
    one.module_cls = lambda n, m: shared
    TRANSFORMS["shared"] = one
    with pytest.raises(mfoc.InvalidValue, match="shares parameters"):
        from_learn2learn(gbml("shared"), LAW, F.mse_loss, inner_steps=2)
    rule = Coordinatewise(nn.Linear(2, 1)).double()
    with pytest.raises(mfoc.InvalidType, match="adapt_rule is 1"):
        learned_update(mlp().double(), F.mse_loss, LAW, rule=rule, inner_steps=1, adapt_rule=1)
