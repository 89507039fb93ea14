"""A network comes through a door equal to plain torch, or is refused with the cure: never a raw error, never different.

The catalogue says which, for each network and each door; what a door is asked is the docstring of its check.
"""

from __future__ import annotations

import re

import pytest
import torch

from tests.architectures import CATALOGUE, DOORS
from tests.doors.catalogue import CHECKS, PLACE, refusal, table, written

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated"),
]

CELLS = [
    pytest.param(name, door, id=f"{name}-{door}", marks=[pytest.mark.slow] if entry.slow else [])
    for name, entry in CATALOGUE.items()
    for door in DOORS
]
WRITTEN = written()


@pytest.mark.parametrize(("name", "door"), CELLS)
def test_a_network_comes_through_equal_to_torch_or_is_refused_with_the_cure(name, door, device):
    if "torchvision" in name:
        pytest.importorskip("torchvision")
    entry = CATALOGUE[name].on(device)
    if door not in entry.refused:
        before = states(device)
        CHECKS[door](entry)
        assert all(map(torch.equal, before, states(device))), "torch's own random numbers were drawn"
        return
    said = refusal(entry, door)
    assert re.search(entry.refused[door], said), said
    assert door in entry.on_gpu or said == WRITTEN[name, door], (
        "the table says otherwise: run python -m tests.doors.catalogue"
    )


def states(device: str) -> list[torch.Tensor]:
    """Of torch's own generators."""
    other = [] if device == "cpu" else [torch.get_device_module(device).get_rng_state()]
    return [torch.random.get_rng_state(), *other]


def test_the_table_in_the_documentation_is_the_catalogues():
    """What it says of the doors' messages is what each cell is held against."""
    print(table(WRITTEN))
    assert PLACE.read_text(encoding="utf-8") == table(WRITTEN), "run python -m tests.doors.catalogue"
    assert set(WRITTEN) == {(name, door) for name, entry in CATALOGUE.items() for door in entry.refused}
    assert set(CHECKS) == set(DOORS)
    assert all(set(entry.refused) <= set(DOORS) for entry in CATALOGUE.values())
