"""Predictions of a law over networks: the mean, and what is uncertain about it and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_integer
from paradigms.bayesian.laws.likelihoods import Categorical, Gaussian
from paradigms.bayesian.laws.prediction import Drawable, Prediction, of_classes, of_numbers
from paradigms.bayesian.pyro.predict import is_guide, of_guide


def predict(
    posterior: Any, x: Any, *, samples: int = 100, seed: int = 0, batch_size: int = 1024, site: str | None = None
) -> Prediction:
    """The posterior predictive law.

    Args:
        posterior: what the readout of ``variational`` returned, a ``NetworkPosterior`` or a Pyro guide; for draws of a
            sampler ``ensemble(net, draws, likelihood=...)``; or anything else with ``outputs`` and ``likelihood``.
        x: inputs ``[B, ...]``; for a Pyro guide the tuple (or dict) of the model's arguments, observations included
            where the model needs them (they do not enter). A Pyro guide takes its parameters, and the model's, from
            the parameter store, as it does whenever it is called; the store is left as it was.
        samples: draws S.
        seed: of the draws.
        batch_size: inputs that a network sees at once.
        site: for a Pyro guide, the site to predict; the one that is neither a latent, ``pyro.deterministic`` nor a
            ``pyro.factor`` when None. Its law is taken entry by entry: ``to_event`` and masks do not matter, and the
            first axis is that of the observations.

    Raises:
        InvalidType: a posterior that cannot be drawn from.
        InvalidValue: bad counts, inputs that the network or model cannot take, or no such site.
    """
    check_integer(1, samples=samples, batch_size=batch_size)
    check_integer(0, seed=seed)
    if isinstance(posterior, mfoc.Solution):
        raise InvalidType("posterior is an mfoc.Solution; read it out first: formulation.readout(solution)")
    if isinstance(posterior, Drawable):
        return _of_networks(posterior, x, samples, seed, batch_size)
    if is_guide(posterior):
        return of_guide(posterior, x, samples, seed, site)
    hint = "; make draws of weights an ensemble(net, draws, likelihood=...)" if isinstance(posterior, dict) else ""
    raise InvalidType(
        f"posterior is a {type(posterior).__name__}; expected what the readout of variational(...) returns{hint}"
    )


def _of_networks(posterior: Drawable, x: Any, samples: int, seed: int, batch_size: int) -> Prediction:
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidType(f"x is a {type(x).__name__}; expected a tensor of inputs [B, ...]") from error
    if x.dim() == 0 or not len(x):
        raise InvalidValue(f"x has shape {tuple(x.shape)}; expected inputs [B, ...]")
    if not x.isfinite().all():
        raise InvalidValue("x holds NaN or infinite values")
    with torch.no_grad():
        try:
            parts = [posterior.outputs(part, samples, seed=seed) for part in x.split(batch_size)]
        except (RuntimeError, IndexError) as error:
            raise InvalidValue(
                f"the network cannot take inputs x of shape {tuple(x.shape)}; expected {_inputs(posterior)}: {error}"
            ) from error
    if isinstance(parts[0], tuple):
        outputs: Any = (torch.cat([mean for mean, _ in parts], 1), parts[0][1])
    else:
        outputs = torch.cat(parts, 1)
    likelihood = posterior.likelihood
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    likelihood.check_output(first[0])

    def log_probs(y: Any) -> Tensor:
        likelihood.check(first[0], y)
        return likelihood.log_prob(outputs, tree.map(lambda leaf: leaf[None], y))

    if isinstance(likelihood, Categorical):
        return of_classes(outputs.softmax(-1), log_probs)
    if isinstance(likelihood, Gaussian):
        mean, noise = likelihood.split(outputs)
        return of_numbers(mean, noise.square().expand(mean.shape), log_probs)
    return of_numbers(outputs, None, log_probs)


def _inputs(posterior: Any) -> str:
    """What a law over networks takes, in words."""
    example = getattr(posterior, "example", None)
    if example is not None:
        return f"[B, {', '.join(map(str, example[0].shape[1:]))}], as in its data".replace("[B, ]", "[B]")
    layers = posterior.net.modules() if isinstance(getattr(posterior, "net", None), nn.Module) else ()
    first = next((layer for layer in layers if any(True for _ in layer.parameters(recurse=False))), None)
    return "[B, ...]" if first is None else f"[B, ...] as its first layer takes them, {first}"
