"""Batches of changing size: every particle equally often, none twice in a batch, and a pure function of the step."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfoc
from mfoc.optim.orders import Orders


@st.composite
def runs(draw):
    """A number of particles and a schedule: sizes grow to at most half of them, or to all."""
    size = draw(st.integers(2, 40))
    sizes = sorted(draw(st.sets(st.integers(1, size // 2), min_size=1, max_size=4)))
    sizes += [size] * draw(st.booleans())
    steps = [0, *draw(st.lists(st.integers(1, 30), min_size=len(sizes) - 1, max_size=len(sizes) - 1))]
    return size, [(sum(steps[: k + 1]), batch) for k, batch in enumerate(sizes)]


@settings(max_examples=150, deadline=None)
@given(run=runs(), shuffle=st.booleans(), seed=st.integers(0, 2**40))
def test_every_particle_is_seen_equally_often_up_to_one(run, shuffle, seed):
    size, schedule = run
    orders, seen = Orders(size, schedule, shuffle=shuffle, seed=seed), torch.zeros(size, dtype=torch.int64)
    for step in range(schedule[-1][0] + 30):
        batch = orders(step)
        assert len(batch) == [length for start, length in schedule if start <= step][-1]
        assert len(batch.unique()) == len(batch)
        seen += torch.bincount(batch, minlength=size)
        assert int(seen.max() - seen.min()) <= 1


@settings(max_examples=100, deadline=None)
@given(run=runs(), seed=st.integers(0, 2**40), steps=st.lists(st.integers(0, 150), min_size=1, max_size=8))
def test_what_was_asked_before_and_what_changes_later_make_no_difference(run, seed, steps):
    size, schedule = run
    whole, grown = (Orders(size, part, shuffle=True, seed=seed) for part in (schedule, schedule[:1]))
    found = [grown(step) for step in range(schedule[0][0], schedule[1][0] if len(schedule) > 1 else 1)]
    for step, batch in schedule[1:]:
        grown(max(step - 1, 0))
        grown.change(step, batch)
    for step in steps:
        assert torch.equal(whole(step), Orders(size, schedule, shuffle=True, seed=seed)(step))
        assert torch.equal(whole(step), grown(step))
    assert all(torch.equal(whole(step), batch) for step, batch in enumerate(found))


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 8), per_epoch=st.integers(2, 5), shuffle=st.booleans(), seed=st.integers(0, 2**40))
def test_batches_that_fit_are_those_of_a_population(batch, per_epoch, shuffle, seed):
    size = batch * per_epoch
    plain = mfoc.population(torch.arange(size), batch_size=batch, shuffle=shuffle, seed=seed)
    orders = Orders(size, [(0, batch)], shuffle=shuffle, seed=seed)
    assert all(torch.equal(orders(step), plain(step).state) for step in range(3 * per_epoch))


def test_orders_differ_between_epochs_and_seeds():
    found = {
        tuple(
            torch.cat(
                [Orders(30, [(0, 7)], shuffle=True, seed=seed)(step) for step in range(4 * epoch, 4 * epoch + 4)]
            ).tolist()
        )
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(found) == 9
