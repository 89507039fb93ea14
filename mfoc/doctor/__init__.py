"""What is installed, what does not fit together, what is not safe, and what to do about each: ``mfoc doctor``.

Versions are read from what the packages say of themselves; nothing heavy is imported but torch. A probe that fails is a
finding, too: the doctor itself does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from mfoc.doctor import core, names, packages, vision
from mfoc.doctor.findings import Finding, State, report
from mfoc.doctor.versions import Version, installed

__all__ = ["Finding", "State", "examine", "install_missing", "report"]


def examine(version: Version | None = None) -> list[Finding]:
    """Looks at everything.

    Args:
        version: of a distribution by name, None where it is not installed; what is installed here when None.
    """
    known = version or installed
    probes: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", core.python_itself),
        ("torch", partial(core.torch_works, known)),
        ("numpy", partial(core.numpy_works, known)),
        ("devices", core.devices),
        ("distributed", core.backends),
        *((each.package, partial(packages.optional, known, each)) for each in packages.PEERS),
        ("torch and torchvision", partial(vision.torchvision, known)),
        *((row[0], partial(packages.unsafe, known, *row)) for row in packages.UNSAFE),
        ("paradigms", names.paradigms),
        ("pip", core.installer),
        ("compiler", core.compiler),
        ("processes", core.processes),
    ]
    return [finding for name, probe in probes for finding in _guarded(name, probe)]


def install_missing(findings: Sequence[Finding], version: Version | None = None) -> str:
    """The one command that installs every optional package that is missing; "" where none is.

    Args:
        findings: what ``examine`` found.
        version: as of ``examine``.
    """
    return packages.install_missing(findings, (version or installed)("torch"))


def _guarded(name: str, probe: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a probe finds; that it failed, where it does."""
    found = []
    try:
        for finding in probe():
            found.append(finding)
    except Exception as error:  # whatever it is, it is to be reported beside the rest
        needed = name in ("python", "torch", "numpy")
        said = f"could not be looked at: {type(error).__name__}: {error}"
        cure = "install it anew: pip install --force-reinstall 'torch>=2.6' numpy" if needed else ""
        found.append(Finding(name, State.BROKEN if needed else State.NOTE, said, cure))
    return found
