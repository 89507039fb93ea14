"""A mean-field game with finitely many states, by mfoc and by MFGLib, judged by MFGLib's exploitability.

    pip install --no-deps --target DIR mfglib optuna rich ... ; PYTHONPATH=DIR python -m tests.benchmarks.bench_mfglib

The beach bar (Perrin et al. 2020): places on a line or circle, three moves, a crowd that nobody likes. As a control
problem a player's state is his distribution over the places ``[1, n]``, his control the policy ``[n, 3]`` of a stage,
in a simplex for each place; the crowd is ``mfoc.mean`` of the one row, which a player takes for given. Printed: the
exploitability of the last policy, and thread-CPU seconds.
"""

import sys
import time
from functools import partial

import torch

try:
    from mfglib.alg import FictitiousPlay, OnlineMirrorDescent
    from mfglib.env import Environment
    from mfglib.scoring import exploitability_score
except ImportError as error:
    sys.exit(print(f"MFGLib cannot be imported ({error}): not compared"))

import mfoc
from tests.problems import D

PLACES, STAGES = 10, 10  # MFGLib's T is STAGES - 1


def as_problem(env, *, logits):
    """The game's control problem, and its policies: by logits, or as probabilities within simplices."""

    def policy(u):
        return torch.softmax(u, -1) if logits else u

    def dynamics(t, x, u, z):
        return torch.einsum("ns,sa,dsa->nd", x, policy(u), env.prob(t, torch.empty(0)))

    def running_cost(t, x, u, z):
        crowd = mfoc.mean(x)[:, None] * policy(u).detach()  # MFGLib's L; the reward reads its sum over moves
        return -torch.einsum("ns,sa,sa->n", x, policy(u), env.reward(t, crowd))

    guess = [torch.full((PLACES, 3), 1 / 3, dtype=D)] * STAGES
    bounds = None if logits else mfoc.Simplex()
    problem = mfoc.Problem(dynamics, lambda x, z: 0 * x.sum(1), guess, running_cost=running_cost, bounds=bounds)
    return problem, lambda controls: torch.stack([policy(u) for u in controls])


def main():
    env = Environment.beach_bar(T=STAGES - 1, n=PLACES, bar_loc=4)
    x, adam, sgd = env.mu0[None], partial(torch.optim.Adam, lr=0.1), partial(torch.optim.SGD, lr=0.5)
    for name, logits, optimizer in (("Adam on logits", True, adam), ("SGD within simplices", False, sgd)):
        problem, policies = as_problem(env, logits=logits)
        begin = time.thread_time()
        found = mfoc.solve(mfoc.Equilibrium(problem), mfoc.Gradient(optimizer), x, steps=1000)
        seconds = time.thread_time() - begin
        score = exploitability_score(env, policies(found.controls))
        mine = mfoc.exploitability(problem, found, mfoc.Gradient(adam if logits else sgd), x, steps=300)
        print(
            f"mfoc {name} 1000 steps: exploitability {score:.1e} (by mfoc.exploitability {mine.value:.1e}), "
            f"{seconds:.1f} s"
        )
    for solver, steps in ((OnlineMirrorDescent(alpha=1.0), 1000), (OnlineMirrorDescent(alpha=0.1), 1000),
                          (FictitiousPlay(), 1000)):  # fmt: skip
        begin = time.thread_time()
        paths, _, _ = solver.solve(env, max_iter=steps, atol=None, rtol=None, verbose=0)
        seconds = time.thread_time() - begin
        score = exploitability_score(env, paths[-1])
        print(f"MFGLib {solver} {steps} iterations: exploitability {score:.1e}, {seconds:.1f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(D)
    print(f"{torch.get_num_threads()} thread, torch {torch.__version__}")
    main()
