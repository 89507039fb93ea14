"""A rank that fails ends the others within two seconds, with a message that says which and why."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.distributed.tensor
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import distributed
from tests.problems import distance, same_bits
from tests.ranks import failing_ranks, on_ranks

WITHIN = 2.0  # seconds, beside those that a busy machine takes to let a process run


def reductions(fault, victim):
    """Steps of nothing but reductions; at step 7 one rank fails while the others wait."""
    for step in range(9):
        if step == 7 and dist.get_rank() == victim:
            time.sleep(0.5)
            yield time.time()
            fault(step)
        distributed.expectation([torch.ones(1000)], 3)


def killed(_step):
    os.kill(os.getpid(), signal.SIGKILL)


def raised(step):
    """What ``solve`` does with an error; the process lives on."""
    distributed.announce(ValueError("boom"), step)
    time.sleep(WITHIN + 3)
    os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("fault", [killed, raised])
def test_a_rank_that_fails_ends_the_others(fault, ranks, victim, tmp_path):
    ended = failing_ranks(tmp_path, reductions, fault, victim, ranks=ranks)
    assert sorted(ended) == [r for r in range(ranks) if r != victim]
    for found in ended.values():
        assert found["kind"] == "RankError"
        assert found["rank"] == victim
        assert f"rank {victim} failed" in found["words"]
        assert "start all of them again" in found["words"]
        assert found["after"] < WITHIN
        if fault is raised:
            assert "at step 7: ValueError: boom" in found["words"]
            assert found["step"] == 7
        else:
            assert "its process is gone" in found["words"]


def busy(fault, victim):
    """As ``reductions``, where the last rank computes for a second when the other is killed."""
    for step in range(9):
        if step == 7 and dist.get_rank() == victim:
            yield time.time()
            fault(step)
        if step == 7 and dist.get_rank() == dist.get_world_size() - 1:
            time.sleep(1.5)
        distributed.expectation([torch.ones(1000)], 3)


@pytest.mark.slow
def test_a_rank_at_work_is_not_taken_for_one_that_is_gone(tmp_path):
    ended = failing_ranks(tmp_path, busy, killed, 1, ranks=3)
    assert {found["rank"] for found in ended.values()} == {1}
    assert all("rank 1 failed" in found["words"] for found in ended.values())


def attempt(function):
    try:
        function()
    except (mfoc.RankError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def mean_of_ranks():
    return float(distributed.expectation([torch.tensor(float(dist.get_rank()))], 1)[0])


def after_a_failure_of_all():
    """All ranks fail alike, as of a bad argument, and one much later than the others; then they go on."""
    time.sleep(0.7 * dist.get_rank())
    distributed.announce(ValueError("the same on all"), 3)
    found = [mean_of_ranks()]
    distributed.announce(ValueError("again"), 4)
    time.sleep(0.7 * dist.get_rank())
    return [*found, mean_of_ranks()]


def after_a_failure_of_one():
    """One rank fails and goes on as if nothing was: it must not take part in what the other waits in."""
    if dist.get_rank() == 0:
        return [attempt(mean_of_ranks), attempt(mean_of_ranks)]
    distributed.announce(ValueError("alone"), 5)
    return [attempt(mean_of_ranks), attempt(mean_of_ranks)]


def reduced():
    """Votes, what differs, and weights of none, on three ranks."""
    own, like = dist.get_rank(), torch.zeros(1)
    found = {"vote": [distributed.vote(code, like) for code in (0, own, 2 * (own == 1))]}
    with distributed.voting(2 if own == 1 else 0) as carried:
        distributed.expectation([torch.tensor(1.0)], 2)
        mean = distributed.expectation([torch.full((3,), float(own))], 4)[0]
    with distributed.voting(3 if own == 2 else own) as alone:
        pass
    found["carried"] = [carried.is_counted, carried.result(like), alone.is_counted, alone.result(like)]
    found["mean"] = mean
    found["same"] = distributed.differing({"lr": "0.1"}, like)
    entries = {"lr": "0.1", "seed": str(int(own == 1)), "net": f"é{own}"} | ({"extra": "yes"} if own == 2 else {})
    found["differ"] = distributed.differing(entries, like)
    # A rank without particles: its mean is NaN, and counts for nothing.
    empty = torch.empty(0).mean() if own == 0 else torch.tensor(float(own))
    found["empty"] = [
        distributed.expectation([empty, torch.ones(2)], own)[0],
        distributed.average([torch.tensor([6.0 * own], dtype=torch.float16)], torch.tensor(float(own)))[0],
    ]
    return found


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return [found for (found,) in on_ranks(tmp_path_factory.mktemp("three"), reduced, ranks=3)]


@pytest.mark.slow
def test_votes(three):
    for found in three:
        assert found["vote"] == [0, 2, 2]
        assert found["carried"] == [True, 2, False, 3]
        assert found["mean"].tolist() == [1.0] * 3


@pytest.mark.slow
def test_what_differs_is_named(three):
    for found in three:
        assert found["same"] == ""
        lines = found["differ"].split(". ")
        assert sorted(lines) == [
            "extra: nothing on ranks 0, 1; yes on rank 2",
            "net: é0 on rank 0; é1 on rank 1; é2 on rank 2",
            "seed: 0 on ranks 0, 2; 1 on rank 1",
        ]


@pytest.mark.slow
def test_a_rank_without_particles_counts_for_nothing(three):
    for found in three:
        mean, ratio = found["empty"]
        assert mean == pytest.approx((1 + 2 * 2) / 3)
        assert ratio.dtype == torch.float16
        assert ratio.tolist() == [6.0]


@pytest.mark.slow
def test_ranks_that_fail_alike_go_on_and_others_do_not(tmp_path):
    alike, alone = zip(*on_ranks(tmp_path, after_a_failure_of_all, after_a_failure_of_one, barrier=False), strict=True)
    assert alike == ([0.5, 0.5], [0.5, 0.5])
    for found in alone:
        assert all(words.startswith("RankError: rank 1 failed at step 5: ValueError: alone") for words in found)


LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "some ignored": nn.CrossEntropyLoss(ignore_index=1),
    "all of a rank ignored": nn.CrossEntropyLoss(ignore_index=0),
    "weights of classes": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
    "weights, some ignored": nn.CrossEntropyLoss(
        weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), ignore_index=1
    ),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "squares": lambda x, z: F.mse_loss(x, F.one_hot(z, 3).to(x), reduction="none").mean(1),
}


def losses():
    """J, its gradient and ten steps; 7 particles are 4 and 3, and the second rank's targets are all of class 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    z = torch.tensor([0, 0, 1, 0, 2, 0, 2])
    found = {}
    for name, loss in LOSSES.items():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        problem, source = mfoc.from_module(net, loss), mfoc.population((x, z))
        value, gradient = mfoc.evaluate(problem, problem.controls, source(0))
        held = []
        hooks = [held.append] if distributed.is_main() else []
        adam = mfoc.Gradient(partial(torch.optim.Adam, lr=0.02))
        solution = mfoc.solve(problem, adam, source, steps=34, hooks=hooks or [lambda _: False])
        early = held[3].controls if held else solution.controls  # one rank alone looks back
        found[name] = (value, gradient, solution.controls, torch.tensor(solution.value))
        found[f"early {name}"] = early
    return found


@pytest.mark.slow
def test_losses_over_ranks_are_those_of_one(tmp_path):
    alone = losses()
    first, second = (found for (found,) in on_ranks(tmp_path, losses))
    for name in LOSSES:
        assert same_bits(first[name], second[name]), name
        assert distance(first[name], alone[name]) < 1e-12, name
        # A hook of rank 0 keeps iterates of a solve in place, and no other rank has to make steps again for it.
        assert distance(first[f"early {name}"], alone[f"early {name}"]) < 1e-12, name


def test_controls_that_are_split_over_ranks_are_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        split = dist.tensor.distribute_tensor(torch.ones(2, 2), mesh)
        with pytest.raises(mfoc.InvalidType, match=r"is a DTensor, of which each rank holds a part.*full_tensor"):
            mfoc.Problem(lambda t, x, u, z: x @ u, lambda x, z: x.sum(1), [split])
    finally:
        dist.destroy_process_group()


def test_without_a_group_votes_are_ones_own():
    like = torch.zeros(1)
    distributed.announce(ValueError("to nobody"), 1)
    assert distributed.vote(2, like) == 2
    assert distributed.differing({"seed": "1"}, like) == ""
    with distributed.voting(1) as ballot:
        assert distributed.average([torch.tensor(6.0)], 3) == [torch.tensor(2.0)]
    assert ballot.result(like) == 1
    with pytest.raises(mfoc.InvalidValue, match="code is 4; expected 0 to 3"), distributed.voting(4):
        pass
