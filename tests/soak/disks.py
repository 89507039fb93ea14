"""Full disks: the last whole checkpoint stays, nothing is left beside it, and the error says where there is no room."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import tempfile
from pathlib import Path
from typing import Any

import mfoc
from tests.soak.children import Child
from tests.soak.known import known
from tests.soak.results import Outcome, Size
from tests.soak.solves import NAMES, STEPS, digest, made, resumed_like

NEW_NAMESPACE, NEW_USER, PRIVATE = 0x00020000, 0x10000000, 1 << 18
FULL, LIMITED, NOT_ALLOWED = "a full disk", "a limit of file sizes", "not allowed here"


def run(size: Size) -> Outcome:
    """A disk of a few hundred KiB in memory, where the system allows one; and a limit on the size of a file."""
    draw, outcome = random.Random(size.seed), Outcome("full disks")
    for trial in range(size.fillings):
        name = NAMES[trial % len(NAMES)]
        for kind in (FULL, LIMITED):
            room = draw.uniform(0, 1.1)
            with tempfile.TemporaryDirectory() as folder:
                child = Child(filled, kind, name, folder, room, known(name).digests)
                code = child.end()
            if child.result == [NOT_ALLOWED]:
                outcome.count("not allowed here")
                continue
            outcome.trials += 1
            outcome.count("there was room" if child.said else kind)
            what = f"{name}, {kind}, room for {room:.2f} of a file"
            outcome.expect(code == 0, f"{what}: exit code {code}")
            outcome.faults += [f"{what}: {fault}" for fault in child.result or []]
    return outcome


def filled(send: Any, kind: str, name: str, folder: str, room: float, digests: dict[int, str]) -> list[str]:
    """What is wrong after a solve whose checkpoints find no room, and with what the next solve makes of them."""
    if kind == FULL and not _small_disk(folder):
        return [NOT_ALLOWED]
    problem, solver, source = made(name)
    path = Path(folder) / "run"
    keep = mfoc.hooks.Checkpoint(path, every=1)
    mfoc.solve(problem, solver, source, steps=2, hooks=[keep])
    allowed = int(room * path.stat().st_size)
    if kind == FULL:
        _fill(Path(folder) / "ballast", allowed)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    faults = []
    try:
        mfoc.solve(problem, solver, source, steps=STEPS[name], start=mfoc.hooks.load(path), hooks=[keep])
        found: Exception | None = None  # there was room
        send("room")
    except Exception as error:
        found = error
    if found is not None:
        right = isinstance(found, OSError | mfoc.MfocError)
        faults += [] if right else [f"a raw {type(found).__name__}: {found}"]
        said = str(found).lower()
        words = "no space left" if kind == FULL else ""
        faults += [] if words in said and str(path) in str(found) else [f"the error does not say so: {found}"]
        kept = getattr(found, "last_iterate", None)
        same = kept is not None and digest(kept.controls) == digests[kept.step]
        faults += [] if same else ["the error does not carry the last iterate"]
    left = sorted(set(os.listdir(folder)) - {"run", "ballast"})
    faults += [f"files are left behind: {left}"] if left else []
    fault = resumed_like(name, path, digests)
    return [*faults, fault] if fault else faults


def _fill(ballast: Path, room: int) -> None:
    """Fills a disk but for some bytes."""
    disk = os.statvfs(ballast.parent)
    with open(ballast, "wb") as file:
        file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))


def _small_disk(folder: str) -> bool:
    """Mounts half a MiB of memory there, for this process only; False where that is not allowed."""
    system = ctypes.CDLL(None, use_errno=True)
    if not hasattr(system, "unshare"):
        return False
    flags = NEW_NAMESPACE if os.geteuid() == 0 else NEW_NAMESPACE | NEW_USER
    if system.unshare(flags) != 0:
        return False
    recursive = 1 << 14
    system.mount(b"none", b"/", None, PRIVATE | recursive, None)
    return system.mount(b"none", folder.encode(), b"tmpfs", 0, b"size=512k") == 0
