"""Whether torchvision fits torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from mfoc.doctor.findings import Finding, State
from mfoc.doctor.versions import Version, below, installed, numbers


def torchvision(known: Version) -> Iterator[Finding]:
    """Whether torchvision is of the same build as torch: otherwise `operator torchvision::nms does not exist`."""
    import torch

    vision, torch_version = known("torchvision"), known("torch") or torch.__version__
    if vision is None:
        return
    name = "torch and torchvision"
    here = known is installed
    fault = misfit(torch_version, vision, metadata.requires("torchvision") or [] if here else [])
    if fault := fault or (_operators_missing() if here else ""):
        plain = ".".join(map(str, numbers(torch_version)))
        cure = f"install both together: pip install --force-reinstall 'torch=={plain}' torchvision"
        yield Finding(name, State.BROKEN, fault, cure)
    else:
        yield Finding(name, State.OK, "fit together")


def misfit(torch_version: str, vision: str, requires: Sequence[str]) -> str:
    """Why two versions do not fit together; "" where they do.

    Args:
        torch_version: of torch, with its build (``+cu132``) where it has one.
        vision: the same of torchvision.
        requires: what torchvision says that it needs.
    """
    builds = [version.partition("+")[2] for version in (torch_version, vision)]
    if all(builds) and builds[0] != builds[1]:
        return f"torch is a build for {builds[0]}, torchvision for {builds[1]}"
    for line in requires:
        wanted = re.match(r"torch\s*\(?\s*(==|>=)\s*([\d.]+)", line)
        if wanted and (below(torch_version, wanted[2]) or (wanted[1] == "==" and below(wanted[2], torch_version))):
            return f"torchvision {vision} is for torch {wanted[1]} {wanted[2]}, and torch is {torch_version}"
    return ""


def _operators_missing() -> str:
    """Loads torchvision's operators, as its import does, without the seconds that the rest of the import takes."""
    import torch

    spec = find_spec("torchvision")
    folders = spec.submodule_search_locations or [] if spec else []
    for library in (file for folder in folders for file in Path(folder).glob("_C*") if file.suffix != ".py"):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError) as error:
            return f"torchvision's operators do not load into this torch: {str(error).splitlines()[0]}"
    if not hasattr(torch.ops.torchvision, "nms"):
        return "operator torchvision::nms does not exist"
    theirs, ours = torch.ops.torchvision._cuda_version(), torch.version.cuda  # 13020, and "13.2"
    if theirs > 0 and ours and theirs // 1000 != int(ours.partition(".")[0]):
        return f"torchvision is built for CUDA {theirs // 1000}, torch for CUDA {ours}"
    return ""
