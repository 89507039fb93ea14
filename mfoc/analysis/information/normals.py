"""Standard normals that are a function of a key and a number: of any few among many, without drawing the others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def normals(index: Tensor, count: int, key: int) -> Tensor:
    """``count`` standard normals for each number, ``[N, count]`` in float64 on the CPU.

    Args:
        index: numbers from 0 on ``[N]``.
        count: how many for each.
        key: of the stream; other keys give unrelated ones.
    """
    places = index.cpu().numpy().astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    uniform = ((random_bits(places, key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    found: Tensor = torch.special.ndtri(torch.from_numpy(uniform))
    return found


def random_bits(places: np.ndarray, key: int) -> np.ndarray:
    """The outputs of SplitMix64 at some places of its stream (Steele, Lea & Flood 2014), counted from 0; 64 bits each.

    Its state only counts, in steps of a constant: any place is reached at once.
    """
    state = (places + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
