"""J and dJ/du of a neural ODE through mfoc's schemes against back-propagation through torchdiffeq's ``odeint``.

    python -m tests.benchmarks.bench_schemes [rounds]

The drift is a network of one hidden layer, J the mean of |x(1)|^2. ``one control`` is tied over all of [0, 1]; ``ten
controls`` are piecewise constant, for which odeint is called interval by interval. Fixed steps: 20 or 10; the 3/8 rule
is the method that torchdiffeq calls rk4. Adaptive: rtol = 1e-6, atol = 1e-8 on both sides, each with the steps that it
chooses, and the evaluations of the drift that they cost. Both sides interleaved in one process on one thread: medians
of thread-CPU time, the ratio of the medians, and how far J is from that of odeint at 1e-12.
"""

import sys

import torch
from torchdiffeq import odeint

import mfoc
from tests.benchmarks.timing import interleaved, machine, quick, report

RTOL, ATOL = 1e-6, 1e-8


def controls(count, d, hidden):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5

    return [{"V": 2 * draw(hidden, d), "W": 2 * draw(d, hidden)} for _ in range(count)]


class Drift:
    def __init__(self):
        self.calls = 0

    def __call__(self, t, x, u, z=None):
        self.calls += 1
        return torch.tanh(x @ u["V"].mT + t) @ u["W"].mT


def by_mfoc(scheme, us, steps, x):
    drift, tied = Drift(), len(us) == 1
    problem = mfoc.continuous(
        drift, lambda x, z: x.square().sum(1), us[0] if tied else us, scheme=scheme,
        horizon=steps if tied else None, schedule=mfoc.tied if tied else mfoc.per_stage,
    )  # fmt: skip
    cloud = mfoc.Particles(x)
    return drift, lambda: mfoc.evaluate(problem, problem.controls, cloud)[0]


def by_torchdiffeq(method, us, steps, x, rtol=RTOL, atol=ATOL):
    drift = Drift()

    def run():
        free = mfoc.tree.detached(us, requires_grad=True)
        y, n = x, len(us)
        for k, u in enumerate(free):
            times = torch.linspace(k / n, (k + 1) / n, max(steps // n, 1) + 1, dtype=x.dtype)
            y = odeint(lambda t, y, u=u: drift(t, y, u), y, times, method=method, rtol=rtol, atol=atol)[-1]
        value = y.square().sum(1).mean()
        torch.autograd.grad(value, mfoc.tree.leaves(free))
        return value.detach()

    return drift, run


def compare(name, exact, mine, theirs, rounds, *, headline=False):
    seen = []
    for drift, run in (mine, theirs):
        drift.calls = 0
        error = abs(float(run()) - exact)
        seen.append(f"({drift.calls:3d} drifts, off by {error:.0e})")
    times = interleaved({"mfoc": mine[1], "odeint": theirs[1]}, rounds=rounds)
    print(
        f"    mfoc {1e3 * times.median('mfoc'):7.2f} ms {seen[0]}  "
        f"odeint {1e3 * times.median('odeint'):7.2f} ms {seen[1]}"
    )
    report(name, times.ratio("mfoc", "odeint"), of="mfoc", to="torchdiffeq", headline=headline)


def main():
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    rounds = 10 if quick() else rounds
    print(machine())
    for n, d, hidden in ((64, 4, 16),) if quick() else ((64, 4, 16), (256, 16, 64)):
        x = torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        print(f"{n} particles in {d} dimensions, {hidden} hidden units")
        for label, us in (("one control", controls(1, d, hidden)), ("ten controls", controls(10, d, hidden))):
            steps = 20 if len(us) == 1 else 10
            exact = float(by_torchdiffeq("dopri5", us, 1, x, 1e-12, 1e-12)[1]())
            fixed = by_torchdiffeq("rk4", us, steps, x)
            compare(f"3/8 rule, {label}, {n} particles", exact, by_mfoc(mfoc.rk38, us, steps, x), fixed, rounds)
            compare(f"rk4 against 3/8, {label}, {n} particles", exact, by_mfoc(mfoc.rk4, us, steps, x), fixed, rounds)
            adaptive = by_torchdiffeq("dopri5", us, 1, x)
            mine = by_mfoc(mfoc.dopri5(RTOL, ATOL), us, 1, x)
            compare(f"dopri5, {label}, {n} particles", exact, mine, adaptive, rounds, headline=len(us) == 1)


if __name__ == "__main__":
    main()
