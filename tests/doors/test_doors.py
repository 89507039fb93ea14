"""A network comes through a door equal to plain torch, or is refused with the cure: never a raw error, never different.

The catalogue says which, for each network and each door; what a door is asked is the docstring of its check.
"""

from __future__ import annotations

import re

import pytest
import torch

import mfoc
from tests.architectures import CATALOGUE, DOORS
from tests.doors.catalogue import CHECKS, PLACE, table

pytest.importorskip("torchvision")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated"),
]

CELLS = [
    pytest.param(name, door, id=f"{name}-{door}", marks=[pytest.mark.slow] if entry.slow else [])
    for name, entry in CATALOGUE.items()
    for door in DOORS
]


@pytest.mark.parametrize(("name", "door"), CELLS)
def test_a_network_comes_through_equal_to_torch_or_is_refused_with_the_cure(name, door):
    entry = CATALOGUE[name]
    if door not in entry.refused:
        before = torch.random.get_rng_state()
        CHECKS[door](entry)
        assert torch.equal(before, torch.random.get_rng_state()), "torch's own random numbers were drawn"
        return
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue)) as caught:
        CHECKS[door](entry)
    assert re.search(entry.refused[door], str(caught.value), re.DOTALL), str(caught.value)


def test_the_table_in_the_documentation_is_the_catalogues():
    print(table())
    assert PLACE.read_text() == table(), "run python -m tests.doors.catalogue"
    assert set(CHECKS) == set(DOORS)
    assert all(set(entry.refused) <= set(DOORS) for entry in CATALOGUE.values())
