"""Stochastic modified equations: the diffusions that SGD follows in law, to first and to second order.

After Q. Li, C. Tai & W. E (2019), "Stochastic modified equations and dynamics of stochastic gradient algorithms I:
mathematical foundations", JMLR 20(40), arXiv:1811.01558, and, by the same, arXiv:1511.06251. With gradients g of the
mean loss f and noise of covariance Sigma(x), at the batch size used, x <- x - eta (g + noise) is followed, in time
t = eta times steps, by

    order 1    dx = -g dt + sqrt(eta Sigma) dW
    order 2    dx = -grad(f + eta/4 |g|^2) dt + sqrt(eta Sigma) dW

The means of smooth functions at a fixed time then differ by O(eta^order). The second order leaves the noise as it is,
also where Sigma depends on x.

Heavy ball with momentum m is followed in time t = sqrt(eta) times steps. With h = sqrt(eta), friction mu = (1 - m) / h
and velocity v (that of the iteration, over h),

    order 1    dx = v dt,    dv = -(mu v + g) dt + sqrt(h Sigma) dW
    order 2    dx = ((1 - h mu / 2) v - h/2 g) dt + h/2 sqrt(h Sigma) dW,
               dv = -(mu v + h/2 (mu^2 - H) v + (1 + h mu / 2) g) dt + (1 + h mu / 2) sqrt(h Sigma) dW

with H the Hessian of f; errors are O(h^order) at a fixed friction, so that 1 - m = h mu must be small as well. Here the
noise is corrected as g is, which it comes with. The order does not need that; without it, the variance in the long run
is too small by a share of about 2 (1 - m).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfoc import schemes
from mfoc.analysis.noise.theory.quantities import as_tensors
from mfoc.analysis.noise.theory.roots import Field, root_of
from mfoc.checks import check_callable, check_instance, check_integer, check_positive, check_tensor, kind_of
from mfoc.errors import InvalidType, InvalidValue
from mfoc.particles import Particles
from mfoc.pontryagin import rollout
from mfoc.problem import Problem, TerminalCost, per_stage
from mfoc.tree import Tree


@dataclass(frozen=True, eq=False)
class ModifiedEquation:
    """A diffusion that SGD follows in law; made by ``modified_equation`` and ``modified_equation_of``.

    It unpacks: ``drift, diffusion = equation``, functions of (t, x, u, z) as ``mfoc.continuous`` takes them.

    Its state is the weights ``[N, d]``, a row for each of N independent runs; with momentum, weights and velocity
    ``[N, 2 d]``, see ``start``. Its control is a factor of the learning rate, one number, 1 where it is None.

    Attributes:
        gradient: ``gradient(x) -> [N, d]`` of the mean loss.
        root: a square root of the covariance: ``root(x)`` is ``[N, d]``, one for each weight, or ``[N, d, d]``.
        lr: learning rate eta.
        order: 1 or 2.
        momentum: m.
    """

    gradient: Field
    root: Field
    lr: float
    order: int
    momentum: float

    def __iter__(self) -> Iterator[Callable[[float, Tensor, Tree, Tree], Tensor]]:
        yield self.drift
        yield self.diffusion

    @property
    def time_step(self) -> float:
        """The time that a step of SGD takes: eta, with momentum sqrt(eta)."""
        return math.sqrt(self.lr) if self.momentum else self.lr

    @property
    def friction(self) -> float:
        """(1 - m) / sqrt(eta), in which the equation with momentum is written."""
        return (1 - self.momentum) / math.sqrt(self.lr)

    def start(self, weights: Tensor) -> Tensor:
        """The state in which SGD starts with the weights ``[N, d]``: with momentum, they are at rest."""
        _check_weights(weights)
        return torch.cat([weights, torch.zeros_like(weights)], 1) if self.momentum else weights

    def weights(self, state: Tensor) -> Tensor:
        """The weights ``[..., d]`` in a state.

        Raises:
            InvalidType, InvalidValue: no state.
        """
        check_tensor("a state [..., d], with momentum [..., 2 d]", state=state)
        if not state.dim():
            raise InvalidValue("state is a scalar; expected a state [..., d], with momentum [..., 2 d]")
        return state[..., : state.shape[-1] // 2] if self.momentum else state

    def drift(self, t: float, x: Tensor, u: Tree, z: Tree) -> Tensor:
        """The drift b(t, x, u, z) ``[N, d]``, with momentum ``[N, 2 d]``, as ``mfoc.continuous`` takes it."""
        factor = _factor(u)
        if self.momentum:
            return self._with_velocity(x, factor)
        if self.order == 1:
            return -factor * _connected(self._gradient, x, "gradient")
        slope, product = self._products(x)
        return -factor * (slope + self.lr / 2 * factor * product)

    def diffusion(self, t: float, x: Tensor, u: Tree, z: Tree) -> Tensor:
        """The noise sigma(t, x, u, z), ``[N, d]`` or ``[N, d, d]``; with momentum ``[N, 2 d, d]``."""
        factor = math.sqrt(self.time_step) * _factor(u)
        root = factor * _connected(self.root, self.weights(x), "covariance")
        if not self.momentum:
            return root
        kick = root if root.dim() == 3 else torch.diag_embed(root)
        more = self.time_step / 2 if self.order == 2 else 0.0
        return torch.cat([more * kick, (1 + more * self.friction) * kick], 1)

    def problem(
        self,
        steps: int,
        terminal_cost: TerminalCost | None = None,
        *,
        substeps: int = 1,
        like: Tensor | None = None,
    ) -> Problem:
        """The equation as a control problem, by Euler-Maruyama: the control is the schedule of the learning rate.

        It is simulated by ``mfoc.rollout`` and solved as any problem is, with particles
        ``mfoc.Particles(start(weights), {"noise": noise})`` and the noise that
        ``mfoc.schemes.brownian(N, steps * substeps, d, seed=..., like=weights)`` draws.

        Args:
            steps: of SGD that are followed.
            terminal_cost: ``Phi(x, z) -> [N]`` of the last state; zero, which only serves to simulate, when None.
            substeps: of Euler-Maruyama in a step of SGD. With one the equation of order 1 without momentum is SGD
                itself, with noise that is Gaussian.
            like: a tensor whose dtype and device the controls take; torch's default when None.

        Returns:
            A problem whose controls are a list of ``steps`` factors of the learning rate, ones to begin with.

        Raises:
            InvalidType, InvalidValue: no positive integers, no function.
        """
        check_integer(1, steps=steps, substeps=substeps)
        check_callable("a function Phi(x, z) -> [N]", optional=True, terminal_cost=terminal_cost)
        check_tensor("a tensor whose dtype and device to take", optional=True, like=like)
        controls = [torch.ones((), dtype=None if like is None else like.dtype, device="cpu") for _ in range(steps)]
        if like is not None:
            controls = [control.to(like.device) for control in controls]

        def held(controls: Tree, t: int) -> Tree:
            return controls[t // substeps]

        return schemes.continuous(
            self.drift,
            _no_cost if terminal_cost is None else terminal_cost,
            controls,
            T=steps * self.time_step,
            scheme=schemes.euler_maruyama(self.diffusion),
            horizon=steps * substeps,
            schedule=per_stage if substeps == 1 else held,
        )

    def simulate(self, weights: Tensor, steps: int, *, substeps: int = 8, seed: int) -> Tensor:
        """Paths of the equation: the weights at each step of SGD, ``[steps + 1, N, d]``.

        Args:
            weights: where each of N runs starts ``[N, d]``.
            steps: of SGD that are followed.
            substeps: of Euler-Maruyama in each, whose own error is of first order in the time of one.
            seed: of the noise.

        Raises:
            InvalidType, InvalidValue: no weights ``[N, d]``, no positive integers, no seed.
        """
        state = self.start(weights)
        problem = self.problem(steps, substeps=substeps, like=weights)
        noise = schemes.brownian(len(weights), steps * substeps, weights.shape[1], seed=seed, like=weights)
        with torch.no_grad():
            states = rollout(problem, problem.controls, Particles(state, {"noise": noise})).states
            return self.weights(torch.stack(states[::substeps]))

    def __repr__(self) -> str:
        ball = f", momentum {self.momentum:g}" if self.momentum else ""
        return (
            f"ModifiedEquation(order {self.order}, lr {self.lr:g}{ball}: a step of SGD takes time {self.time_step:g})"
        )

    def _with_velocity(self, state: Tensor, factor: Tensor | float) -> Tensor:
        x, v = state.chunk(2, 1)
        mu, h = self.friction, self.time_step
        if self.order == 1:
            return torch.cat([v, -(mu * v + factor * _connected(self._gradient, x, "gradient"))], 1)
        slope, bent = self._products(x, v)
        slope, bent = factor * slope, factor * bent
        pull = mu * v + h / 2 * (mu**2 * v - bent) + (1 + h * mu / 2) * slope
        return torch.cat([(1 - h * mu / 2) * v - h / 2 * slope, -pull], 1)

    def _gradient(self, x: Tensor) -> Tensor:
        slope = self.gradient(x)
        if not isinstance(slope, Tensor) or slope.shape != x.shape:
            got = tuple(slope.shape) if isinstance(slope, Tensor) else kind_of(slope)
            raise InvalidValue(f"gradient returned {got} for weights {tuple(x.shape)}; expected their shape")
        return slope

    def _products(self, x: Tensor, direction: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gradient g, and its derivative along a direction, H v; along itself, H g."""
        x = x.contiguous()  # rows may be one row, expanded: jvp writes to what it is given
        along = self._gradient(x) if direction is None else direction
        try:
            found = torch.func.jvp(self._gradient, (x,), (along,), strict=True)
        except (RuntimeError, NotImplementedError) as error:
            raise InvalidValue(
                "gradient cannot be differentiated in x, which order 2 does for H g: write it in torch operations of "
                "x, or with torch.func.grad, without detach and torch.autograd.grad; where the gradient is constant, "
                f"order 1 is as good ({error})"
            ) from error
        return found[0], found[1]


def modified_equation(
    gradient: Field,
    covariance: float | Tensor | Field,
    lr: float,
    *,
    order: int = 1,
    momentum: float = 0.0,
) -> ModifiedEquation:
    """The diffusion that SGD with these gradients and this noise follows in law; see the top of this module.

    At a fixed time the second order is the better one. In the long run it is not: on a quadratic with curvature a the
    stationary variance is eta Sigma / (2 a - eta a^2) for SGD, eta Sigma / (2 a) at order 1, and eta Sigma / (2 a +
    eta a^2) at order 2, which errs twice as much: no theorem is about times beyond 1 / eta. With momentum both orders
    have the variance eta Sigma / (2 a (1 - m)).

    Args:
        gradient: ``gradient(x) -> [N, d]`` of the mean loss for weights x ``[N, d]``, row by row. Order 2 takes its
            derivative by ``torch.func.jvp``.
        covariance: Sigma of the gradient at the batch size used: a number (for each weight), variances ``[d]``, a
            matrix ``[d, d]``, or a function of x ``[N, d]`` that returns ``[N, d]`` or ``[N, d, d]``.
        lr: learning rate eta.
        order: of the weak error at a fixed time, 1 or 2.
        momentum: m in [0, 1) of heavy ball as in ``torch.optim.SGD``, without dampening. Time runs by sqrt(eta) a step
            then, and the order is in sqrt(eta).

    Returns:
        The equation: ``drift, diffusion = modified_equation(...)``, its problem and simulations.

    Raises:
        InvalidType: no function, or no covariance.
        InvalidValue: another order, a momentum out of range, lr <= 0, a covariance that is not symmetric positive
            semidefinite; of a function when it is called.
    """
    if isinstance(gradient, Problem):
        raise InvalidType(
            "gradient is a Problem; modified_equation_of(problem, population, lr=lr, batch_size=B) is its equation"
        )
    check_callable("a function gradient(x) -> [N, d]", gradient=gradient)
    check_positive(lr=lr)
    check_integer(1, 2, order=order)
    as_tensors(momentum=momentum)
    if isinstance(momentum, Tensor):
        raise InvalidType("momentum is a tensor; expected a number, float(momentum)")
    if not 0 <= momentum < 1:
        raise InvalidValue(f"momentum is {momentum!r}; expected a number in [0, 1), as heavy ball has it")
    return ModifiedEquation(gradient, root_of(covariance), float(lr), order, float(momentum))


def _connected(field: Field, x: Tensor, name: str) -> Tensor:
    """A field at x, with the graph that leads back to x; it may take derivatives of its own, whatever the mode."""
    with torch.enable_grad():
        found = field(x)
    if not torch.is_grad_enabled():
        return found.detach() if isinstance(found, Tensor) else found
    cut = x.requires_grad and isinstance(found, Tensor) and not found.requires_grad
    if cut and not torch.equal(field(x.detach() + 1), found):
        raise InvalidValue(
            f"{name} changes with x and cannot be differentiated in x, as what is solved for a schedule must be: write "
            "it in torch operations of x, or with torch.func.grad, without detach and torch.autograd.grad"
        )
    return found


def _no_cost(x: Tree, z: Tree) -> Tensor:
    zeros: Tensor = x.new_zeros(len(x))
    return zeros


def _factor(u: Tree) -> Tensor | float:
    """The factor of the learning rate: a rate for each weight would act on both sides of H and of Sigma."""
    if u is None or (isinstance(u, int | float) and not isinstance(u, bool)):
        return 1.0 if u is None else u
    if not isinstance(u, Tensor) or u.numel() != 1:
        got = tuple(u.shape) if isinstance(u, Tensor) else kind_of(u)
        raise InvalidValue(f"the control is {got}; expected one number, the factor of the learning rate")
    return u.reshape(())


def _check_weights(weights: Tensor) -> None:
    check_instance(Tensor, "weights [N, d], a row for each run", weights=weights)
    as_tensors(weights=weights)
    if weights.dim() != 2:
        raise InvalidValue(f"weights has shape {tuple(weights.shape)}; expected [N, d], a row for each run")
