"""The device on paper behaves as a GPU does, where the tests rely on it."""

from __future__ import annotations

import pytest
import torch

from tests.devices import paper
from tests.problems import normal

pytestmark = pytest.mark.skipif(not paper.AVAILABLE, reason="a device on paper needs torch 2.10 and later")


@pytest.fixture
def log():
    with paper.on_paper() as log:
        yield log


def test_numbers_are_those_of_the_cpu(log):
    x = normal(4, 3)

    def loss(leaf):
        return (leaf.tanh() @ leaf.mT).square().sum()

    (mine,) = torch.autograd.grad(loss(there := paper.to_paper(x).requires_grad_()), there)
    (other,) = torch.autograd.grad(loss(here := x.requires_grad_()), here)
    assert mine.device.type == "paper"
    assert torch.equal(paper.from_paper(mine), other)
    assert torch.equal(torch.vmap(torch.func.grad(lambda a: a.sin().sum()))(there).cpu(), x.cos())


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: x @ torch.eye(3),
        lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x),
        lambda x: torch.cat([x, torch.ones(1, 3)]),
        lambda x: torch.randn(2, device=x.device, generator=torch.Generator()),
    ],
)
def test_what_a_gpu_refuses_is_refused(mix, log):
    with pytest.raises((paper.Mixed, RuntimeError)):
        mix(paper.to_paper(torch.ones(2, 3)))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: bool(x.sum() > 0),
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.cholesky(x.mT @ x),
        lambda x: torch.zeros(2, 3).copy_(x),
        lambda x: f"{float(x.max()):.3f}",
    ],
)
def test_each_wait_is_written_down_once(wait, log):
    x = paper.to_paper(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 10.0]])[:, :3])[:3]
    x = x if x.shape == (2, 3) else x[:2] if "zeros" in str(wait.__code__.co_names) else x
    log.clear()
    wait(x)
    assert len(log.waits) == 1


@pytest.mark.parametrize(
    "still",
    [
        lambda x: x.sum(),
        lambda x: x + torch.tensor(2.0),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.new_zeros(3),
        lambda x: torch.randn(3, device=x.device),
        lambda x: x.mul_(2),
    ],
)
def test_what_is_queued_waits_for_nothing(still, log):
    assert still(paper.to_paper(torch.ones(2, 3))).device.type == "paper"
    assert not log.waits


def test_it_has_random_numbers_of_its_own(log):
    module = torch.get_device_module("paper")
    host, own = torch.get_rng_state(), module.get_rng_state()
    torch.nn.functional.dropout(torch.ones(3, device="paper"))
    assert torch.equal(torch.get_rng_state(), host)
    assert not torch.equal(module.get_rng_state(), own)


def test_a_module_moves_there_and_keeps_its_parameters(log):
    net = torch.nn.Linear(3, 2)
    before = net.weight
    assert net.to("paper").weight is before
    assert before.device.type == "paper"
    net.weight.data = torch.zeros(2, 3, device="paper")
    assert float(net(paper.to_paper(torch.ones(1, 3))).detach().sum()) == pytest.approx(float(net.bias.sum()))
