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
and its single step is accurate. Solvers take turns; the ratio of the medians of their thread-CPU times is
reported.
"""

from functools import partial

import torch

from mfoc.lq import LinearQuadratic
from tests.benchmarks.timing import interleaved, machine, quick, report

try:
    from mpc import mpc
except ImportError:
    mpc = None

BATCH, STATES, CONTROLS, STAGES, ROUNDS = 128, 12, 4, 50, 15


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
    if mpc is None:
        return {
            "mfoc path": lambda: LinearQuadratic.discrete(A, B, Q, R, QT, horizon=STAGES).path(x0),
            "mfoc riccati (every P and K)": lambda: LinearQuadratic.discrete(A, B, Q, R, QT, horizon=STAGES).riccati(),
        }
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
    contenders, results = solvers(dtype), {}

    def kept(name):
        results[name] = contenders[name]()

    times = interleaved({name: partial(kept, name) for name in contenders}, rounds=5 if quick() else ROUNDS)
    print(f"{dtype}")
    for name in contenders:
        print(f"  {name:30s} {1e3 * times.median(name):8.2f} ms")
    path = results["mfoc path"]
    for name in ("mpc minimal", "mpc default"):
        if name not in results:
            continue
        _, controls, cost = results[name]
        off = float(((path.cost - cost) / cost).abs().max())
        moved = float((path.controls - controls[:-1].transpose(0, 1)).abs().max())
        print(f"  {name}: costs agree to {off:.1e} (relative), controls to {moved:.1e}")
        chief = name == "mpc minimal" and dtype == torch.float64
        label = f"128 LQ problems, {str(dtype).removeprefix('torch.')}"
        report(label, times.ratio(name, "mfoc path"), of=name, to="mfoc path", headline=chief)
    name = f"{str(dtype).removeprefix('torch.')}, every P and K"
    report(name, times.ratio("mfoc riccati (every P and K)", "mfoc path"), of="mfoc riccati", to="mfoc path")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)
    print(machine())
    if mpc is None:
        print("mpc is not installed (pip install --no-deps mpc==0.0.6): mfoc alone")
    with torch.no_grad():
        run(torch.float64)
        if not quick():
            run(torch.float32)
