"""Batch norm over ranks is refused what it is refused on one, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from tests.problems import distance
from tests.ranks import on_ranks

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


def solved(size: int, batch: int, *, pixels: int = 0) -> Any:
    """Two epochs, whose last batches are the tail; what is raised, in words."""
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm1d(3)
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * max(pixels, 1), 2)).double()
    x = torch.randn(size, 3, *[pixels] * bool(pixels), dtype=torch.float64)
    y = torch.arange(size) % 2
    try:
        solution = mfoc.solve(
            mfoc.from_module(net, F.cross_entropy), SGD, mfoc.population((x, y), batch_size=batch), steps=4
        )
    except ValueError as error:
        return str(error).splitlines()[0]
    return solution.controls


CASES: dict[str, Any] = {
    "a tail of one": (5, 4),
    "a tail of two": (6, 4),
    "a tail of one with pixels": (5, 4, 2),
    "one on each rank": (4, 2),
    "uneven": (6, 3),
}


def everything() -> dict[str, Any]:
    return {name: solved(*case[:2], pixels=case[2] if case[2:] else 0) for name, case in CASES.items()}


@pytest.mark.slow
def test_ranks_raise_what_one_process_raises(tmp_path):
    alone = everything()
    assert "Expected more than 1 value per channel" in alone["a tail of one"]
    for (found,) in on_ranks(tmp_path, everything):
        for name, expected in alone.items():
            if isinstance(expected, str):
                assert found[name] == expected, name
            else:
                assert not isinstance(found[name], str), found[name]
                assert distance(found[name], expected) < 1e-12, name
