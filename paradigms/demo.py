"""Three paradigms on the demo's handwritten digits: a robust network, a Bayesian one, and one that learns to learn.

Each is a formulation that is solved as any problem is, and told of in three lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfoc
from mfoc.demo import digits, one_thread
from mfoc.seeding import seeded
from paradigms import adversarial, bayesian, meta
from paradigms.reporting import Estimate

EPSILON = 0.1  # of the adversary: a tenth of the range of a pixel
SEEN = 6  # classes 0 to 5 make the tasks of training, 6 to 9 those of the test
_TEMPERATURE = 0.1  # of the posterior: all of the KL, on so few digits, leaves little but the prior
_WAYS, _SHOTS, _INNER = 3, 5, 1
_RATES = (0.3, 1.0, 3.0)  # of the inner steps; the first is that of training


def run(out: Path | None = None, *, seed: int = 0, scale: float = 1.0) -> dict[str, list[str]]:
    """Runs the three, and prints three lines for each.

    Args:
        out: folder for figures, which ``mfoc demo`` gives; none are made.
        seed: of the split, the networks, the batches, the draws and the attacks.
        scale: fraction of the steps to run.

    Returns:
        The lines, by paradigm.

    Raises:
        MissingExtra: rich or scikit-learn is not installed.
    """
    del out
    console = mfoc.require("rich.console", "plot").Console()
    train, test = digits(seed)
    told = {}
    with one_thread():
        for name, demo in _DEMOS.items():
            lines = demo(train, test, seed, scale)
            for line in (*lines, ""):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            told[name] = lines
    return told


def robust(train: mfoc.Particles, test: mfoc.Particles, seed: int, scale: float) -> list[str]:
    """Adversarial training against plain training: accuracy on clean digits, and under PGD."""
    formulation = adversarial.game(
        _classifier(seed), F.cross_entropy, train, epsilon=EPSILON, batch_size=128, seed=seed
    )
    adam = _adam(3e-3)
    players: dict[str, mfoc.Solver] = {"plain": adam, "robust": mfoc.Minimax(adversarial.YOPO(5, 3), adam, seed=seed)}
    rows, spent = [], 0.0
    for name, solver in players.items():
        solution, seconds = _solved(formulation, solver, 400, scale, nominal=name == "plain")
        spent += seconds
        table = adversarial.evaluate(
            formulation.readout(solution),
            test,
            epsilon=EPSILON,
            attacks={"PGD-20": adversarial.PGD(20)},
            seed=seed,
            progress=False,
        )
        clean, under = (_percent(row.value, row.low, row.high) for row in table.rows)
        rows.append(f"  {name:6s} clean {clean}, under PGD-20 {under}")
    return [f"Robust: a game, pixels moved by at most {EPSILON:g}; Minimax(YOPO-5-3, Adam), {spent:.1f} s", *rows]


def uncertain(train: mfoc.Particles, test: mfoc.Particles, seed: int, scale: float) -> list[str]:
    """A law over weights against one network: calibration on digits, and doubt about what is none."""
    plain = mfoc.from_module(_classifier(seed), F.cross_entropy)
    batches = mfoc.population(train, batch_size=128, seed=seed)
    one, first = _timed(lambda: mfoc.solve(plain, _adam(3e-3), batches, steps=_steps(400, scale)))
    formulation = bayesian.variational(
        _classifier(seed), train, likelihood="categorical", prior=_prior, samples=1, batch_size=128, seed=seed,
        estimator="local", init_scale=0.02, tau=_TEMPERATURE / len(train),
    )  # fmt: skip
    many, second = _solved(formulation, _adam(1e-2), 500, scale)
    images = test.state, _shuffled(test.state, seed)
    posterior, network = formulation.readout(many), plain.readout(one)
    rows = []
    for name, (seen, unseen) in {
        "plain": [_softmax(network, x) for x in images],
        "Bayesian": [bayesian.predict(posterior, x, samples=50, seed=seed).mean for x in images],
    }.items():
        right, likelihood, error = (m(seen, test.data) for m in (bayesian.accuracy, bayesian.nll, bayesian.ece))
        doubt = auroc(entropy(seen), entropy(unseen))
        told = (
            f"{100 * right:.1f} %, NLL {likelihood:.3f}, ECE {error:.3f}; digit or shuffled pixels: AUROC {doubt:.2f}"
        )
        rows.append(f"  {name:8s} {told}")
    return [f"Bayesian: a law over all weights, {_TEMPERATURE:g} KL(law || prior); Adam, {first + second:.1f} s", *rows]


def few_shots(train: mfoc.Particles, test: mfoc.Particles, seed: int, scale: float) -> list[str]:
    """Initial weights from which a few gradient steps learn digits that no task of training had."""
    x, y = torch.cat([train.state, test.state]).view(-1, 1, 8, 8), torch.cat([train.data, test.data])
    law = partial(meta.few_shot, ways=_WAYS, shots=_SHOTS, queries=10, tasks=16)
    seen = law(x[y < SEEN], y[y < SEEN], rotations=True, seed=seed)  # turned digits make four times as many classes
    unseen = law(x[y >= SEEN], y[y >= SEEN], seed=seed + 1)
    with seeded(seed):
        net = nn.Sequential(nn.Flatten(), _hidden(), _hidden(), nn.Linear(64, _WAYS))
    made = {rate: meta.maml(net, F.cross_entropy, seen, inner_steps=_INNER, inner_lr=rate) for rate in _RATES}
    formulation = made[_RATES[0]]
    solution, spent = _solved(formulation, _adam(3e-3), 400, scale)

    def adapted(of: meta.MetaFormulation, controls: Any) -> tuple[Estimate, Estimate]:
        table = meta.evaluate(of, controls, unseen, steps=(0, _INNER), batches=_steps(10, scale), progress=False)
        before, after = (table[steps].accuracy for steps in (0, _INNER))
        assert before is not None  # for the targets are classes
        assert after is not None
        return before, after

    learned = adapted(formulation, solution)
    tried = [adapted(each, each.problem.controls) for each in made.values()]
    random = max(tried, key=lambda pair: pair[1].value)
    rates = ", ".join(f"{rate:g}" for rate in _RATES)
    return [
        f"Meta: MAML on digits 0-{SEEN - 1}, {spent:.1f} s; tasks: {_WAYS} of digits {SEEN}-9, {_SHOTS} images each",
        f"  random weights: {_percent(*random[1])} after {_INNER} step, the best of sizes {rates}",
        f"  learned weights: {100 * learned[0].value:.1f} % before, {_percent(*learned[1])} after {_INNER} step",
    ]


def entropy(probabilities: Tensor) -> Tensor:
    """Of laws over classes ``[N, classes]``, in nats ``[N]``."""
    found: Tensor = torch.special.entr(probabilities.double()).sum(-1)
    return found


def auroc(low: Tensor, high: Tensor) -> float:
    """The probability that a number of ``high`` ``[M]`` exceeds one of ``low`` ``[N]``; equal ones count a half."""
    differences = high[:, None] - low
    return float(((differences > 0).double() + 0.5 * (differences == 0)).mean())


def _classifier(seed: int) -> nn.Sequential:
    with seeded(seed):
        return nn.Sequential(_hidden(), _hidden(), nn.Linear(64, 10))


def _hidden() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU())


def _prior(_name: str, parameter: Tensor) -> torch.distributions.Distribution:
    """A layer of such weights keeps the size of what it is given."""
    scale = (2 / parameter.shape[1]) ** 0.5 if parameter.dim() == 2 else 0.1
    return torch.distributions.Normal(torch.zeros_like(parameter), torch.full_like(parameter, scale))


def _adam(lr: float) -> mfoc.Gradient:
    return mfoc.Gradient(partial(torch.optim.Adam, lr=lr))


def _steps(full: int, scale: float) -> int:
    return max(1, round(full * scale))


def _solved(
    formulation: mfoc.Formulation, solver: mfoc.Solver, steps: int, scale: float, **options: Any
) -> tuple[mfoc.Solution, float]:
    """The solution, and the seconds of the processor that it took."""
    return _timed(lambda: formulation.solve(solver, steps=_steps(steps, scale), **options))


def _timed(solve: Callable[[], mfoc.Solution]) -> tuple[mfoc.Solution, float]:
    began = time.thread_time()
    return solve(), time.thread_time() - began


def _shuffled(x: Tensor, seed: int) -> Tensor:
    """Each image with its pixels in an order of its own: no digit, of the same grey values."""
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.rand(x.shape, generator=generator, device="cpu", dtype=torch.float32).argsort(1)
    return x.gather(1, order)


def _softmax(net: nn.Module, x: Tensor) -> Tensor:
    """Probabilities of a network."""
    with torch.no_grad():
        return torch.softmax(net(x), 1)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


_DEMOS: dict[str, Callable[[mfoc.Particles, mfoc.Particles, int, float], list[str]]] = {
    "adversarial": robust,
    "bayesian": uncertain,
    "meta": few_shots,
}
