"""Pyro models from outside: what they are called with, their latents, and their densities as functions of them.

Whatever is done here leaves the user's parameter store, random generators and flags of validation as they were.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfoc import InvalidType, InvalidValue, require, tree
from mfoc.checks import kind_of
from mfoc.printing import by_identity
from mfoc.seeding import mixed_seed, seeded
from paradigms.bayesian.laws.normal import unvalidated
from paradigms.bayesian.pyro import enumeration
from paradigms.bayesian.pyro.supports import same_support


class Arguments:
    """A tuple of arguments, a dict of keyword arguments or a single tensor, by place or name: ``values``.

    ``lengths`` are the leading axes of those that are tensors.
    """

    def __init__(self, data: Any) -> None:
        if isinstance(data, Tensor):
            data = (data,)
        if not isinstance(data, tuple | list | dict):
            raise InvalidType(
                f"data is {kind_of(data)}; expected the tuple of the model's arguments, or a dict of its "
                "keyword arguments"
            )
        self._named = isinstance(data, dict)
        self.values: dict[Any, Any] = dict(data) if isinstance(data, dict) else dict(enumerate(data))
        self.lengths = {key: len(v) for key, v in self.values.items() if isinstance(v, Tensor) and v.dim() > 0}

    def size(self, given: int | None) -> int:
        """The number of observations N: as given, or the leading axis that all tensors have."""
        if given is not None:
            return given
        if len(set(self.lengths.values())) != 1:
            why = f"the arguments have leading axes {self.lengths}" if self.lengths else "no argument is a tensor"
            raise InvalidValue(f"N is missing: {why}; pass size=N, the number of observations")
        size = next(iter(self.lengths.values()))
        if size == 0:
            raise InvalidValue("data is empty; expected at least one observation")
        return size

    def rows(self, size: int) -> dict[Any, Tensor]:
        """The arguments that hold the observations: those with leading axis N."""
        return {key: self.values[key] for key, length in self.lengths.items() if length == size}

    def call(self, function: Callable[..., Any], rows: Mapping[Any, Tensor] | None = None) -> Any:
        """Calls a function with these arguments, some of them replaced."""
        values = {**self.values, **(rows or {})}
        return function(**values) if self._named else function(*values.values())

    def take(self, rows: Mapping[Any, Tensor]) -> Arguments:
        """The same arguments with other rows."""
        taken = copy.copy(self)
        taken.values = {**self.values, **rows}
        return taken


@contextmanager
def quietly() -> Iterator[None]:
    """Without Pyro's and torch's checks of values, which no ``vmap`` can run, and with an empty parameter store."""
    pyro = require("pyro", "bayes")
    with unvalidated(), pyro.validation_enabled(False), pyro.get_param_store().scope():  # Pyro sets torch's flag, too
        yield


@contextmanager
def store_kept() -> Iterator[None]:
    """With the user's parameter store, which is as it was afterwards."""
    store = require("pyro", "bayes").get_param_store()
    with store.scope(store.get_state()):
        yield


def prototype(model: Callable[..., Any], arguments: Arguments, *, seed: int = 0) -> Any:
    """One trace of a model, with its own random numbers and the parameters that are in the store.

    Refuses a model that fails, has no latent but those that are summed out, other discrete latents or ones that cannot
    be unconstrained, or draws a subsample.
    """
    poutine = require("pyro", "bayes").poutine
    hint = "; a network needs likelihood=" if isinstance(model, torch.nn.Module) else ""
    try:
        with store_kept(), seeded(mixed_seed(seed, 5)), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of log densities that are not finite, which callers refuse
            trace = arguments.call(poutine.block(poutine.trace(model).get_trace))
            trace.compute_log_prob(lambda name, site: site["is_observed"])  # refuses values outside of the support
    except Exception as error:  # whatever the user's model raises
        raise InvalidValue(f"the Pyro model cannot be run on these data: {error}{hint}") from error
    for name, site in trace.nodes.items():
        if _subsample(site):
            if site["fn"].subsample_size not in (None, site["fn"].size):
                raise InvalidValue(
                    f"plate {name!r} draws a subsample, so the log density is random; leave that out, give all data, "
                    "and batches with batch_size (variational) or size (log_density)"
                )
        elif site["type"] == "sample" and not site["is_observed"] and not enumeration.is_summed(site):
            _check_latent(name, site["fn"])
    trace = poutine.util.prune_subsample_sites(trace)
    if not enumeration.latents(trace):
        others = f" but {sorted(enumeration.summed(trace))}, summed out" if enumeration.summed(trace) else ""
        raise InvalidValue(f"the Pyro model has no latent variable{others}; there is nothing to infer{hint}")
    if (nesting := enumeration.nesting_of(trace)) is not None:
        with store_kept(), seeded(mixed_seed(seed, 6)), torch.no_grad():
            enumeration.check(arguments.call, model, trace, nesting)
    return trace


def _subsample(site: Mapping[str, Any]) -> bool:
    return type(site.get("fn")).__name__ == "_Subsample"


def _check_latent(name: str, law: Any) -> None:
    if law.has_enumerate_support or law.support.is_discrete:
        raise InvalidValue(enumeration.refusal(name, law))
    try:
        torch.distributions.biject_to(law.support)
    except NotImplementedError as error:
        raise InvalidValue(
            f"the latent {name!r} ({type(law).__name__}) has the support {law.support}, which is not the image of a "
            "vector space; reparametrise it (pyro.poutine.reparam)"
        ) from error


def parameters(trace: Any) -> dict[str, Tensor]:
    """The values of ``pyro.param`` in a trace."""
    return {name: site["value"].detach().clone() for name, site in trace.nodes.items() if site["type"] == "param"}


def unconstrained(trace: Any) -> dict[str, Tensor]:
    """The latents of a trace on the line, in order."""
    return {
        name: torch.distributions.biject_to(site["fn"].support).inv(site["value"]).detach()
        for name, site in enumeration.latents(trace).items()
    }


def prior_draws(
    model: Callable[..., Any], arguments: Arguments, params: Mapping[str, Tensor], n: int, seed: int
) -> list[dict[str, Tensor]]:
    """The latents of n runs of a model on the line: draws of its prior, whatever was observed. A run for each."""
    poutine = require("pyro", "bayes").poutine
    devices = {value.device for value in arguments.values.values() if isinstance(value, Tensor) and value.is_cuda}
    drawn = []
    with quietly(), torch.no_grad(), seeded(seed, next(iter(devices), None)):
        for _ in range(n):
            with poutine.block(), poutine.trace() as tracer, _placed({}, params):
                arguments.call(model)
            drawn.append(unconstrained(poutine.util.prune_subsample_sites(tracer.trace)))
    return drawn


def check_batch(whole: Any, part: Any, *, instead: str) -> None:
    """Refuses a model whose observations on a batch do not stand for all of them, times N / B, from traces on both.

    Its latents grow with the data, their supports move with them, its observations are the same in every batch, or are
    scaled already. ``instead`` is what the user can do.
    """
    enumeration.check_batch(whole, part, instead=instead)
    own = enumeration.latents(whole)
    for name, site in enumeration.latents(part).items():
        if name not in own or site["value"].shape != own[name]["value"].shape:
            raise InvalidValue(
                f"latent {name!r} has one entry for each observation, so a batch has other latents; {instead}"
            )
        if not same_support(site["fn"].support, own[name]["fn"].support):
            raise InvalidValue(f"the support of latent {name!r} depends on the data, so a batch has another; {instead}")
    for name in part.observation_nodes:
        site = part.nodes[name]
        if site["infer"].get("_deterministic"):
            continue
        if name in whole.nodes and site["value"].shape == whole.nodes[name]["value"].shape:
            raise InvalidValue(
                f"{name!r} is observed once for all data, not once for each observation, and a batch counts N / B "
                f"times; {instead}"
            )
        if float(tree.tensor_of(site["scale"]).max()) != 1:
            raise InvalidValue(
                f"the model scales its observations ({name!r}) to the whole data; leave that out: a batch counts for N"
            )


@by_identity
class Joint(NamedTuple):
    """Log densities of a model at some latents; ``prior + volume`` is that of the unconstrained latents."""

    prior: Tensor  # of the latents, in their own supports
    observed: Tensor  # of the observations given the latents
    volume: Tensor  # the log Jacobian of the map from the line to the supports
    values: dict[str, Tensor]  # the latents in their own supports


def evaluate(
    model: Callable[..., Any],
    arguments: Arguments,
    free: dict[str, Tensor],
    *,
    rows: Mapping[Any, Tensor] | None = None,
    params: Mapping[str, Tensor] | None = None,
    jacobian: bool = True,
    nesting: int | None = None,
) -> Joint:
    """The log joint density of a model at unconstrained latents ``free``, with some rows of its arguments.

    Each latent is mapped to the support its site has in this very run, so supports may depend on other latents. Without
    ``jacobian`` by ``transform_to``, as parameters are, which need not be one to one, and the volume is zero.
    ``params`` are values of ``pyro.param``; the store is not asked for them. With ``nesting``, how deep the plates are
    nested, the latents that are marked for it are summed out.
    """
    poutine = require("pyro", "bayes").poutine
    placing, summing = _placed(free, params or {}, jacobian), enumeration.enumerating(nesting)
    with poutine.block(), poutine.trace() as tracer, placing as placed, summing:  # the last is asked first
        arguments.call(model, rows)
    trace = poutine.util.prune_subsample_sites(tracer.trace)
    trace.compute_log_prob()
    like = next(iter(free.values()))
    prior, observed = like.new_zeros(()), like.new_zeros(())
    if nesting is not None:
        prior, observed = enumeration.marginal(trace, free.keys())
    else:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and name in free:
                prior = prior + site["log_prob_sum"]
            elif site["type"] == "sample" and site["is_observed"]:
                observed = observed + site["log_prob_sum"]
    return Joint(prior, observed, sum(placed.volumes, start=like.new_zeros(())), placed.values)


def _placed(free: Mapping[str, Tensor], params: Mapping[str, Tensor], jacobian: bool = True) -> Any:
    """A Pyro messenger that puts transformed values at the latent sites, and values at the parameters."""

    class Placed(require("pyro", "bayes").poutine.messenger.Messenger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.values: dict[str, Tensor] = {}
            self.volumes: list[Tensor] = []

        def _pyro_sample(self, msg: Any) -> None:
            name = msg["name"]
            if name not in free or msg["is_observed"]:
                return
            to = torch.distributions.biject_to if jacobian else torch.distributions.transform_to
            transform = to(msg["fn"].support)
            value = transform(free[name])
            if jacobian:
                self.volumes.append(transform.log_abs_det_jacobian(free[name], value).sum())
            self.values[name] = msg["value"] = value
            msg["done"] = True

        def _pyro_param(self, msg: Any) -> None:
            if msg["name"] in params:
                msg["value"] = params[msg["name"]]
                msg["done"] = True

    return Placed()
