import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.networks import MaskedDropout, Residual
from tests.problems import D, batch_norm_net, conv_net, distance, labels, mlp_net, normal, same_bits, seeded

SGD = partial(torch.optim.SGD, lr=0.1)


def output(problem, x, z=None, controls=None):
    controls = problem.controls if controls is None else controls
    for t in range(problem.stages):
        x = problem.dynamics(t, x, problem.schedule(controls, t), z)
    return x


class Tiny(nn.Module):
    """Cuts fall inside its forward pass, which flattens, reuses a layer, reads a bare parameter and has an aside."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Softplus())
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(2 * 4, 3)
        self.aside = nn.Linear(3, 7)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.scale * self.relu(self.body(x))
        x = self.head(torch.flatten(x, 1)) + 1
        self.aside(x)
        return x


NETS = {
    "mlp": (mlp_net, (5, 3), None),
    "conv": (conv_net, (5, 1, 6, 6), None),
    "nested": (
        lambda: seeded(
            lambda: nn.Sequential(
                nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4))), nn.Linear(4, 2, bias=False)
            )
        ),
        (5, 3),
        None,
    ),
    "residual": (
        lambda: seeded(lambda: nn.Sequential(*(Residual(nn.Linear(3, 3), step=0.5) for _ in range(3)))),
        (5, 3),
        None,
    ),
    "grouped": (mlp_net, (5, 3), [["0", "1"], ["2"], ["3", "4"]]),
    "batch norm": (batch_norm_net, (5, 3), None),
    "batch norm in evaluation": (lambda: batch_norm_net().eval(), (5, 3), None),
    "cut": (lambda: seeded(Tiny), (5, 1, 6, 6), ["stem", "body", "head"]),
    "in place": (
        lambda: seeded(lambda: nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Linear(3, 3), nn.ELU(inplace=True))),
        (5, 3),
        None,
    ),
    "weight norm": (
        lambda: seeded(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh())),
        (5, 3),
        None,
    ),
    "attention": (
        lambda: seeded(lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True))),
        (5, 3, 4),
        None,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_output_gradient_and_round_trip(name):
    """Bit for bit the network's output and gradient; the network and the input are left alone."""
    make, shape, stages = NETS[name]
    net, x = make(), normal(*shape)
    before, x_before = copy.deepcopy(net.state_dict()), x.clone()
    with torch.no_grad():
        expected = copy.deepcopy(net)(x.clone())
    z = torch.zeros_like(expected)
    problem = mfoc.from_module(net, F.mse_loss, stages=stages)
    particles = mfoc.Particles(x, z)
    if name == "attention":  # torch takes another kernel when no weight requires grad
        torch.testing.assert_close(output(problem, x), expected, rtol=1e-13, atol=1e-14)
    else:
        assert torch.equal(output(problem, x), expected)
    problem.validate(particles)

    own = copy.deepcopy(net)
    own.zero_grad()
    F.mse_loss(own(x.clone()), z).backward()
    gradients = {id(p): p.grad for p in own.parameters()}
    found = mfoc.evaluate(problem, problem.controls, particles).gradient
    recomputed = mfoc.evaluate(problem, problem.controls, particles, recompute=True).gradient
    assert distance(found, recomputed) < 1e-12
    solved = mfoc.to_module(net, found, stages=stages)
    for (key, value), own_value in zip(solved.named_parameters(), own.parameters(), strict=True):
        gradient = gradients[id(own_value)]
        if gradient is not None:
            torch.testing.assert_close(value, gradient, rtol=1e-10, atol=1e-12, msg=key)

    solution = mfoc.solve(problem, mfoc.Gradient(SGD), particles, steps=2)
    trained = mfoc.to_module(net, solution.controls, stages=stages)
    make().load_state_dict(trained.state_dict())
    with torch.no_grad():
        reached = output(problem, x, controls=solution.controls)
        torch.testing.assert_close(reached, copy.deepcopy(trained)(x.clone()), rtol=1e-13, atol=1e-14)
    assert same_bits(before, net.state_dict())
    assert torch.equal(x, x_before)
    assert net.training == make().training


def test_resnet18_by_stage_names():
    models = pytest.importorskip("torchvision.models")
    net = seeded(lambda: models.resnet18(num_classes=4))
    stages = ["conv1", "layer1", "layer2.0", "layer2.1", "layer3", "layer4", "avgpool", "fc"]
    x = normal(2, 3, 32, 32)
    before = copy.deepcopy(net.state_dict())
    problem = mfoc.from_module(net, F.cross_entropy, stages=stages)
    with torch.no_grad():
        assert torch.equal(output(problem, x), copy.deepcopy(net)(x))
    assert [bool(u) for u in problem.controls] == [True, True, True, True, True, True, False, True]
    assert sum(len(u) for u in problem.controls) == len(list(net.parameters()))
    assert same_bits(before, net.state_dict())
    restored = mfoc.to_module(net, problem.controls, stages=stages)
    assert same_bits(before, restored.state_dict())


def test_stages_without_parameters_are_empty():
    problem = mfoc.from_module(mlp_net(), F.cross_entropy)
    assert [sorted(u) for u in problem.controls] == [["bias", "weight"], [], ["bias", "weight"], [], ["bias", "weight"]]


def test_a_layer_used_twice_runs_twice():
    relu = nn.Softplus()
    net = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, relu)
    problem, x = mfoc.from_module(net, F.mse_loss), torch.randn(4, 3)
    assert problem.stages == 5
    assert torch.equal(output(problem, x), net(x))
    grouped = mfoc.from_module(net, F.mse_loss, stages=[["0", "1"], ["2", "3", "4"]])
    assert torch.equal(output(grouped, x), net(x))


def test_a_sequential_with_its_own_forward():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(2 * x)

    inner, x = nn.Sequential(Doubled(nn.Linear(3, 3)), nn.Tanh()), torch.randn(4, 3)
    assert torch.equal(output(mfoc.from_module(inner, F.mse_loss), x), inner(x))
    whole = Doubled(nn.Linear(3, 3), nn.Tanh())
    with pytest.raises(mfoc.InvalidValue, match="name the stages"):
        mfoc.from_module(whole, F.mse_loss)


def test_buffers_are_constants():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.linear(x) + self.calls

    parts = [Counter(), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.BatchNorm1d(3)]
    net, x = nn.Sequential(*parts), torch.randn(8, 3)
    before = copy.deepcopy(net.state_dict())
    problem = mfoc.from_module(net, F.mse_loss)
    expected = copy.deepcopy(net)(x)
    for _ in range(2):
        assert torch.equal(output(problem, x), expected)
    mfoc.solve(problem, mfoc.Gradient(SGD), (x, x), steps=2)
    assert same_bits(before, net.state_dict())


def test_batch_norm_interacts_only_in_training_mode():
    x = normal(6, 3)
    training, evaluation = batch_norm_net(), batch_norm_net().eval()
    problems = [mfoc.from_module(net, F.mse_loss) for net in (training, evaluation)]
    alone = [output(problem, x[:3]) for problem in problems]
    together = [output(problem, x)[:3] for problem in problems]
    assert not torch.allclose(alone[0], together[0])
    torch.testing.assert_close(alone[1], together[1])


def test_frozen_parameters_are_constants():
    net = mlp_net()
    net[0].weight.requires_grad_(False)
    net[2].requires_grad_(False)
    problem = mfoc.from_module(net, F.mse_loss)
    assert [sorted(u) for u in problem.controls] == [["bias"], [], [], [], ["bias", "weight"]]
    x, z = normal(4, 3), normal(4, 2)
    assert torch.equal(output(problem, x), net(x))
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, z), steps=3)
    solved = mfoc.to_module(net, solution.controls)
    assert torch.equal(solved[0].weight, net[0].weight)
    assert not solved[0].weight.requires_grad
    assert not torch.equal(solved[0].bias, net[0].bias)
    assert torch.equal(output(problem, x, controls=solution.controls), solved(x))


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


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.cross_entropy, labels(5, 2)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), labels(5, 2)),
        (partial(F.cross_entropy, label_smoothing=0.1), labels(5, 2)),
        (nn.MSELoss(), normal(5, 2, seed=7)),
        (F.l1_loss, normal(5, 2, seed=7)),
        (nn.BCEWithLogitsLoss(reduction="sum"), (normal(5, 2, seed=7) > 0).double()),
        (lambda x, z: (x - z).square().mean(1), normal(5, 2, seed=7)),
    ],
    ids=["function", "module", "partial", "mse", "l1", "bce", "own"],
)
def test_losses_are_means_over_particles(loss, target):
    net, x = mlp_net(), normal(5, 3)
    problem = mfoc.from_module(net, loss)
    value = mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, target)).value
    expected = loss(net(x), target)
    expected = expected / target.numel() if getattr(loss, "reduction", "") == "sum" else expected
    torch.testing.assert_close(value, expected.mean().detach(), rtol=1e-13, atol=0)


def test_a_broadcast_loss_is_refused():
    problem = mfoc.from_module(nn.Sequential(nn.Linear(3, 1)), nn.MSELoss())
    with pytest.warns(UserWarning, match="broadcasting"), pytest.raises(mfoc.InvalidValue, match="broadcast"):
        mfoc.solve(problem, mfoc.Gradient(SGD), (torch.randn(4, 3), torch.randn(4)), steps=1)


def test_dropout_is_refused_unless_it_is_off_or_masked():
    for net, culprit in (
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2)), "'1'"),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.AlphaDropout(0.2))), "'1.0'"),
        (nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1)), "dropout"),
    ):
        with pytest.raises(mfoc.InvalidValue, match="random in training mode") as caught:
            mfoc.from_module(net, F.mse_loss)
        assert culprit in str(caught.value) or "Dropout" in str(caught.value) or "Multihead" in str(caught.value)
        mfoc.from_module(net.eval(), F.mse_loss)
    mfoc.from_module(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), F.mse_loss)


def test_masked_dropout():
    net = nn.Sequential(nn.Linear(3, 4), MaskedDropout(0.25, "mask"), nn.Linear(4, 2)).double()
    mask = (torch.arange(20).view(5, 4) % 4 > 0).to(D)
    x, z = normal(5, 3), {"mask": mask}
    problem = mfoc.from_module(net, lambda x, z: x.square().sum(1))
    assert torch.equal(output(problem, x, z), net[2](net[0](x) * mask / 0.75))
    problem.validate(mfoc.Particles(x, z))
    assert (
        distance(
            mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, z)).gradient,
            mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, z), recompute=True).gradient,
        )
        < 1e-13
    )
    with pytest.raises(mfoc.InvalidValue, match="mask"):
        problem.validate(mfoc.Particles(x))
    still = mfoc.from_module(net.eval(), lambda x, z: x.square().sum(1))
    assert torch.equal(output(still, x), net[2](net[0](x)))


def test_functional_dropout_is_found():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return F.dropout(self.linear(x), 0.5, self.training)

    problem = mfoc.from_module(nn.Sequential(Hidden()), F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="random numbers"):
        mfoc.solve(problem, mfoc.Gradient(SGD), (torch.randn(4, 3), torch.randn(4, 3)), steps=1)


def test_a_forward_whose_input_is_called_z():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, z):
            return self.linear(z)

    net, x = nn.Sequential(Decoder()), torch.randn(4, 3)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss), x, torch.ones(4, 3)), net(x))


def kinds(*modules):
    problem = mfoc.from_module(nn.Sequential(*modules), F.mse_loss)
    return [problem.kind(t) for t in range(problem.stages)]


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), scale

    def forward(self, x):
        return self.scale * self.linear(x)


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if self.training else -self.linear(x)


def block(*modules):
    return Residual(nn.Sequential(*modules))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (block(nn.Linear(4, 4), nn.LeakyReLU(0.1)), block(nn.Linear(4, 4), nn.LeakyReLU(0.2))),
        (block(nn.Linear(4, 4), nn.ReLU()), block(nn.Linear(4, 4), nn.Tanh())),
        (Residual(nn.Linear(4, 4), 1.0), Residual(nn.Linear(4, 4), 0.5)),
        (nn.Linear(4, 4), nn.Linear(4, 4, bias=False)),
        (nn.Linear(4, 4), nn.Linear(4, 3)),
        (nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=2)),
        (nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")),
        (nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 3, dilation=2)),
        (nn.LayerNorm(4, eps=1e-5), nn.LayerNorm(4, eps=1e-3)),
        (nn.BatchNorm1d(4, eps=1e-5), nn.BatchNorm1d(4, eps=1e-3)),
        (nn.BatchNorm1d(4).eval(), nn.BatchNorm1d(4).eval()),
        (nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval()),
        (Scaled(1.0), Scaled(2.0)),
        (Scaled([1.0]), Scaled([1.0])),
        (Scaled(torch.ones(())), Scaled(torch.ones(()))),
        (Moody(), Moody().eval()),
        (nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)),
    ],
)
def test_different_stages_have_different_kinds(left, right):
    first, second = kinds(left, right)
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: block(nn.Linear(4, 4), nn.LeakyReLU(0.1)),
        lambda: nn.Conv2d(2, 2, 3, padding=1),
        lambda: Scaled(2.0),
        lambda: nn.LayerNorm(4),
        lambda: nn.BatchNorm1d(4),
    ],
)
def test_equal_stages_share_their_kind(make):
    assert len(set(kinds(make(), make(), make()))) == 1


def test_hooked_stages_are_not_alike_and_hooks_run():
    seen = []
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), Residual(nn.Linear(3, 3)))
    net[0].register_forward_hook(lambda module, args, out: seen.append("linear") or 2 * out)
    net[1].register_forward_hook(lambda module, args, out: seen.append("group") or out + 1)
    net[2].block.register_forward_pre_hook(lambda module, args: seen.append("inside") or (args[0] * 3,))
    problem, x = mfoc.from_module(net, F.mse_loss), torch.randn(4, 3)
    found = output(problem, x)
    assert seen == ["linear", "group", "inside"]
    assert torch.equal(found, net(x))
    plain, hooked = nn.Linear(3, 3), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda module, args, out: 2 * out)
    assert len(set(kinds(plain, hooked))) == 2


def test_sharing_is_refused():
    linear = nn.Linear(3, 3)
    with pytest.raises(mfoc.InvalidValue, match="shared"):
        mfoc.from_module(nn.Sequential(linear, nn.Tanh(), linear), F.mse_loss)
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    with pytest.raises(mfoc.InvalidValue, match=r"1\.weight"):
        mfoc.from_module(nn.Sequential(one, two), F.mse_loss)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.shared(self.last(self.shared(self.first(x)).tanh()))

    net, x = Recurrent(), torch.randn(4, 3)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss, stages=["last"]), x), net(x))
    with pytest.raises(mfoc.InvalidValue, match="these modules run as"):
        mfoc.from_module(net, F.mse_loss, stages=["first", "shared", "last"])

    class Straddling(Recurrent):
        def forward(self, x):
            return self.last(self.shared(self.first(self.shared(x))))

    with pytest.raises(mfoc.InvalidValue, match=r"shared\.weight.*used in stages"):
        mfoc.from_module(Straddling(), F.mse_loss, stages=["first", "last"])


def test_a_cut_across_a_skip_is_refused():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x)) + x

    with pytest.raises(mfoc.InvalidValue, match="'b' also needs 'x'"):
        mfoc.from_module(Skip(), F.mse_loss, stages=["a", "b"])
    net, x = Skip(), torch.randn(4, 3)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss, stages=["b"]), x), net(x))


def test_an_output_that_is_a_tree():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.b(self.a(x))
            return {"y": y, "double": 2 * y}

    net, x = Branching(), torch.randn(4, 3)
    problem = mfoc.from_module(net, lambda x, z: x["double"].sum(1), stages=["a", "b"])
    assert same_bits(output(problem, x), net(x))


def test_to_module_refuses_other_controls():
    net = mlp_net()
    problem = mfoc.from_module(net, F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match="5 stages"):
        mfoc.to_module(net, problem.controls[:-1])
    other = [*problem.controls[:-1], {"weight": normal(3, 5), "bias": normal(3)}]
    with pytest.raises(mfoc.InvalidValue, match="stage '4'"):
        mfoc.to_module(net, other)
