"""Three paradigms on the demo's handwritten digits: a robust network, a Bayesian one, and one that learns to learn.

Each is a formulation that is solved as any problem is, and told of in three lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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

EPSILON = 0.1  # of the adversary: a tenth of the range of a pixel
SEEN = 6  # classes 0 to 5 make the tasks of training, 6 to 9 those of the test
_WAYS, _SHOTS, _INNER, _RATE = 3, 5, 3, 0.5


def run(out: Path, *, seed: int = 0, scale: float = 1.0) -> dict[str, list[str]]:
    """Runs the three, and prints three lines for each.

    Args:
        out: folder for figures; none are made.
        seed: of the split, the networks, the batches, the draws and the attacks.
        scale: fraction of the steps to run.

    Returns:
        The lines, by paradigm.

    Raises:
        MissingExtra: rich or scikit-learn is not installed.
    """
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
    players = {"plain": adam, "robust": mfoc.Minimax(adversarial.YOPO(5, 3), adam, seed=seed)}
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
        _classifier(seed), train, likelihood="categorical", prior=_prior, samples=2, batch_size=128, seed=seed,
        estimator="local", init_scale=0.02,
    )  # fmt: skip
    many, second = _solved(formulation, _adam(5e-3), 600, scale)
    nothing = _shuffled(test.state, seed)
    predictions = {
        "plain": [_softmax(plain.readout(one), x) for x in (test.state, nothing)],
        "Bayesian": [
            bayesian.predict(formulation.readout(many), x, samples=50, seed=seed) for x in (test.state, nothing)
        ],
    }
    rows, told = [], []
    for name, (seen, unseen) in predictions.items():
        right, likelihood, error = (m(seen, test.data) for m in (bayesian.accuracy, bayesian.nll, bayesian.ece))
        rows.append(f"{name} {100 * right:.1f} %, NLL {likelihood:.3f}, ECE {error:.3f}")
        told.append(f"{100 * auroc(entropy(_probabilities(seen)), entropy(_probabilities(unseen))):.0f} % ({name})")
    return [
        f"Bayesian: a law over all weights, -ELBO/N by Adam; {first + second:.1f} s with the plain one",
        f"  accuracy: {'; '.join(rows)}",
        f"  entropy is higher on shuffled pixels than on a digit: {', '.join(told)} of pairs",
    ]


def few_shots(train: mfoc.Particles, test: mfoc.Particles, seed: int, scale: float) -> list[str]:
    """Initial weights from which a few gradient steps learn digits that no task of training had."""
    x, y = torch.cat([train.state, test.state]), torch.cat([train.data, test.data])
    law = partial(meta.few_shot, ways=_WAYS, shots=_SHOTS, queries=10, tasks=16)
    seen, unseen = law(x[y < SEEN], y[y < SEEN], seed=seed), law(x[y >= SEEN], y[y >= SEEN], seed=seed + 1)
    with seeded(seed):
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, _WAYS))
    formulation = meta.maml(net, F.cross_entropy, seen, inner_steps=_INNER, inner_lr=_RATE)
    solution, spent = _solved(formulation, _adam(2e-3), 400, scale)
    rows = []
    for name, controls in (("random", formulation.problem.controls), ("learned", solution)):
        table = meta.evaluate(
            formulation, controls, unseen, steps=(0, _INNER), batches=_steps(10, scale), progress=False
        )
        before, after = (table[steps].accuracy for steps in (0, _INNER))
        assert before is not None
        assert after is not None
        rows.append(f"  {name:7s} before {_percent(*before)}, after {_INNER} steps {_percent(*after)}")
    of = f"{_WAYS} of the digits {SEEN}-9 from {_SHOTS} images each"
    return [f"Meta: MAML on tasks of digits 0-{SEEN - 1}; test: {of}; {spent:.1f} s", *rows]


def entropy(probabilities: Tensor) -> Tensor:
    """Of laws over classes ``[N, classes]``, in nats ``[N]``."""
    return torch.special.entr(probabilities.double()).sum(-1)


def auroc(low: Tensor, high: Tensor) -> float:
    """The probability that a number of ``high`` ``[M]`` exceeds one of ``low`` ``[N]``; equal ones count a half."""
    differences = high[:, None] - low
    return float(((differences > 0).double() + 0.5 * (differences == 0)).mean())


def _classifier(seed: int) -> nn.Sequential:
    with seeded(seed):
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def _prior(name: str, parameter: Tensor) -> torch.distributions.Distribution:
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
    """The solution, and the seconds that it took."""
    return _timed(lambda: formulation.solve(solver, steps=_steps(steps, scale), **options))


def _timed(solve: Callable[[], mfoc.Solution]) -> tuple[mfoc.Solution, float]:
    began = time.perf_counter()
    return solve(), time.perf_counter() - began


def _shuffled(x: Tensor, seed: int) -> Tensor:
    """Each image with its pixels in an order of its own: no digit, of the same grey values."""
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.rand(x.shape, generator=generator, device="cpu", dtype=torch.float32).argsort(1)
    return x.gather(1, order)


def _softmax(net: nn.Module, x: Tensor) -> Tensor:
    """Probabilities of a network."""
    with torch.no_grad():
        return torch.softmax(net(x), 1)


def _probabilities(prediction: bayesian.Prediction | Tensor) -> Tensor:
    return prediction if isinstance(prediction, Tensor) else prediction.mean


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


_DEMOS: dict[str, Callable[[mfoc.Particles, mfoc.Particles, int, float], list[str]]] = {
    "adversarial": robust,
    "bayesian": uncertain,
    "meta": few_shots,
}
