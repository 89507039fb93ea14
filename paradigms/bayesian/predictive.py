"""Predictions of a law over networks: the mean, and what is uncertain about it and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, MfocError, require, tree
from mfoc.checks import check_instance, check_integer, kind_of
from mfoc.seeding import seeded
from paradigms.bayesian.laws.likelihoods import Categorical, Gaussian
from paradigms.bayesian.laws.prediction import Drawable, Prediction, of_classes, of_numbers, tree_of_numbers
from paradigms.bayesian.pyro.guides import model_of
from paradigms.bayesian.pyro.trace import Arguments, store_kept


def predict(
    posterior: Any, x: Any, *, samples: int = 100, seed: int = 0, batch_size: int = 1024, site: str | None = None
) -> Prediction:
    """The posterior predictive law.

    Args:
        posterior: what the readout of ``variational`` returned, a ``NetworkPosterior`` or a Pyro guide; for draws of a
            sampler ``ensemble(net, draws, likelihood=...)``; or anything else with ``outputs`` and ``likelihood``.
        x: inputs ``[B, ...]``, of a network of several a tuple or dict of them; for a Pyro guide the tuple (or dict) of
            the model's arguments, observations included where the model needs them (they do not enter). A Pyro guide
            takes its parameters, and the model's, from the parameter store, as it does whenever it is called; the store
            is left as it was.
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
    if callable(posterior) and "model" in dir(posterior):  # a guide; asking for the attribute may fail
        return _of_guide(posterior, x, samples, seed, site)
    hint = "; make draws of weights an ensemble(net, draws, likelihood=...)" if isinstance(posterior, dict) else ""
    raise InvalidType(f"posterior is {kind_of(posterior)}; expected what the readout of variational(...) returns{hint}")


def _of_networks(posterior: Drawable, x: Any, samples: int, seed: int, batch_size: int) -> Prediction:
    x = _checked_inputs(x)
    batches = zip(*(leaf.split(batch_size) for leaf in tree.leaves(x)), strict=True)
    with torch.no_grad():
        try:
            parts = [posterior.outputs(tree.rebuild(x, batch), samples, seed=seed) for batch in batches]
        except Exception as error:
            cause = error.__cause__ if isinstance(error, MfocError) else error  # of the user's forward pass
            if not isinstance(cause, Exception) or isinstance(cause, MfocError):
                raise
            raise InvalidValue(
                f"the network cannot take inputs x of shape {_shape(x)}; expected {_inputs(posterior)}: {cause}"
            ) from error
    likelihood = posterior.likelihood
    noisy = isinstance(likelihood, Gaussian) and likelihood.noise is None  # pairs of an output and a learned noise
    made = tree.map(lambda *leaves: torch.cat(leaves, 1), *(part[0] if noisy else part for part in parts))
    outputs: Any = (made, parts[0][1]) if noisy else made
    first = tree.map(lambda leaf: leaf[0], made)
    likelihood.check_output(first)

    def log_probs(y: Any) -> Tensor:
        likelihood.check(first, y)
        return likelihood.log_prob(outputs, tree.map(lambda leaf: leaf[None], y))

    if isinstance(likelihood, Categorical):
        return of_classes(outputs.softmax(-1), log_probs)
    if isinstance(likelihood, Gaussian):
        mean, noise = likelihood.split(outputs)
        return of_numbers(mean, noise.square().expand(mean.shape), log_probs)
    return tree_of_numbers(outputs, log_probs)


def _checked_inputs(x: Any) -> Any:
    """Inputs ``[B, ...]``: a tensor, or a tuple or dict of tensors of one length."""
    several = isinstance(x, tuple | dict) and bool(x) and all(isinstance(leaf, Tensor) for leaf in tree.leaves(x))
    if not several:
        try:
            x = tree.tensor_of(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidType(
                f"x is {kind_of(x)}; expected a tensor of inputs [B, ...], or a tuple or dict of tensors"
            ) from error
    leaves: list[Tensor] = tree.leaves(x)
    if any(leaf.dim() == 0 or not len(leaf) for leaf in leaves) or len({len(leaf) for leaf in leaves}) != 1:
        raise InvalidValue(f"x has shape {_shape(x)}; expected inputs [B, ...]")
    if not all(leaf.isfinite().all() for leaf in leaves):
        raise InvalidValue("x holds NaN or infinite values")
    return x


def _shape(x: Any) -> str:
    return str(tuple(x.shape)) if isinstance(x, Tensor) else tree.describe(x)


def _inputs(posterior: Any) -> str:
    """What a law over networks takes, in words."""
    example = getattr(posterior, "example", None)
    if example is not None and not isinstance(example[0], Tensor):
        return f"{tree.describe(example[0])}, as in its data but for their number"
    if example is not None:
        return f"[B, {', '.join(map(str, example[0].shape[1:]))}], as in its data".replace("[B, ]", "[B]")
    layers = posterior.net.modules() if isinstance(getattr(posterior, "net", None), nn.Module) else ()
    first = next((layer for layer in layers if any(True for _ in layer.parameters(recurse=False))), None)
    return "[B, ...]" if first is None else f"[B, ...] as its first layer takes them, {first}"


def _of_guide(guide: Any, arguments: Any, samples: int, seed: int, site: str | None) -> Prediction:
    """The posterior predictive law of a guide; see ``predict``."""
    call = Arguments(arguments if isinstance(arguments, tuple | list | dict) else (arguments,)).call
    laws = [_bare(law) for law in _laws(guide, call, samples, seed, site)]
    first = laws[0]
    classes = isinstance(first, torch.distributions.Categorical)
    shape = first.batch_shape + first.event_shape

    def log_probs(y: Any) -> Tensor:
        check_instance(Tensor, f"a tensor of shape {tuple(shape)}, as the predictions are", y=y)
        if y.shape != shape:
            raise InvalidValue(f"y has shape {tuple(y.shape)}; the predictions are of shape {tuple(shape)}")
        if classes and y.is_floating_point():
            raise InvalidType(f"y has dtype {y.dtype}; expected integer labels")
        if classes and (int(y.min()) < 0 or int(y.max()) >= first.probs.shape[-1]):
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


def _bare(law: Any) -> Any:
    """A law without masks, and with axes of events that were declared as such put back into the batch."""
    while type(law).__name__ in ("Independent", "MaskedDistribution"):
        law = law.base_dist
    return law


def _laws(guide: Any, call: Callable[..., Any], samples: int, seed: int, site: str | None) -> Iterator[Any]:
    """The law of an observation in each of the drawn models."""
    poutine, model = require("pyro", "bayes").poutine, model_of(guide)
    devices = [p.device for p in getattr(guide, "parameters", list)() if p.device.type == "cuda"][:1]
    with torch.no_grad(), seeded(seed, devices[0] if devices else None), store_kept():
        for _ in range(samples):
            try:
                with poutine.block():
                    drawn = call(poutine.trace(guide).get_trace)
                    trace = call(poutine.trace(poutine.replay(model, trace=drawn)).get_trace)
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
