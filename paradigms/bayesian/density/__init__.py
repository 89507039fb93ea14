"""Unnormalised log densities on R^d, evaluated on a whole cloud of particles at once."""

from paradigms.bayesian.density.density import Function, LogDensity
from paradigms.bayesian.density.sources import log_density

__all__ = ["Function", "LogDensity", "log_density"]
