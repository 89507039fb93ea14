"""What a log density can be made of.

``log_density`` makes one from a function, from a Pyro model with its data, from a network with a likelihood and a
prior, or from a control problem (the Gibbs law of its controls). Whatever it came from, it is a function of
``[n, d]``; named parameters are slices of the vector, in unconstrained coordinates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_flag, check_instance, check_integer, check_positive, kind_of
from mfoc.networks import functional
from mfoc.networks.arguments import Arguments
from mfoc.networks.inspection import copied, refuse_parameter_hooks, refuse_unfit, trainable, unwrapped
from mfoc.networks.purity import check_pure
from mfoc.seeding import seeded
from mfoc.vectorisation import misled
from paradigms.bayesian.density.density import LogDensity, flat, split, vectorised
from paradigms.bayesian.laws.likelihoods import NOISE, Gaussian, likelihood_of, says_its_sign
from paradigms.bayesian.laws.normal import normal_log_prob
from paradigms.bayesian.laws.priors import law_of, log_prob_of, placed, prior_of
from paradigms.bayesian.pyro import enumeration
from paradigms.bayesian.pyro import trace as pyro_trace

_SIGN = (
    "log_density reads a function as the NEGATIVE log likelihood of each observation, as variational and ensemble do; "
    "before version 0.2 it read it as the log likelihood. Say which one it is, and this warning is gone: "
    "likelihood=NegativeLogLikelihood(function) or likelihood=LogLikelihood(function), from paradigms.bayesian"
)


# A chain of 30 hidden states takes 20 s to record and 0.10 s to replay, and 0.15 s to run: only short ones pay.
_RECORDED = 8


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
              (``pyro.param``) keep the values they have now. Discrete latents that are marked for it
              (``pyro.infer.config_enumerate``) are summed out;
            * an ``nn.Module`` with ``data`` a pair (inputs, targets), a ``likelihood`` and a ``prior``. The inputs of
              one of several arguments are a tuple in their order, or a dict by their names. It is used in evaluation
              mode; parameters that do not require grad are constants;
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

    Raises:
        InvalidType: a source that is none of these.
        InvalidValue: arguments that do not go together, discrete latents that are not summed out, or a log density that
            is not finite where it starts.
        MissingExtra: a Pyro model without pyro.
    """
    check_integer(1, size=size, optional=True)
    check_flag(traced=traced)
    check_positive(temperature=temperature, finite=False)
    options: dict[str, Any] = {
        "like": like,
        "likelihood": likelihood,
        "noise": noise,
        "prior": prior,
        "minibatch": minibatch,
    }
    options |= {"size": size, "temperature": None if temperature == 1 else temperature}
    if isinstance(source, LogDensity):
        _refuse({**options, "data": data}, "a LogDensity, which has everything", set())
        return source
    if isinstance(source, mfoc.Problem):
        _refuse(options, "a problem", {"prior", "temperature"})
        made = _of_problem(source, data, prior, temperature, traced)
    elif isinstance(source, nn.Module) and likelihood is not None:
        _refuse(options, "a network", {"likelihood", "noise", "prior"})
        if not says_its_sign(likelihood):
            warnings.warn(_SIGN, UserWarning, stacklevel=2)
        made = _of_network(source, data, likelihood, noise, prior)
    elif not callable(source):
        raise InvalidType(
            f"source is {kind_of(source)}, of which there is no log density; expected a function, a Pyro model, a "
            "network with a likelihood or an mfoc.Problem"
        )
    elif like is not None:
        _refuse({**options, "data": data}, "a function", {"like", "minibatch", "size"})
        made = _of_function(source, like, size, minibatch)
    elif isinstance(data, tuple | dict):
        _refuse(options, "a Pyro model", {"size"})
        made = _of_model(source, data, size, traced)
    else:
        raise InvalidValue(
            "say what the function is: like= a particle for a log density, data= a tuple of arguments for a Pyro "
            "model, data= and likelihood= for a network"
        )
    try:
        made.check(made.initial(2))
    except RuntimeError as error:
        raise InvalidValue(
            f"the log density cannot be evaluated and differentiated on two particles: {error}"
        ) from error
    return made


def _refuse(options: Mapping[str, Any], what: str, allowed: set[str]) -> None:
    given = [name for name, value in options.items() if value is not None and name not in allowed]
    if given:
        raise InvalidValue(f"{', '.join(given)} cannot be used with {what}; leave it out")


def _of_function(
    function: Callable[[Any], Tensor], like: Any, size: int | None, minibatch: Callable[[Any, Tensor], Tensor] | None
) -> LogDensity:
    example = {"x": like} if isinstance(like, Tensor) else like
    if not isinstance(example, dict) or not all(isinstance(leaf, Tensor) for leaf in example.values()) or not example:
        raise InvalidType(f"like is {kind_of(like)}; expected a tensor [d] or a dict name -> tensor")
    if isinstance(like, Tensor) and like.dim() != 1:
        raise InvalidValue(f"like has shape {tuple(like.shape)}; expected one particle, (d,)")
    if (size is None) != (minibatch is None):
        raise InvalidValue("size and minibatch go together: the number of observations and the density of a batch")
    vector, shapes = flat(example), {name: leaf.shape for name, leaf in example.items()}
    view = (lambda x: split(x, shapes)) if isinstance(like, dict) else (lambda x: x)
    batch = None if minibatch is None else (lambda x, index: minibatch(view(x), index))
    return LogDensity(lambda x: function(view(x)), shapes, vector, size=size, minibatch=batch)


def _of_problem(problem: mfoc.Problem, data: Any, prior: Any, temperature: float, traced: bool) -> LogDensity:
    """The Gibbs law of a problem's controls."""
    check_instance(mfoc.Particles, "the mfoc.Particles of the problem", data=data)
    check_positive(temperature=temperature, finite=False)
    example = {name or "u": leaf for name, leaf in tree.dotted(problem.controls).items()}
    shapes = {name: leaf.shape for name, leaf in example.items()}
    priors = {} if prior is None else {name: prior_of(prior, name, u) for name, u in example.items()}
    laws = {name: log_prob_of(law) for name, law in priors.items()}
    problem.validate(data)

    def one(x: Tensor) -> Tensor:
        named = split(x, shapes)
        controls = tree.rebuild(problem.controls, named.values())
        gibbs = -mfoc.rollout(problem, controls, data).cost.sum() / temperature
        return gibbs + sum(law(named[name]).sum() for name, law in laws.items())

    def draw(n: int, seed: int) -> Tensor:
        with seeded(seed, vector.device):
            points = [law.expand(shapes[name]).sample((n,)).reshape(n, -1) for name, law in priors.items()]
        return torch.cat([point.to(vector) for point in points], dim=1)

    vector = flat(example)
    return vectorised(one, shapes, vector, traced=traced, prior=draw if priors else None)


def _of_network(net: nn.Module, data: Any, likelihood: Any, noise: Any, prior: Any) -> LogDensity:
    """The posterior of a network's weights, and of the noise where it is learned."""
    pair = isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | tuple | dict)
    if not pair or not isinstance(data[1], Tensor) or not all(isinstance(x, Tensor) for x in tree.leaves(data[0])):
        raise InvalidType(
            "data must be a pair of tensors (inputs, targets) for a network; the inputs of one of several arguments "
            "are a tuple in their order, or a dict by their names"
        )
    inputs, targets = data
    counts = [len(leaf) for leaf in tree.leaves(inputs)]
    if len(targets) == 0 or not counts or any(count != len(targets) for count in counts):
        raise InvalidValue(
            f"data holds {', '.join(map(str, counts))} inputs and {len(targets)} targets; expected as many, at least "
            "one"
        )
    refuse_parameter_hooks(unwrapped(net))
    own = copied(unwrapped(net)).eval()
    refuse_unfit(own)
    run = functional(own)
    net, total, fit, arguments = run.module, len(targets), likelihood_of(likelihood, noise), Arguments.of(own)
    example = {name: p.detach() for name, p in trainable(net).items()}
    if not example:
        raise InvalidValue("net has no parameter that requires grad; there is nothing to sample")
    laws = {name: law_of(prior, name, leaf) for name, leaf in example.items()}
    log_priors = {name: log_prob_of(placed(law, name, example[name])) for name, law in laws.items()}
    like = next(iter(example.values()))
    with torch.no_grad():
        try:
            arguments.call(partial(check_pure, run, "net", example), _cast(inputs, like))
            output = arguments.call(partial(run, example), _cast(inputs, like))
        except mfoc.MfocError:
            raise
        except Exception as error:  # whatever the user's forward pass raises
            raise InvalidValue(f"the network cannot take inputs of shape {_described(inputs)}: {error}") from error
        fit.check(output, _cast(targets, like))
    learned = isinstance(fit, Gaussian) and fit.noise is None
    if learned:
        if NOISE in example:
            raise InvalidValue(f"net has a parameter named {NOISE!r}, the name of the learned scale; pass noise=")
        example = {**example, NOISE: like.new_zeros(())}
    vector, shapes = flat(example), {name: leaf.shape for name, leaf in example.items()}

    def joint(x: Tensor, xs: Any, ys: Tensor) -> Tensor:
        parameters = split(x, shapes)
        spread = parameters.pop(NOISE) if learned else None
        out = arguments.call(partial(run, parameters), _cast(xs, x))
        output = tree.map(lambda leaf: leaf[None], out)
        if spread is not None:
            output = output, spread.exp().view(1, *[1] * (out.dim() - 1))
        fitted = fit.log_prob(output, _cast(ys, x)[None]).sum() * (total / len(ys))
        weights = sum(log_priors[name](leaf).sum() for name, leaf in parameters.items())
        return fitted + weights + (0 if spread is None else normal_log_prob(spread, 0.0, 1.0))

    def draw(n: int, seed: int) -> Tensor:
        with seeded(seed):
            points = [law.expand(shapes[name]).sample((n,)).reshape(n, -1) for name, law in laws.items()]
            if learned:
                next(reversed(laws.values())).sample((n,))  # so that a seed starts where it always has
                points.append(torch.randn(n, 1, device="cpu"))
        return torch.cat([point.to(vector) for point in points], dim=1)

    def constrain(x: Tensor) -> dict[str, Tensor]:
        named = split(x, shapes)
        return {**named, NOISE: named[NOISE].exp()} if learned else named

    return vectorised(
        lambda x: joint(x, inputs, targets),
        shapes,
        vector,
        on_batch=lambda x, index: joint(x, tree.map(lambda leaf: leaf[index], inputs), targets[index]),
        draw=draw,
        prior=draw,
        constrain=constrain,
        size=total,
        unfit=misled(net),
    )


def _cast(x: Any, like: Tensor) -> Any:
    """Tensors in the float dtype of another; integers stay."""
    return tree.map(lambda leaf: leaf.to(like.dtype) if leaf.is_floating_point() else leaf, x)


def _described(x: Any) -> str:
    return ", ".join(f"{tuple(leaf.shape)} ({leaf.dtype})" for leaf in tree.leaves(x))


def _of_model(model: Callable[..., Any], data: Any, size: int | None, traced: bool) -> LogDensity:
    """A Pyro model with its data."""
    arguments = pyro_trace.Arguments(data)
    trace = pyro_trace.prototype(model, arguments)
    example, params = pyro_trace.unconstrained(trace), pyro_trace.parameters(trace)
    nesting = enumeration.nesting_of(trace)
    shapes = {name: leaf.shape for name, leaf in example.items()}

    def joint(x: Tensor, rows: Mapping[Any, Tensor] | None = None) -> pyro_trace.Joint:
        return pyro_trace.evaluate(model, arguments, split(x, shapes), rows=rows, params=params, nesting=nesting)

    def one(x: Tensor) -> Tensor:
        found = joint(x)
        return found.observed + found.prior + found.volume

    def constrain(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), pyro_trace.quietly():
            found: dict[str, Tensor] = torch.func.vmap(lambda point: joint(point).values)(x)
        return found

    def draw(n: int, seed: int) -> Tensor:
        runs = pyro_trace.prior_draws(model, arguments, params, n, seed)
        return torch.stack([flat(run) for run in runs])

    make = partial(
        vectorised,
        one,
        shapes,
        flat(example),
        constrain=constrain,
        prior=draw,
        around=pyro_trace.quietly,
        traced=traced and len(enumeration.summed(trace)) <= _RECORDED,
    )
    if size is None:
        return make()
    rows = arguments.rows(size)
    if not rows:
        raise InvalidValue(f"size is {size}; no argument of the model has as many rows to take a batch of")
    if size > 1:
        part = pyro_trace.prototype(model, arguments.take({key: value[:1] for key, value in rows.items()}))
        pyro_trace.check_batch(trace, part, instead="leave size out")

    def on_batch(x: Tensor, index: Tensor) -> Tensor:
        found = joint(x, {key: value[index] for key, value in rows.items()})
        return size / len(index) * found.observed + found.prior + found.volume

    return make(size=size, on_batch=on_batch)
