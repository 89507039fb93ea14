"""The core's own needs, and what the machine has."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from multiprocessing import get_all_start_methods
from pathlib import Path

from mfoc.doctor.findings import Finding, State
from mfoc.doctor.versions import Version, below, installed


def python_itself() -> Iterator[Finding]:
    """Python, the machine, and this library."""
    version, old = platform.python_version(), sys.version_info < (3, 11)
    yield Finding("python", State.BROKEN if old else State.OK, version, "Python >= 3.11 is needed" if old else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("platform", State.OK, f"{platform.system()} {platform.machine()}, {cores} cores to use")
    yield Finding("mfoc", State.OK, installed("mfoc") or "run from its source, not installed")


def torch_works(known: Version) -> Iterator[Finding]:
    """The version and the build, and whether it multiplies and differentiates."""
    import torch

    version = known("torch") or torch.__version__
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"built for CUDA {cuda}" if cuda else f"built for ROCm {hip}" if hip else "built for the CPU"
    said = f"{version}, {build}, {torch.get_num_threads()} threads"
    if below(version, "2.4") or not below(version, "3"):
        yield Finding("torch", State.BROKEN, said, "pip install 'torch>=2.4,<3'")
        return
    x = torch.ones(2, 2, dtype=torch.float64, device="cpu", requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad((x @ x).sum(), [x])
    right = slope.eq(4).all().item()
    yield Finding("torch", State.OK if right else State.BROKEN, said if right else f"{said}: a derivative is wrong")


def numpy_works(known: Version) -> Iterator[Finding]:
    """The version, and whether torch reads its arrays."""
    import numpy as np
    import torch

    version = known("numpy") or np.__version__
    if below(version, "1.26") or not below(version, "3"):
        yield Finding("numpy", State.BROKEN, version, "pip install 'numpy>=1.26,<3'")
        return
    shared = torch.from_numpy(np.ones(2)).sum().item() == 2  # torch may be built against another numpy
    yield Finding("numpy", State.OK if shared else State.BROKEN, version if shared else f"{version}: torch misreads it")


def devices() -> Iterator[Finding]:
    """GPUs, and whether torch is built for those there are."""
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", State.OK, f"{found.name}, {found.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", State.OK, "there")
    if torch.version.cuda and not torch.cuda.is_available():
        yield Finding("cuda", State.NOTE, "torch is built for CUDA and sees no GPU: everything runs on the CPU")
    elif not torch.cuda.is_available():
        yield Finding("cuda", State.OK, "none, and torch is not built for it")


def backends() -> Iterator[Finding]:
    """Which backends of torch.distributed there are."""
    from torch import distributed

    if not distributed.is_available():
        yield Finding("distributed", State.NOTE, "torch is built without it: one process only")
        return
    kinds = {"gloo": distributed.is_gloo_available(), "nccl": distributed.is_nccl_available()}
    kinds["mpi"] = distributed.is_mpi_available()
    there = [kind for kind, is_there in kinds.items() if is_there]
    yield Finding("distributed", State.OK if there else State.NOTE, ", ".join(there) or "no backend")


def installer() -> Iterator[Finding]:
    """Whether this environment has a pip: without one, a ``pip install`` is of another environment."""
    if find_spec("pip") is None:
        said = "this environment has none: a `pip install` would be of another one"
        yield Finding("pip", State.NOTE, said, f"{sys.executable} -m ensurepip")


def compiler() -> Iterator[Finding]:
    """What the build of a package needs."""
    names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    found_compiler = any(shutil.which(name) for name in names if name)
    for name, found, use in (
        ("C compiler", found_compiler, "torch.compile and the build of learn2learn need one"),
        ("make", shutil.which("make"), "only the targets of a clone need it"),
    ):
        yield Finding(name, State.OK if found else State.MISSING, "there" if found else f"none: {use}")


def processes() -> Iterator[Finding]:
    """How processes are started, and whether they have memory to share (the workers of a DataLoader need some)."""
    yield Finding("processes", State.OK, "started by " + ", ".join(get_all_start_methods()))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**20
        little = free < 64
        cure = "the workers of a DataLoader need more: in a container, --shm-size=1g" if little else ""
        yield Finding("shared memory", State.NOTE if little else State.OK, f"{math.floor(free)} MiB free", cure)
