"""The device of a test: one on paper, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import mfoc
from tests.devices import CUDA, paper


@dataclass(frozen=True, eq=False)
class Device:
    """Where a test runs: ``put`` takes the tensors (and modules) of a tree there, ``back`` to the CPU."""

    name: str
    log: paper.Log | None = None

    def put(self, tree: Any) -> Any:
        if isinstance(tree, torch.nn.Module):
            return tree.to(self.name)
        return mfoc.tree.map(lambda leaf: leaf.to(self.name) if isinstance(leaf, Tensor) else leaf, tree)

    def back(self, tree: Any) -> Any:
        return mfoc.tree.map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, tree)

    def holds(self, tree: Any) -> bool:
        tensors = [leaf for leaf in mfoc.tree.leaves(tree) if isinstance(leaf, Tensor)]
        return bool(tensors) and all(leaf.device.type == self.name for leaf in tensors)


@pytest.fixture(params=["paper", CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    name: str = request.param
    if name == "paper" and not paper.AVAILABLE:
        pytest.skip("a device on paper needs backends written in Python, of torch 2.10 and later")
    with paper.on_paper() if name == "paper" else nullcontext() as log:
        yield Device(name, log)
