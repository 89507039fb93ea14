"""What several tests compare against: loops, recursions and formulas written out by hand, plain and slow.

An oracle shares no code with what it checks, beyond the problem's own functions; its docstring names its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import mfoc
from mfoc.tree import leaves

# ---- gradients and training loops


def copied(controls: Any) -> Any:
    """The same values as new leaves that require grad."""
    return mfoc.tree.map(lambda leaf: leaf.detach().clone().requires_grad_(), controls)


def floats(tree: Any) -> list[Tensor]:
    """The leaves that have a gradient."""
    return [leaf for leaf in leaves(tree) if leaf.is_floating_point()]


def cost_from(problem: mfoc.Problem, t: int, x: Any, controls: Any, z: Any) -> Tensor:
    """The cost of each particle from stage t on, J written out: sum_(s>=t) L_s + Phi."""
    total = torch.zeros(len(leaves(x)[0]), dtype=torch.float64)
    for s in range(t, problem.stages):
        u = problem.schedule(controls, s)
        if problem.running_cost is not None:
            total = total + problem.running_cost(s, x, u, z)
        x = problem.dynamics(s, x, u, z)
    return total + problem.terminal_cost(x, z)


def gradient(problem: mfoc.Problem, controls: Any, particles: mfoc.Particles) -> Any:
    """dJ/du by back-propagation through the whole roll-out."""
    free = copied(controls)
    cost_from(problem, 0, particles.state, free, particles.data).mean().backward()  # type: ignore[no-untyped-call]
    return mfoc.tree.map(lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, free)


def trained(
    problem: mfoc.Problem,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    batches: Callable[[int], mfoc.Particles],
    steps: int,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
) -> tuple[Any, list[float]]:
    """A training loop as torch's documentation writes it, back-propagating through the roll-out.

    Returns:
        The trained controls, and the loss before each step.
    """
    controls, values = copied(problem.controls), []
    optimiser = make(leaves(controls))
    schedule = None if scheduler is None else scheduler(optimiser)
    for n in range(steps):

        def closure(cloud: mfoc.Particles = batches(n)) -> Tensor:  # noqa: B008
            optimiser.zero_grad()
            value = cost_from(problem, 0, cloud.state, controls, cloud.data).mean()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        values.append(float(optimiser.step(closure).detach()))  # type: ignore[arg-type, attr-defined]
        if schedule is not None:
            schedule.step()
    return controls, values


# ---- Pontryagin's principle


def augmented_hamiltonian(
    problem: mfoc.Problem,
    t: int,
    u: Any,
    states: Sequence[Any],
    costates: Sequence[Any],
    z: Any,
    rho: float = 0.0,
    costate_rho: float = 0.0,
) -> Tensor:
    """H_t + rho/2 |x_(t+1) - f|^2 + costate_rho/2 |p_t - dH/dx|^2, ``[N]``: Li, Chen, Tai, E (2018), eq. (20)."""

    def square(left: Any, right: Any) -> Any:
        pairs = zip(leaves(left), leaves(right), strict=True)
        return sum((a - b).square().reshape(len(a), -1).sum(1) for a, b in pairs if a.is_floating_point())

    x = mfoc.tree.detached(states[t], requires_grad=True)
    moved = problem.dynamics(t, x, u, z)
    pairs = zip(leaves(moved), leaves(costates[t + 1]), strict=True)
    value: Any = sum((f * p).reshape(len(f), -1).sum(1) for f, p in pairs if f.is_floating_point())
    if problem.running_cost is not None:
        value = value + problem.running_cost(t, x, u, z)
    slots = [leaf for leaf in leaves(x) if leaf.requires_grad]
    slope = torch.autograd.grad(value.sum(), slots, create_graph=True)
    result: Tensor = value + rho / 2 * square(states[t + 1], moved)
    result = result + costate_rho / 2 * square(floats(costates[t]), list(slope))
    return result


def msa(problem: mfoc.Problem, particles: mfoc.Particles, lr: float, inner: int, steps: int) -> Any:
    """The method of successive approximations (Chernousko and Lyubushin 1982), its minimisation by gradient steps.

    Each step: states forward, costates backward (p_t = dH_t/dx, over the whole cloud), and then ``inner`` steps of
    descent on E H_t in each u_t, with states and costates held. For per-stage controls, and plain states.
    """
    controls, z = mfoc.tree.copy(problem.controls), particles.data
    for _ in range(steps):
        states = [particles.state]
        for t, u in enumerate(controls):
            states.append(problem.dynamics(t, states[t], u, z))
        end = states[-1].detach().requires_grad_()
        p = torch.autograd.grad(problem.terminal_cost(end, z).sum(), end)[0]
        for t in reversed(range(problem.stages)):

            def hamiltonian(x: Tensor, u: Any, t: int = t, p: Tensor = p) -> Tensor:
                product: Tensor = (problem.dynamics(t, x, u, z) * p).reshape(len(p), -1).sum(1)
                return product if problem.running_cost is None else product + problem.running_cost(t, x, u, z)

            x = states[t].detach().requires_grad_()
            before = controls[t]
            for _ in range(inner if leaves(before) else 0):
                free = copied(controls[t])
                slopes = torch.autograd.grad(hamiltonian(x.detach(), free).mean(), leaves(free))
                controls[t] = mfoc.tree.rebuild(
                    free, [u.detach() - lr * g for u, g in zip(leaves(free), slopes, strict=True)]
                )
            p = torch.autograd.grad(hamiltonian(x, before).sum(), x)[0]
    return controls


# ---- adversaries


def size(v: Tensor) -> Tensor:
    """The Euclidean norm of each particle's part, ready to divide it."""
    norms: Tensor = torch.linalg.vector_norm(v.reshape(len(v), -1), dim=1)
    return norms.view(-1, *[1] * (v.dim() - 1))


def entered(ball: mfoc.Ball, x: Tensor, eta: Tensor) -> Tensor:
    """The disturbed state, inside the bounds of the data."""
    return x + eta if ball.bounds is None else (x + eta).clamp(*ball.bounds)


def ascended(ball: mfoc.Ball, x: Tensor, eta: Tensor, slope: Tensor, step: float) -> Tensor:
    """One step of projected steepest ascent in the norm of the ball: Madry et al. (2018), as torchattacks takes it."""
    if ball.norm == "linf":
        return (entered(ball, x, eta) + step * slope.sign() - x).clamp(-ball.epsilon, ball.epsilon)
    eta = entered(ball, x, eta) + step * slope / (size(slope) + 1e-10) - x
    return eta * torch.where(size(eta) > ball.epsilon, ball.epsilon / size(eta), torch.ones_like(size(eta)))


def placed(part: Any, x: Any, value: Tensor) -> Any:
    """A state with one of its entries replaced."""
    if part is None:
        return value
    if isinstance(x, dict):
        return {**x, part: value}
    return type(x)(value if i == part else entry for i, entry in enumerate(x))


def picked(part: Any, x: Any) -> Tensor:
    """The entry of a state that is disturbed."""
    found: Tensor = x if part is None else x[part]
    return found


def disturbed_cost(
    problem: mfoc.Problem,
    controls: Any,
    particles: mfoc.Particles,
    eta: Tensor,
    ball: mfoc.Ball,
    stage: int = 0,
    part: Any = None,
) -> Tensor:
    """The cost of each particle when the state that enters a stage is disturbed, ``[N]``."""
    x, z = particles.state, particles.data
    total = torch.zeros(len(particles), dtype=torch.float64)
    for t in range(stage):
        u = problem.schedule(controls, t)
        if problem.running_cost is not None:
            total = total + problem.running_cost(t, x, u, z)
        x = problem.dynamics(t, x, u, z)
    return total + cost_from(problem, stage, placed(part, x, entered(ball, picked(part, x), eta)), controls, z)


def pgd(loss: Callable[[Tensor], Tensor], x: Tensor, ball: mfoc.Ball, steps: int, step: float) -> Tensor:
    """Projected gradient ascent from no disturbance (Madry et al. 2018); ``loss`` is that of the disturbed states."""
    eta = torch.zeros_like(x)
    for _ in range(steps):
        point = entered(ball, x, eta).detach().requires_grad_()
        slope = torch.autograd.grad(loss(point), point)[0]
        eta = ascended(ball, x, eta, slope, step)
    return eta


def yopo(
    stages: Sequence[Callable[[Any], Any]],
    weights: Sequence[list[Tensor]],
    loss: Callable[[Any], Tensor],
    x: Any,
    ball: mfoc.Ball,
    eta: Tensor,
    m: int,
    n: int,
    step: float,
    *,
    s: int = 0,
    part: Any = None,
    running: Callable[[int, Any], Tensor] | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """You only propagate once: Zhang et al. (2019), sec. 3.2, with m passes of n steps each.

    Args:
        stages: ``stages[t](x)`` is f_t, with the tensors ``weights[t]`` in it.
        weights: of each stage.
        loss: the terminal cost ``[N]``.
        x: the clean states.
        ball: where the disturbance lives.
        eta: the disturbance at the start.
        m: passes.
        n: steps of ascent in each.
        step: their length.
        s: the stage that is disturbed.
        part: the entry of its state that is.
        running: ``running(t, x)`` is L_t.

    Returns:
        The last disturbance, and the gradient in the weights of each stage, added up over the passes.
    """
    cost = running or (lambda t, x: torch.zeros(len(leaves(x)[0]), dtype=torch.float64))
    totals = [[torch.zeros_like(w) for w in ws] for ws in weights]

    def add(t: int, slopes: Sequence[Tensor | None]) -> None:
        for total, slope in zip(totals[t], slopes, strict=True):
            total += 0 if slope is None else slope

    def hamiltonian(x: Any, p: list[Tensor]) -> Tensor:
        product: Any = sum((q * y).flatten(1).sum(1) for q, y in zip(p, floats(stages[s](x)), strict=True))
        mean: Tensor = (product + cost(s, x)).mean()
        return mean

    for _ in range(m):
        value, h = torch.zeros(()), x
        for t in range(s):
            value, h = value + cost(t, h), stages[t](h)
        entry = mfoc.tree.detached(h)
        clean = picked(part, entry)
        h = placed(part, h, entered(ball, picked(part, h), eta))
        value, h = value + cost(s, h), stages[s](h)
        after = floats(h)
        for t in range(s + 1, len(stages)):
            value, h = value + cost(t, h), stages[t](h)
        others = [t for t in range(len(stages)) if t != s]
        wanted = [*after, *(w for t in others for w in weights[t])]
        found = iter(torch.autograd.grad((value + loss(h)).mean(), wanted, allow_unused=True))
        slopes = [(y, next(found)) for y in after]
        p = [len(clean) * (torch.zeros_like(y) if g is None else g) for y, g in slopes]
        for t in others:
            add(t, [next(found) for _ in weights[t]])
        for _ in range(n):
            point = entered(ball, clean, eta).requires_grad_()
            slope = torch.autograd.grad(hamiltonian(placed(part, entry, point), p), point)[0]
            eta = ascended(ball, clean, eta, slope, step)
        if weights[s]:
            h = hamiltonian(placed(part, entry, entered(ball, clean, eta)), p)
            add(s, torch.autograd.grad(h, weights[s], allow_unused=True))
    return eta, totals


# ---- linear-quadratic problems; ``spec`` holds the matrices as ``LinearQuadratic`` names them

Spec = dict[str, Any]


def term(spec: Spec, name: str) -> Tensor:
    """The matrix; when absent zero, and the identity for S and ST."""
    if spec.get(name) is not None:
        found: Tensor = spec[name]
        return found
    if name in ("S", "ST"):
        return torch.eye(len(spec["A"]), dtype=spec["A"].dtype)
    return torch.zeros_like(spec["B" if name in ("Bbar", "cross", "crossbar") else "R" if name == "Rbar" else "A"])


def modes(spec: Spec) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The two ordinary problems of the deviation and of the mean (Yong 2013), their matrices by name."""
    at = {name: term(spec, name).numpy() for name in ("A", "B", "Q", "R", "QT", "cross", "S", "ST")}
    bar = {name: term(spec, f"{name}bar").numpy() for name in ("A", "B", "Q", "R", "cross")}
    end, eye = term(spec, "QbarT").numpy(), np.eye(len(at["A"]))
    rest, rest_T = eye - at["S"], eye - at["ST"]
    deviation = {name: at[name] for name in ("A", "B", "R", "cross")}
    mean = {name: at[name] + bar[name] for name in ("A", "B", "R", "cross")}
    return [
        deviation | {"Q": at["Q"] + bar["Q"], "QT": at["QT"] + end},
        mean | {"Q": at["Q"] + rest.T @ bar["Q"] @ rest, "QT": at["QT"] + rest_T.T @ end @ rest_T},
    ]


def riccati(mode: dict[str, np.ndarray[Any, Any]], horizon: int) -> tuple[Tensor, Tensor]:
    """P ``[T+1, n, n]`` and K ``[T, m, n]`` by the recursion of the textbooks (Bertsekas 2005, vol. I, sec. 4.1)."""
    A, B, Q, R, N = (mode[name] for name in ("A", "B", "Q", "R", "cross"))
    Ps, Ks = [mode["QT"]], []
    for _ in range(horizon):
        P = Ps[-1]
        K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A + N.T)
        Ks.append(K)
        Ps.append(Q + A.T @ P @ A - K.T @ (R + B.T @ P @ B) @ K)
    return torch.from_numpy(np.stack(Ps[::-1])), torch.from_numpy(np.stack(Ks[::-1]))


def riccati_flow(mode: dict[str, np.ndarray[Any, Any]], T: float, steps: int) -> tuple[Tensor, Tensor]:
    """The same at the ``steps`` + 1 nodes of [0, T] in continuous time, by an integrator of scipy."""
    A, B, Q, R, N = (mode[name] for name in ("A", "B", "Q", "R", "cross"))

    def slope(_: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        P = y.reshape(A.shape)
        gain = np.linalg.solve(R, B.T @ P + N.T)
        return np.asarray(A.T @ P + P @ A + Q - gain.T @ R @ gain).ravel()

    nodes = np.linspace(0, T, steps + 1)
    found = solve_ivp(slope, (0, T), mode["QT"].ravel(), rtol=1e-12, atol=1e-12, t_eval=nodes)
    P = found.y.T.reshape(steps + 1, *A.shape)[::-1].copy()
    return torch.from_numpy(P), torch.from_numpy(np.linalg.solve(R, B.T @ P + N.T))


def closed_loop_cost(spec: Spec, K: Tensor, Kbar: Tensor, m: Tensor, V: Tensor, push: Tensor | None = None) -> Tensor:
    """The cost of u = -K (x - m) - Kbar m + push_t in discrete time, by the mean m and covariance V of the state."""
    at = {name: term(spec, name) for name in ("A", "B", "Q", "R", "QT", "cross", "Abar", "Bbar", "Qbar", "Rbar")}
    at |= {name: term(spec, name) for name in ("QbarT", "crossbar")}
    noise = spec.get("noise")
    if noise is None:
        noise = term(spec, "sigma") @ term(spec, "sigma").mT
    rest, rest_T = (torch.eye(len(m), dtype=m.dtype) - term(spec, name) for name in ("S", "ST"))
    total: Tensor = torch.zeros((), dtype=m.dtype)
    for t in range(len(K)):
        v = -Kbar[t] @ m + (0 if push is None else push[t])
        spread = at["Q"] + at["Qbar"] + K[t].mT @ at["R"] @ K[t] - 2 * at["cross"] @ K[t]
        total = total + (spread * V).sum() + m @ at["Q"] @ m + (rest @ m) @ at["Qbar"] @ (rest @ m)
        total = total + v @ (at["R"] + at["Rbar"]) @ v + 2 * m @ (at["cross"] + at["crossbar"]) @ v
        closed = at["A"] - at["B"] @ K[t]
        m = (at["A"] + at["Abar"]) @ m + (at["B"] + at["Bbar"]) @ v
        V = closed @ V @ closed.mT + noise
    total = total + ((at["QT"] + at["QbarT"]) * V).sum() + m @ at["QT"] @ m + len(K) * spec.get("offset", 0)
    total = total + (rest_T @ m) @ at["QbarT"] @ (rest_T @ m)
    return total


def many_particles(spec: Spec, N: int) -> Spec:
    """The problem of N particles as one ordinary LQ problem of dimension N n, in total (not mean) cost."""
    eye, ones = torch.eye(N, dtype=torch.float64), torch.ones(N, N, dtype=torch.float64) / N

    def lift(S: Tensor) -> Tensor:
        return torch.kron(eye, torch.eye(len(S), dtype=torch.float64)) - torch.kron(ones, S)

    def weight(Q: str, Qbar: str, S: str) -> Tensor:
        lifted = lift(term(spec, S))
        return torch.kron(eye, term(spec, Q)) + lifted.mT @ torch.kron(eye, term(spec, Qbar)) @ lifted

    def both(own: str, mean: str) -> Tensor:
        return torch.kron(eye, term(spec, own)) + torch.kron(ones, term(spec, mean))

    return {
        "A": both("A", "Abar"),
        "B": both("B", "Bbar"),
        "Q": weight("Q", "Qbar", "S"),
        "R": both("R", "Rbar"),
        "QT": weight("QT", "QbarT", "ST"),
        "cross": both("cross", "crossbar"),
        "sigma": torch.kron(eye, term(spec, "sigma")),
    }


def held_moments(
    mode: dict[str, np.ndarray[Any, Any]],
    gain: np.ndarray[Any, Any],
    h: float,
    noise: np.ndarray[Any, Any],
    second: np.ndarray[Any, Any],
) -> tuple[float, np.ndarray[Any, Any]]:
    """Cost over a step of length h with u = -gain x held, and E x x' at its end, by integrating E (x, u)(x, u)'."""
    A, B, Q, R, cross = (mode[name] for name in ("A", "B", "Q", "R", "cross"))
    n, k = B.shape
    drift = np.block([[A, B], [np.zeros((k, n + k))]])
    weight = np.block([[Q, cross], [cross.T, R]])
    diffusion = np.zeros_like(drift)
    diffusion[:n, :n] = noise
    lift = np.vstack([np.eye(n), -gain])
    second = lift @ second @ lift.T

    def slope(_: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        M = y[1:].reshape(n + k, n + k)
        return np.concatenate([[np.sum(weight * M)], (drift @ M + M @ drift.T + diffusion).ravel()])

    end = solve_ivp(slope, (0, h), np.concatenate([[0.0], second.ravel()]), rtol=1e-12, atol=1e-13).y[:, -1]
    return float(end[0]), end[1:].reshape(n + k, n + k)[:n, :n]


# ---- analysis


def expected_quadratic(function: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """E f(w) for a quadratic f and w normal in ``size`` dimensions: f(0) + tr f'' / 2, exactly."""
    origin = torch.zeros(size, dtype=torch.float64)
    hessian: Tensor = torch.autograd.functional.hessian(function, origin)  # type: ignore[no-untyped-call]
    return function(origin) + hessian.trace() / 2


def central_difference(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of a number at a point, by central differences entry by entry; its error is of order step^2."""
    slope = torch.zeros_like(point)
    for i in range(point.numel()):
        shift = torch.zeros_like(point)
        shift.view(-1)[i] = step
        slope.view(-1)[i] = (function(point + shift) - function(point - shift)) / (2 * step)
    return slope


def observed_order(steps: Sequence[float], errors: Sequence[float]) -> float:
    """The order at which errors fall with the step: the slope of a line through both on logarithmic axes."""
    return float(np.polyfit([math.log(h) for h in steps], [math.log(e) for e in errors], 1)[0])
