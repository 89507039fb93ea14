"""Every public function works where its inputs are, and says what it says on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

import mfoc
from tests.devices.public import PUBLIC


def numbers(found):
    return [leaf for leaf in mfoc.tree.leaves(list(found)) if isinstance(leaf, torch.Tensor | float | int)]


SLOW = {"certify_module", "certify, bounds", "infinite kernels"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PUBLIC]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_on_a_device_what_it_says_on_the_cpu(name, device):
    if device.name == "paper" and name in ("tangent kernels", "laziness"):
        pytest.skip("torch.vmap's rule for addmv does not know a backend written in Python")
    found, expected = numbers(PUBLIC[name](device.put)), numbers(PUBLIC[name](lambda tree: tree))
    assert len(found) == len(expected) > 0
    for mine, other in zip(found, expected, strict=True):
        if not isinstance(other, torch.Tensor):
            assert mine == pytest.approx(other, rel=1e-6, abs=1e-9, nan_ok=True) or math.isnan(other)
            continue
        assert mine.device.type in (device.name, "cpu")
        torch.testing.assert_close(device.back(mine), other.detach(), rtol=1e-7, atol=1e-9, equal_nan=True)
