"""Problems of each class of control, the solvers that are compared on them, and ipopt on the same numbers.

Only solvers of one class are compared: open loop shared by the cloud, a control for each particle, feedback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

import mfoc
from tests.architectures import seeded
from tests.problems import Case, D, discrete_lq, normal, swarm
from tests.robots import by_ipopt, in_torch

LBFGS = mfoc.Gradient(
    partial(torch.optim.LBFGS, max_iter=20, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0)
)
SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))
NEWTON, DDP, MSA, EMSA = mfoc.NewtonCG(), mfoc.DDP(), mfoc.MSA(), mfoc.EMSA()

Solvers = dict[str, tuple[mfoc.Solver, int] | tuple[mfoc.Solver, int, int]]


class Answer(NamedTuple):
    """What another library or a formula says: J, its iterations and thread-CPU seconds (None where it has none)."""

    name: str
    value: float
    iterations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A line of the table.

    Attributes:
        solution: what the solver found.
        value: J on the whole cloud.
        residual: of it, as ``Solution.residual``.
        calls: of the dynamics. What a solver batches over stages is one call, and Newton's products are none, so that
            seconds compare solvers, and calls the steps of one.
        seconds: of thread-CPU time.
    """

    solution: mfoc.Solution
    value: float
    residual: float
    calls: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Entry:
    """A problem, and who is to solve it: a solver, its steps, and the size of its batches where it has some.

    Attributes:
        name: of the problem.
        kind: the class of control.
        make: the problem and its cloud.
        solvers: by name.
        answer: whose J is right; None where nobody knows.
    """

    name: str
    kind: str
    make: Callable[[], Case]
    solvers: Solvers
    answer: Callable[[Case], Answer] | None = None

    def row(self, solver: str, *, tol: float = 1e-8) -> Row:
        """The line of one solver."""
        problem, cloud = self.make()
        counting, calls = counted(problem)
        method, steps, *size = self.solvers[solver]
        source = mfoc.population(cloud, batch_size=size[0], seed=0) if size else cloud
        begin = time.thread_time()
        solution = mfoc.solve(counting, method, source, steps=steps, tol=None if size else tol)
        seconds = time.thread_time() - begin
        if not size:
            return Row(solution, solution.value, solution.residual, calls[0], seconds)
        whole = mfoc.evaluate(problem, solution.controls, cloud)
        return Row(solution, float(whole.value), float(mfoc.tree.norm(whole.gradient)), calls[0], seconds)


def counted(problem: mfoc.Problem) -> tuple[mfoc.Problem, list[int]]:
    """The problem, and a list whose entry is how often its dynamics have been called since."""
    calls, inner = [0], problem.dynamics

    def dynamics(t: int, x: Any, u: Any, z: Any) -> Any:
        calls[0] += 1
        return inner(t, x, u, z)

    return replace(problem, dynamics=dynamics), calls


# ---- one control for the cloud


def lq() -> tuple[mfoc.lq.LinearQuadratic, mfoc.Particles]:
    """A mean-field LQ problem whose law matters in dynamics and costs."""
    eye, root, spread = torch.eye(3, dtype=D), normal(3, 3, seed=1), normal(3, 3, seed=2)
    spec = {"A": 0.2 * normal(3, 3, seed=3), "Abar": 0.1 * normal(3, 3, seed=4), "B": 0.5 * normal(3, 2, seed=5)}
    spec |= {"Q": 0.1 * root @ root.mT + 0.1 * eye, "Qbar": 0.1 * spread @ spread.mT, "S": 0.5 * eye}
    spec |= {"R": 2 * torch.eye(2, dtype=D), "QT": eye}
    return discrete_lq(spec, horizon=4), mfoc.Particles(normal(30, 3, seed=6) + 1)


def lq_open_loop() -> Case:
    """Its controls shared by the cloud."""
    problem, cloud = lq()
    return problem.problem(), cloud


def by_riccati(case: Case, *, shared: bool = True) -> Answer:
    """J of it: of one control for the cloud, or of the best feedback."""
    problem, cloud = lq()
    mean, covariance = cloud.state.mean(0), torch.cov(cloud.state.mT, correction=0)
    return Answer("Riccati", problem.value(mean, covariance, shared=shared).item())


def cart(weight: float) -> Case:
    """The cart of the first tutorial: position and velocity, a push that costs ``weight`` u^2."""
    a, b = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=D), torch.tensor([[0.0], [0.1]], dtype=D)
    problem = mfoc.Problem(
        lambda t, x, u, z: x @ a.mT + u @ b.mT,
        lambda x, z: x.square().sum(1),
        [torch.zeros(1, dtype=D) for _ in range(20)],
        running_cost=lambda t, x, u, z: 0.1 * x.square().sum(1) + weight * u.square().sum(),
        kind=lambda t: "step",
    )
    return problem, mfoc.Particles(torch.tensor([1.0, 0.0], dtype=D) + 0.3 * normal(50, 2))


_STAGES, _T, _SIGMA = 20, 4.0, 0.25


def double_well(n: int = 20) -> Case:
    """Noisy particles pushed from the left well of (x^2 - 1)^2 / 4 to the right one by a force of time alone."""
    problem = mfoc.continuous(
        lambda t, x, u, z: x - x**3 + u,
        lambda x, z: 5 * (x[:, 0] - 1) ** 2,
        [torch.zeros(1, dtype=D) for _ in range(_STAGES)],
        running_cost=lambda t, x, u, z: (u**2 / 2).sum(-1).expand(len(x)),
        T=_T,
        scheme=mfoc.euler_maruyama(_SIGMA),
    )
    x = 0.1 * normal(n, 1) - 1
    return problem, mfoc.Particles(x, {"noise": mfoc.schemes.brownian(n, _STAGES, 1, seed=1, like=x)})


def well_by_ipopt(case: Case) -> Answer:
    """The double well in casadi, by single shooting."""
    import casadi as ca

    cloud, h = case[1], _T / _STAGES
    x, u, cost = ca.DM(cloud.state.numpy()), ca.SX.sym("u", _STAGES), 0
    noise = _SIGMA * h**0.5 * cloud.data["noise"][:, :, 0].numpy()
    for t in range(_STAGES):
        cost += h * u[t] ** 2 / 2
        x = x + h * (x - x**3 + u[t]) + noise[:, t]
    return shot(u, cost + ca.sum1(5 * (x - 1) ** 2) / len(cloud), [0.0] * _STAGES)


def swarm_by_ipopt(case: Case) -> Answer:
    """``tests.problems.swarm`` in casadi, by single shooting."""
    import casadi as ca

    problem, cloud = case
    n, stages = len(cloud), problem.stages
    x, u, cost = ca.DM(cloud.state.numpy()), ca.SX.sym("u", 2, stages), 0

    def mean(x: Any) -> Any:
        return ca.repmat(ca.sum1(x) / n, n, 1)

    for t in range(stages):
        m = mean(x)
        v = mean((x - m) ** 2)
        cost += 0.5 * ca.sumsqr(u[:, t]) + ca.sum1(ca.sum2((x - m) ** 2 * v)) / n
        x = x + 0.3 * (ca.tanh(m - x) + ca.repmat(u[:, t].T, n, 1) * ca.cos(x) + v)
    cost += ca.sumsqr(x - 2 * mean(x)) / n
    return shot(ca.vec(u), cost, torch.cat(problem.controls).numpy())


def shot(u: Any, cost: Any, guess: Any) -> Answer:
    """The least cost over u, by ipopt with exact Hessians."""
    import casadi as ca

    quiet = {"ipopt.print_level": 0, "print_time": 0, "ipopt.sb": "yes", "ipopt.tol": 1e-11}
    solver = ca.nlpsol("solver", "ipopt", {"x": u, "f": cost}, quiet)
    begin = time.thread_time()
    found = solver(x0=guess)
    seconds, stats = time.thread_time() - begin, solver.stats()
    assert stats["success"], stats["return_status"]
    return Answer("ipopt", float(found["f"]), int(stats["iter_count"]), seconds)


# ---- a control for each particle, and feedback


def robot_by_ipopt(name: str, bounded: bool, case: Case) -> Answer:
    """A robot of ``tests.robots``."""
    value, _, iterations, seconds = by_ipopt(name, case[1].state[0].numpy(), bounded=bounded)
    return Answer("ipopt", value, iterations, seconds)


def lq_feedback() -> Case:
    """Gains at each stage, on the state and on the mean: the class in which the LQ problem has its optimum."""
    problem, cloud = lq()
    policy = mfoc.linear_policy(lambda x: torch.cat([x, mfoc.mean(x).expand_as(x)], -1), torch.zeros(2, 6, dtype=D))
    return mfoc.feedback(problem.problem(), policy, per_stage=True), cloud


def digits() -> Case:
    """A tanh network with one hidden layer on the digits of scikit-learn, 1,797 images of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    net = seeded(lambda: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)))
    decay = mfoc.weight_decay(1e-4)
    problem = mfoc.from_module(net.float(), nn.functional.cross_entropy, running_cost=decay)
    return problem, mfoc.Particles(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(targets))


def _robot(name: str, bounded: bool, solvers: Solvers) -> Entry:
    title = f"{name} ({'boxed' if bounded else 'free'})"
    make = partial(in_torch, name, bounded=bounded)
    return Entry(title, "each particle", make, solvers, partial(robot_by_ipopt, name, bounded))


_WHOLE = {"L-BFGS": (LBFGS, 30), "NewtonCG": (NEWTON, 60), "DDP": (DDP, 60), "EMSA": (EMSA, 60)}
_OWN = {"DDP": (DDP, 80), "NewtonCG": (NEWTON, 80)}
_FREE = _OWN | {"L-BFGS": (LBFGS, 15), "EMSA": (EMSA, 60), "MSA": (MSA, 30)}
_TRAINED = {  # 280 batches of 128 are 20 passes over the digits; the others have 20 at least
    "SGD, momentum": (mfoc.Gradient(partial(torch.optim.SGD, lr=0.3, momentum=0.9)), 280, 128),
    "Adam": (mfoc.Gradient(partial(torch.optim.Adam, lr=1e-2)), 280, 128),
    "DDPNOpt": (mfoc.DDPNOpt(lr=1e-2, curvature="rmsprop"), 280, 128),
    "L-BFGS": (LBFGS, 1), "NewtonCG": (NEWTON, 8), "EMSA": (EMSA, 10), "MSA": (MSA, 8),
}  # fmt: skip
_GAINS = {"NewtonCG": (NEWTON, 60), "L-BFGS": (LBFGS, 5), "EMSA": (EMSA, 20)}

_TABLE = (
    Entry("LQ", "shared", lq_open_loop, _WHOLE | {"SGD": (SGD, 200), "MSA": (MSA, 200)}, by_riccati),
    Entry("double well", "shared", double_well, _WHOLE | {"SGD": (SGD, 300), "MSA": (MSA, 50)}, well_by_ipopt),
    Entry("swarm", "shared", swarm, _WHOLE | {"SGD": (SGD, 500), "MSA": (MSA, 50)}, swarm_by_ipopt),
    _robot("unicycle", False, _FREE),
    _robot("pendulum", False, _FREE),
    _robot("pendulum", True, _OWN | {"EMSA": (EMSA, 60)}),
    Entry("LQ gains", "feedback", lq_feedback, _GAINS, partial(by_riccati, shared=False)),
    Entry("digits", "weights", digits, _TRAINED),
)
ENTRIES = {entry.name: entry for entry in _TABLE}
