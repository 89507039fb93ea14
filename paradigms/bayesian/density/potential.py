"""Log densities as potentials for Pyro's NUTS and HMC.

potential = to_potential(density)
kernel = pyro.infer.NUTS(potential_fn=potential.potential_fn)
mcmc = pyro.infer.MCMC(kernel, num_samples=1000, initial_params=potential.initial_params)
mcmc.run()
samples = potential.posterior(mcmc.get_samples())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import mfoc
from mfoc.checks import check_integer
from paradigms.bayesian.density.density import LogDensity
from paradigms.bayesian.density.sources import log_density


@dataclass(frozen=True, eq=False)
class Potential:
    """What ``pyro.infer.NUTS`` and ``HMC`` take in place of a model.

    Attributes:
        potential_fn: named unconstrained parameters of one particle to minus the log density, a scalar.
        initial_params: where to start, by name; with a leading axis of chains when there are several.
        density: the density.
    """

    potential_fn: Callable[[Mapping[str, Tensor]], Tensor]
    initial_params: dict[str, Tensor]
    density: LogDensity

    def __repr__(self) -> str:
        return f"Potential({self.density!r})"

    def posterior(self, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Samples of the chain, name -> ``[n, ...]`` unconstrained, in the parameters' own terms."""
        return self.density.named(self.density.ravel(samples))


def to_potential(target: Any, data: Any = None, *, chains: int = 1, seed: int = 0, **options: Any) -> Potential:
    """A log density, or the cost of a control problem, as the potential of Pyro's HMC and NUTS.

    Args:
        target: a ``LogDensity``, a formulation with one (``langevin``, ``svgd``, ``follmer``), or anything that
            ``log_density`` takes: an ``mfoc.Problem`` with its particles has the potential sum_i cost_i(u) /
            temperature, its named parameters being the controls.
        data: see ``log_density``.
        chains: number of chains to start.
        seed: of where they start.
        **options: of ``log_density``: prior, temperature, likelihood, ...

    Raises:
        InvalidType, InvalidValue: see ``log_density``.
    """
    if not isinstance(target, mfoc.Problem):  # whose potential is its cost, whatever it knows of a density
        target = getattr(target, "density", target)
    density = target if isinstance(target, LogDensity) else log_density(target, data, **options)
    check_integer(1, chains=chains)
    check_integer(0, seed=seed)
    start = density.check(density.initial(chains, seed))

    def potential_fn(parameters: Mapping[str, Tensor]) -> Tensor:
        return -density(density.ravel({name: leaf[None] for name, leaf in parameters.items()}))[0]

    return Potential(potential_fn, density.unravel(start if chains > 1 else start[0]), density)
