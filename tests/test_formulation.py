"""Formulations: what a paradigm returns, how paradigms are found, and the check that third parties can run."""

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
import paradigms
from mfoc.games.maximisers import PGD, YOPO, Free
from mfoc.testing import check_formulation
from paradigms import Formulation
from paradigms.adversarial import TRADES, FromTorchattacks, as_attack, certify, evaluate, game
from tests.problems import D, conv_net, generator, labels, mlp, mlp_net, normal, same_bits, seeded

SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.1))


def plain(**changes):
    problem, cloud = mlp()
    parts = {"problem": problem, "population": mfoc.population(cloud), "readout": lambda solution: solution.controls}
    return Formulation(**(parts | changes))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed), dtype=D)


# ---- the formulation itself


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"problem": None}, "problem is a NoneType; expected mfoc.Problem"),
        ({"problem": nn.Linear(2, 2)}, "problem is a Linear"),
        ({"population": mlp()[1]}, r"population is a Particles.*mfoc\.population"),
        ({"population": lambda step: mlp()[1]}, "population is a function"),
        ({"readout": "controls"}, "readout is a str; expected a function"),
    ],
    ids=["no problem", "a net", "particles", "a function", "a name"],
)
def test_a_formulation_refuses_parts_of_another_type(part, words):
    with pytest.raises(mfoc.InvalidType, match=words):
        plain(**part)


def test_a_formulation_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        plain().readout = print


def test_solving_a_formulation_is_solving_its_problem_on_its_population():
    problem, cloud = mlp()
    batches = mfoc.population(cloud, batch_size=3, seed=1)
    formulation = plain(problem=problem, population=batches)
    names, seen = ("controls", "value", "residual"), []
    found = formulation.solve(SGD, steps=5, tol=1e-9, hooks=[lambda *event: seen.append(event)])
    expected = mfoc.solve(problem, SGD, batches, steps=5, tol=1e-9)
    assert same_bits([getattr(found, name) for name in names], [getattr(expected, name) for name in names])
    assert seen
    resumed = formulation.solve(SGD, steps=9, start=found.last)
    assert same_bits(resumed.controls, mfoc.solve(problem, SGD, batches, steps=9).controls)


def test_an_unknown_option_of_solve_is_refused():
    with pytest.raises(TypeError, match="momentum"):
        plain().solve(SGD, steps=1, momentum=0.9)


# ---- finding paradigms


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed distribution with one paradigm, as pip would leave it on the path."""
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mfoc.paradigms]\nelsewhere = elsewhere_paradigm\n")
    (tmp_path / "elsewhere_paradigm.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("elsewhere_paradigm", None)


def test_installed_paradigms_are_found_by_name():
    assert "adversarial" in paradigms.available()
    assert paradigms.available() == sorted(set(paradigms.available()))
    assert paradigms.load("adversarial") is sys.modules["paradigms.adversarial"]


def test_a_paradigm_of_a_third_party_is_found(third_party):
    assert {"adversarial", "elsewhere"} <= set(paradigms.available())
    assert "elsewhere_paradigm" not in sys.modules  # listing imports nothing
    assert paradigms.load("elsewhere").answer() == 42


@pytest.mark.parametrize("name", ["elsewhere", "", "Adversarial"])
def test_an_unknown_paradigm_is_refused_with_those_there_are(name):
    with pytest.raises(mfoc.InvalidValue, match=f"{name!r}.*available: .*adversarial"):
        paradigms.load(name)


@pytest.mark.parametrize("name", [None, 3, b"adversarial"])
def test_what_is_no_name_of_a_paradigm_is_refused(name):
    with pytest.raises(mfoc.InvalidType, match=r"name is a.* expected the name of a paradigm"):
        paradigms.load(name)


def test_without_any_paradigm_the_error_says_none(monkeypatch):
    monkeypatch.setattr("paradigms.registry.entry_points", lambda group: ())
    assert paradigms.available() == []
    with pytest.raises(mfoc.InvalidValue, match="available: none"):
        paradigms.load("adversarial")


def test_importing_the_paradigm_imports_no_extra():
    code = (
        "import sys, paradigms\n"
        "assert 'paradigms.adversarial' not in sys.modules\n"
        "import paradigms.adversarial\n"
        "print([name for name in ('torchattacks', 'torchvision', 'sklearn', 'rich') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_without_torchattacks_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    images, net = (uniform(4, 1, 6, 6), labels(4, 3)), conv_net()
    formulation = game(net, F.cross_entropy, images, epsilon=0.1)
    for act in (lambda: as_attack(formulation, PGD(1)), lambda: evaluate(net, images, epsilon=0.1)):
        with pytest.raises(mfoc.MissingExtra, match=r"pip install .*torchattacks>=") as caught:
            act()
        assert isinstance(caught.value, ImportError)
    # What needs no extra goes on: training, and the maximisers of mfoc as judges.
    formulation.solve(mfoc.Minimax(PGD(1), torch.optim.Adam), steps=1)
    assert len(evaluate(net, images, epsilon=0.1, attacks={"PGD": PGD(1)}).rows) == 2


# ---- the check passes what is right

CLASSES = {"features": (uniform(7, 3), labels(7, 2)), "images": (uniform(6, 1, 6, 6), labels(6, 3))}
REGRESSION = {"features": (uniform(7, 3), normal(7, 2)), "images": (uniform(6, 1, 6, 6), normal(6, 3))}
NETS = {"features": mlp_net, "images": conv_net}
LOSSES = {"cross-entropy": F.cross_entropy, "regression": nn.MSELoss(), "trades": TRADES(3.0)}
ADVERSARIES = {"pgd": PGD(2), "yopo": YOPO(2, 2), "free": Free(2)}


def minimax(adversary):
    return mfoc.Minimax(adversary, partial(torch.optim.SGD, lr=0.1, momentum=0.9), seed=2)


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", NETS)
def test_adversarial_training_is_a_formulation(kind, norm, loss, adversary):
    data = (REGRESSION if loss == "regression" else CLASSES)[kind]
    formulation = game(NETS[kind](), LOSSES[loss], data, epsilon=0.2, norm=norm, batch_size=4)
    check_formulation(formulation, minimax(ADVERSARIES[adversary]))


@pytest.mark.parametrize("loss", ["cross-entropy", "trades"])
@pytest.mark.parametrize(
    ("kind", "norm", "attack"),
    [
        ("features", "linf", lambda t, net: t.PGD(net, eps=0.2, alpha=0.1, steps=2)),
        ("images", "linf", lambda t, net: t.PGD(net, eps=0.2, alpha=0.1, steps=2)),
        ("images", "l2", lambda t, net: t.PGDL2(net, eps=0.2, alpha=0.1, steps=2)),
    ],
    ids=["features", "images", "images-l2"],
)
def test_training_against_torchattacks_is_a_formulation(kind, norm, attack, loss):
    library = pytest.importorskip("torchattacks")
    formulation = game(NETS[kind](), LOSSES[loss], CLASSES[kind], epsilon=0.2, norm=norm, batch_size=4)
    check_formulation(formulation, minimax(FromTorchattacks(partial(attack, library))))


def test_batch_norm_in_training_mode_is_a_formulation():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))).train()
    check_formulation(game(net, F.cross_entropy, CLASSES["features"], epsilon=0.2), minimax(YOPO(2, 2)))


# ---- and fails what is wrong


def test_something_else_is_no_formulation():
    with pytest.raises(mfoc.InvalidType, match="formulation is a NetworkProblem; expected"):
        check_formulation(mlp()[0], SGD)


def test_a_population_that_is_no_function_of_the_step_fails():
    def draw(step):
        return mfoc.Particles(torch.randn(5, 3, dtype=D), labels(5, 2))

    with pytest.raises(AssertionError, match="population is not a function of the step"):
        check_formulation(plain(population=mfoc.population(draw)), SGD)


def test_a_readout_that_changes_the_solution_fails():
    def readout(solution):
        solution.controls[0]["weight"].mul_(2)
        return None

    with pytest.raises(AssertionError, match="readout changed the solution"):
        check_formulation(plain(readout=readout), SGD)


@pytest.mark.parametrize("reading", [lambda: torch.rand(2), lambda: nn.Linear(2, 2)], ids=["tensor", "module"])
def test_a_readout_that_differs_each_time_fails(reading):
    with pytest.raises(AssertionError, match="two readouts of one solution differ"):
        check_formulation(plain(readout=lambda solution: reading()), SGD)


def test_a_formulation_that_cannot_take_its_steps_fails():
    """A step so long that the cost overflows: the solve ends early, at the last finite value."""
    problem = mfoc.Problem(lambda t, x, u, z: x * u, lambda x, z: x.square().sum(1), [torch.ones(2, dtype=D)])
    formulation = plain(problem=problem, population=mfoc.population(normal(5, 2)))
    with pytest.raises(AssertionError, match="the solve ended after 0 of 2 steps"):
        check_formulation(formulation, mfoc.Gradient(partial(torch.optim.SGD, lr=1e200)))


def test_a_value_that_is_no_number_fails():
    class Worthless(Formulation):
        def solve(self, solver, *, steps, **options):
            solution = super().solve(solver, steps=steps, **options)
            object.__setattr__(solution, "value", float("nan"))
            return solution

    parts = plain()
    with pytest.raises(AssertionError, match="value after 2 steps is nan"):
        check_formulation(Worthless(parts.problem, parts.population, parts.readout), SGD)


def test_a_solve_that_changes_the_problem_fails():
    class Careless(Formulation):
        def solve(self, solver, *, steps, **options):
            self.problem.controls[0]["weight"].mul_(2)
            return super().solve(solver, steps=steps, **options)

    parts = plain()
    with pytest.raises(AssertionError, match="solving changed the problem's controls"):
        check_formulation(Careless(parts.problem, parts.population, parts.readout), SGD)


# ---- bad input to the paradigm: an error that names the culprit


def made(net=None, loss=F.cross_entropy, data=CLASSES["features"], **options):
    return game(mlp_net() if net is None else net, loss, data, **({"epsilon": 0.1} | options))


def judged(net=None, data=CLASSES["features"], **options):
    return evaluate(mlp_net() if net is None else net, data, **({"epsilon": 0.1, "progress": False} | options))


def certified(formulation=None, **options):
    formulation = made() if formulation is None else formulation
    start = mfoc.Iterate(0, made().problem.controls, {})
    return certify(formulation, start, **({"maximiser": PGD(1)} | options))


INPUTS, TARGETS = CLASSES["features"]
BAD = {
    "no network": (lambda: made(net="net"), "net is a str"),
    "class of network": (lambda: made(net=nn.Linear), "net is the class Linear; make an instance"),
    "no loss": (lambda: made(loss=None), r"loss is None.*TRADES\(beta\)"),
    "class TRADES": (lambda: made(loss=TRADES), r"loss is the class TRADES; make an instance, TRADES\(\)"),
    "loss with a problem": (lambda: made(net=mlp()[0]), "net is an mfoc.Problem.*pass loss=None"),
    "stages with a problem": (lambda: made(net=mlp()[0], loss=None, stages=["0"]), "net is an mfoc.Problem"),
    "game as problem": (lambda: made(net=made().problem, loss=None), "problem is a Game already"),
    "no radius": (lambda: made(epsilon=0.0), "epsilon is 0.0"),
    "unknown norm": (lambda: made(norm="l1"), "norm is 'l1'"),
    "stage that is not there": (lambda: made(at=9, bounds=None), r"stage is 9; .* 0 to 4$"),
    "data out of bounds": (lambda: made(data=(3 * INPUTS, TARGETS)), r"bounds is \(0\.0, 1\.0\) and the data reach"),
    "last particle out of bounds": (
        lambda: made(data=(torch.cat([INPUTS, INPUTS + 1]), TARGETS.repeat(2)), batch_size=2),
        "data reach",
    ),
    "hidden state out of bounds": (lambda: made(at=1), "states that enter stage 1 reach"),
    "no labels": (lambda: made(data=INPUTS), r"terminal_cost .*data \[None\]"),
    "wrong width": (lambda: made(data=(INPUTS[:, :2], TARGETS)), "stage 0: dynamics"),
    "wrong precision": (lambda: made(data=(INPUTS.float(), TARGETS)), "state is torch.float32"),
    "integer inputs": (
        lambda: made(net=nn.Sequential(nn.Embedding(3, 2).double()), data=(TARGETS, TARGETS)),
        "torch.int64 tensor",
    ),
    "dropout": (lambda: made(net=nn.Sequential(nn.Linear(3, 2), nn.Dropout())), "is random in training mode"),
    **{f"beta {b!r}": (lambda b=b: TRADES(b), f"beta is {b!r}") for b in (0, -1.0, True, "6", float("nan"))},
    "loss of TRADES": (lambda: TRADES(1.0, "mse"), "loss is a str"),
    "TRADES without logits": (
        lambda: made(loss=TRADES(1.0, lambda x, z: x.sum((1, 2))), data=uniform(4, 3, 3)),
        r"TRADES needs logits \[N, classes\]",
    ),
    "judge no network": (lambda: judged(net=lambda x: x), "net is a function; expected a torch.nn.Module"),
    "list of attacks": (lambda: judged(attacks=[PGD(1)]), "attacks is a list; expected a dict"),
    "attack by name": (lambda: judged(attacks={"a": "PGD"}), "attack is a str"),
    **{f"confidence {c}": (lambda c=c: judged(confidence=c), f"confidence is {c!r}") for c in (0.0, 1.0, 95, "0.9")},
    "judge float labels": (lambda: judged(data=(INPUTS, TARGETS.double())), "terminal_cost"),
    "judge regression": (
        lambda: judged(data=(INPUTS, normal(7, 2)), loss=nn.MSELoss()),
        r"accuracy needs logits \[N, classes\] and integer labels",
    ),
    "judge empty data": (lambda: judged(data=(INPUTS[:0], TARGETS[:0])), "state is empty"),
    "attack is no function": (lambda: FromTorchattacks(PGD(1)), "attack is a PGD"),
    "certify a plain formulation": (lambda: certified(plain()), "formulation is a Formulation.*game"),
    "certify without an adversary": (
        lambda: made().certify(made().problem.controls),
        r"maximiser is a None.*PGD\(20\)",
    ),
    "certify against a class": (lambda: certified(maximiser=PGD), "maximiser is the class PGD; make an instance"),
    "certify against a name": (lambda: certified(best_response="pgd"), "best_response is a str"),
    "no restarts": (lambda: certified(restarts=0), "restarts is 0"),
    "certify at no level": (lambda: certified(confidence=1), "confidence is 1"),
    "certify with a bad setting": (lambda: certified(lanczos=0), "lanczos is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    act, words = BAD[name]
    with pytest.raises(mfoc.MfocError, match=words) as caught:
        act()
    assert isinstance(caught.value, ValueError | TypeError)
    assert len(str(caught.value)) > 25


def test_making_and_reading_out_a_game_draws_no_global_random_numbers():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4), nn.BatchNorm1d(4)).train()
    net[2].eval()
    net[4].eval()  # frozen: its averages are constants of the game
    net[4].running_mean.fill_(0.3)
    x, y = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    before = torch.get_rng_state()
    formulation = game(net, F.cross_entropy, (x, y), epsilon=0.1)
    first, second = (formulation.readout(formulation.problem.controls) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    assert torch.equal(first[4].running_mean, net[4].running_mean)
    assert torch.allclose(first[1].running_mean, net[0](x).mean(0), atol=1e-6)


def test_a_frozen_network_can_be_judged_and_keeps_its_modes():
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).requires_grad_(False).train()
    net[1].eval()
    x, y = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    table = evaluate(net, (x, y), epsilon=0.1, attacks={"PGD": PGD(5)}, progress=False)
    assert table["PGD"].value <= table["clean"].value
    assert [part.training for part in net] == [True, False, True]


def test_what_is_missing_is_named_with_the_extra_that_brings_it():
    assert mfoc.require("math", "plot").pi == math.pi
    with pytest.raises(mfoc.MissingExtra, match=r"'no_such_package.part'.*pip install 'pyro-ppl>="):
        mfoc.require("no_such_package.part", "bayes")
