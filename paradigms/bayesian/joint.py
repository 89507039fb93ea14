"""The log joint density of a Pyro model as a function of its latents, vectorised over draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.population import mixed_seed
from paradigms.bayesian.posterior import pyro_package

Latents = dict[str, Tensor]


class Arguments:
    """What a Pyro model is called with, and which part of it holds the observations.

    Args:
        data: a tuple of arguments, a dict of keyword arguments, or a single tensor.
        size: N, or None to read it off the tensors, which then all need the leading axis N.

    Raises:
        InvalidType: something else.
        InvalidValue: N is not known.
    """

    def __init__(self, data: Any, size: int | None) -> None:
        if isinstance(data, Tensor):
            data = (data,)
        if not isinstance(data, tuple | list | dict):
            raise InvalidType(
                f"data is a {type(data).__name__}; expected the tuple of the model's arguments, or a dict of its "
                "keyword arguments"
            )
        self.named = isinstance(data, dict)
        self.values: dict[Any, Any] = dict(data) if isinstance(data, dict) else dict(enumerate(data))
        lengths = {key: len(v) for key, v in self.values.items() if isinstance(v, Tensor) and v.dim() > 0}
        if size is None and len(set(lengths.values())) != 1:
            why = "no argument is a tensor" if not lengths else f"the arguments have leading axes {lengths}"
            raise InvalidValue(f"N is missing: {why}; pass size=N, the number of observations")
        self.size: int = next(iter(lengths.values())) if size is None else size
        self.rows = [key for key, length in lengths.items() if length == self.size]

    def call(self, function: Callable[..., Any], rows: dict[Any, Tensor] | None = None) -> Any:
        """Calls a function with these arguments, some of them replaced."""
        values = {**self.values, **(rows or {})}
        return function(**values) if self.named else function(*values.values())

    def batches(self, batch_size: int | None, seed: int) -> mfoc.Population:
        """Rows of the arguments that hold the observations, as the state of a population.

        Raises:
            InvalidValue: no argument can be split into batches.
        """
        if not self.rows:
            raise InvalidValue("batch_size was given, and no argument of the model is a tensor with leading axis N")
        rows = mfoc.Particles({key: self.values[key] for key in self.rows})
        return mfoc.population(rows, batch_size=batch_size, seed=seed)

    def take(self, rows: dict[Any, Tensor]) -> Arguments:
        """The same arguments with other rows."""
        taken = copy.copy(self)
        taken.values = {**self.values, **rows}
        return taken


@contextmanager
def quiet() -> Iterator[None]:
    """Pyro without validation, whose checks vmap cannot pass, and away from its parameter store; both put back."""
    pyro = pyro_package()
    checked = torch.distributions.Distribution._validate_args
    try:
        with pyro.validation_enabled(False), pyro.get_param_store().scope():
            yield
    finally:  # Pyro puts torch's flag to its own
        torch.distributions.Distribution.set_default_validate_args(checked)


def prototype(model: Callable[..., Any], arguments: Arguments) -> Any:
    """One trace of the model, with its own random numbers.

    Raises:
        InvalidValue: no latent, discrete latents, ``pyro.param``, or subsampling inside of the model.
    """
    pyro = pyro_package()
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.manual_seed(mixed_seed(0, 5))
        try:
            trace = arguments.call(pyro.poutine.block(pyro.poutine.trace(model).get_trace))
        except (ValueError, RuntimeError, TypeError, LookupError, NotImplementedError) as error:
            raise InvalidValue(f"the model cannot be run on these data: {error}") from error
    latents = 0
    for name, site in trace.nodes.items():
        if site["type"] == "param":
            raise InvalidValue(
                f"the model has a parameter {name!r} (pyro.param); give it a prior, or make it a constant"
            )
        if site["type"] != "sample":
            continue
        if type(site["fn"]).__name__ == "_Subsample":
            if site["fn"].size != (site["fn"].subsample_size or site["fn"].size):
                raise InvalidValue(f"plate {name!r} draws a subsample; leave that out and pass batch_size")
            continue
        if site["is_observed"]:
            continue
        latents += 1
        if site["fn"].has_enumerate_support or site["fn"].support.is_discrete:
            raise InvalidValue(
                f"latent {name!r} is discrete ({type(site['fn']).__name__}) and has no gradient; sum it out"
            )
    if not latents:
        raise InvalidValue("the model has no latent variable; there is nothing to infer")
    return pyro.poutine.util.prune_subsample_sites(trace)


class Joint:
    """log p of latents and of observations, for S draws at once.

    Args:
        model: the Pyro model.
        arguments: its arguments.
        names: the latents.
    """

    def __init__(self, model: Callable[..., Any], arguments: Arguments, names: Sequence[str]) -> None:
        self._model, self._arguments, self._names = model, arguments, frozenset(names)

    def __call__(self, latents: Latents, rows: dict[Any, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The log of p(latents) and log p(observations | latents), each ``[S]``, from latents ``{name: [S, ...]}``.

        Args:
            latents: values in the latents' own supports.
            rows: the rows of the batch, by argument; None for all.

        Raises:
            InvalidValue: the model cannot be vectorised.
        """
        with quiet():
            try:
                prior, observed = torch.func.vmap(lambda one: self._one(one, rows))(latents)
            except RuntimeError as error:
                raise InvalidValue(
                    f"the model cannot be vectorised over draws ({error}); it must not branch on its latents or turn "
                    "them into numbers (.item())"
                ) from error
        return prior, observed

    def _one(self, latents: Latents, rows: dict[Any, Tensor] | None) -> tuple[Tensor, Tensor]:
        poutine = pyro_package("pyro.poutine")
        with poutine.block():
            trace = self._arguments.call(poutine.trace(poutine.condition(self._model, data=latents)).get_trace, rows)
        trace.compute_log_prob(lambda name, site: type(site["fn"]).__name__ != "_Subsample")
        like = next(iter(latents.values()))
        prior, observed = like.new_zeros(()), like.new_zeros(())
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and "log_prob_sum" in site:
                if name in self._names:
                    prior = prior + site["log_prob_sum"]
                else:
                    observed = observed + site["log_prob_sum"]
        return prior, observed
