"""The packages that extras bring, and versions of packages that are known not to be safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mfoc.doctor.findings import Finding, State
from mfoc.doctor.versions import Version, below, numbers
from mfoc.extras import EXTRAS, how_to_install, install


@dataclass(frozen=True)
class Peer:
    """A package that an extra brings: its name, the extra, and the versions (from, below) that this library knows."""

    package: str
    extra: str
    least: str
    below: str
    module: str = ""

    @property
    def imported(self) -> str:
        """The top-level name that it is imported by."""
        return self.module or self.package


PEERS = (
    Peer("matplotlib", "plot", "3.8", "4"),
    Peer("rich", "plot", "13", "16"),
    Peer("scikit-learn", "data", "1.4", "2", "sklearn"),
    Peer("scipy", "spectra", "1.12", "2"),
    Peer("curvlinops-for-pytorch", "spectra", "3.0.1", "4", "curvlinops"),
    Peer("tensorboard", "tensorboard", "2.16", "3"),
    Peer("pyro-ppl", "bayes", "1.9", "2", "pyro"),
    Peer("torchvision", "adversarial", "0.19", "1"),
    Peer("torchattacks", "adversarial", "3.5.1", "4"),
    Peer("learn2learn", "meta", "0.2.0", "0.2.1"),
)

# package, the first version without the fault, what an older one does, and what to install; as of 0.2.0.
UNSAFE = (
    ("torch", "2.6", "runs code from a file that is read with weights_only=True (CVE-2025-32434)", "torch>=2.6"),
    ("requests", "2.32.4", "sends passwords to other hosts than they are for (CVE-2024-47081)", "requests>=2.32.4"),
    ("urllib3", "2.6.3", "a small answer may fill the memory (CVE-2025-66471, CVE-2026-21441)", "urllib3>=2.6.3"),
    ("idna", "3.7", "a long name costs quadratic time (CVE-2024-3651)", "idna>=3.7"),
    ("certifi", "2024.7.4", "trusts certificates that were withdrawn (CVE-2024-39689)", "certifi>=2024.7.4"),
    ("tqdm", "4.66.3", "its command line runs what it is given (CVE-2024-34062)", "tqdm>=4.66.3"),
    ("jinja2", "3.1.6", "a template gets out of its sandbox (CVE-2025-27516)", "jinja2>=3.1.6"),
    ("pillow", "10.3.0", "an image may overflow a buffer (CVE-2024-28219)", "pillow>=10.3.0"),
)


def optional(known: Version, each: Peer) -> Iterator[Finding]:
    """Whether a package of an extra is there, in a version that this library knows."""
    version = known(each.package)
    if version is None:  # what installs it is said once, of all that is missing
        yield Finding(each.package, State.MISSING, f"not installed (optional: {each.extra})")
    elif below(version, each.least) or not below(version, each.below):
        cure = how_to_install(each.imported, each.extra)
        yield Finding(each.package, State.NOTE, f"{version}; known to work: >= {each.least}, < {each.below}", cure)
    else:
        yield Finding(each.package, State.OK, version)


def unsafe(known: Version, package: str, safe: str, fault: str, cure: str) -> Iterator[Finding]:
    """Whether a package is there in a version that has a known fault: nothing is said of others."""
    version = known(package)
    if version is not None and below(version, safe):
        yield Finding(package, State.UNSAFE, f"{version} is not safe: {fault}", f"pip install --upgrade '{cure}'")


def install_missing(findings: Sequence[Finding], torch: str | None = None) -> str:
    """The one command that installs every optional package that is missing; "" where none is.

    Args:
        findings: of which those that are missing count.
        torch: its version here: what is built for another torch would replace it.
    """
    names = {finding.name for finding in findings if finding.state is State.MISSING}
    missing = [peer for peer in PEERS if peer.package in names]
    wanted = dict.fromkeys(each for peer in missing for each in EXTRAS[peer.extra])
    plain = ".".join(map(str, numbers(torch or "")))
    kept = [f"torch=={plain}"] if plain and any(each.startswith("torchvision") for each in wanted) else []
    return install([*kept, *wanted], [peer.package for peer in missing]) if missing else ""
