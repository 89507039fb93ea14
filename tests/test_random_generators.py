"""Global generators watched: what draws from them is found by what it leaves behind."""

import pytest
import torch
from torch import nn

import mfoc
from mfoc.seeding import seeded, watched


def test_draws_are_seen_and_nothing_else_is():
    drawn = watched()
    torch.zeros(3).sum()
    torch.rand(3, generator=torch.Generator())
    nn.Dropout(0.5).eval()(torch.ones(3))
    assert not drawn()
    torch.rand(())
    assert drawn()


def test_a_seeded_block_leaves_no_trace():
    drawn = watched()
    with seeded(3, torch.device("cpu")):
        first = torch.rand(4)
        assert drawn()
    assert not drawn()
    with seeded(3):
        assert torch.equal(torch.rand(4), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_on_a_gpu_are_seen_and_seeded():
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    drawn = watched()
    with seeded(3, device):
        first = torch.rand(4, device=device)
        assert drawn()
    assert not drawn()
    with seeded(3, device):
        assert torch.equal(torch.rand(4, device=device), first)
    torch.rand(1, device=device)
    assert drawn()


def test_dynamics_that_draw_are_refused():
    problem = mfoc.Problem(lambda t, x, u, z: x + u * torch.rand(()), lambda x, z: x.sum(1), [torch.ones(2)])
    with pytest.raises(mfoc.InvalidValue, match="draws random numbers"):
        problem.validate(mfoc.Particles(torch.zeros(3, 2)))
