"""Stages: where a network is cut, and where it cannot be."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.architectures import Reused, seeded
from tests.oracles.training import output
from tests.problems import normal, same_bits


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
    assert torch.equal(output(mfoc.from_module(whole, F.mse_loss), x), whole(x))


def test_a_layer_that_runs_twice_belongs_to_one_stage():
    net, x = Reused(), torch.randn(4, 3)
    assert torch.equal(output(mfoc.from_module(net, F.mse_loss, stages=["last"]), x), net(x))
    with pytest.raises(mfoc.InvalidValue, match="these modules run as"):
        mfoc.from_module(net, F.mse_loss, stages=["first", "shared", "last"])

    class Straddling(Reused):
        def forward(self, x):
            return self.last(self.shared(self.first(self.shared(x))))

    with pytest.raises(mfoc.InvalidValue, match=r"shared\.weight.*used in stages"):
        mfoc.from_module(Straddling(), F.mse_loss, stages=["first", "last"])


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
