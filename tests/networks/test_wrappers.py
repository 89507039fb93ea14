"""Networks in a wrapper, or with weights that are computed: right, or refused by name with the cure."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import mfoc
from tests.architectures import seeded
from tests.problems import normal, same_bits

SGD = partial(torch.optim.SGD, lr=0.1)


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Holding(nn.Module):
    """A wrapped network as a part of another."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.last = wrap(plain()), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.inner(x))


compiled = partial(torch.compile, backend="eager")


def compiled_in_place():
    net = plain()
    net.compile(backend="eager")
    return net


def pruned():
    net = plain()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    prune.random_structured(net[2], "weight", amount=1, dim=1)
    return net


def old_weight_norm():
    net = plain()
    nn.utils.weight_norm(net[0])
    nn.utils.weight_norm(net[2], dim=None)
    return net


def after_a_pass():
    """It keeps its last activations, with their graph."""
    net = Holding(lambda inner: inner)
    net.last_seen = net(torch.ones(2, 3))
    return net


NETS = {
    "compiled": lambda: compiled(plain()),
    "compiled in place": compiled_in_place,
    "DataParallel": lambda: nn.DataParallel(plain()),
    "compiled within": lambda: Holding(compiled),
    "DataParallel within": lambda: Holding(nn.DataParallel),
    "pruned": pruned,
    "weight norm by hooks": old_weight_norm,
    "with a graph": after_a_pass,
}


_PARALLEL = pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel takes its network to the GPU")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[_PARALLEL] if "Parallel" in n else []) for n in NETS])
def test_it_trains_as_in_torch(name):
    net, x, y = seeded(NETS[name]), normal(6, 3), normal(6, 2, seed=1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    problem = mfoc.from_module(net, F.mse_loss)
    solution = mfoc.solve(problem, mfoc.Gradient(SGD), (x, y), steps=3)
    twin = seeded(NETS[name])
    sgd = SGD(twin.parameters())
    for _ in range(3):
        sgd.zero_grad()
        F.mse_loss(twin(x), y).backward()
        sgd.step()
    assert same_bits(before, net.state_dict())
    for solved in (problem.readout(solution), mfoc.to_module(net, solution)):
        torch.testing.assert_close(solved(x), twin(x), rtol=1e-12, atol=1e-14)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, dtype=torch.complex128))

    def forward(self, x):
        return (self.gain * x).real


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which needs a process group."""

    def __init__(self):
        super().__init__()
        self.module = plain()


def old_spectral_norm():
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 2)))


REFUSED = {
    "complex": (Complex, r"'gain' is torch\.complex128.*view_as_real"),
    "scripted": (lambda: torch.jit.script(plain()), r"TorchScript.*give the module that it was made from"),
    "traced": (lambda: nn.Sequential(torch.jit.trace(plain(), torch.ones(2, 3))), r"module '0' is compiled by Torch"),
    "distributed": (DistributedDataParallel, r"net is DistributedDataParallel; give the module in it"),
    "spectral norm by hooks": (old_spectral_norm, r"parametrizations\.spectral_norm, or call \.eval"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), r"lazy.*run the network once"),
    "lazy statistics": (lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False)), r"buffer '0\.running_mean' is lazy"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_with_the_cure(name):
    make, words = REFUSED[name]
    with pytest.raises(mfoc.InvalidValue, match=words):
        mfoc.from_module(make(), F.mse_loss)


def test_spectral_norm_by_hooks_is_right_in_evaluation_mode():
    net, x = seeded(old_spectral_norm).eval(), normal(6, 3)
    problem = mfoc.from_module(net, F.mse_loss)
    assert torch.equal(mfoc.rollout(problem, problem, (x, x[:, :2])).states[-1], copy.copy(net)(x))


def test_a_buffer_that_requires_grad_is_a_constant():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double(), normal(4, 3)
    net[1].register_buffer("unused", torch.ones((), requires_grad=True) * 2)
    problem = mfoc.from_module(net, F.mse_loss)
    assert [set(u) for u in problem.controls] == [{"weight", "bias"}, set()]
    mfoc.solve(problem, mfoc.Gradient(SGD), (x, x), steps=1)
