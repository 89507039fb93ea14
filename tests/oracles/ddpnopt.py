"""Differential dynamic programming written out: every matrix of every particle, dense, as a reference for DDPNOpt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

import mfoc
from mfoc.tree import leaves, ravel


@dataclass
class DenseDDP:
    """Q_uu^-1 of each stage as a matrix, and the backward and forward recursions on it, for states of one tensor.

    Attributes:
        lr: the learning rate.
        curvature: "identity", "rmsprop" or "kronecker".
        decay: of the running means.
        damping: of the curvature.
        clip: of the feedback of a particle, as a multiple of its gradient.
        feedback: whether there is one.
        means: what the curvature of each stage has averaged so far.
    """

    lr: float
    curvature: str = "identity"
    decay: float = 0.9
    damping: float = 1e-2
    clip: float = math.inf
    feedback: bool = True
    means: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    steps: int = 0

    def step(self, problem: mfoc.Problem, controls: Any, particles: mfoc.Particles) -> Any:
        """The controls after one step."""
        x, z, n = particles.state, particles.data, len(particles)
        paths = [_path(problem, controls, x[i : i + 1], _row(z, i)) for i in range(n)]
        flat = [ravel(u) if leaves(u) else x.new_zeros(0) for u in controls]
        jacobians = [_jacobians(problem, controls, path, _row(z, i)) for i, path in enumerate(paths)]
        # V_x, with which the curvature of the stages is known before V_xx.
        values = [_costates(problem, path, jacobians[i], _row(z, i)) for i, path in enumerate(paths)]
        own = [[f_u.mT @ p[t + 1] for t, (_, f_u) in enumerate(jacobians[i])] for i, p in enumerate(values)]
        decays = [_running(problem, t, controls, particles) for t in range(problem.stages)]
        inverses = [
            self._inverse(t, u, sum(g[t] for g in own) / n + decays[t], paths, [p[t + 1] for p in values])
            for t, u in enumerate(controls)
        ]
        self.steps += 1
        gains = [_gains(p[-1], j, inverses) for p, j in zip(values, jacobians, strict=True)]
        new = list[Tensor]()
        moved = [x[i : i + 1] for i in range(n)]
        for t, u in enumerate(controls):
            step = decays[t]
            for i in range(n):
                answer = gains[i][t] @ (moved[i] - paths[i][t]).flatten()
                step = step + (own[i][t] + self._clipped(answer, own[i][t]) * self.feedback) / n
            new.append(flat[t] - inverses[t] @ step)
            moved = [problem.dynamics(t, y, _shaped(new[t], u), _row(z, i)) for i, y in enumerate(moved)]
        return [_shaped(vector, u) for vector, u in zip(new, controls, strict=True)]

    def _clipped(self, answer: Tensor, gradient: Tensor) -> Tensor:
        """The answer, a multiple of the gradient, with the multiple clipped."""
        if math.isinf(self.clip) or not gradient.any():
            return answer
        multiple = answer @ gradient / (gradient @ gradient)
        torch.testing.assert_close(answer, multiple * gradient)
        return multiple.clamp(-self.clip, self.clip) * gradient

    def _inverse(self, t: int, u: Any, gradient: Tensor, paths: list[list[Tensor]], slopes: list[Tensor]) -> Tensor:
        """Q_uu^-1 of stage t with this step's gradients, ``[m, m]``."""
        if not leaves(u) or self.curvature == "identity":
            return self.lr * torch.eye(len(gradient), dtype=gradient.dtype)
        if self.curvature == "rmsprop":
            old = self.means.get((t, "squares"), torch.zeros_like(gradient))
            self.means[t, "squares"] = self.decay * old + (1 - self.decay) * gradient**2
            return torch.diag(self.lr / (self.means[t, "squares"] ** 0.5 + self.damping))
        inputs = [torch.cat([path[t][0], path[t].new_ones(1)]) for path in paths]
        a = self._averaged(t, "inputs", [torch.outer(v, v) for v in inputs])
        b = self._averaged(t, "slopes", [torch.outer(v, v) for v in slopes])
        ratio = (a.trace() / len(a)) / (b.trace() / len(b))
        a = a + (ratio * self.damping) ** 0.5 * torch.eye(len(a), dtype=a.dtype)
        b = b + (self.damping / ratio) ** 0.5 * torch.eye(len(b), dtype=b.dtype)
        places = torch.arange(len(a) * len(b)).view(
            len(b), len(a)
        )  # the bias is beside the weights; controls have it after
        order = torch.cat([places[:, :-1].flatten(), places[:, -1]])
        inverse: Tensor = torch.linalg.inv(torch.kron(b, a)[order][:, order])
        return self.lr * inverse

    def _averaged(self, t: int, name: str, matrices: list[Tensor]) -> Tensor:
        """A plain mean over the first steps, until the running mean forgets faster."""
        mean = torch.stack(matrices).mean(0)
        share = max(1 - self.decay, 1 / (self.steps + 1))
        old = self.means.get((t, name), mean)
        self.means[t, name] = (1 - share) * old + share * mean
        return self.means[t, name]


def _row(z: Any, i: int) -> Any:
    return None if z is None else z[i : i + 1]


def _shaped(vector: Tensor, like: Any) -> Any:
    return mfoc.tree.rebuild(like, mfoc.tree.pieces(vector, leaves(like))) if leaves(like) else like


def _path(problem: mfoc.Problem, controls: Any, x: Tensor, z: Any) -> list[Tensor]:
    states = [x]
    for t, u in enumerate(controls):
        states.append(problem.dynamics(t, states[-1], u, z))
    return states


def _jacobians(problem: mfoc.Problem, controls: Any, path: list[Tensor], z: Any) -> list[tuple[Tensor, Tensor]]:
    """f_x and f_u of one particle at each stage."""
    found = []
    for t, u in enumerate(controls):
        vector = ravel(u) if leaves(u) else path[t].new_zeros(0)

        def moved(x: Tensor, vector: Tensor, t: int = t, u: Any = u) -> Tensor:
            y: Tensor = problem.dynamics(t, x.view_as(path[t]), _shaped(vector, u), z)
            return y.flatten()

        f_x, f_u = jacobian(moved, (path[t].flatten(), vector))  # type: ignore[no-untyped-call]
        found.append((f_x, f_u))
    return found


def _costates(
    problem: mfoc.Problem, path: list[Tensor], jacobians: list[tuple[Tensor, Tensor]], z: Any
) -> list[Tensor]:
    """p_0..p_T of one particle."""
    slope = jacobian(lambda x: problem.terminal_cost(x.view_as(path[-1]), z)[0], path[-1].flatten())  # type: ignore[no-untyped-call]
    found = [slope]
    for f_x, _ in reversed(jacobians):
        found.insert(0, f_x.mT @ found[0])
    return found


def _gains(end: Tensor, jacobians: list[tuple[Tensor, Tensor]], inverses: list[Tensor]) -> list[Tensor]:
    """Q_ux of one particle at each stage ``[m, d]``, from V_xx = Phi_x Phi_x'."""
    found, v_xx = list[Tensor](), torch.outer(end, end)
    for (f_x, f_u), inverse in zip(reversed(jacobians), reversed(inverses), strict=True):
        q_xx, q_ux = f_x.mT @ v_xx @ f_x, f_u.mT @ v_xx @ f_x
        v_xx = _positive(q_xx - q_ux.mT @ inverse @ q_ux)
        found.insert(0, q_ux)
    return found


def _positive(matrix: Tensor) -> Tensor:
    """The nearest positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    positive: Tensor = (vectors * values.clamp(min=0)) @ vectors.mT
    return positive


def _running(problem: mfoc.Problem, t: int, controls: Any, particles: mfoc.Particles) -> Tensor:
    """The gradient of the mean running cost in u_t; the state of the cloud does not matter to it."""
    vector = ravel(controls[t]) if leaves(controls[t]) else particles.state.new_zeros(0)
    cost = problem.running_cost
    if cost is None or not len(vector):
        return torch.zeros_like(vector)
    slope: Tensor = jacobian(  # type: ignore[no-untyped-call]
        lambda v: cost(t, particles.state, _shaped(v, controls[t]), particles.data).mean(), vector
    )
    return slope
