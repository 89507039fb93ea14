"""Checkpoints whose bits flip, whose end is cut off, or of which a block is zeros: none is loaded with other values."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mfoc
from tests.soak.children import Child, call
from tests.soak.results import Outcome, Size
from tests.soak.solves import NAMES, checkpointed


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One bit."""
    place, changed = draw.randrange(len(content)), bytearray(content)
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    """The end is lost, as where a disk was full."""
    return content[: draw.randrange(len(content))]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """A block of 512 that was never written."""
    place = draw.randrange(0, len(content), 512)
    block = content[place : place + 512]
    return content[:place] + bytes(len(block)) + content[place + 512 :]


def swapped(content: bytes, draw: random.Random) -> bytes:
    """Two blocks of 512 in each other's place."""
    blocks = [content[place : place + 512] for place in range(0, len(content) - 512, 512)]
    one, other = draw.sample(range(len(blocks)), 2)
    rest = content[512 * len(blocks) :]
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return b"".join(blocks) + rest


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": flipped,
    "cut": cut,
    "zeroed": zeroed,
    "swapped": swapped,
}


def run(size: Size) -> Outcome:
    """Bits: as many as asked; of the other kinds a tenth of that."""
    outcome = Outcome("damaged checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            path = Path(folder) / name
            call(checkpointed, name, str(path), 12)
            for kind in DAMAGE:
                trials = size.flips if kind == "flipped" else max(1, size.flips // 10)
                child = Child(damaged, str(path), kind, trials, size.seed)  # a crash of the reader would be a fault
                code = child.end()
                outcome.expect(code == 0, f"{name}, {kind}: reading ended the process with {code}")
                counts, faults = child.result or ({}, [])
                outcome.faults += [f"{name}: {fault}" for fault in faults]
                for count, value in counts.items():
                    outcome.figures[count] = outcome.figures.get(count, 0) + value
                outcome.trials += trials
    outcome.figures.setdefault("loaded with other values", 0)
    return outcome


def damaged(_send: Any, path: str, kind: str, trials: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """What became of each damaged copy: counts, and what was wrong."""
    draw, whole, content = random.Random(seed), contents(path), Path(path).read_bytes()
    counts, faults = {"refused": 0, "the same": 0, "loaded with other values": 0}, []
    copy = Path(f"{path}.damaged")
    for trial in range(trials):
        copy.write_bytes(DAMAGE[kind](content, draw))
        try:
            found = contents(str(copy))
        except mfoc.InvalidValue:
            counts["refused"] += 1
            continue
        except Exception as error:
            faults.append(f"{kind} {trial}: a raw error, {type(error).__name__}: {error}")
            continue
        counts["the same" if found == whole else "loaded with other values"] += 1
        if found != whole:
            faults.append(f"{kind} {trial}: it was loaded, with other values")
    copy.unlink()
    return counts, faults


def contents(path: str) -> str:
    """Everything that a checkpoint holds, to the bit."""
    iterate = mfoc.hooks.load(path)
    return repr([iterate.step, list(map(dict, iterate.history)), _bits(iterate.controls), _bits(iterate.state)])


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(part) for key, part in value.items()}
    return [_bits(part) for part in value] if isinstance(value, list | tuple) else value
