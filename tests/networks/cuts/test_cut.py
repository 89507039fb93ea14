"""The stages that ``cut`` returns: names, states, shared parameters, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc.networks.cuts import cut, shared_between
from tests.architectures import Reused, seeded
from tests.networks.cuts.networks import GPT, LAYERS, Careful, Dense, Masked, UNet, made, padding, tokens
from tests.networks.cuts.test_alive import agrees
from tests.problems import normal


def states(net, stages, x):
    found = [x]
    for _, part in cut(net, stages):
        found.append(part(found[-1]))
    return found[1:]


def names(state):
    return list(state) if isinstance(state, dict) else None


def test_a_state_is_a_value_or_a_dict_of_what_is_alive():
    u_net = states(seeded(UNet), ["down1", "down2", "middle", "up2", "up1"], normal(2, 1, 8, 8))
    assert [names(state) for state in u_net] == [
        None,
        ["tanh", "value"],
        ["tanh", "tanh.1", "value"],
        ["tanh", "value"],
        None,
    ]
    dense = states(seeded(Dense), ["layers.0", "layers.1", "head"], normal(2, 3))
    assert [names(state) for state in dense] == [["x", "value"], ["x", "tanh", "value"], None]
    gpt = states(seeded(GPT), [*LAYERS, "head"], tokens(2, 4))
    assert [names(state) for state in gpt] == [["x", "value"]] * 3 + [None, None]
    padded = states(seeded(GPT), [*LAYERS, "head"], {"x": tokens(2, 4), "pad": padding(2, 4)})
    assert [names(state) for state in padded] == [["x", "pad", "value"]] * 3 + [["pad", "value"], None]


def test_of_a_tuple_only_what_is_used_is_carried():
    net, x, stages = made("recurrent")
    assert [names(state) for state in states(net, stages, x)] == [None, None, None]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            out, (_, c) = self.first(x)
            return self.last(out[:, -1] + c.sum(0))

    assert names(states(seeded(Both), ["first", "last"], normal(2, 5, 3))[0]) == ["value.0", "value.1.1"]


def test_parameters_keep_their_names_and_are_the_networks():
    net = seeded(GPT)
    held = {key: p for _, part in cut(net, [*LAYERS, "head"]) for key, p in part.named_parameters()}
    assert held.keys() == dict(net.named_parameters()).keys()
    assert all(held[key] is p for key, p in net.named_parameters())


def test_the_network_is_left_as_it_was():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.b(self.a(x) + torch.arange(3)) + torch.ones(3) * self.calls

    net, x = Constant(), torch.randn(4, 3)
    before, attributes = copy.deepcopy(net.state_dict()), set(net.__dict__)
    expected = copy.deepcopy(net)(x)
    problem = mfoc.from_module(net, F.mse_loss, stages=["a", "b"])
    for _ in range(2):
        x1 = problem.dynamics(0, x, problem.controls[0], None)
        torch.testing.assert_close(problem.dynamics(1, x1, problem.controls[1], None), expected)
    assert set(net.__dict__) == attributes
    assert torch.equal(before["calls"], net.calls)


def test_writing_in_place_stays_within_a_stage():
    """The state that enters is not written into, and what another stage reads is what plain torch has there."""

    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x) * 1
            u = self.b(y[:, :2].repeat(1, 2)) * 1
            y.add_(u)
            y[:, 0] = 2
            mask = torch.ones(4, dtype=x.dtype)
            mask[1] = 0
            v = self.c(y * mask)
            F.relu(v, True)
            return v * mask + y

    agrees(seeded(Writing), normal(3, 4), ["a", "b", "c"])


def test_two_views_of_what_is_written_into():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x) * 1
            v = y.view(-1, 2, 2)
            u = self.b(x)
            v.mul_(2)
            return u + y + v.flatten(1)

    agrees(seeded(Views), normal(3, 4), ["b"])
    agrees(seeded(Views), normal(3, 4), ["a", "b"])


def test_modules_that_decide_as_they_run_are_kept_whole():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.mean() < 1e3 else x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = Deciding(), nn.Linear(3, 3), Deciding()

        def forward(self, x):
            return self.c(self.b(self.a(x))) + x

    net = seeded(Net)
    problem = agrees(net, normal(4, 3), ["b", "c"])
    assert problem.kind(0) != (0,)


def test_layers_may_be_called_as_they_like():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.programs, self.first, self.axes, self.value = (nn.Linear(3, 3) for _ in range(4))
            self.input, self.stage = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, input):  # noqa: A002
            y = self.first(self.programs(input)) + self.value(input)
            return self.stage(self.input(self.axes(y)) + y) + input

    agrees(seeded(Named), normal(4, 3), ["programs", "value", "axes", "input", "stage"])


def test_assertions_hold_in_the_stage_where_they_stand():
    net = seeded(Careful)
    problem = agrees(net, normal(4, 3), ["a", "b"])
    with pytest.raises(AssertionError, match="does not hold"):
        problem.dynamics(0, normal(5, 3), problem.controls[0], None)


def test_a_shared_parameter_is_in_both_stages():
    class Straddling(Reused):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.shared(self.first(self.shared(x))))

    parts = cut(seeded(Straddling), ["first", "last"])
    assert shared_between(parts) == ("shared.weight", "first", "last")
    assert shared_between(cut(seeded(Dense), ["layers.1", "head"])) is None
    tied = seeded(lambda: GPT(2))
    tied.head = nn.Linear(4, 7, bias=False)
    tied.head.weight = tied.tokens.weight
    parts = cut(tied.double(), ["encoder.layers.0", "head"])
    assert shared_between(parts) == ("head.weight", "encoder.layers.0", "head")
    x = tokens(2, 3)
    torch.testing.assert_close(parts[1][1](parts[0][1](x)), tied(x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("net", "stages", "message"),
    [
        (GPT, [], "expected distinct"),
        (GPT, ["head", "head"], "expected distinct"),
        (GPT, ["missing"], "no submodule"),
        (GPT, ["encoder.layers.1", "encoder.layers.0"], "these modules run as"),
        (GPT, ["encoder.layers.0", "encoder"], "which holds it"),
        (GPT, ["places", "head"], "nothing that depends on the input"),
        (Reused, ["first", "shared", "last"], "these modules run as"),
    ],
)
def test_refusals(net, stages, message):
    with pytest.raises(mfoc.InvalidValue, match=message):
        cut(seeded(net), stages)


def test_arguments_that_do_not_fit_are_refused():
    part = cut(seeded(Masked), ["net.encoder.layers.0", "net.head"])[0][1]
    for state in (tokens(2, 3), (tokens(2, 3),), {"src": tokens(2, 3)}):
        with pytest.raises(mfoc.InvalidType, match="needs src, mask and"):
            part(state)


def test_an_optional_argument_that_decides():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x, gate=None):
            if gate is not None and gate.mean() > 0:
                x = x * gate
            return self.b(self.a(x))

    net, x, gate = seeded(Optional), normal(4, 3), normal(4, 3).abs()
    agrees(net, x, ["a", "b"])
    with pytest.raises(mfoc.InvalidValue, match=r"arguments \['gate'\] are given.*wrap it"):
        cut(net, ["a", "b"])[0][1]({"x": x, "gate": gate})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "stages", "size"),
    [
        ("resnet18", ["conv1", "layer1.0.conv1", "layer1.0.bn2", "layer2.0.conv2", "layer3", "fc"], 32),
        (
            "mobilenet_v3_small",
            ["features.0", "features.3.block.0", "features.5.block.1", "features.12", "classifier"],
            32,
        ),
        ("vit", ["conv_proj", "encoder.layers.encoder_layer_0.ln_1", "encoder.layers.encoder_layer_1", "heads"], 8),
    ],
)
def test_networks_of_torchvision(make, stages, size):
    models = pytest.importorskip("torchvision.models")
    if make == "vit":
        sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
        net = seeded(lambda: models.VisionTransformer(**sizes, num_classes=3))
    else:
        net = seeded(lambda: getattr(models, make)(num_classes=3))
    agrees(net.eval(), normal(2, 3, size, size), stages)
