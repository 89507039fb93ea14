"""What a log density can be made of.

``log_density`` makes one from a function, from a Pyro model with its data, from a network with a likelihood and a
prior, or from a control problem (the Gibbs law of its controls). Whatever it came from, it is a function of
``[n, d]``; named parameters are slices of the vector, in unconstrained coordinates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_integer
from paradigms.bayesian.density.density import LogDensity, flat, split
from paradigms.bayesian.density.of_model import of_model
from paradigms.bayesian.density.of_network import of_network
from paradigms.bayesian.density.of_problem import of_problem
from paradigms.bayesian.laws.likelihoods import says_its_sign


def log_density(
    source: Any,
    data: Any = None,
    *,
    like: Any = None,
    likelihood: Any = None,
    noise: Any = None,
    prior: Any = None,
    temperature: float = 1.0,
    size: int | None = None,
    minibatch: Callable[[Any, Tensor], Tensor] | None = None,
    traced: bool = True,
) -> LogDensity:
    """One object for the log densities that samplers take.

    Args:
        source: one of

            * a function with ``like``: particles ``[n, d]``, or a dict name -> ``[n, ...]``, to log densities ``[n]``;
            * a Pyro model with ``data``: the tuple of its arguments (``()`` when it takes none), or a dict of keyword
              arguments. The density is that of its latents given the observed sites, in unconstrained coordinates (with
              the log Jacobian), normalised when the model is, so that its integral is the evidence. Parameters
              (``pyro.param``) keep the values they have now;
            * an ``nn.Module`` with ``data`` a pair (inputs, targets), a ``likelihood`` and a ``prior``. It is used in
              evaluation mode; parameters that do not require grad are constants;
            * an ``mfoc.Problem`` with ``data`` its ``mfoc.Particles``: exp(-sum_i cost_i(u) / temperature) prior(u).
        data: see above.
        like: one particle: a tensor ``[d]`` or a dict name -> tensor; gives shapes, dtype and device.
        likelihood: "gaussian", "categorical" (targets are class labels), or a function (output, target) -> the NEGATIVE
            log likelihood of each observation ``[N]``, as everywhere in this package. (Before version 0.2 a function
            was the log likelihood here, so one that does not say its sign is warned of.) ``LogLikelihood(function)``
            and ``NegativeLogLikelihood(function)`` say which it is.
        noise: scale of the Gaussian likelihood, a number or a tensor ``[...]`` that broadcasts to an output. None makes
            it a parameter, "noise", with prior LogNormal(0, 1).
        prior: of the weights, as in ``variational``: a distribution (of Pyro or torch) for each weight, or a function
            (name, parameter) -> distribution; standard normal when None. For a problem it is of the controls' leaves,
            and None is no prior.
        temperature: of the Gibbs law of a problem.
        size: number of observations N, for ``minibatch``. For a Pyro model: its tensor arguments with N rows are those
            that are cut to a batch, and the observed sites are weighted with N / B.
        minibatch: for a function: ``(particles, index [n, B]) -> [n]``, scaled with N / B by itself.
        traced: record the tensor operations of a Pyro model (or a problem) once and replay them; the data are taken as
            they are then. Message passing costs many times what the operations do (55 against 0.85 ms for a regression
            of ten weights, 50 particles). Networks are never recorded: they gain nothing by it (3.78 against 3.73 ms).

    Returns:
        A ``LogDensity``.

    Raises:
        InvalidType: a source that is none of these.
        InvalidValue: arguments that do not go together, discrete latents, or a log density that is not finite where it
            starts.
        MissingExtra: a Pyro model without pyro.
    """
    check_integer(1, size=size, optional=True)
    options = {"like": like, "likelihood": likelihood, "noise": noise, "prior": prior, "minibatch": minibatch}
    if isinstance(source, LogDensity):
        return source
    if isinstance(source, mfoc.Problem):
        _refuse(options, "a problem", {"prior"})
        return _probed(of_problem(source, data, prior, temperature, traced))
    if isinstance(source, nn.Module) and likelihood is not None:
        _refuse(options, "a network", {"likelihood", "noise", "prior"})
        if not says_its_sign(likelihood):
            warnings.warn(_SIGN, UserWarning, stacklevel=2)
        return _probed(of_network(source, data, likelihood, noise, prior))
    if not callable(source):
        raise InvalidType(
            f"the log density is a {type(source).__name__}; expected a function, a Pyro model, a network with a "
            "likelihood or an mfoc.Problem"
        )
    if like is not None:
        _refuse(options, "a function", {"like", "minibatch"})
        return _probed(_of_function(source, like, size, minibatch))
    if isinstance(data, tuple | dict):
        _refuse(options, "a Pyro model", set())
        return _probed(of_model(source, data, size, traced))
    raise InvalidValue(
        "say what the function is: like= a particle for a log density, data= a tuple of arguments for a Pyro model, "
        "data= and likelihood= for a network"
    )


_SIGN = (
    "log_density reads a function as the NEGATIVE log likelihood of each observation, as variational and ensemble do; "
    "before version 0.2 it read it as the log likelihood. Say which one it is, and this warning is gone: "
    "likelihood=NegativeLogLikelihood(function) or likelihood=LogLikelihood(function), from paradigms.bayesian"
)


def _refuse(options: Mapping[str, Any], what: str, allowed: set[str]) -> None:
    given = [name for name, value in options.items() if value is not None and name not in allowed]
    if given:
        raise InvalidValue(f"{', '.join(given)} cannot be used with {what}; leave it out")


def _of_function(
    function: Callable[[Any], Tensor],
    like: Any,
    size: int | None,
    minibatch: Callable[[Any, Tensor], Tensor] | None,
) -> LogDensity:
    example = {"x": like} if isinstance(like, Tensor) else like
    if not isinstance(example, dict) or not all(isinstance(leaf, Tensor) for leaf in example.values()) or not example:
        raise InvalidType(f"like is a {type(like).__name__}; expected a tensor [d] or a dict name -> tensor")
    if isinstance(like, Tensor) and like.dim() != 1:
        raise InvalidValue(f"like has shape {tuple(like.shape)}; expected one particle, (d,)")
    if (size is None) != (minibatch is None):
        raise InvalidValue("size and minibatch go together: the number of observations and the density of a batch")
    vector = flat(example)
    shapes = {name: leaf.shape for name, leaf in example.items()}
    view = (lambda x: split(x, shapes)) if isinstance(like, dict) else (lambda x: x)
    batch = None if minibatch is None else (lambda x, index: minibatch(view(x), index))
    return LogDensity(lambda x: function(view(x)), shapes, vector, size=size, minibatch=batch)


def _probed(density: LogDensity) -> LogDensity:
    """Refuses a density that cannot be evaluated where it starts."""
    try:
        density.check(density.initial(2))
    except RuntimeError as error:
        raise InvalidValue(
            f"the log density cannot be evaluated and differentiated on two particles: {error}"
        ) from error
    return density
