"""Unnormalised log densities as one object: functions of a cloud ``[n, d]`` and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_callable, check_instance, check_integer, check_plain
from mfoc.derivatives import check_derivatives, twice_differentiable, without_fast_path
from mfoc.vectorisation import Mapper
from paradigms.bayesian.density.traced import Traced
from paradigms.bayesian.laws.normal import shape_or_type, unvalidated

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
        prior: ``prior(n, seed) -> [n, d]``, draws of the prior in unconstrained coordinates; None where there is none.
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
    prior: Callable[[int, int], Tensor] | None = None

    def __post_init__(self) -> None:
        check_callable("a function of points [n, d]", function=self.function)
        check_instance(Mapping, "a dict, name -> shape", shapes=self.shapes)
        check_plain("a point [d]", like=self.like)
        given = {"draw": self.draw, "constrain": self.constrain, "minibatch": self.minibatch, "fused": self.fused}
        check_callable("a function", optional=True, **given, slope=self.slope, prior=self.prior)
        check_integer(1, optional=True, size=self.size)

    def __repr__(self) -> str:
        parameters = ", ".join(f"{name} {tuple(shape)}" for name, shape in self.shapes.items())
        observations = "" if self.size is None else f" given {self.size} observations"
        return f"LogDensity({parameters}{observations}; d = {self.dim})"

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.like.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """Log densities ``[n]`` of points ``[n, d]``.

        Raises:
            InvalidType, InvalidValue: the points are not ``[n, d]``, or the function does not return ``[n]``.
        """
        self._check_points(x)
        value = self.function(x)
        if shape_or_type(value) != (len(x),):
            raise InvalidValue(
                f"the log density returned {shape_or_type(value)}; expected one number per particle, ({len(x)},)"
            )
        return value

    def value_and_score(self, x: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log densities ``[n]`` and their gradients ``[n, d]``; they carry a graph where x requires grad.

        Args:
            x: points ``[n, d]``.
            index: a batch of observations for each particle ``[n, B]``; all observations when None.
        """
        self._check_points(x)
        recorded = torch.is_grad_enabled() and x.requires_grad
        if index is None and self.fused is not None and not recorded:
            with torch.no_grad():  # the data may ask for gradients
                return self.fused(x.detach())
        check_derivatives("a score")
        with torch.enable_grad(), twice_differentiable() if recorded else nullcontext():
            point = x if recorded else tree.free(x)
            if index is None:
                value = self(point)
            elif self.minibatch is not None:
                value = self.minibatch(point, index)
            else:
                raise InvalidValue(
                    "this log density has no minibatch version; give log_density a size and a minibatch, or a network "
                    "with data"
                )
            score = torch.autograd.grad(value.sum(), point, create_graph=recorded)[0]
        return (value, score) if recorded else (value.detach(), score)

    def score(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """The gradient of the log density ``[n, d]``; see ``value_and_score``."""
        self._check_points(x)
        if index is None and self.slope is not None and not (torch.is_grad_enabled() and x.requires_grad):
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
        """Points ``[..., d]`` as unconstrained parameters, name -> ``[..., *shape]``.

        Raises:
            InvalidType, InvalidValue: the points are of another dimension.
        """
        usual = isinstance(x, Tensor) and not x.is_nested and x.layout is torch.strided  # a nested one has no shape
        if not usual or x.dim() < 1 or x.shape[-1] != self.dim:
            self._refuse_points(x)
        return split(x, self.shapes)

    def ravel(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained parameters, name -> ``[n, *shape]``, as points ``[n, d]``: the inverse of ``unravel``."""
        check_instance(Mapping, "a dict, name -> tensor [n, *shape]", parameters=parameters)
        if parameters.keys() != self.shapes.keys():
            raise InvalidValue(f"parameters are named {sorted(parameters)}; expected {sorted(self.shapes)}")
        check_plain("a tensor [n, *shape]", **{f"parameters[{name!r}]": part for name, part in parameters.items()})
        n = next((len(part) for part in parameters.values() if part.dim()), 0)
        for name, shape in self.shapes.items():
            if parameters[name].shape != (n, *shape):
                raise InvalidValue(
                    f"parameter {name!r} has shape {tuple(parameters[name].shape)}; expected {(n, *shape)}"
                )
        return torch.cat([parameters[name].reshape(n, -1) for name in self.shapes], dim=1)

    def initial(self, n: int, seed: int = 0) -> Tensor:
        """Points to start from ``[n, d]``, a function of the seed.

        Raises:
            InvalidType, InvalidValue: no count, no seed.
        """
        check_integer(1, n=n)
        check_integer(0, seed=seed)
        if self.draw is not None:
            return self.draw(n, seed)
        uniform = torch.rand(
            n, self.dim, generator=torch.Generator().manual_seed(seed), dtype=self.like.dtype, device="cpu"
        )
        return (4 * uniform - 2).to(self.like.device)

    def normals(self, n: int, generator: torch.Generator) -> Tensor:
        """Standard normals ``[n, d]``, in the dtype and on the device of the particles."""
        return torch.randn(n, self.dim, generator=generator, dtype=self.like.dtype, device="cpu").to(self.like.device)

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
        if not isinstance(x, Tensor) or x.is_nested or x.dim() != 2 or x.shape[1] != self.dim:
            self._refuse_points(x)
        if x.dtype != self.like.dtype or x.device != self.like.device or x.layout != torch.strided:
            check_plain(f"points (n, {self.dim})", x=x)
            if not x.is_floating_point():
                raise InvalidType(f"the points x have dtype {x.dtype}; expected {self.like.dtype}")

    def _refuse_points(self, x: object) -> NoReturn:
        check_plain(f"points, particles of dimension {self.dim}, (n, {self.dim})", x=x)
        raise InvalidValue(
            f"the points x are {shape_or_type(x)}; expected particles of dimension {self.dim}, (n, {self.dim})"
        )


def vectorised(
    one: Callable[[Tensor], Tensor],
    shapes: dict[str, torch.Size],
    like: Tensor,
    *,
    on_batch: Callable[[Tensor, Tensor], Tensor] | None = None,
    around: Callable[[], AbstractContextManager[None]] = unvalidated,
    traced: bool = False,
    unfit: str = "",
    **known: Any,
) -> LogDensity:
    """A density ``[d]`` to a scalar (``on_batch``: with an index ``[B]``) as one of a cloud.

    The functions run within ``around``, where checks of values are off; with ``traced`` they are recorded once and
    replayed, without surroundings. ``unfit`` is why vmap cannot be used on batches; see ``mfoc.vectorisation``.
    """

    def ready(function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Tensor) -> Any:
            with around(), without_fast_path():
                return function(*args)

        return Traced(guarded) if traced else guarded

    whole = Mapper("the log density", "particle")
    parts = whole.beside(unfit=unfit)
    return LogDensity(
        ready(partial(whole, one)),
        shapes,
        like,
        minibatch=None if on_batch is None else ready(partial(parts, on_batch)),
        fused=ready(lambda x: whole.gradient_and_value(one, x)[::-1]),
        slope=ready(lambda x: whole.gradient_and_value(one, x)[0]),
        **known,
    )


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """Named tensors as one vector ``[d]``; refuses those that are not floating point, of one dtype, on one device."""
    first = next(iter(parameters.values()))
    for name, leaf in parameters.items():
        if not leaf.is_floating_point():
            raise InvalidType(f"parameter {name!r} has dtype {leaf.dtype}; expected floating point")
        if leaf.dtype != first.dtype or leaf.device != first.device:
            raise InvalidValue(f"parameter {name!r} is {leaf.dtype} on {leaf.device}; all need one dtype and device")
    return tree.ravel(tree.detached(dict(parameters)))


def split(x: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Vectors ``[..., d]`` as named tensors ``[..., *shape]``."""
    lead, parts = x.shape[:-1], torch.split(x, [math.prod(shape) for shape in shapes.values()], dim=-1)
    return {name: part.reshape((*lead, *shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
