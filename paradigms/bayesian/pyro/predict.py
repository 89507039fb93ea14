"""Predictions of Pyro guides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mfoc import InvalidValue, require
from paradigms.bayesian.laws.prediction import Prediction, of_classes, of_numbers
from paradigms.bayesian.pyro.trace import model_of, store_kept


def is_guide(posterior: Any) -> bool:
    """Whether it looks like a guide of Pyro."""
    return callable(posterior) and "model" in dir(posterior)  # asking for the attribute may fail


def of_guide(guide: Any, arguments: Any, samples: int, seed: int, site: str | None) -> Prediction:
    """The posterior predictive law of a guide; see ``predict``."""
    args, kwargs = ((), arguments) if isinstance(arguments, dict) else (_tuple(arguments), {})
    laws = [_bare(law) for law in _laws(guide, args, kwargs, samples, seed, site)]
    first = laws[0]
    classes = isinstance(first, torch.distributions.Categorical)
    shape = first.batch_shape + first.event_shape

    def log_probs(y: Any) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != shape:
            what = f"has shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"is a {type(y).__name__}"
            raise InvalidValue(f"y {what}; the predictions are of a tensor of shape {tuple(shape)}")
        if classes and (y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= first.probs.shape[-1]):
            raise InvalidValue(f"y must hold integer labels from 0 to {first.probs.shape[-1] - 1}")
        try:
            each = torch.stack([law.log_prob(y) for law in laws])
        except ValueError as error:
            raise InvalidValue(f"y is outside of what can be observed: {error}") from error
        return each.flatten(2).sum(2) if each.dim() > 2 else each.view(samples, -1)

    if classes:
        return of_classes(torch.stack([law.probs for law in laws]), log_probs)
    try:
        means, variances = (torch.stack([getattr(law, what) for law in laws]) for what in ("mean", "variance"))
    except (NotImplementedError, AttributeError) as error:
        raise InvalidValue(
            f"the law of the observations, {type(first).__name__}, has no mean or variance to predict"
        ) from error
    return of_numbers(means, variances, log_probs)


def _tuple(arguments: Any) -> tuple[Any, ...]:
    return tuple(arguments) if isinstance(arguments, tuple | list) else (arguments,)


def _bare(law: Any) -> Any:
    """A law without masks, and with axes of events that were declared as such put back into the batch."""
    while type(law).__name__ in ("Independent", "MaskedDistribution"):
        law = law.base_dist
    return law


def _laws(guide: Any, args: Any, kwargs: Any, samples: int, seed: int, site: str | None) -> Iterator[Any]:
    """The law of an observation in each of the drawn models."""
    poutine, model = require("pyro", "bayes").poutine, model_of(guide)
    devices = [p.device for p in getattr(guide, "parameters", list)() if p.device.type == "cuda"][:1]
    with torch.no_grad(), torch.random.fork_rng(devices=devices), store_kept():
        torch.manual_seed(seed)
        for _ in range(samples):
            try:
                with poutine.block():
                    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
                    trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args, **kwargs)
            except Exception as error:  # whatever the user's model raises
                raise InvalidValue(f"the guide or its model cannot be run on these arguments: {error}") from error
            others = [name for name, node in trace.nodes.items() if name not in drawn.nodes and _is_law(node)]
            name = others[0] if site is None and len(others) == 1 else site
            if name not in others:
                raise InvalidValue(f"site is {site!r}; the model's sites besides its latents are {others}")
            yield trace.nodes[name]["fn"]


def _is_law(node: Any) -> bool:
    """Whether a site is drawn or observed: no value computed from others, no factor, no choice of a subsample."""
    if node["type"] != "sample" or node["infer"].get("_deterministic"):
        return False
    return type(_bare(node["fn"])).__name__ not in ("Unit", "_Subsample")
