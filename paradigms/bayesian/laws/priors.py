"""Priors on weights, and the divergence of a Gaussian from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints, kl_divergence

from mfoc import InvalidType, InvalidValue
from mfoc.checks import kind_of
from paradigms.bayesian.laws.normal import broadcasts, normal_log_prob

Split = Callable[[Tensor], dict[str, Tensor]]  # a vector of weights [..., n] to {name: [..., *shape]}
Divergence = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def prior_of(prior: Any, name: str, parameter: Tensor) -> Distribution:
    """The prior of one parameter, in its dtype and on its device; its shape broadcasts to the parameter's.

    It is given as a distribution (of Pyro or torch) for every weight, or a function (name, parameter) -> distribution;
    None is the standard normal.
    """
    return placed(law_of(prior, name, parameter), name, parameter)


def law_of(prior: Any, name: str, parameter: Tensor) -> Distribution:
    """The prior of one parameter, in the dtype and on the device it was given in; see ``prior_of``."""
    if prior is None:
        return Normal(0.0, 1.0)
    if callable(prior) and not isinstance(prior, Distribution):
        prior = prior(name, parameter)
    if not isinstance(prior, Distribution):
        raise InvalidType(
            f"prior of {name!r} is {kind_of(prior)}; expected a distribution such as "
            "pyro.distributions.Normal(0., 1.), or a function (name, parameter) -> distribution"
        )
    while isinstance(prior, Independent):
        prior = prior.base_dist
    try:
        real = prior.support is constraints.real
    except NotImplementedError:
        real = False
    if prior.event_shape or not real:
        raise InvalidValue(
            f"prior of {name!r} is {prior}; expected a distribution of real numbers, one for each weight"
        )
    own, shape = tuple(prior.batch_shape), tuple(parameter.shape)
    if not broadcasts(own, shape):
        raise InvalidValue(f"prior of {name!r} has shape {own}; the parameter has {shape}")
    return prior  # type: ignore[no-any-return]


def placed(law: Distribution, name: str, parameter: Tensor) -> Distribution:
    """A law in the dtype and on the device of its parameter, where that is known how; it must have a density there."""
    try:
        taken = {key: getattr(law, key).detach().to(parameter) for key in law.arg_constraints}
        moved = type(law)(**taken) if taken else law
    except (TypeError, AttributeError, ValueError):  # made of other distributions, or of numbers out of range
        moved = law
    if not log_prob_of(moved)(parameter.detach()).isfinite().all():
        raise InvalidValue(f"prior of {name!r} has a log density that is NaN or infinite at the initial weights")
    return moved


def log_prob_of(law: Distribution) -> Callable[[Tensor], Tensor]:
    """Its log density by entry, without a check of the values; few operations where it is a normal of torch."""
    if type(law) is Normal:
        one = law.loc.numel() == 1 == law.scale.numel()
        loc, scale = (float(law.loc), float(law.scale)) if one else (law.loc, law.scale)
        return lambda x: normal_log_prob(x, loc, scale)
    if law._validate_args:
        law = law.expand(law.batch_shape)  # a copy: the user's keeps its flag
        law._validate_args = False
    log_prob: Callable[[Tensor], Tensor] = law.log_prob
    return log_prob


def divergence(priors: dict[str, Distribution], split: Split, like: Tensor, exact: bool) -> tuple[Divergence, bool]:
    """KL(q || prior) of the weights of one stage, q = N(loc, scale^2), from the prior of each parameter.

    With ``exact`` in closed form where it is known; otherwise log q(w) - log p(w) at the draw. Returns a function of
    loc ``[n]``, scale ``[n]`` and draws ``[S, n]`` to a number or ``[S]``; and whether it looks at the draws.
    """
    if exact and all(isinstance(prior, Normal) for prior in priors.values()):
        return _normal(*(_moment(priors, field, split, like) for field in ("loc", "scale"))), False
    terms = {key: _term(prior, exact) for key, prior in priors.items()}

    def total(loc: Tensor, scale: Tensor, draw: Tensor | None) -> Tensor:
        means, scales = split(loc), split(scale)
        draws: dict[str, Any] = dict.fromkeys(terms) if draw is None else split(draw)
        found = [term(means[key], scales[key], draws[key]) for key, (term, _) in terms.items()]
        return sum(found[1:], found[0])

    return total, any(samples for _, samples in terms.values())


def _moment(priors: dict[str, Any], field: str, split: Split, like: Tensor) -> Tensor:
    """Means or standard deviations of normal priors: a vector ``[n]``, or a number when they are all the same."""
    vector = torch.zeros_like(like)
    for key, part in split(vector).items():
        part.copy_(getattr(priors[key], field))
    return vector[0] if bool((vector == vector[0]).all()) else vector


def _normal(mean: Tensor, scale: Tensor) -> Divergence:
    """KL(N(m, s^2) || N(a, b^2)), summed: (s^2 + (m - a)^2) / 2 b^2 - log s + log b - 1/2."""
    half, shift = 0.5 / scale.square(), scale.log() - 0.5
    if mean.dim() == 0 and scale.dim() == 0 and float(mean) == 0:
        each, precision = float(shift), float(half)
        # Few operations, since each costs more than its arithmetic on so few numbers.
        return lambda loc, s, draw: (
            precision * (torch.dot(s, s) + torch.dot(loc, loc)) - s.log().sum() + each * len(loc)
        )
    return lambda loc, s, draw: ((s.square() + (loc - mean).square()) * half - s.log() + shift).sum()


def _term(prior: Distribution, exact: bool) -> tuple[Callable[..., Tensor], bool]:
    if exact:
        try:
            kl_divergence(Normal(torch.zeros((), device="cpu"), torch.ones((), device="cpu")), prior)
            return lambda loc, scale, w: kl_divergence(Normal(loc, scale, validate_args=False), prior).sum(), False
        except NotImplementedError:
            pass

    log_prior = log_prob_of(prior)

    def sampled(loc: Tensor, scale: Tensor, w: Tensor) -> Tensor:
        return (normal_log_prob(w, loc, scale) - log_prior(w)).reshape(len(w), -1).sum(1)

    return sampled, True
