"""Linear-quadratic problems: Riccati by hand, and costs of the closed loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

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
