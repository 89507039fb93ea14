"""Global generators watched: what draws from them is found by what it leaves behind."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mfoc
import paradigms
from mfoc.draws import watched
from mfoc.seeding import seeded


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


@pytest.mark.parametrize("package", [mfoc, paradigms], ids=lambda package: package.__name__)
def test_nobody_seeds_the_generators_of_all_devices(package):
    """``torch.manual_seed`` seeds those of GPUs as well, and who puts that of the CPU back leaves them so."""
    for path in Path(package.__path__[0]).rglob("*.py"):
        assert "torch.manual_seed(" not in path.read_text(encoding="utf-8"), path


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
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


@pytest.mark.parametrize("used_before", [True, False])
def test_draws_on_a_gpu_are_seen_by_the_states_torch_gives(used_before, monkeypatch):
    """Without a GPU: what its Philox generators say, eight bytes of seed and eight of how far they have come."""
    states = [torch.zeros(16, dtype=torch.uint8) for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state.clone() for state in states])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used_before)
    drawn = watched()
    assert not drawn()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not drawn()
    states[1][8] = 4
    assert drawn()


@pytest.mark.parametrize("draw", [random.random, np.random.rand, np.random.randn, lambda: float(torch.rand(()))])
def test_each_library_is_watched(draw):
    with seeded(3):
        drawn = watched()
        assert not drawn()
        draw()
        assert drawn()


@pytest.mark.parametrize("draws", [False, True])
def test_a_gpu_that_first_wakes_under_watch_is_seen_to_draw_or_not(draws, monkeypatch):
    """Its generator's state is eight bytes of seed and eight of how many numbers it has given."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    drawn = watched()
    state = torch.zeros(16, dtype=torch.uint8)
    state[0], state[8] = 42, 4 * draws
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.zeros(16, dtype=torch.uint8), state])
    assert drawn() is draws


def test_a_gpu_that_was_awake_is_compared(monkeypatch):
    states = [torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [state.clone() for state in states])
    drawn = watched()
    assert not drawn()
    states[1][9] += 1
    assert drawn()


own, counts = torch.Generator(), iter(range(10**6))
IMPURE = {
    "torch": (lambda: torch.rand(()), "draws random numbers"),
    "numpy": (np.random.rand, "draws random numbers"),
    "python": (random.random, "draws random numbers"),
    "a generator of one's own": (lambda: torch.rand((), generator=own), "another value when it is called again"),
    "a counter": (lambda: next(counts), "another value when it is called again"),
}


@pytest.mark.parametrize("where", ["dynamics", "running_cost", "terminal_cost"])
@pytest.mark.parametrize("name", IMPURE)
def test_functions_that_are_not_pure_are_refused_by_name(name, where):
    draw, words = IMPURE[name]

    def noise(place):
        return 1 + draw() if place == where else 1

    problem = mfoc.Problem(
        lambda t, x, u, z: x + u * noise("dynamics"),
        lambda x, z: x.sum(1) * noise("terminal_cost"),
        [torch.ones(2)] * 2,
        running_cost=lambda t, x, u, z: x.sum(1) * noise("running_cost"),
    )
    with pytest.raises(mfoc.InvalidValue, match=f"{where} .*{words}"), seeded(1):
        problem.validate(mfoc.Particles(torch.ones(9, 2)))


def test_a_generator_that_is_seeded_in_each_call_is_pure():
    def dynamics(t, x, u, z):
        return x + u * torch.rand((), generator=torch.Generator().manual_seed(t))

    mfoc.Problem(dynamics, lambda x, z: x.sum(1), [torch.ones(2)]).validate(mfoc.Particles(torch.ones(3, 2)))
