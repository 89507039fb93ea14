"""Modes and defaults of torch: no door is silently different under them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import mfoc
import paradigms
from tests.devices.public import PUBLIC
from tests.paradigm_doors import PARADIGMS

DOORS = {**PUBLIC, **PARADIGMS}
SLOW = {"certify_module", "certify, bounds", "infinite kernels"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DOORS]
# Whose gradients the user takes, so that torch itself refuses.
OPTIMISERS = {"CSGD", "CSGD, loops", "CMSGD", "LearningRateControl"}
DIFFERENTIATING = [name for name in NAMES if (name if isinstance(name, str) else name.values[0]) not in OPTIMISERS]
OWN = tuple(str(Path(package.__file__ or "").parent) for package in (mfoc, paradigms))


def plain(tree: Any) -> Any:
    return tree


def of_inference(tree: Any) -> Any:
    """Tensors, or a module's weights, that were made in inference mode."""
    with torch.inference_mode():
        if isinstance(tree, nn.Module):
            return tree._apply(torch.clone)
        return mfoc.tree.map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def numbers(found: Any) -> list[Any]:
    return [
        leaf
        for leaf in mfoc.tree.leaves(found if isinstance(found, dict) else list(found))
        if isinstance(leaf, Tensor | float | int)
    ]


def same(found: Any, expected: Any) -> bool:
    """Whether the numbers are equal, to the last few digits."""
    pairs = list(zip(numbers(found), numbers(expected), strict=True))
    for mine, other in pairs:
        if isinstance(other, Tensor):
            torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-9, atol=1e-12, equal_nan=True)
        else:
            assert mine == pytest.approx(other, rel=1e-9, abs=1e-12, nan_ok=True) or math.isnan(other)
    return bool(pairs)


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_in_inference_mode_a_door_refuses_or_says_what_it_says_outside(name):
    with torch.inference_mode():
        try:
            found = DOORS[name](plain)
        except mfoc.InvalidValue as error:
            assert "inference_mode" in str(error)  # noqa: PT017  either is right
            return
    assert same(found, DOORS[name](plain))


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_what_was_made_in_inference_mode_is_refused_or_as_good_as_any(name):
    try:
        found = DOORS[name](of_inference)
    except mfoc.InvalidValue as error:
        assert "inference_mode" in str(error)  # noqa: PT017  either is right
        return
    assert same(found, DOORS[name](plain))


class OnMeta(TorchFunctionMode):
    """What the library itself makes without a device is without numbers, as under ``torch.set_default_device``."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        own = sys._getframe(1).f_code.co_filename.startswith(OWN)
        if own and func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_door_makes_is_where_its_inputs_are(name):
    with OnMeta():
        found = DOORS[name](plain)
    assert same(found, DOORS[name](plain))
