"""Random numbers that are functions of (key, particle, coordinate): a stream for each particle, however it is batched.

A counter-based generator in the manner of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", with the
mixing function of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", sec. 5): the
stream of a particle is that of SplitMix64 from a state that mixes the key and the particle's index. Plain integer
operations, so that a device makes no difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


_STEP = _signed(0x9E3779B97F4A7C15)  # the odd integer next to 2^64 over the golden ratio
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def drawn_key(generator: torch.Generator | None) -> Tensor:
    """One integer of 63 bits from a generator, on its device; from torch's own when None."""
    device = torch.device("cpu") if generator is None else generator.device
    return torch.empty((), dtype=torch.int64, device=device).random_(generator=generator)


def uniforms(key: Tensor, index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in (0, 1) ``[N, count]``; those of particle i are functions of (key, i).

    Args:
        key: an integer.
        index: the particles' indices ``[N]``.
        count: numbers for each particle.
        dtype: float32 or float64.
    """
    if dtype == torch.float64:
        return _open_interval(_shifted(_stream(key, index, count, 0), 12), 52, dtype)
    words = _stream(key, index, -(-count // 2), 0)  # two from one integer
    return torch.cat([_open_interval(part, 23, dtype) for part in _halves(words, 23)], 1)[:, :count]


def normals(key: Tensor, index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers ``[N, count]``, independent of ``uniforms`` (Box & Muller 1958: two from one integer)."""
    bits = 32 if dtype == torch.float64 else 23
    upper, lower = _halves(_stream(key, index, -(-count // 2), 1), bits)
    radius = _open_interval(upper, bits, dtype).log_().mul_(-2).sqrt_()
    angle = _open_interval(lower, bits, dtype).mul_(2 * math.pi)
    return torch.cat([angle.cos() * radius, angle.sin_().mul_(radius)], 1)[:, :count]


def _halves(words: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The first and the last bits of integers."""
    return _shifted(words, 64 - bits), words.bitwise_and_((1 << bits) - 1)


def _open_interval(numbers: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """(k + 1/2) / 2^bits, exact where the significand has one bit more, as that of float32 has for 23."""
    return numbers.to(dtype).add_(0.5).mul_(2.0**-bits)


def _stream(key: Tensor, index: Tensor, count: int, which: int) -> Tensor:
    """Integers of 64 random bits ``[N, count]``: the numbered stream of each particle."""
    state = _mixed(_mixed(key + which * _STEP) + index * _STEP)
    counter = torch.arange(1, count + 1, device=index.device) * _STEP
    return _mixed(state[:, None] + counter)


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64; products of int64 wrap around."""
    z = (_shifted(z, 30) ^ z).mul_(_FIRST)
    z = _shifted(z, 27).bitwise_xor_(z).mul_(_SECOND)
    return _shifted(z, 31).bitwise_xor_(z)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with zeros; torch's repeats the sign."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)
