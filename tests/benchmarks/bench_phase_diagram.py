"""Phase diagrams of 300 x 250 points, 0 < sigma_w^2 <= 6, 0 <= sigma_b^2 <= 2, on one thread.

    python -m tests.benchmarks.bench_phase_diagram [activation ...]

Each runs in a process of its own, so that the making of tables, and of the rules of quadrature, is in the time of the
first call; the second call has them. Errors are against ``SignalPropagation`` at 24 random points: of q*, chi_1 and
chi_q, of c* and chi_c, and of xi_c divided by max(1, xi_c)^2.
"""

import subprocess
import sys
import time

import torch

from mfoc.analysis.propagation import SignalPropagation, phase_diagram

SMOOTH, KINKS = ("tanh", "erf", "sin", "gelu", "silu", "softplus", "relu"), ("hardtanh",)


def off(ours, theirs):
    return 0.0 if ours == theirs or ours != ours else abs(ours - theirs) / max(1.0, abs(theirs))


def run(activation):
    grids = torch.linspace(0.02, 6, 300, dtype=torch.float64), torch.linspace(0, 2, 250, dtype=torch.float64)
    taken = []
    for _ in range(2):
        begin = time.thread_time()
        diagram = phase_diagram(activation, *grids)
        taken.append(time.thread_time() - begin)
    generator = torch.Generator().manual_seed(0)
    lengths, correlations, scales = [0.0], [0.0], [0.0]
    for index in torch.randint(300 * 250, (24,), generator=generator).tolist():
        place = divmod(index, 250)
        signal = SignalPropagation(activation, float(grids[0][place[0]]), float(grids[1][place[1]]))
        ours = {name: float(getattr(diagram, name)[place]) for name in ("q_star", "chi_1", "chi_q", "c_star", "chi_c")}
        lengths += [off(ours[name], getattr(signal, name)) for name in ("q_star", "chi_1", "chi_q")]
        correlations += [off(ours[name], getattr(signal, name)) for name in ("c_star", "chi_c")]
        scales.append(off(float(diagram.xi_c[place]), signal.xi_c) / max(1.0, signal.xi_c))
    first, again = taken
    print(
        f"{activation:10s} {first:7.2f} s, again {again:6.2f} s;  errors: lengths {max(lengths):.0e}, "
        f"correlations {max(correlations):.0e}, depth scale {max(scales):.0e}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        run(sys.argv[1])
    else:
        for name in sys.argv[1:] or (*SMOOTH, *KINKS):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_phase_diagram", name], check=True)
