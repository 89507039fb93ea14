"""The demo: the clock that makes a race fair, what may be called a win, and that it runs from the command line."""

import math
import sys
import time

import pytest
import torch
from scipy import stats

import mfoc
from mfoc import demo
from mfoc.cli import main
from mfoc.demo.comparison import lowest, most_accurate, sign_test
from mfoc.demo.report import results, winners

QUADRATIC = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: (x**2).sum(1), [torch.zeros(1)])
CLOUD = torch.ones(4, 1)


def work(seconds):
    """Keeps the processor busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Slow:
    """Descent, each step of which takes so long."""

    def __init__(self, seconds):
        self.seconds = seconds

    def init(self, problem, controls):
        return {}

    def step(self, problem, controls, state, particles):
        work(self.seconds)
        value, gradient = mfoc.evaluate(problem, controls, particles)
        return [u - 0.1 * g for u, g in zip(controls, gradient, strict=True)], {}, mfoc.Info(value, gradient)


def test_a_solve_ends_with_its_seconds_and_not_with_those_of_what_watches_it():
    clock = demo.Clock(lambda at: work(0.02) or 1.0, 0.1, points=10)
    mfoc.solve(QUADRATIC, Slow(0.008), CLOUD, steps=10_000, hooks=[clock])
    assert 0.08 < clock.seconds[-1] <= 0.11
    assert 4 <= len(clock.seconds) <= 11  # each of which took longer than a step


def test_what_the_processor_waits_for_is_not_counted():
    """On a machine that is busy with something else a solver has its seconds all the same."""
    clock = demo.Clock(lambda at: 1.0, 0.15)
    assert mfoc.solve(QUADRATIC, Slow(0), CLOUD, steps=30, hooks=[clock, lambda at: time.sleep(0.01)]).last.step == 30


def test_a_step_that_would_pass_the_end_is_not_begun_but_for_the_first():
    clock = demo.Clock(lambda at: 1.0, 0.05)
    assert mfoc.solve(QUADRATIC, Slow(0.02), CLOUD, steps=100, hooks=[clock]).last.step == 2
    assert clock.seconds[-1] < 0.05
    assert mfoc.solve(QUADRATIC, Slow(0.06), CLOUD, steps=100, hooks=[clock]).last.step == 1


def test_the_winner_is_tied_with_whom_a_paired_test_cannot_tell_apart():
    """As scipy's paired t test of the logarithms says, at the level of Bonferroni for the three pairs."""
    scores = {"a": [0.100, 0.110, 0.125], "b": [0.105, 0.112, 0.124], "c": [0.200, 0.222, 0.249]}
    winner = lowest(scores)
    p = {
        name: stats.ttest_rel(torch.tensor(scores[name]).log(), torch.tensor(scores["a"]).log()).pvalue
        for name in ("b", "c")
    }
    assert p["c"] < 0.05 / 3 < p["b"]
    assert (winner.name, winner.tied) == ("a", ["b"])


def test_nobody_is_ahead_by_chance():
    """Where five are alike, it is said in at most one race of twenty that one of them is ahead of another."""
    draws = torch.randn(200, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    wrong = sum(len(lowest({str(k): row.tolist() for k, row in enumerate(race)}).tied) < 4 for race in draws)
    assert wrong <= 0.05 * 200


def test_what_diverges_has_lost():
    winner = lowest({"diverges": [1.0, math.inf, math.inf], "a": [2.0, 2.2, 2.1]})
    assert (winner.name, winner.tied) == ("a", [])


def test_the_same_few_images_in_each_seed_make_no_winner():
    """The accuracies differ by the same in every seed, so that a t test alone would be certain."""
    right = torch.ones(100, dtype=torch.bool)
    missed = right.clone()
    missed[0] = False
    assert most_accurate({"a": [right] * 3, "b": [missed] * 3}).tied == ["b"]
    missed[:30] = False
    assert most_accurate({"a": [right] * 3, "b": [missed] * 3}).tied == []


@pytest.mark.parametrize(("one", "other"), [(0, 0), (3, 0), (2, 9), (7, 7)])
def test_the_sign_test(one, other):
    exact = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert sign_test(one, other) == pytest.approx(exact)


def _lap(name, seed, loss, correct):
    contestant = demo.Contestant(name, Slow(0), None)
    solution = mfoc.solve(QUADRATIC, Slow(0), CLOUD, steps=1)
    right = torch.arange(360) < correct
    return demo.Lap(contestant, seed, solution, [0.0, 2.0], [1.0, loss], 1e5, loss, loss / 7e3, right)


def test_the_table_fits_in_80_columns_and_begins_with_the_lowest_j():
    runs = {"MSA (L-BFGS)": 8.765e12, "MSA (descent)": math.inf, "E-MSA": 1.23456e-5}
    laps = [_lap(name, seed, loss * (1 + seed), 350 + seed) for name, loss in runs.items() for seed in range(3)]
    told = results(laps)
    assert max(map(len, told.splitlines())) <= 80
    assert told.splitlines()[1].startswith("E-MSA")
    assert "97.2..97.8" in told
    assert winners(laps).startswith("Lowest J: E-MSA")


def test_what_ends_above_the_initial_guess_is_tied_with_nobody():
    """Its J scatter over orders of magnitude, which a t test of three takes for doubt."""
    runs = {"SGD": (0.153, 0.171, 0.186), "MSA (L-BFGS)": (2.0, 2e3, 1e6)}
    assert lowest(runs).tied == ["MSA (L-BFGS)"]
    laps = [_lap(name, seed, loss, 340 + 5 * seed) for name, losses in runs.items() for seed, loss in enumerate(losses)]
    assert winners(laps).startswith("Lowest J: SGD (0.17 in the mean), ahead of all others.")


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    assert main(["demo", "--out", str(tmp_path), "--scale", "0.02"]) == 0
    out = capsys.readouterr().out
    for word in ("SGD", "Adam", "MSA", "E-MSA", "accuracy", "residual", "Lowest J", "Most accurate", "Certificate"):
        assert word in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("figure: ")) <= 80
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "demo_certificate.png",
        "demo_cloud.png",
        "demo_loss.png",
    ]
    assert torch.get_num_threads() == threads


def test_demo_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 1
    assert "pip install 'matplotlib>=3.8,<4' 'rich>=13,<16'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo", "--scale", "0"], ["demo", "--seed", "-1"], ["nothing"]])
def test_bad_command_lines(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
