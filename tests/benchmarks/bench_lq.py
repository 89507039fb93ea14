"""A batch of LQ problems solved by ``mfoc.lq`` and by the package ``mpc`` 0.0.6.

    python -m tests.benchmarks.bench_lq

128 problems, 12 states, 4 controls, 50 stages, one thread, the same matrices. Both sides start from those matrices and
give states, controls and cost: ``LinearQuadratic.discrete(...).path(x0)`` (validation included; it doubles spans of
time where mpc goes stage by stage) and ``MPC(...)(...)``. Also timed is mfoc's own recursion, stage by stage.

``mpc`` minimises sum 1/2 (x, u)' C (x, u) + c'(x, u) over T states, the last with a cost and a control of its own, so
C = 2 diag(Q, R), c = 0 and T = 51. It is an iterative (box-constrained) LQR, and runs here in two ways:

  minimal   lqr_iter=1, the convergence check and its exit off: one exact LQR step and nothing else. The fair ratio.
  default   its own default of lqr_iter=10 and eps=1e-7: it repeats the step until the control stops moving. This is
            what its users get, and in float32 the check cannot succeed, so that all iterations are spent.

The matrix A is random with spectral radius one, so that the first trajectory of ``mpc``, without control, stays small
and its single step is accurate. Solvers take turns; medians are reported.
"""

import platform
import statistics
import time
from pathlib import Path

import torch
from mpc import mpc

from mfoc.lq import LinearQuadratic

BATCH, STATES, CONTROLS, STAGES, ROUNDS = 128, 12, 4, 50, 15


def processor():
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def problems(dtype):
    torch.manual_seed(0)
    A = torch.randn(BATCH, STATES, STATES, dtype=torch.float64)
    A = A / torch.linalg.eigvals(A).abs().amax(-1)[:, None, None]
    B = torch.randn(BATCH, STATES, CONTROLS, dtype=torch.float64) / STATES**0.5
    root = torch.randn(BATCH, STATES, STATES, dtype=torch.float64)
    Q = root @ root.mT / STATES
    R = torch.eye(CONTROLS, dtype=torch.float64).repeat(BATCH, 1, 1)
    x0 = torch.randn(BATCH, STATES, dtype=torch.float64)
    return [x.to(dtype) for x in (A, B, Q, R, 2 * Q, x0)]


def solvers(dtype):
    A, B, Q, R, QT, x0 = problems(dtype)
    stage = torch.stack([2 * torch.block_diag(q, r) for q, r in zip(Q, R, strict=True)])
    last = torch.stack([2 * torch.block_diag(q, r) for q, r in zip(QT, R, strict=True)])
    C = torch.stack([stage] * STAGES + [last])
    cost = mpc.QuadCost(C, C.new_zeros(C.shape[:-1]))
    dynamics = mpc.LinDx(torch.cat([A, B], -1).repeat(STAGES + 1, 1, 1, 1))

    def ours():
        return LinearQuadratic.discrete(A, B, Q, R, QT, horizon=STAGES).path(x0)

    def riccati():
        return LinearQuadratic.discrete(A, B, Q, R, QT, horizon=STAGES).riccati()

    def theirs(**options):
        solver = mpc.MPC(
            STATES, CONTROLS, STAGES + 1, verbose=-1, exit_unconverged=False, detach_unconverged=False, **options
        )
        return solver(x0, cost, dynamics)

    return {
        "mfoc path": ours,
        "mfoc riccati (every P and K)": riccati,
        "mpc minimal": lambda: theirs(lqr_iter=1),
        "mpc default": theirs,
    }


def run(dtype):
    contenders = solvers(dtype)
    times = {name: [] for name in contenders}
    results = {}
    for round_ in range(ROUNDS + 2):
        for name, solve in contenders.items():
            begin = time.perf_counter()
            results[name] = solve()
            if round_ >= 2:
                times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(series) for name, series in times.items()}
    print(f"{dtype}")
    for name, median in medians.items():
        print(f"  {name:30s} {1e3 * median:8.2f} ms")
    path = results["mfoc path"]
    for name in ("mpc minimal", "mpc default"):
        _, controls, cost = results[name]
        off = float(((path.cost - cost) / cost).abs().max())
        moved = float((path.controls - controls[:-1].transpose(0, 1)).abs().max())
        ratio = medians[name] / medians["mfoc path"]
        print(f"  {name} / mfoc path: {ratio:.1f}x; costs agree to {off:.1e} (relative), controls to {moved:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{processor()}, {torch.get_num_threads()} thread, torch {torch.__version__}")
    with torch.no_grad():
        run(torch.float64)
        run(torch.float32)
