"""Stacked networks: every layer, its derivatives, and that nothing leaks between tasks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from paradigms.meta import adapt, evaluate, few_shot, maml, tasks
from paradigms.meta.layers import Window, convolve, normalise
from paradigms.meta.stacked import StackedNetwork
from tests.doors.plain import twice_differentiable
from tests.oracles import meta as oracles
from tests.paradigms import unmapped

TASKS, SHOTS = 3, 4


class Skip(nn.Module):
    """A module that is no chain."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2 * 36, 3)

    def forward(self, x):
        return self.head((x + self.conv(x).relu()).reshape(len(x), -1))


def conv(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


class Own(nn.Module):
    """A forward of one's own over one layer, with a buffer."""

    def __init__(self, forward, layer=None):
        super().__init__()
        self.layer, self.run = layer or nn.Linear(72, 3), forward
        self.register_buffer("mean", torch.full((72,), 0.1))

    def forward(self, x):
        return self.run(self, x.flatten(1))


def counting(net, x):
    """Writes into its buffer, in place and by assignment."""
    mean = x.detach().mean(0)
    net.mean.mul_(0.9).add_(0.1 * mean)
    net.mean = net.mean + mean
    return net.layer(x - mean)


NETS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
    "conv": lambda: conv(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 2, dilation=2)
    ),
    "groups": lambda: conv(nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.GELU(), nn.AdaptiveAvgPool2d(2)),
    "batch norm": lambda: conv(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
    "plain batch norm": lambda: conv(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AvgPool2d(2)),
    "batch norm 1d": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 5), nn.BatchNorm1d(5), nn.SiLU(), nn.Linear(5, 3)
    ),
    "group norm": lambda: conv(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ELU()),
    "layer norm": lambda: conv(nn.Conv2d(2, 4, 3), nn.LayerNorm([4, 4, 4]), nn.ReLU()),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv2d(2, 4, 6), nn.Tanh()), nn.Flatten(), nn.Linear(4, 3)),
    "frozen": lambda: frozen(conv(nn.Conv2d(2, 4, 3), nn.ReLU())),
    "same padding": lambda: conv(nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU()),
    "instance norm": lambda: conv(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU()),
    "skip": Skip,
    "branch on values": lambda: Own(lambda net, x: net.layer(x) if x.sum() > 0 else net.layer(x).tanh()),
    "item": lambda: Own(lambda net, x: net.layer(x) * (1 + float(net.layer.weight.detach().sum().item() > 0))),
    "mask": lambda: Own(lambda net, x: net.layer(torch.where(x.sum(1, keepdim=True) > 0, x, -x)[x.sum(1) < 1e9])),
    "loop over shots": lambda: Own(lambda net, x: torch.stack([net.layer(row) for row in x])),
    "buffers": lambda: Own(counting),
    "a layer used twice": lambda: Own(
        lambda net, x: net.layer(x) + net.layer(x.flip(0)) @ net.layer.weight @ net.layer.weight.T
    ),
    "recurrent": lambda: Own(lambda net, x: net.layer(x[:, None])[0][:, 0], nn.GRU(72, 3, batch_first=True)),
    "parametrised": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(72, 3))),
}
DIRECT = {
    "linear", "conv", "groups", "batch norm", "plain batch norm", "batch norm 1d", "group norm", "layer norm", "nested",
    "frozen",
}  # fmt: skip
LOOPED = {"branch on values", "item", "mask", "buffers", "recurrent"}  # what vmap cannot follow


def frozen(net):
    net[0].weight.requires_grad_(False)
    return net


def made(name):
    torch.manual_seed(0)
    net = NETS[name]().double()
    net(torch.randn(SHOTS, 2, 6, 6).double())  # lazy layers take their shape, averages move
    return net


def task_batch():
    generator = torch.Generator().manual_seed(1)
    x, a = (torch.randn(TASKS, SHOTS, 2, 6, 6, generator=generator).double() for _ in range(2))
    y, b = (torch.randint(0, 3, (TASKS, SHOTS), generator=generator) for _ in range(2))
    return tasks((x, y), (a, b))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETS)
def test_second_order_maml(name, mode):
    net, particles = made(name), task_batch()
    net.train(mode == "train")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    formulation = maml(net, F.cross_entropy, particles, inner_steps=2, inner_lr=0.1)
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, particles)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was written into"
    with twice_differentiable():  # torch's own second derivative of weight norm is wrong
        value, *gradient = oracles.maml(net, F.cross_entropy, particles, steps=2, lr=0.1)
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(found.gradient["phi"].values(), gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", NETS)
def test_which_layers_are_stacked(name):
    stacked, x = StackedNetwork(made(name)), task_batch().data["support"][0]
    assert bool(stacked.layers) == (name in DIRECT)
    stacked({key: leaf.expand(TASKS, *leaf.shape) for key, leaf in stacked.initial().items()}, x)
    assert stacked.looped == (name in LOOPED)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: (net.layer(x), x), "returns a tuple"),
        (lambda net, x: {"out": net.layer(x)}, "returns a dict"),
        (lambda net, x: (net.layer(x), x) if x.sum() > 0 else (x, x), "returns a tuple"),
        (lambda net, x: net.layer(x)[:2], r"shape \(2, 3\) for the 4 shots"),
        (lambda net, x: net.layer(F.dropout(x, 0.5)), "random numbers"),
        (
            lambda net, x: net.layer(F.dropout(x, 0.5)) if x.sum() > 0 else net.layer(F.dropout(x, 0.1)),
            "random numbers",
        ),
    ],
)
def test_forwards_that_are_refused(forward, message):
    with pytest.raises((mfoc.InvalidValue, mfoc.InvalidType), match=message):
        maml(Own(forward).double(), F.cross_entropy, task_batch(), inner_steps=1, inner_lr=0.1)


def tied_layers(act=nn.Tanh):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), act(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    net[4].weight = net[3].weight
    return net.double()


class Autoencoder(nn.Module):
    """A weight that is used the other way round, too: no layer has it."""

    def __init__(self):
        super().__init__()
        self.down, self.out = nn.Linear(72, 5), nn.Linear(72, 3, bias=False)
        self.twice = nn.ParameterList([self.down.weight])

    def forward(self, x):
        return self.out(self.down(x.flatten(1)).tanh() @ self.twice[0])


@pytest.mark.parametrize("make", [tied_layers, lambda: tied_layers(nn.GELU), lambda: Autoencoder().double()])
def test_tied_weights_are_one_weight(make):
    net, cloud = make(), task_batch()
    made = maml(net, F.cross_entropy, cloud, inner_steps=2, inner_lr=0.1)
    found = mfoc.evaluate(made.problem, made.problem.controls, cloud)
    assert list(found.gradient["phi"]) == [name for name, _ in net.named_parameters()]
    value, *slopes = oracles.maml(net, F.cross_entropy, cloud, steps=2, lr=0.1)
    torch.testing.assert_close(found.value, value, rtol=1e-12, atol=0)
    for mine, plain in zip(mfoc.tree.leaves(found.gradient), mfoc.tree.leaves(slopes), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-13)
    solved = made.readout(made.problem)
    assert len(list(solved.parameters())) == len(list(net.parameters()))  # still tied


def test_a_layer_of_several_names():
    """One layer that runs twice has one set of weights, and one fast copy of them a task."""
    torch.manual_seed(0)
    layer = nn.Linear(72, 72)
    net = nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Linear(72, 3)).double()
    cloud = task_batch()
    made = maml(net, F.cross_entropy, cloud, inner_steps=2, inner_lr=0.1)
    found = mfoc.evaluate(made.problem, made.problem.controls, cloud).gradient["phi"]
    assert list(found) == ["1.weight", "1.bias", "4.weight", "4.bias"]
    weights, total = [p.detach().clone().requires_grad_() for p in net.parameters()], 0

    def forward(w, x):
        hidden = F.linear(x.flatten(1), w[0], w[1]).tanh()
        return F.linear(F.linear(hidden, w[0], w[1]), w[2], w[3])

    for i in range(TASKS):
        (x, y), (a, b) = ([leaf[i] for leaf in cloud.data[part]] for part in ("support", "query"))
        fast = weights
        for _ in range(2):
            slopes = torch.autograd.grad(F.cross_entropy(forward(fast, x), y), fast, create_graph=True)
            fast = [w - 0.1 * s for w, s in zip(fast, slopes, strict=True)]
        total = total + F.cross_entropy(forward(fast, a), b) / TASKS
    for mine, plain in zip(found.values(), torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-13)
    solved = made.readout(made.problem)
    assert solved[1] is solved[3]


def test_a_layer_that_is_used_twice_runs_twice():
    torch.manual_seed(0)
    shared = nn.Tanh()
    net = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 6), shared, nn.Linear(6, 3)).double()
    particles = tasks(*((part[0].flatten(2)[:, :, :4], part[1]) for part in task_batch().data.values()))
    made = maml(net, F.cross_entropy, particles, inner_steps=1, inner_lr=0.1)
    value = mfoc.evaluate(made.problem, made.problem.controls, particles).value
    expected, *_ = oracles.maml(net, F.cross_entropy, particles, steps=1, lr=0.1)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_rows_of_an_embedding_that_are_padding():
    """They are never trained, in the inner steps either."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        net[0].weight[0] = 1.0
    words = torch.randint(0, 5, (2, TASKS, SHOTS, 2))
    words[..., 0] = 0
    kinds = torch.randint(0, 3, (2, TASKS, SHOTS))
    cloud = tasks(*zip(words, kinds, strict=True))
    made = maml(net, F.cross_entropy, cloud, inner_steps=2, inner_lr=0.5, step_losses=[0.5, 0.5])
    adapted = adapt(made, made.problem, (words[0, 1], kinds[0, 1]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(words[0, 1]), kinds[0, 1]).backward()
        optimizer.step()
    for mine, plain in zip(adapted.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, plain)
    assert torch.equal(adapted[0].weight[0], torch.ones(3).double())
    found = mfoc.evaluate(made.problem, made.problem.controls, made.population(0)).gradient["phi"]["0.weight"]
    assert not found[0].any()
    assert found[1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_integers(dtype):
    """Words of tasks and of few_shot, as steps or with multi-step losses: the network's dtype is that of the costs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3)).to(dtype)
    words, kinds = torch.randint(0, 5, (30, 2)), torch.arange(30) % 3
    pairs = [(w.view(TASKS, 5, 2), k.view(TASKS, 5)) for w, k in zip(words.chunk(2), kinds.chunk(2), strict=True)]
    for law in (tasks(*pairs), few_shot(words, kinds, ways=3, shots=1, queries=1, tasks=2)):
        for weights in (None, [0.5, 0.5]):
            made = maml(net, F.cross_entropy, law, inner_steps=2, inner_lr=0.1, step_losses=weights)
            cloud = made.population(0)
            found = mfoc.evaluate(made.problem, made.problem.controls, cloud)
            table = evaluate(made, made.problem, steps=(1, 2), progress=False)
            share = [0.0, 1.0] if weights is None else weights
            assert found.value.dtype == dtype
            assert float(found.value) == pytest.approx(
                sum(s * row.loss.value for s, row in zip(share, table.rows, strict=True)), rel=1e-5
            )


@pytest.mark.parametrize("name", sorted(unmapped.NETS))
def test_networks_that_vmap_cannot_follow(name):
    """First order, as attention and bags of embeddings have no second derivative."""
    net, x, y = unmapped.made(name)
    pairs = [(x[a:].reshape(2, -1, *x.shape[1:]), y[a:].reshape(2, -1)) for a in (0, 2)]
    formulation = maml(net, F.cross_entropy, tasks(*pairs), inner_steps=1, inner_lr=0.3, first_order=True)
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, formulation.population(0))
    value, gradient = 0.0, {key: torch.zeros_like(p) for key, p in net.named_parameters()}
    for (a, b), (c, d) in zip(*(zip(*pair, strict=True) for pair in pairs), strict=True):
        plain = unmapped.at(net, dict(net.named_parameters()))
        steps = unmapped.slopes(F.cross_entropy(plain(a), b), plain)
        adapted = unmapped.at(net, {key: p.detach() - 0.3 * steps[key] for key, p in net.named_parameters()})
        cost = F.cross_entropy(adapted(c), d) / 2
        value += float(cost.detach())
        slopes = unmapped.slopes(cost, adapted)
        gradient = {key: total + slopes[key] for key, total in gradient.items()}
    assert float(found.value) == pytest.approx(value, rel=1e-10)
    torch.testing.assert_close({**found.gradient["phi"]}, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "wrap", [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"mean": a, "log_variance": b}]
)
def test_outputs_of_more_than_one_tensor(wrap):
    """A loss of one's own takes them as the network returns them."""
    torch.manual_seed(0)
    net = Own(lambda net, x: wrap(net.layer(x)[:, 0], net.layer(x)[:, 1])).double()

    def cost(out, y):
        mean, log_variance = out.values() if isinstance(out, dict) else out
        return ((y - mean).square() * (-log_variance).exp() + log_variance).mean()

    x, y = task_batch().data["support"]
    cloud = tasks((x, y.double()), (x.flip(0), y.double()))
    formulation = maml(net, cost, cloud, inner_steps=2, inner_lr=0.1)
    found = mfoc.evaluate(formulation.problem, formulation.problem.controls, cloud)
    value, *gradient = oracles.maml(net, cost, cloud, steps=2, lr=0.1)
    torch.testing.assert_close(found.value, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(list(found.gradient["phi"].values()), gradient, rtol=1e-8, atol=1e-11)
    assert evaluate(formulation, formulation.problem, steps=(1,), progress=False).rows[0].accuracy is None


def test_one_shot_of_batch_norm_is_refused():
    cloud = tasks(*[tuple(part[:, :1] for part in task_batch().data["support"])] * 2)
    with pytest.raises(mfoc.InvalidValue, match="more than 1 value per channel"):
        maml(made("batch norm 1d"), F.cross_entropy, cloud, inner_steps=1, inner_lr=0.1)


def test_a_hook_is_run():
    net = made("linear")
    net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    stacked, x = StackedNetwork(net), task_batch().data["support"][0]
    wide = {name: p.detach().expand(TASKS, *p.shape) for name, p in net.named_parameters()}
    torch.testing.assert_close(stacked(wide, x)[1], net(x[1]).detach())


@pytest.mark.parametrize("name", ["batch norm", "batch norm 1d", "group norm", "instance norm"])
def test_nothing_leaks_between_tasks(name):
    """Another task's inputs, however large, change no bit beyond rounding of a task's cost and costates."""
    net, particles = made(name), task_batch()
    formulation = maml(net, F.cross_entropy, particles, inner_steps=2, inner_lr=0.1)
    problem = formulation.problem
    (x, y), query = particles.data["support"], particles.data["query"]
    loud = x.clone()
    loud[0] = 100 * loud[0] ** 3 + 7
    other = tasks((loud, y), query)
    runs = [mfoc.rollout(problem, problem.controls, cloud) for cloud in (particles, other)]
    assert (runs[0].cost[0] - runs[1].cost[0]).abs() > 1e-3
    torch.testing.assert_close(runs[0].cost[1:], runs[1].cost[1:], rtol=1e-11, atol=1e-12)
    mfoc.testing.check_problem(problem, particles, interacting=False)


def test_parts_change_nothing(monkeypatch):
    net, particles = made("batch norm"), task_batch()
    values = []
    for cache in (2**30, 1):  # all tasks at once, one at a time
        monkeypatch.setattr("paradigms.meta.stacked._CACHE", cache)
        formulation = maml(net, F.cross_entropy, particles, inner_steps=2, inner_lr=0.1)
        values.append(mfoc.evaluate(formulation.problem, formulation.problem.controls, particles))
    torch.testing.assert_close(values[0].value, values[1].value, rtol=1e-11, atol=0)
    for whole, parts in zip(values[0].gradient["phi"].values(), values[1].gradient["phi"].values(), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_channels_that_are_not_there():
    """A pool would run over the shots; ours would run over the tasks."""
    x, y = torch.zeros(2, 3, 4), torch.zeros(2, 3, 1)
    net = nn.Sequential(nn.MaxPool1d(2), nn.Linear(2, 1))
    with pytest.raises(mfoc.InvalidValue, match="spatial axes"):
        maml(net, F.mse_loss, tasks((x, y), (x, y)), inner_steps=1, inner_lr=0.1)


def random(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("kind", [1, 2])
def test_convolution_derivatives(kind):
    window = Window((2,) * kind, (1,) * kind, (1,) * kind, 2)
    inputs = random((2, 4, *[5] * kind), (6, 2, *[3] * kind), (6,))

    def function(x, weight, bias):
        return convolve(x, weight, bias, window)

    expected = (F.conv1d, F.conv2d)[kind - 1](*inputs, stride=2, padding=1, groups=2)
    torch.testing.assert_close(function(*inputs), expected)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_batch_norm_derivatives():
    inputs = random((3, 2, 2, 2), (2,), (2,))

    def function(x, weight, bias):
        return normalise(x, weight, bias, 1e-3)

    def slopes(*inputs):
        return torch.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)

    torch.testing.assert_close(function(*inputs), F.batch_norm(inputs[0], None, None, *inputs[1:], True, 0.0, 1e-3))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(slopes, inputs)  # the third derivative, for curvatures
