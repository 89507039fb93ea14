"""What holds tensors prints in a few telling lines, and comparing it never raises."""

import dataclasses
import importlib
import inspect
import pkgutil
from functools import partial

import pytest
import torch

import mfoc
from mfoc import printing
from tests.problems import D, interacting, mlp, mlp_net, normal

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


def objects() -> dict[str, object]:
    """One of each public class that holds tensors, or that is read by a person."""
    problem, cloud = mlp()
    solution = mfoc.solve(problem, SGD, cloud, steps=2)
    game = mfoc.Game.of(problem, mfoc.Ball(0.1))
    eta = torch.zeros_like(cloud.state)
    return {
        "problem": problem,
        "game": game,
        "equilibrium": mfoc.Equilibrium(problem),
        "particles": cloud,
        "solution": solution,
        "iterate": solution.last,
        "info": solution.last.info,
        "trajectory": mfoc.rollout(problem, solution, cloud),
        "evaluation": mfoc.evaluate(problem, solution, cloud),
        "certificate": mfoc.certify(problem, solution, cloud, lanczos=3, groups=3),
        "formulation": mfoc.Formulation(problem, mfoc.population(cloud), lambda solution: solution),
        "disturbed": mfoc.games.Disturbed((), eta),
        "play": mfoc.games.Free(1).play(game, game.controls, cloud, eta),
        "minimum": mfoc.minimisers.Descent(0.1).minimise(lambda x: (x.sum(1), torch.ones_like(x)), torch.zeros(2, 3)),
    }


FIRST, SECOND = objects(), objects()  # made once: certifying takes a second


@pytest.mark.parametrize("name", FIRST)
def test_comparing_never_raises(name):
    one, other = FIRST[name], SECOND[name]
    assert one == one
    assert (one == other) is not (one != other)
    assert one not in ([], 3)
    if name != "certificate":  # plain numbers, which are compared by value
        assert {one: "found"}[one] == "found"


def may_hold_tensors(kind: type) -> bool:
    """Whether an annotation says more than numbers, words, and records of them."""
    said = " ".join(str(field.type) for field in dataclasses.fields(kind))
    return any(word in said for word in ("Tensor", "Tree", "Any", "Module", "Callable", "ndarray"))


def test_no_class_that_holds_tensors_compares_by_its_fields():
    """Whatever may hold a tensor is compared by identity: named tuples and dataclasses of every module."""
    plain = {
        "Penalty",
        "Ball",
        "_Run",
        "Contestant",
        "Result",
        "euler_maruyama",
        "Minimax",
        "MSA",
        "DiscreteMSA",
        "EMSA",
        "Gradient",
    }
    plain |= {"PGD", "FGSM", "Free", "YOPO", "Descent", "LBFGS"}
    faults = set()
    for info in pkgutil.walk_packages(mfoc.__path__, "mfoc."):
        for kind in vars(importlib.import_module(info.name)).values():
            if not inspect.isclass(kind) or not kind.__module__.startswith("mfoc") or kind.__name__ in plain:
                continue
            by_fields = getattr(kind, "__dataclass_params__", None) is not None and kind.__dataclass_params__.eq
            if by_fields and may_hold_tensors(kind):
                faults.add(f"{kind} is a dataclass that compares its fields")
            if issubclass(kind, tuple) and kind.__eq__ is tuple.__eq__:
                faults.add(f"{kind} compares as a tuple")
    assert not faults


@pytest.mark.parametrize("name", ["problem", "game", "particles", "iterate", "info", "trajectory", "evaluation"])
def test_one_line(name):
    text = repr(FIRST[name])
    assert text.count("\n") == 0
    assert "tensor(" not in text
    assert len(text) < 300


def test_a_solution_of_many_parameters_prints_five_lines():
    solution = FIRST["solution"]
    lines = repr(solution).splitlines()
    assert [line.split()[0] for line in lines] == ["Solution", "J", "residual", "steps", "controls"]
    assert "max_steps: did 2 steps" in lines[0]
    assert f"{solution.value:.6g}" in lines[1]
    assert "62 numbers in 6 tensors, float64 on cpu" in lines[4]


def test_what_a_problem_says():
    assert (
        repr(mlp()[0]) == "NetworkProblem(5 stages, a control of its own each: 62 numbers in 6 tensors, float64 on cpu)"
    )
    assert "running cost" in repr(interacting()[0])
    tied = mfoc.Problem(lambda t, x, u, z: x, lambda x, z: x[:, 0], torch.zeros(1), horizon=2, schedule=mfoc.tied)
    assert repr(tied) == "Problem(2 stages, one control: 1 number, float32 on cpu)"
    goal = mfoc.Equality(lambda x, z: x)
    own = dataclasses.replace(
        tied, controls=torch.zeros(3, 1), per_particle=True, bounds=mfoc.Box(-1, 1), terminal=goal
    )
    assert repr(own) == ("Problem(2 stages, one control: 3 numbers, float32 on cpu, per particle, bounds, constraints)")


def test_a_certificate_of_many_stages_prints_the_dozen_with_the_largest_residuals():
    weights = [torch.full((1,), float(t), dtype=D) for t in range(30)]
    problem = mfoc.Problem(lambda t, x, u, z: x + u, lambda x, z: 0 * x[:, 0], weights, running_cost=_square)
    certificate = mfoc.certify(problem, problem, normal(6, 1), lanczos=1, groups=2)
    lines = str(certificate).splitlines()
    assert len(lines) == 2 + 1 + 12 + 1 + 2  # verdict and head, header, stages, the rest, totals
    assert [line.split()[0] for line in lines[3:15]] == [str(t) for t in range(18, 30)]
    assert "and 18 stages with smaller residuals" in lines[15]
    assert len(certificate.stages) == 30


def _square(t, x, u, z):
    return u.square().sum().expand(len(x))


def test_html_for_notebooks():
    found = objects()
    for name in ("solution", "certificate"):
        html = found[name]._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == html.count("</tr>") > 2
    assert f"{found['solution'].value:.6g}" in found["solution"]._repr_html_()
    assert found["certificate"]._repr_html_().count("<tr>") == 1 + len(found["certificate"].stages)


def test_html_is_escaped():
    html = printing.html_table(("a", "b"), [("<script>", 1)], caption="x < y")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "x &lt; y" in html


def test_sizes_in_words():
    assert printing.sizes(torch.zeros(3)) == "3 numbers, float32 on cpu"
    assert printing.sizes([{}, {"a": torch.zeros(1200, dtype=D)}]) == "1,200 numbers, float64 on cpu"
    assert printing.sizes([]) == "nothing"


def test_printing_a_network_problem_prints_no_weights():
    problem = mfoc.from_module(mlp_net(), torch.nn.functional.cross_entropy)
    assert "tensor" not in repr(problem).replace("tensors", "")
