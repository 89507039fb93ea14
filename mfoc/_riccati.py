"""The numerics under ``mfoc.lq``: Riccati sweeps, exact step maps, exact sampling of a continuous problem.

Everything here works on one ``Mode``: an ordinary linear-quadratic problem, without mean-field terms, in a flat batch.
A mean-field problem is two of them (``split``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfoc._errors import InvalidValue


class Mode(NamedTuple):
    """An ordinary LQ problem in a flat batch b; L is T when the matrices vary in time, else 1.

    Attributes:
        A: ``[b, L, n, n]``.
        B: ``[b, L, n, m]``.
        Q: weight of the state ``[b, L, n, n]``.
        R: weight of the control ``[b, L, m, m]``.
        QT: terminal weight ``[b, n, n]``.
        cross: half the weight of the product of state and control ``[b, L, n, m]``, or None for zero.
        noise: covariance of the noise, per step or per unit of time ``[b, L, n, n]``, or None for zero.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    QT: Tensor
    cross: Tensor | None
    noise: Tensor | None

    def uncontrolled(self) -> Mode:
        """The same problem with a control that does nothing, so that its Riccati equation is a Lyapunov equation."""
        return self._replace(B=torch.zeros_like(self.B), cross=None)


class Sweep(NamedTuple):
    """What a backward pass leaves, in the order of time.

    Attributes:
        P: T+1 matrices ``[b, n, n]``: the cost-to-go is x' P x.
        K: gains ``[b, m, n]`` of the optimal u = -K x: T of them, or T+1 in continuous time.
        moves: T matrices: ``[b, n, n]`` of x_(t+1) = move_t x_t under the optimal control in continuous time, and
            ``[b, n, n+m]`` of x_(t+1) = move_t (x_t, u_t) in discrete time.
    """

    P: list[Tensor]
    K: list[Tensor]
    moves: list[Tensor]


def _plus(x: Tensor, y: Tensor | None) -> Tensor:
    return x if y is None else x + y


def _on_mean(weight: Tensor | None, S: Tensor | None) -> Tensor | None:
    """(I - S)' weight (I - S): what the weight of x - Sm is to the mean. S is the identity when None."""
    if weight is None or S is None:
        return None
    rest = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device) - S
    return rest.mT @ weight @ rest


def split(get: Callable[[str], Tensor | None], mean_field: bool) -> tuple[Mode, Mode]:
    """The LQ problems of the deviation from the mean and of the mean.

    Args:
        get: the matrix of a name, in the shape that ``Mode`` documents, or None for zero.
        mean_field: whether the two differ; when not, they are one and the same object.
    """
    A, B, Q, R = (_given(get(name)) for name in "ABQR")
    QT, cross, sigma, noise = get("QT"), get("cross"), get("sigma"), get("noise")
    QT = torch.zeros_like(A[:, 0]) if QT is None else QT
    noise = noise if sigma is None else sigma @ sigma.mT
    if not mean_field:
        mode = Mode(A, B, Q, R, QT, cross, noise)
        return mode, mode
    crossbar, Qbar, QbarT = get("crossbar"), get("Qbar"), get("QbarT")
    cross = torch.zeros_like(B) if cross is None and crossbar is not None else cross
    return Mode(A, B, _plus(Q, Qbar), R, _plus(QT, QbarT), cross, noise), Mode(
        A=_plus(A, get("Abar")),
        B=_plus(B, get("Bbar")),
        Q=_plus(Q, _on_mean(Qbar, get("S"))),
        R=_plus(R, get("Rbar")),
        QT=_plus(QT, _on_mean(QbarT, get("ST"))),
        cross=None if cross is None else _plus(cross, crossbar),
        noise=None if noise is None else _plus(noise, get("noisebar")),
    )


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def merge(modes: tuple[Mode, Mode]) -> Mode:
    """Both modes in one, along the batch axis: they then share every tensor operation."""

    def both(parts: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        return None if parts[0] is None or parts[1] is None else torch.cat([parts[0], parts[1]])

    first, second = modes
    return Mode(*(both(parts) for parts in zip(first, second, strict=True)))  # type: ignore[arg-type]


def check_convex(mode: Mode, Q: str, R: str, QT: str) -> None:
    """Refuses a mode whose cost is not convex in the state and strictly convex in the control.

    Args:
        mode: the problem.
        Q: how its weights are called in messages.
        R: likewise.
        QT: likewise.

    Raises:
        InvalidValue: R is not positive definite, or a weight is not positive semi-definite (beyond rounding).
    """
    if torch.linalg.cholesky_ex(mode.R.detach()).info.any():
        raise InvalidValue(f"{R} is not positive definite; expected a weight that makes every control cost")
    weight = mode.Q
    if mode.cross is not None:
        weight = torch.cat([torch.cat([mode.Q, mode.cross], -1), torch.cat([mode.cross.mT, mode.R], -1)], -2)
        Q = f"the weight [[{Q}, cross], [cross', {R}]]"
    for name, x in ((Q, weight.detach()), (QT, mode.QT.detach())):
        if not torch.linalg.cholesky_ex(x).info.any():
            continue
        size = x.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        slack = 100 * x.shape[-1] * torch.finfo(x.dtype).eps * size + torch.finfo(x.dtype).tiny
        if torch.linalg.cholesky_ex(x + slack * eye).info.any():
            raise InvalidValue(f"{name} is not positive semi-definite; expected a convex cost")


def _per_stage(x: Tensor, steps: int) -> list[Tensor]:
    parts = list(x.unbind(1))
    return parts if len(parts) == steps else parts * steps


def discrete_sweep(mode: Mode, steps: int) -> Sweep:
    """Solves the discrete Riccati equation backwards.

    With S = R + B'PB:  K = S^-1 (B'PA + N'),  P <- Q + A'P (A - BK) - NK.  This form needs no symmetrisation: an
    antisymmetric rounding error W of P is carried on as C'WC by the stable closed loop C = A - BK.

    The explicit inverse of the small, positive definite S takes half the time of a batched Cholesky solve on a CPU
    and serves as well here: P is stationary in K.

    Args:
        mode: the problem.
        steps: number of stages T.
    """
    n, m = mode.B.shape[-2:]
    corner = mode.B.new_zeros(*mode.R.shape[:2], m, n) if mode.cross is None else mode.cross.mT
    moves = _per_stage(torch.cat([mode.A, mode.B], -1), steps)
    weights = _per_stage(torch.cat([corner, mode.R], -1), steps)
    Q = _per_stage(mode.Q, steps)
    P = mode.QT
    Ps, Ks = [P], []
    for t in reversed(range(steps)):
        F = moves[t]
        G = torch.bmm(F.mT, P)  # A'P above B'P
        M = torch.baddbmm(weights[t], G[:, n:], F)  # B'PA + N' beside S
        K = torch.bmm(torch.linalg.inv_ex(M[:, :, n:]).inverse, M[:, :, :n])
        P = torch.baddbmm(Q[t], G[:, :n], torch.baddbmm(F[:, :, :n], F[:, :, n:], K, alpha=-1))
        if mode.cross is not None:
            P = torch.baddbmm(P, weights[t][:, :, :n].mT, K, alpha=-1)
        Ks.append(K)
        Ps.append(P)
    return Sweep(Ps[::-1], Ks[::-1], moves)


class Flow(NamedTuple):
    """A time-invariant mode with its cross term removed: A and B drive x, Q and R weigh x and v, u = v - shift x.

    All ``[b, ., .]``; G is B R^-1 B'.
    """

    A: Tensor
    G: Tensor
    Q: Tensor
    R_inv_Bt: Tensor
    shift: Tensor


def flow(mode: Mode) -> Flow:
    """Completes the square in the control of a time-invariant mode."""
    A, B, Q, R = mode.A[:, 0], mode.B[:, 0], mode.Q[:, 0], mode.R[:, 0]
    factor = torch.linalg.cholesky(R)
    R_inv_Bt = torch.cholesky_solve(B.mT, factor)
    if mode.cross is None:
        return Flow(A, B @ R_inv_Bt, Q, R_inv_Bt, torch.zeros_like(R_inv_Bt))
    shift = torch.cholesky_solve(mode.cross[:, 0].mT, factor)
    return Flow(A - B @ shift, B @ R_inv_Bt, Q - mode.cross[:, 0] @ shift, R_inv_Bt, shift)


def _halvings(matrix: Tensor, step: float) -> int:
    """How often ``step`` must be halved for the exponential of ``matrix * step`` to stay near the identity."""
    norm = float(torch.linalg.matrix_norm(matrix.detach(), ord=1).amax()) * step
    return max(0, math.ceil(math.log2(2.0 * norm))) if norm > 0.0 else 0


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT) / 2


class Span(NamedTuple):
    """What optimality says of the two ends of a span of time, as state x and costate p (half the gradient of cost).

        x_end = Phi x - Gamma p_end,        p = Theta x + Phi' p_end

    All ``[b, n, n]``; Gamma and Theta are symmetric and positive semi-definite. One stage is (A, B R^-1 B', Q).
    """

    phi: Tensor
    gamma: Tensor
    theta: Tensor


def join(gamma: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Joins a span to what follows it, of cost-to-go ``after``.

    Returns:
        The inverse of I + gamma after (no eigenvalue of which is below one), and the largest entry of that matrix over
        the batch. Its square, times eps, bounds the relative error that the joint brings to a path.
    """
    eye = torch.eye(gamma.shape[-1], dtype=gamma.dtype, device=gamma.device)
    matrix = torch.baddbmm(eye.expand_as(gamma), gamma, after)
    return torch.linalg.inv_ex(matrix).inverse, matrix.detach().abs().amax()


def close(part: Span, P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where p_end = P x_end: the matrix that takes x to x_end, the P of the start, and the size of the joint."""
    inverse, size = join(part.gamma, P)
    move = torch.bmm(inverse, part.phi)
    return move, torch.baddbmm(part.theta, part.phi.mT, torch.bmm(P, move)), size


class Middle(NamedTuple):
    """The state in the middle of two equal spans: x_mid = from_start x - from_end p_end."""

    from_start: Tensor
    from_end: Tensor


def double(half: Span) -> tuple[Span, Middle, Tensor]:
    """Two equal spans in a row, by the structure-preserving doubling of Chu, Fan, Lin, Wang (2004).

    Returns:
        The whole, its middle, and the size of the joint.
    """
    phi, gamma, theta = half
    inverse, size = join(gamma, theta)
    middle = Middle(torch.bmm(inverse, phi), torch.bmm(torch.bmm(inverse, gamma), phi.mT))
    whole = Span(
        torch.bmm(phi, middle.from_start),
        torch.baddbmm(gamma, phi, middle.from_end),
        torch.baddbmm(theta, torch.bmm(phi.mT, theta), middle.from_start),
    )
    return whole, middle, size


def span(parts: Flow, step: float | None) -> Span:
    """The span of one stage, or of one step of dx = (Ax - Gp) dt, dp = -(Qx + A'p) dt.

    In continuous time the exponential of the Hamiltonian matrix is taken over a fraction of the step where it is near
    the identity, and that span is doubled: long steps cost no digits.
    """
    A, G, Q = parts.A, parts.G, parts.Q
    if step is None:
        return Span(A, G, Q)
    n = A.shape[-1]
    # In units of the costate where G and Q are of one size, neither drowns in the rounding of the exponential.
    sizes = [x.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).eps) for x in (G, Q)]
    unit = (sizes[1] / sizes[0]).sqrt()
    G, Q = G * unit, Q / unit
    hamiltonian = torch.cat([torch.cat([A, -G], -1), torch.cat([-Q, -A.mT], -1)], -2)
    halvings = _halvings(hamiltonian, step)
    flowed = torch.matrix_exp(hamiltonian * (step / 2**halvings))
    inverse = torch.linalg.inv(flowed[:, n:, n:])
    found = Span(inverse.mT, _symmetric(-flowed[:, :n, n:] @ inverse), _symmetric(-inverse @ flowed[:, n:, :n]))
    for _ in range(halvings):
        found = double(found)[0]
    return Span(found.phi, found.gamma / unit, found.theta * unit)


def continuous_sweep(mode: Mode, steps: int, step: float) -> Sweep:
    """Solves the Riccati differential equation backwards, exactly (to rounding) at the nodes of the grid.

    P(t) = Theta + Phi' P(t+h) (I + Gamma P(t+h))^-1 Phi with the span of one step, whatever its length h.
    """
    parts = flow(mode)
    one = span(parts, step)
    P = mode.QT
    Ps, moves = [P], []
    for _ in range(steps):
        move, P, _ = close(one, P)
        Ps.append(P)
        moves.append(move)
    Ps.reverse()
    return Sweep(Ps, [parts.R_inv_Bt @ P + parts.shift for P in Ps], moves[::-1])


class Course(NamedTuple):
    """An optimal path from each of s starts of each problem.

    Attributes:
        states: ``[b, T+1, s, n]``.
        controls: ``[b, T, s, m]``, or T+1 of them in continuous time.
        P: of the start ``[b, n, n]``.
    """

    states: Tensor
    controls: Tensor
    P: Tensor


def stagewise_course(mode: Mode, starts: Tensor, steps: int, step: float | None) -> Course:
    """The optimal paths from ``starts`` ``[b, s, n]``, stage by stage; ``step`` is None in discrete time."""
    sweep = discrete_sweep(mode, steps) if step is None else continuous_sweep(mode, steps, step)
    x = starts.mT
    xs, us = [x], []
    for t, gain in enumerate(sweep.K):
        us.append(-torch.bmm(gain, x))
        if t < steps:
            x = torch.bmm(sweep.moves[t], torch.cat([x, us[t]], 1) if step is None else x)
            xs.append(x)
    return Course(torch.stack(xs, 1).mT, torch.stack(us, 1).mT, sweep.P[0])


def stationary_course(mode: Mode, starts: Tensor, steps: int, step: float | None) -> Course | None:
    """The same for a time-invariant problem in O(log T) batched operations instead of T.

    Spans of 1, 2, 4, ... steps are made by doubling. Those that add up to the horizon are closed backwards from the
    terminal weight, which gives the states and costates at their joints; each span is then halved, all together, down
    to single steps.

    Returns:
        The paths; or None where joints as large as eps^(-1/4) could cost half of the digits, as when control is nearly
        free. At that bound the error stays below 1e-9 in practice, in double precision.
    """
    parts = flow(mode)
    spans = [span(parts, step)]
    middles: list[Middle] = []
    sizes: list[Tensor] = []
    while 4 << len(middles) <= steps:
        whole, middle, size = double(spans[-1])
        spans.append(whole)
        middles.append(middle)
        sizes.append(size)
    P, closed = mode.QT, []
    for j, part in enumerate(spans):
        for _ in range(steps >> j if j == len(middles) else steps >> j & 1):
            move, before, size = close(part, P)
            closed.append((j, move, P))
            sizes.append(size)
            P = before
    if not float(torch.stack(sizes).amax()) < torch.finfo(starts.dtype).eps ** (-1 / 4):
        return None
    ends: dict[int, list[tuple[Tensor, Tensor]]] = {}
    x = starts
    for j, move, P_end in reversed(closed):
        begin, x = x, torch.bmm(x, move.mT)
        ends.setdefault(j, []).append((begin, torch.bmm(x, P_end)))
    states, costates = _subdivide(spans, middles, ends)
    if step is None:  # a stage answers to the costate of its end, a moment to its own
        states, at = torch.cat([states, x[:, None]], 1), states
    else:
        states = at = torch.cat([states, x[:, None]], 1)
        costates = torch.cat([torch.bmm(starts, P)[:, None], costates], 1)
    controls = _act(costates, -parts.R_inv_Bt.mT)
    return Course(states, controls if mode.cross is None else controls - _act(at, parts.shift.mT), P)


def _act(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows`` ``[b, c, s, n]`` times ``matrix`` ``[b, n, m]``."""
    return torch.bmm(rows.flatten(1, 2), matrix).reshape(*rows.shape[:3], -1)


def _subdivide(
    spans: list[Span], middles: list[Middle], ends: dict[int, list[tuple[Tensor, Tensor]]]
) -> tuple[Tensor, Tensor]:
    """Halves spans until they are single steps.

    Args:
        spans: spans of 2^j steps.
        middles: of the spans of 2^(j+1) steps.
        ends: state at the start and costate at the end ``[b, s, n]`` of each span of 2^j steps in the horizon, which
            begins with the longest.

    Returns:
        The same for each step ``[b, T, s, n]``.
    """
    x, p = (torch.stack(part, 1) for part in zip(*ends[len(middles)], strict=True))
    b, _, s, n = x.shape
    x, p = x.flatten(1, 2), p.flatten(1, 2)
    for j in reversed(range(len(middles))):
        x_mid = torch.baddbmm(torch.bmm(x, middles[j].from_start.mT), p, middles[j].from_end.mT, alpha=-1)
        p_mid = torch.baddbmm(torch.bmm(p, spans[j].phi), x_mid, spans[j].theta)
        pairs = (x, x_mid), (p_mid, p)
        x, p = (torch.stack([y.view(b, -1, s, n) for y in pair], 2).view(b, -1, n) for pair in pairs)
        for begin, end in ends.get(j, []):
            x, p = torch.cat([x, begin], 1), torch.cat([p, end], 1)
    return x.view(b, -1, s, n), p.view(b, -1, s, n)


def trace_product(x: Tensor, y: Tensor) -> Tensor:
    """tr(x' y) over the last two axes."""
    return (x * y).sum((-2, -1))


def discrete_noise_cost(mode: Mode, sweep: Sweep) -> Tensor:
    """sum_t tr(P_(t+1) Sigma_t), ``[b]``."""
    if mode.noise is None:
        return mode.QT.new_zeros(len(mode.QT))
    return trace_product(torch.stack(sweep.P[1:], 1), mode.noise).sum(1)


def continuous_noise_cost(mode: Mode, sweep: Sweep, step: float) -> Tensor:
    """Integral of tr(P(t) Sigma) dt, ``[b]``.

    Two-point Hermite quadrature on each step, the first two derivatives of P coming from its equation. The error is
    T h^6 / 100800 times the sixth derivative of the integrand.
    """
    if mode.noise is None:
        return mode.QT.new_zeros(len(mode.QT))
    parts = flow(mode)
    A, G, Q, P = parts.A[:, None], parts.G[:, None], parts.Q[:, None], torch.stack(sweep.P, 1)
    drift = A - G @ P
    first = -2 * _symmetric(P @ A) + P @ G @ P - Q
    second = -2 * _symmetric(first @ drift)
    f, df, ddf = (trace_product(x, mode.noise) for x in (P, first, second))
    return (
        step / 2 * (f[:, :-1] + f[:, 1:])
        + step**2 / 10 * (df[:, :-1] - df[:, 1:])
        + step**3 / 120 * (ddf[:, :-1] + ddf[:, 1:])
    ).sum(1)


def gramian(A: Tensor, W: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Exponential of A and the integrals of V(s) = int_0^s exp(A'r) W exp(Ar) dr (Van Loan 1978), doubling the step.

    Args:
        A: ``[b, d, d]``.
        W: symmetric ``[b, d, d]``.
        step: length h of the step.

    Returns:
        exp(A h), V(h) and int_0^h V(s) ds, each ``[b, d, d]``.
    """
    d = A.shape[-1]
    zero, eye = torch.zeros_like(A), torch.eye(d, dtype=A.dtype, device=A.device).expand_as(A)
    scale = W.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    rows = [[-A.mT, eye, zero], [zero, -A.mT, W / scale], [zero, zero, A]]  # V is linear in W: keep its size out of exp
    halvings = _halvings(A, step)
    h = step / 2**halvings
    blocks = torch.matrix_exp(torch.cat([torch.cat(row, -1) for row in rows], -2) * h)
    flowed = blocks[:, 2 * d :, 2 * d :]
    V, area = flowed.mT @ blocks[:, d : 2 * d, 2 * d :], flowed.mT @ blocks[:, :d, 2 * d :]
    for _ in range(halvings):
        area = area + h * V + flowed.mT @ area @ flowed
        V = V + flowed.mT @ V @ flowed
        flowed, h = flowed @ flowed, 2 * h
    return flowed, scale * _symmetric(V), scale * _symmetric(area)


def sample(mode: Mode, step: float) -> tuple[Mode, Tensor | None]:
    """The discrete problem met by a control held constant over each step: exact for dynamics, cost and noise.

    Args:
        mode: a time-invariant continuous mode; ``noise`` is per unit of time.
        step: length h of a step.

    Returns:
        The discrete mode, its matrices without a time axis, and the cost ``[b]`` that the noise entering within a step
        adds to that step (None: no noise).
    """
    n, m = mode.B.shape[-2:]
    A, B, Q, R = mode.A[:, 0], mode.B[:, 0], mode.Q[:, 0], mode.R[:, 0]
    cross = torch.zeros_like(B) if mode.cross is None else mode.cross[:, 0]
    joint = torch.cat([torch.cat([A, B], -1), A.new_zeros(len(A), m, n + m)], -2)
    weight = torch.cat([torch.cat([Q, cross], -1), torch.cat([cross.mT, R], -1)], -2)
    flowed, V, area = gramian(joint, weight, step)
    noise = held = None
    if mode.noise is not None:
        noise = gramian(A.mT, mode.noise[:, 0], step)[1]
        held = trace_product(area[:, :n, :n], mode.noise[:, 0])
    Ad, Bd, Qd, Nd, Rd = flowed[:, :n, :n], flowed[:, :n, n:], V[:, :n, :n], V[:, :n, n:], V[:, n:, n:]
    return Mode(Ad, Bd, Qd, Rd, mode.QT, Nd, noise), held
