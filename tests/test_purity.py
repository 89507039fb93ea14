"""What the functions of a problem may not do: write into what they are given, or draw; and who is blamed for it."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import mfoc
from mfoc.draws import draws

WRITES = {
    "in place": lambda leaf: leaf.add_(1),
    "detached": lambda leaf: leaf.detach().mul_(2),
    "data": lambda leaf: leaf.data.add_(1),
    "data, the same each time": lambda leaf: leaf.data.zero_(),
    "a NumPy view": lambda leaf: np.copyto(leaf.detach().numpy(), 3),
    "a view of a row": lambda leaf: leaf[:1].data.add_(1),
}
OWN = torch.Generator().manual_seed(0)
DRAWS = {
    "torch": lambda x: torch.rand(len(x), dtype=x.dtype),
    "torch, without effect": lambda x: 0 * torch.rand(len(x), dtype=x.dtype),
    "dropout": lambda x: nn.functional.dropout(x[:, 0]),
    "NumPy": lambda x: x[:, 0] * np.random.rand(),  # noqa: NPY002
    "Python": lambda x: x[:, 0] * random.random(),
}
WHERE = ["the schedule", "dynamics", "running_cost", "a path constraint", "terminal_cost", "a terminal constraint"]


def problem(where, effect):
    """A problem of which one function has an effect: ``effect(x, u, z)`` is added to what it returns."""

    def cost(name):
        return lambda x, u, z: x.square().sum(1) + (effect(x, u, z) if where == name else 0)

    def schedule(controls, t):
        return controls[t] + (effect(None, controls[t], None).sum() if where == "the schedule" else 0)

    def dynamics(t, x, u, z):
        return x + torch.tanh(x @ u) + (effect(x, u, z)[:, None] if where == "dynamics" else 0)

    def free(x):
        return x.new_zeros(2, 2)

    return mfoc.Problem(
        dynamics,
        lambda x, z: cost("terminal_cost")(x, torch.zeros(2), z),
        [free(torch.zeros(1)) + 0.1 for _ in range(2)],
        running_cost=lambda t, x, u, z: cost("running_cost")(x, u, z),
        horizon=2,
        schedule=schedule,
        path=mfoc.Inequality(lambda t, x, u, z: cost("a path constraint")(x, u, z)),
        terminal=mfoc.Inequality(lambda x, z: cost("a terminal constraint")(x, torch.zeros(2), z)),
    )


def cloud():
    return mfoc.Particles(torch.linspace(-1, 1, 12).reshape(6, 2), {"a": torch.linspace(0, 1, 12).reshape(6, 2)})


def refused(where, effect, match):
    made = problem(where, effect)
    with pytest.raises(mfoc.InvalidValue, match=f"{where}.*{match}"):
        made.validate(cloud())


def zero(x):
    return torch.zeros(len(x))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("where", WHERE[1:])
def test_a_write_into_the_state_is_found(where, write):
    refused(where, lambda x, u, z: (write(x), zero(x))[1], "writes into its arguments")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("where", WHERE[1:])
def test_a_write_into_the_data_is_found(where, write):
    refused(where, lambda x, u, z: (write(z["a"]), zero(x))[1], "writes into its arguments")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("where", WHERE[:4])
def test_a_write_into_the_control_is_found(where, write):
    refused(where, lambda x, u, z: (write(u), torch.zeros(6 if x is None else len(x)))[1], "writes into its arguments")


@pytest.mark.parametrize("where", WHERE[1:])
def test_another_entry_in_the_data_is_found(where):
    def effect(x, u, z):
        z["a"] = z["a"] + 1
        return zero(x)

    refused(where, effect, "writes into its arguments")


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("where", WHERE[1:])
def test_a_draw_is_found_where_it_is_made(where, draw):
    refused(where, lambda x, u, z: draw(x), "draws random numbers")


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("where", WHERE)
def test_noise_of_a_generator_of_its_own_is_found_however_small(where, size):
    def effect(x, u, z):
        like = u if x is None else x
        return size * torch.rand(len(like), generator=OWN)

    refused(where, effect, "gives another value")


def test_what_is_pure_passes_and_nothing_is_written():
    made, given = problem("nowhere", None), cloud()
    before = given.state.clone(), given.data["a"].clone()
    made.validate(given)
    assert torch.equal(given.state, before[0])
    assert torch.equal(given.data["a"], before[1])


def test_nan_in_the_data_is_no_change():
    given = mfoc.Particles(torch.ones(3, 2), torch.tensor([[1.0], [torch.nan], [2.0]]))
    problem("nowhere", None).validate(given)


# ---- another thread draws


@contextmanager
def neighbour(draw) -> Iterator[None]:
    """Another thread that draws all the time."""
    over, begun = threading.Event(), threading.Event()

    def run():
        while not over.is_set():
            draw(torch.ones(3, 2))
            begun.set()
            time.sleep(1e-5)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def slowly(effect):
    """It takes as long as several draws of the neighbour."""

    def run(x, u, z):
        time.sleep(0.001)
        return effect(x)

    return run


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_draws_of_another_thread_are_not_blamed_on_a_problem(draw):
    made = problem("dynamics", slowly(zero))
    with neighbour(draw):
        made.validate(cloud())


@pytest.mark.parametrize("other", [DRAWS["torch"], DRAWS["NumPy"]], ids=["torch", "NumPy"])
@pytest.mark.parametrize("name", ["torch", "torch, without effect", "dropout"])
@pytest.mark.parametrize("where", ["dynamics", "terminal_cost"])
def test_draws_of_torch_are_found_while_another_thread_draws(where, name, other):
    with neighbour(other):
        refused(where, slowly(DRAWS[name]), "draws random numbers")


@pytest.mark.parametrize("name", ["NumPy", "Python"])
def test_draws_that_matter_are_found_while_another_thread_draws(name):
    with neighbour(DRAWS[name]):
        refused("running_cost", slowly(DRAWS[name]), "draws random numbers|gives another value")


def test_what_another_thread_draws_is_not_blamed_on_a_network_or_a_stateful_one_forgiven():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            time.sleep(0.001)
            self.calls += 1
            return x * self.calls

    lazy = nn.Sequential(nn.Linear(2, 2), Counting())
    with neighbour(DRAWS["torch"]), pytest.raises(mfoc.InvalidValue, match="another function after it has run"):
        mfoc.from_module(lazy, nn.functional.mse_loss).validate(mfoc.Particles(torch.ones(3, 2), torch.ones(3, 2)))


def test_attention_without_dropout_draws_nothing():
    q = torch.ones(1, 1, 2, 4)
    with neighbour(DRAWS["torch"]):
        assert not draws(lambda: nn.functional.scaled_dot_product_attention(q, q, q))


def test_a_generator_that_is_given_is_not_the_global_one():
    with neighbour(DRAWS["torch"]):
        assert not draws(lambda: (time.sleep(0.001), torch.rand(3, generator=OWN)))
        assert draws(lambda: torch.rand(3))
        assert draws(lambda: torch.randperm(3))
        assert draws(lambda: torch.empty(3).normal_())
