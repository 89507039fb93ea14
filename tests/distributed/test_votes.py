"""What ranks say to one another costs no reduction where none has hooks, and changes no bit."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.problems import same_bits
from tests.ranks import on_ranks

ADAM = mfoc.Gradient(partial(torch.optim.Adam, lr=0.01))


def solved(steps: int, **given: Any) -> mfoc.Solution:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 31), nn.Tanh(), nn.Linear(31, 3))
    x, y = torch.randn(20, 7), torch.randint(0, 3, (20,))
    return mfoc.solve(
        mfoc.from_module(net, F.cross_entropy), ADAM, mfoc.population((x, y), batch_size=10), steps=steps, **given
    )


def reductions(**given: Any) -> int:
    """How many reductions ten steps take."""
    counts = []
    for steps in (5, 15):
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as counted:
            solved(steps, **given)
        counts.append(counted.call_count)
    return counts[1] - counts[0]


def everything() -> dict[str, Any]:
    nothing = [lambda _: None]
    one = nothing if dist.get_rank() == 1 else []
    hooked = solved(12, hooks=nothing)
    return {
        "plain": reductions(),
        "tol": reductions(tol=0.0),
        "hook of one": reductions(hooks=one),
        "without": solved(12).controls,
        "with": hooked.controls,
        "again": solved(12, start=solved(5).last).controls,
    }


@pytest.mark.slow
def test_votes(tmp_path: Any) -> None:
    for (found,) in on_ranks(tmp_path, everything, ranks=3):  # three: a sum of two is the same in any order
        assert found["plain"] == found["tol"] == 10
        assert found["hook of one"] == 20
        assert same_bits(found["with"], found["without"])
        assert same_bits(found["again"], found["without"])
