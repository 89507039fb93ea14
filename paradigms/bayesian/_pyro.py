"""A Pyro model as a function of one vector of unconstrained numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidType, InvalidValue, MissingExtra


def pyro() -> Any:
    """The package pyro.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import_module("pyro.infer")
        import_module("pyro.infer.autoguide.initialization")
        return import_module("pyro")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "this needs 'pyro-ppl', which is not installed: pip install 'mfoc[bayes]'", name=error.name
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without Pyro's and torch's checks of values, which no ``vmap`` can run; their flags are restored."""
    checked = torch.distributions.Distribution._validate_args
    try:
        with pyro().validation_enabled(False):
            yield
    finally:  # Pyro puts torch's flag to its own
        torch.distributions.Distribution.set_default_validate_args(checked)


def latents(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The latent sites of a model, in order: name -> an unconstrained value.

    Raises:
        InvalidType: a latent is discrete.
        InvalidValue: the model fails, draws a subsample, or has no latent.
    """
    ppl = pyro()
    start = ppl.infer.autoguide.initialization.InitMessenger(ppl.infer.autoguide.initialization.init_to_sample)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            trace = ppl.poutine.block(ppl.poutine.trace(start(model)).get_trace)(*args, **kwargs)
    except Exception as error:  # whatever the user's model raises
        raise InvalidValue(f"the Pyro model cannot be run with these data: {error}") from error
    found = {}
    for name, site in trace.iter_stochastic_nodes():
        if type(site["fn"]).__name__ == "_Subsample":
            if site["fn"].subsample_size not in (None, site["fn"].size):
                raise InvalidValue(
                    f"plate {name!r} draws a subsample, so the log density is random; give all data, and batches "
                    "with size="
                )
            continue
        if site["fn"].support.is_discrete:
            raise InvalidType(
                f"the latent {name!r} is discrete; a density has continuous latents only: marginalise it "
                "(pyro.infer.config_enumerate does it for pyro's own samplers)"
            )
        transform = torch.distributions.biject_to(site["fn"].support)
        found[name] = transform.inv(site["value"]).detach()
    if not found:
        raise InvalidValue("the Pyro model has no latent site; there is nothing to sample")
    return found


def evaluate(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    free: dict[str, Tensor],
    scale: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The log joint density of a model at unconstrained latents, and the latents.

    The log density is that of the unconstrained latents: the log Jacobian of each transform is added, each made for
    the support its site has in this very run.

    Args:
        model: the model.
        args: what it is called with.
        kwargs: what it is called with.
        free: unconstrained latents by name.
        scale: a factor on the log likelihood of the observed sites.
    """
    ppl = pyro()
    placed = _placed(free)
    with placed:
        trace = ppl.poutine.trace(model).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    observed = [s for s in trace.nodes.values() if s["type"] == "sample" and s["is_observed"]]
    total = sum((site["log_prob_sum"] for site in observed), start=torch.zeros(()))
    prior = [trace.nodes[name]["log_prob_sum"] for name in free]
    return scale * total + sum(prior) + sum(placed.jacobians), placed.values


def _placed(free: dict[str, Tensor]) -> Any:
    """A Pyro messenger that puts transformed values at the latent sites."""

    class Placed(pyro().poutine.messenger.Messenger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.values: dict[str, Tensor] = {}
            self.jacobians: list[Tensor] = []

        def _pyro_sample(self, msg: Any) -> None:
            name = msg["name"]
            if name not in free or msg["is_observed"]:
                return
            transform = torch.distributions.biject_to(msg["fn"].support)
            value = transform(free[name])
            self.jacobians.append(transform.log_abs_det_jacobian(free[name], value).sum())
            self.values[name] = msg["value"] = value
            msg["done"] = True

    return Placed()
