"""Unnormalised log densities on R^d, evaluated on a whole cloud of particles at once.

``log_density`` makes one from a function, from a Pyro model with its data, from a network with a likelihood and a
prior, or from a control problem (the Gibbs law of its controls). Whatever it came from, it is a function of
``[n, d]``; named parameters are slices of the vector, in unconstrained coordinates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mfoc
from mfoc import InvalidType, InvalidValue
from mfoc.checks import check_integer
from paradigms.bayesian.density.sources import Source, flat, from_net, from_problem, split
from paradigms.bayesian.density.traced import Traced
from paradigms.bayesian.pyro.source import from_pyro

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LogDensity:
    """An unnormalised log density on R^d; make one with ``log_density``.

    Attributes:
        function: points ``[n, d]`` to log densities ``[n]``, twice differentiable.
        shapes: name -> shape of each parameter, in the order of the vector; the name is "x" for a plain vector.
        like: a point ``[d]`` whose dtype and device the particles take.
        draw: ``draw(n, seed) -> [n, d]``, where samplers start; None draws uniformly from (-2, 2), as Stan does.
        constrain: points ``[n, d]`` to the parameters in their own terms, name -> ``[n, *shape]``; None slices.
        size: number of observations N, when there is a minibatch version.
        minibatch: ``(x [n, d], index [n, B]) -> [n]``: each particle's log density with the log likelihood of a batch
            of its own, times N / B. Its expectation over batches is ``function``.
        fused: ``x -> (log density [n], score [n, d])`` without a graph; None differentiates ``function``.
        slope: ``x -> score [n, d]`` without a graph; None differentiates ``function``.
    """

    function: Function
    shapes: dict[str, torch.Size]
    like: Tensor
    draw: Callable[[int, int], Tensor] | None = None
    constrain: Callable[[Tensor], dict[str, Tensor]] | None = None
    size: int | None = None
    minibatch: Callable[[Tensor, Tensor], Tensor] | None = None
    fused: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    slope: Function | None = None

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.like.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """Log densities ``[n]`` of points ``[n, d]``.

        Raises:
            InvalidValue: the points are not ``[n, d]``, or the function does not return ``[n]``.
        """
        self._check_points(x)
        value = self.function(x)
        if not isinstance(value, Tensor) or value.shape != (len(x),):
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InvalidValue(f"the log density returned {what}; expected one number per particle, ({len(x)},)")
        return value

    def value_and_score(self, x: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log densities ``[n]`` and their gradients ``[n, d]``; they carry a graph where x requires grad.

        Args:
            x: points ``[n, d]``.
            index: a batch of observations for each particle ``[n, B]``; all observations when None.
        """
        recorded = torch.is_grad_enabled() and x.requires_grad
        if index is None and self.fused is not None and not recorded:
            self._check_points(x)
            with torch.no_grad():  # the data may ask for gradients
                return self.fused(x.detach())
        with torch.enable_grad():
            point = x if recorded else x.detach().requires_grad_()
            value = self(point) if index is None else self._on_batch(point, index)
            score = torch.autograd.grad(value.sum(), point, create_graph=recorded)[0]
        return (value, score) if recorded else (value.detach(), score)

    def score(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """The gradient of the log density ``[n, d]``; see ``value_and_score``."""
        if index is None and self.slope is not None and not (torch.is_grad_enabled() and x.requires_grad):
            self._check_points(x)
            with torch.no_grad():
                return self.slope(x.detach())
        return self.value_and_score(x, index)[1]

    def named(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters of points ``[n, d]`` in their own (constrained) terms, name -> ``[n, *shape]``.

        It is what ``pyro.infer.Predictive(posterior_samples=...)`` takes.
        """
        self._check_points(x)
        return self.unravel(x) if self.constrain is None else self.constrain(x)

    def unravel(self, x: Tensor) -> dict[str, Tensor]:
        """Points ``[..., d]`` as unconstrained parameters, name -> ``[..., *shape]``."""
        return split(x, self.shapes)

    def ravel(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained parameters, name -> ``[n, *shape]``, as points ``[n, d]``: the inverse of ``unravel``."""
        if parameters.keys() != self.shapes.keys():
            raise InvalidValue(f"parameters are named {sorted(parameters)}; expected {sorted(self.shapes)}")
        n = len(next(iter(parameters.values())))
        for name, shape in self.shapes.items():
            if parameters[name].shape != (n, *shape):
                raise InvalidValue(
                    f"parameter {name!r} has shape {tuple(parameters[name].shape)}; expected {(n, *shape)}"
                )
        return torch.cat([parameters[name].reshape(n, -1) for name in self.shapes], dim=1)

    def initial(self, n: int, seed: int = 0) -> Tensor:
        """Points to start from ``[n, d]``, a function of the seed."""
        if self.draw is not None:
            return self.draw(n, seed)
        uniform = torch.rand(n, self.dim, generator=torch.Generator().manual_seed(seed), dtype=self.like.dtype)
        return (4 * uniform - 2).to(self.like.device)

    def check(self, x: Tensor) -> Tensor:
        """The points themselves, if their log densities are finite.

        Raises:
            InvalidValue: a log density or its gradient is NaN or infinite.
        """
        value, score = self.value_and_score(x.detach())
        for name, numbers in (("log density", value[:, None]), ("gradient of the log density", score)):
            bad = ~numbers.isfinite().all(1)
            if bad.any():
                first = int(bad.nonzero()[0])
                raise InvalidValue(
                    f"the {name} is not finite at {int(bad.sum())} of {len(x)} points (first at particle {first}: "
                    f"log density {float(value[first])}); the density must be positive and smooth on R^d: use "
                    "unconstrained coordinates, or start elsewhere"
                )
        return x

    def _check_points(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != self.dim:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InvalidValue(f"the points are {what}; expected particles of dimension {self.dim}, (n, {self.dim})")

    def _on_batch(self, x: Tensor, index: Tensor) -> Tensor:
        if self.minibatch is None:
            raise InvalidValue(
                "this log density has no minibatch version; give log_density a size and a minibatch, or a network with "
                "data"
            )
        return self.minibatch(x, index)


def log_density(
    source: Any,
    data: Any = None,
    *,
    like: Any = None,
    likelihood: Any = None,
    noise: float | None = None,
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
        likelihood: "gaussian", "categorical" (targets are class labels) or a function (output, target) -> ``[N]``.
        noise: scale of the Gaussian likelihood. None makes it a parameter, "noise", with prior LogNormal(0, 1).
        prior: law of each weight, a torch or Pyro distribution of scalars; standard normal when None. For a problem
            None is no prior.
        temperature: of the Gibbs law of a problem.
        size: number of observations N, for ``minibatch``. For a Pyro model: its tensor arguments with N rows are those
            that are cut to a batch, and the observed sites are weighted with N / B.
        minibatch: for a function: ``(particles, index [n, B]) -> [n]``, scaled with N / B by itself.
        traced: record the tensor operations of a Pyro model or a network once and replay them; the data are taken as
            they are then.

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
        made = from_problem(source, data, prior, temperature)
    elif isinstance(source, nn.Module) and likelihood is not None:
        _refuse(options, "a network", {"likelihood", "noise", "prior"})
        made = from_net(source, data, likelihood, noise, prior)
    elif not callable(source):
        raise InvalidType(
            f"the log density is a {type(source).__name__}; expected a function, a Pyro model, a network with a "
            "likelihood or an mfoc.Problem"
        )
    elif like is not None:
        _refuse(options, "a function", {"like", "minibatch"})
        return _probed(_from_function(source, like, size, minibatch))
    elif isinstance(data, tuple | dict):
        _refuse(options, "a Pyro model", set())
        made = from_pyro(source, data, size)
    else:
        raise InvalidValue(
            "say what the function is: like= a particle for a log density, data= a tuple of arguments for a Pyro "
            "model, data= and likelihood= for a network"
        )
    return _probed(_batched(made, traced))


def _refuse(options: Mapping[str, Any], what: str, allowed: set[str]) -> None:
    given = [name for name, value in options.items() if value is not None and name not in allowed]
    if given:
        raise InvalidValue(f"{', '.join(given)} cannot be used with {what}; leave it out")


def _from_function(
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


def _batched(source: Source, traced: bool) -> LogDensity:
    """A density of one particle as one of a cloud."""

    def record(function: Callable[..., Any]) -> Callable[..., Any]:
        """Checks of values are off where the function itself runs; a recording has none."""
        guarded = functools.partial(source.around, function)
        return Traced(guarded) if traced else guarded

    both = torch.func.vmap(torch.func.grad_and_value(source.one))
    return LogDensity(
        record(torch.func.vmap(source.one)),
        source.shapes,
        source.like,
        draw=source.draw,
        constrain=source.constrain,
        size=source.size,
        minibatch=None if source.on_batch is None else record(torch.func.vmap(source.on_batch)),
        fused=record(lambda x: both(x)[::-1]),
        slope=record(torch.func.vmap(torch.func.grad(source.one))),
    )


def _probed(density: LogDensity) -> LogDensity:
    """Refuses a density that cannot be evaluated where it starts."""
    try:
        density.check(density.initial(2))
    except RuntimeError as error:
        raise InvalidValue(
            f"the log density cannot be evaluated and differentiated on two particles: {error}"
        ) from error
    return density
