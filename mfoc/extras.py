"""What each extra brings, and the command that installs it.

The commands name the packages themselves: no index serves this library, so that ``pip install 'mfoc[plot]'`` would ask
for a name that may one day be somebody else's. This is below everything: it does not check its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

# As in pyproject.toml, which a test holds these to.
EXTRAS: dict[str, tuple[str, ...]] = {
    "bayes": ("pyro-ppl>=1.9,<2",),
    "adversarial": ("scipy>=1.12,<2", "torchvision>=0.19,<1", "tqdm>=4.66.3,<5"),
    "meta": (
        "gym>=0.26,<0.27",
        "requests>=2.32.4,<3",
        "scipy>=1.12,<2",
        "torchvision>=0.19,<1",
        "tqdm>=4.66.3,<5",
    ),
    "plot": ("matplotlib>=3.8,<4", "rich>=13,<16"),
    "data": ("scikit-learn>=1.4,<2",),
    "spectra": ("curvlinops-for-pytorch>=3.0.1,<4", "scipy>=1.12,<2"),
    "tensorboard": ("tensorboard>=2.16,<3",),
}

# Packages whose own pins cannot be met safely, or that do not build by themselves: they come alone, after what they
# import; with what the build needs, and the options of pip.
_ALONE: dict[str, tuple[tuple[str, ...], str]] = {
    "torchattacks": ((), "--no-deps 'torchattacks>=3.5.1,<4'"),
    "learn2learn": (
        ("cython>=3", "setuptools<81", "wheel"),
        "--no-deps --no-build-isolation --use-pep517 --config-settings=--global-option=build_ext learn2learn==0.2.0",
    ),
}


def how_to_install(module: str, extra: str) -> str:
    """The command that installs an optional dependency by a plain pip.

    Args:
        module: dotted name of the module.
        extra: the mfoc extra that brings it, or what it needs.
    """
    return install(EXTRAS.get(extra, ()), [module.partition(".")[0]])


def install(requirements: Iterable[str], packages: Iterable[str] = ()) -> str:
    """One command for all of it.

    Args:
        requirements: with their bounds.
        packages: names; those that come alone are installed after the requirements, the others are not looked at.
    """
    alone = [_ALONE[package] for package in packages if package in _ALONE]
    together = dict.fromkeys([*requirements, *(each for before, _ in alone for each in before)])
    quoted = " ".join(f"'{each}'" if set(each) & set("<>=") else each for each in together)
    commands = [f"pip install {quoted}"] if quoted else []
    return " && ".join([*commands, *(f"pip install {options}" for _, options in alone)])
