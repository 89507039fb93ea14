"""The modified equation of a control problem solved by SGD on batches of particles: its controls are the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.analysis.noise.theory.modified import ModifiedEquation, modified_equation
from mfoc.checks import check_instance, check_integer
from mfoc.errors import InvalidValue
from mfoc.interacting import coupling
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.populations import as_particles
from mfoc.problem import Problem

_AT_ONCE = 2**24  # numbers in the gradients of all particles that are held at once


def modified_equation_of(
    problem: Problem, population: Any, *, lr: float, batch_size: int, order: int = 1, momentum: float = 0.0
) -> ModifiedEquation:
    """The diffusion that SGD on a control problem follows in law: f is J, and the noise is that of a batch.

    A batch is drawn with replacement, so that Sigma is the covariance of the particles' gradients over the batch size.
    (Epochs draw without: batches then are not independent, and less noisy towards the end of each.) The state holds
    all controls of a run as a row ``[d]``, in the order of ``mfoc.tree.ravel(problem.controls)``.

    Args:
        problem: the control problem; its particles must not interact, as one has no gradient of its own then.
        population: the particles, as ``mfoc.population`` takes them, all of them.
        lr: learning rate eta.
        batch_size: B.
        order: as for ``modified_equation``.
        momentum: as for ``modified_equation``.

    Returns:
        The equation. A value of its noise takes the gradients of all P particles, P d numbers for each run, and the
        root of a matrix ``[d, d]``: it is for few controls.

    Raises:
        InvalidType: no problem, no population.
        InvalidValue: particles that interact, a problem that ``torch.func`` cannot differentiate, and as
            ``modified_equation``.
    """
    check_instance(Problem, "mfoc.Problem", problem=problem)
    check_integer(1, batch_size=batch_size)
    particles = as_particles(population)
    if problem.interacting is not None or coupling(problem, particles):
        raise InvalidValue(
            "the particles of the problem interact, so that none has a gradient of its own and the noise of a batch is "
            "no mean of independent ones; expected a problem without mfoc.mean and the like, or batch norm"
        )
    gradients = _Gradients(problem, particles)

    def gradient(x: Tensor) -> Tensor:
        return gradients.mean(x)

    def covariance(x: Tensor) -> Tensor:
        return gradients.covariance(x) / batch_size

    start = tree.ravel(problem.controls)[None].detach()
    together, lone = gradient(start), gradients.lone(start)
    if not torch.allclose(together, lone, rtol=1e-3, atol=1e-3 * float(together.abs().max())):
        raise InvalidValue(
            "the gradient of J is not the mean of those of single particles (a loss with class weights or ignored "
            "targets divides by all of them); expected costs that depend on their own particle alone"
        )
    return modified_equation(gradient, covariance, lr, order=order, momentum=momentum)


class _Gradients:
    """Gradients of the cost in all controls as one vector, for several controls at once."""

    def __init__(self, problem: Problem, particles: Particles) -> None:
        self.problem = problem
        self.particles = particles
        self.like = tree.leaves(tree.detached(problem.controls))

    def mean(self, x: Tensor) -> Tensor:
        """The gradient of J for rows of controls: ``[N, d]`` to ``[N, d]``."""
        state, data = self.particles.state, self.particles.data

        def value(vector: Tensor) -> Tensor:
            return self._cost(vector, Particles(state, data)).mean()

        return self._mapped(torch.func.grad(value), x)

    def covariance(self, x: Tensor) -> Tensor:
        """The covariance of the particles' gradients for rows of controls: ``[N, d]`` to ``[N, d, d]``."""

        def spread(slopes: Tensor) -> Tensor:
            centred = slopes - slopes.mean(0)
            return centred.mT @ centred / len(centred)

        return self._of_each(spread, x)

    def lone(self, x: Tensor) -> Tensor:
        """The mean of the particles' own gradients: ``[N, d]`` to ``[N, d]``."""
        return self._of_each(lambda slopes: slopes.mean(0), x)

    def _of_each(self, reduce: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of the gradients of all particles ``[P, d]``, for each row of controls."""
        state, data = self.particles.state, self.particles.data
        held = tree.leaves(state)
        inputs = [*held, *(tree.leaves(data) if data is not None else [])]

        def cost(vector: Tensor, *rows: Tensor) -> Tensor:
            lone = [row[None] for row in rows]
            z = None if data is None else tree.rebuild(data, lone[len(held) :])
            return self._cost(vector, Particles(tree.rebuild(state, lone[: len(held)]), z))[0]

        each = torch.func.vmap(torch.func.grad(cost), (None, *[0] * len(inputs)))
        return self._mapped(lambda vector: reduce(each(vector, *inputs)), x)

    def _cost(self, vector: Tensor, particles: Particles) -> Tensor:
        controls = tree.rebuild(self.problem.controls, tree.pieces(vector, self.like))
        cost: Tensor = rollout(self.problem, controls, particles).cost
        return cost

    def _mapped(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        d, like = sum(leaf.numel() for leaf in self.like), self.like[0]
        if x.shape[-1] != d or (x.dtype, x.device) != (like.dtype, like.device):
            raise InvalidValue(
                f"weights are {x.dtype} {list(x.shape)} on {x.device}; expected {like.dtype} [N, {d}] on "
                f"{like.device}, rows as mfoc.tree.ravel(problem.controls) has them"
            )
        chunk = max(1, _AT_ONCE // (len(self.particles) * d))
        try:
            found: Tensor = torch.func.vmap(function, chunk_size=chunk)(x)
        except (RuntimeError, NotImplementedError, InvalidValue) as error:
            raise InvalidValue(
                "the problem cannot be differentiated by torch.func, controls by controls: its functions may branch on "
                f"values, write in place, or call what torch.func.vmap does not know ({error})"
            ) from error
        return found
