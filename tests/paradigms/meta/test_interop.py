"""learn2learn in both directions: same gradients, and each side's learner in the other's loop."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import (
    Learner,
    anil,
    few_shot,
    from_learn2learn,
    from_taskset,
    imaml,
    learned_update,
    maml,
    meta_sgd,
    reptile,
    sinusoids,
    tasks,
    to_learn2learn,
)
from paradigms.meta.algorithms import Coordinatewise

learn2learn = pytest.importorskip("learn2learn")
algorithms = learn2learn.algorithms
STEPS, LR = 3, 0.05
SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)).double()


LAW = sinusoids(tasks=4, shots=5, queries=6, dtype=torch.float64)


def loop(learner, cloud, loss=F.mse_loss, steps=STEPS, parameters=None):
    """The training loop a user of learn2learn writes: mean query loss and its gradient."""
    (x, y), (a, b) = cloud.data["support"], cloud.data["query"]
    total = 0
    for i in range(len(cloud)):
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss(clone(x[i]), y[i]))
        total = total + loss(clone(a[i]), b[i])
    value = total / len(cloud)
    wanted = list(learner.parameters()) if parameters is None else parameters
    return value.detach(), torch.autograd.grad(value, wanted)


def on_matrices(parameter):
    """A full matrix for the slopes of each weight matrix, none for biases."""
    transform = learn2learn.optim.ModuleTransform(partial(nn.Linear, bias=False, dtype=torch.float64))
    return transform(parameter) if parameter.dim() > 1 else None


THEIRS = {
    "MAML": lambda: algorithms.MAML(mlp(), lr=LR),
    "FOMAML": lambda: algorithms.MAML(mlp(), lr=LR, first_order=True),
    "MetaSGD": lambda: algorithms.MetaSGD(mlp(), lr=LR),
    "GBML": lambda: algorithms.GBML(mlp(), on_matrices, lr=LR),
}


def theirs(name):
    torch.manual_seed(1)
    algorithm = THEIRS[name]()
    if name == "MetaSGD":
        for rate in algorithm.lrs:
            rate.data *= 0.5 + torch.rand_like(rate)
    return algorithm


@pytest.mark.parametrize("name", THEIRS)
def test_from_learn2learn(name):
    algorithm = theirs(name)
    formulation = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=STEPS)
    assert formulation.first_order == (name == "FOMAML")
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, LAW(0))
    value, slopes = loop(algorithm, LAW(0))
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=0)
    ours = mfoc.tree.leaves(found.gradient)
    for mine, other in zip(ours, slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", THEIRS)
def test_there_and_back(name):
    """The solution as their algorithm gives the value and the gradient that we report at it."""
    formulation = from_learn2learn(theirs(name), LAW, F.mse_loss, inner_steps=STEPS)
    solution = formulation.solve(SGD, steps=2)
    algorithm = to_learn2learn(formulation, solution)
    kind = {"FOMAML": "MAML"}.get(name, name)
    assert type(algorithm) is getattr(algorithms, kind)
    assert algorithm.first_order == (name == "FOMAML")
    found = mfoc.evaluate(formulation.problem, solution.controls, LAW(2))
    value, slopes = loop(algorithm, LAW(2))
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=0)
    for mine, other in zip(mfoc.tree.leaves(found.gradient), slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    if name == "MAML":
        assert algorithm.lr == LR


OURS = {
    "maml": lambda net: maml(net, F.mse_loss, LAW, inner_steps=STEPS, inner_lr=LR),
    "first order": lambda net: maml(net, F.mse_loss, LAW, inner_steps=STEPS, inner_lr=LR, first_order=True),
    "meta_sgd": lambda net: meta_sgd(net, F.mse_loss, LAW, inner_steps=STEPS, inner_lr=LR),
    "per step": lambda net: meta_sgd(net, F.mse_loss, LAW, inner_steps=STEPS, inner_lr=LR, per_step=True),
    "anil": lambda net: anil(net, F.mse_loss, LAW, inner_steps=STEPS, inner_lr=LR),
    "rule": lambda net: learned_update(
        net, F.mse_loss, LAW, rule=Coordinatewise(nn.Linear(2, 1)).double(), inner_steps=STEPS
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_learner_stands_where_theirs_stands(name):
    formulation = OURS[name](mlp())
    solution = formulation.solve(SGD, steps=1)
    learner = Learner(formulation, solution)
    value, slopes = loop(learner, LAW(3))
    found = mfoc.evaluate(formulation.problem, solution.controls, LAW(3))
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=0)
    for mine, other in zip(mfoc.tree.leaves(found.gradient), slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_learner_trains_as_the_solver_does():
    formulation = OURS["meta_sgd"](mlp())
    solution = formulation.solve(mfoc.Gradient(partial(torch.optim.SGD, lr=0.01)), steps=3)
    learner = Learner(formulation)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    for step in range(3):
        for parameter, slope in zip(learner.parameters(), loop(learner, LAW(step))[1], strict=True):
            parameter.grad = slope
        optimizer.step()
    for mine, other in zip(*map(mfoc.tree.leaves, (learner.controls(), solution.controls)), strict=True):
        torch.testing.assert_close(mine.detach(), other, rtol=1e-10, atol=1e-12)


def test_clones_share_no_buffers():
    """Theirs do: batch-norm averages of one task are seen by the next."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    learner = Learner(maml(net, F.mse_loss, LAW, inner_steps=1, inner_lr=LR))
    x = LAW(0).data["support"][0][0]
    first = learner.clone()(x)
    learner.clone()(100 * x)
    assert torch.equal(learner.clone()(x), first)
    assert net[1].num_batches_tracked == 0


def test_learner_refuses():
    learner = Learner(OURS["maml"](mlp()))
    x = LAW(0).data["support"][0][0]
    with pytest.raises(mfoc.InvalidValue, match="clone"):
        learner.adapt(learner(x).mean())
    clone = learner.clone()
    with pytest.raises(mfoc.InvalidValue, match="scalar"):
        clone.adapt(clone(x))
    with pytest.raises(mfoc.InvalidType, match="inner steps"):
        Learner(imaml(mlp(), F.mse_loss, LAW, inner_steps=2, inner_lr=LR, strength=1.0))


def test_what_learn2learn_has_no_name_for():
    for name in ("per step", "anil", "rule"):
        formulation = OURS[name](mlp())
        with pytest.raises(mfoc.InvalidValue, match="learn2learn"):
            to_learn2learn(formulation, formulation.problem)
    with pytest.raises(mfoc.InvalidType, match="MAML, MetaSGD or GBML"):
        from_learn2learn(mlp(), LAW, F.mse_loss, inner_steps=1)


def test_reptile_reads_out_as_maml():
    formulation = reptile(mlp(), F.mse_loss, LAW, inner_steps=2, inner_lr=LR)
    solution = formulation.solve(SGD, steps=1)
    algorithm = to_learn2learn(formulation, solution)
    for mine, other in zip(solution.controls["phi"].values(), algorithm.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_task_set_of_learn2learn():
    x = torch.arange(40.0).view(40, 1)
    y = torch.arange(40) // 8
    data = learn2learn.data.MetaDataset(torch.utils.data.TensorDataset(x, y))
    transforms = learn2learn.data.transforms
    steps = [
        transforms.NWays(data, 3),
        transforms.KShots(data, 4),
        transforms.LoadData(data),
        transforms.RemapLabels(data),
    ]
    law = from_taskset(learn2learn.data.Taskset(data, steps), shots=1, tasks=5, seed=3)
    (a, b), (c, d) = law(1).data["support"], law(1).data["query"]
    assert a.shape == (5, 3, 1)
    assert c.shape == (5, 9, 1)
    again = law(1).data["support"][0]
    assert torch.equal(a, again)
    for i in range(5):
        for k in range(3):
            assert (c[i][d[i] == k] // 8 == a[i][b[i] == k] // 8).all()  # query and support of one class


def test_finite_task_set_of_learn2learn():
    """Two runs that ask for the batches in other orders see the same ones, each task once an epoch."""

    def source():
        data = learn2learn.data.MetaDataset(
            torch.utils.data.TensorDataset(torch.arange(400.0).view(400, 1), torch.arange(400) // 8)
        )
        kinds = learn2learn.data.transforms
        steps = [kinds.NWays(data, 3), kinds.KShots(data, 4), kinds.LoadData(data), kinds.RemapLabels(data)]
        return learn2learn.data.Taskset(data, steps, num_tasks=7)

    first, again = (from_taskset(source(), shots=1, tasks=3, seed=2) for _ in range(2))
    batches = {step: first(step).data["support"][0] for step in (0, 1, 2, 3)}
    for step in (3, 1, 2, 0):
        assert torch.equal(again(step).data["support"][0], batches[step])
    assert first.size == 7
    assert len(torch.cat([batches[step] for step in (0, 1, 2)]).unique(dim=0)) == 7


def test_meta_sgd_with_a_frozen_layer():
    """Their own adapt fails on it; ours moves the others, as their update does when it is given their slopes."""
    algorithm = theirs("MetaSGD")
    algorithm.module[0].weight.requires_grad_(False)
    formulation = from_learn2learn(algorithm, LAW, F.mse_loss, inner_steps=2)
    assert "0.weight" not in formulation.problem.controls["alpha"]
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, LAW(0))
    (x, y), (a, b) = LAW(0).data["support"], LAW(0).data["query"]
    total = 0
    for i in range(len(x)):
        clone = algorithm.clone()
        for _ in range(2):
            still, *moving = clone.module.parameters()
            slopes = torch.autograd.grad(F.mse_loss(clone(x[i]), y[i]), moving, create_graph=True)
            every = [torch.zeros_like(still), *slopes]
            clone.module = algorithms.meta_sgd.meta_sgd_update(clone.module, clone.lrs, every)
        total = total + F.mse_loss(clone(a[i]), b[i]) / len(x)
    wanted = [p for p in algorithm.module.parameters() if p.requires_grad]
    torch.testing.assert_close(found.value, total.detach(), rtol=1e-10, atol=0)
    slopes = torch.autograd.grad(total, [*wanted, *list(algorithm.lrs)[1:]])
    for mine, other in zip(mfoc.tree.leaves(found.gradient), slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    learner = Learner(formulation)
    free = [p for p in learner.parameters() if p.requires_grad]
    value, slopes = loop(learner, LAW(0), steps=2, parameters=free)
    torch.testing.assert_close(value, found.value, rtol=1e-10, atol=0)
    for mine, other in zip(mfoc.tree.leaves(found.gradient), slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_their_convolutional_network():
    """Its convolutions have two names, "base" and "features.1"."""
    torch.manual_seed(0)
    net, images = learn2learn.vision.models.OmniglotCNN(2, hidden_size=4).double(), torch.randn(2, 2, 4, 1, 28, 28)
    kinds = torch.arange(4).remainder(2).expand(2, 4).contiguous()
    cloud = tasks(*((half.double(), kinds) for half in images))
    made = maml(net, F.cross_entropy, cloud, inner_steps=1, inner_lr=LR)
    value, gradient = loop(algorithms.MAML(net, lr=LR), cloud, F.cross_entropy, steps=1)
    found = mfoc.evaluate(made.problem, made.problem.controls, cloud)
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=0)
    for mine, of_learner, theirs in zip(
        found.gradient["phi"].values(), loop(Learner(made), cloud, F.cross_entropy, steps=1)[1], gradient, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(of_learner, theirs, rtol=1e-8, atol=1e-12)


def test_few_shot_against_their_loop():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 1, 8, 8, generator=generator).double(), torch.arange(30) // 6
    law = few_shot(x, y, ways=3, shots=1, queries=2, tasks=3)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    formulation = maml(net, F.cross_entropy, law, inner_steps=2, inner_lr=0.4)
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, law(0))
    value, slopes = loop(algorithms.MAML(net, lr=0.4), law(0), F.cross_entropy, 2)
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
    for mine, other in zip(found.gradient["phi"].values(), slopes, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_gradients_agree_in_single_precision():
    net = mlp().float()
    cloud = LAW(0).to(torch.float32)
    cloud = tasks(cloud.data["support"], cloud.data["query"])
    formulation = maml(net, F.mse_loss, cloud, inner_steps=5, inner_lr=0.01)
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, cloud)
    for mine, other in zip(
        found.gradient["phi"].values(), loop(algorithms.MAML(net, lr=0.01), cloud, steps=5)[1], strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
