"""The table of accuracies under attacks, against counts by hand."""

import copy

import pytest
import torch
from scipy import stats
from torch import nn

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from paradigms.adversarial import FromTorchattacks, evaluate
from paradigms.adversarial.evaluation import wilson
from tests.paradigms.adversarial.images import (
    CLASSES,
    EPSILON,
    FLAT,
    X,
    Y,
    batch_norm_net,
    entered,
    images,
    net,
)
from tests.problems import mlp_net, seeded

torchattacks = pytest.importorskip("torchattacks")


def quiet(network=None, data=(X, Y), **options):
    return evaluate(net() if network is None else network, data, **({"epsilon": EPSILON, "progress": False} | options))


def fitted():
    """A network that is right on all but three particles, and a radius at which it stays so on some."""
    model = net()
    y = model(X).argmax(1)
    y[:3] = (y[:3] + 1) % 3
    return model, (X, y), 0.02


def still(steps):
    return PGD(steps, random_start=False)


@pytest.mark.parametrize("batch_size", [7, 40])
def test_accuracies_are_those_counted_by_hand(batch_size):
    model, (x, y), epsilon = fitted()
    attacks = {"one": still(1), "five": still(5), "theirs": FromTorchattacks(
        lambda m: torchattacks.PGD(m, eps=epsilon, alpha=epsilon, steps=2, random_start=False)
    ), "factory": lambda m: torchattacks.FGSM(m, eps=epsilon)}  # fmt: skip
    table = quiet(model, (x, y), epsilon=epsilon, attacks=attacks, batch_size=batch_size)
    right = model(x).argmax(1) == y
    assert (table["clean"].correct, table["clean"].total) == (37, 40)
    made = images(model, data=(x, y), epsilon=epsilon)
    points = {"one": entered(made, still(1)), "five": entered(made, still(5))}
    library = {"theirs": torchattacks.PGD(model, eps=epsilon, alpha=epsilon, steps=2, random_start=False)}
    library["factory"] = torchattacks.FGSM(model, eps=epsilon)
    points |= {name: attack(x, y) for name, attack in library.items()}
    for name, point in points.items():
        expected = right & (model(point).argmax(1) == y)
        assert table[name].correct == int(expected.sum()), name
        assert table[name].value == expected.double().mean()
    assert 0 < table["five"].correct < 37
    assert [row.attack for row in table.rows] == ["clean", *attacks]
    assert all(row.seconds >= 0 for row in table.rows)


class Merciful:
    """An adversary that makes every particle right: what was wrong before must not count."""

    def maximise(self, game, controls, particles, generator=None):
        return torch.zeros_like(particles.state)


@pytest.mark.parametrize("attack", [PGD(3), Merciful(), YOPO(2, 2), Free(2)], ids=lambda a: type(a).__name__)
def test_no_attack_raises_the_accuracy(attack):
    model, data, epsilon = fitted()
    table = quiet(model, data, epsilon=epsilon, attacks={"a": attack}, batch_size=9)
    assert table["a"].correct <= table["clean"].correct
    assert (table["a"].correct == 37) == isinstance(attack, Merciful)


def test_a_table_is_a_function_of_the_seed():
    """Whatever state torch's generator is in."""
    model, data, epsilon = fitted()
    attacks = {"a": PGD(1), "b": lambda m: torchattacks.PGD(m, eps=epsilon, alpha=epsilon, steps=1)}
    tables = []
    for seed in (1, 1, 2, 3, 4):
        torch.rand(3)
        table = quiet(model, data, epsilon=epsilon, attacks=attacks, seed=seed)
        tables.append([row.correct for row in table.rows])
    assert tables[0] == tables[1]
    assert any(table != tables[0] for table in tables[2:])


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 50), (50, 50), (37, 40), (1, 1000), (499, 1000)])
def test_the_interval_is_wilsons(successes, trials, confidence):
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: wilson("a", 2), mfoc.InvalidType, "successes is 'a'"),
        (lambda: wilson(0, 0), mfoc.InvalidValue, "trials is 0"),
        (lambda: wilson(3, 2), mfoc.InvalidValue, "successes is 3"),
        (lambda: quiet(attacks={3: FGSM()}), mfoc.InvalidType, "name is an int"),
        (lambda: quiet(attacks={"clean": FGSM()}), mfoc.InvalidValue, "'clean'"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.2), ("l2", 0.8)])
def test_images_meet_the_attacks_of_torchattacks(norm, epsilon):
    four = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))).float()
    x = X[:8]
    y = four(x).argmax(1)
    table = quiet(four, (x, y), epsilon=epsilon, norm=norm)
    assert [row.attack for row in table.rows] == ["clean", "FGSM", "PGD-20", "APGD-CE", "AutoAttack"]
    assert table["clean"].value == 1
    assert table["AutoAttack"].value <= min(table["FGSM"].value, table["APGD-CE"].value)
    assert "AutoAttack" not in [row.attack for row in quiet(data=(X[:4], Y[:4])).rows]  # three classes
    lines = str(table).splitlines()
    assert len(lines) == 2 + len(table.rows)
    assert "8 particles" in lines[0]
    assert f"{norm} ball of radius {epsilon} (95% Wilson" in lines[0]
    for row, line in zip(table.rows, lines[2:], strict=True):
        assert line.startswith(row.attack)
        assert f"{row.value:.2%}" in line


@pytest.mark.parametrize(
    ("data", "bounds"), [((FLAT, CLASSES), (0, 1)), ((X, Y), None)], ids=["features", "images without bounds"]
)
def test_other_inputs_meet_our_own_attacks(data, bounds):
    model = mlp_net().float() if data[0] is FLAT else net()
    assert [row.attack for row in quiet(model, data, bounds=bounds).rows] == ["clean", "FGSM", "PGD-20"]


def test_an_attack_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(KeyError, match=r"'PGD'; the table has \['clean', 'weak'\]"):
        quiet(attacks={"weak": FGSM()})["PGD"]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_averages_of_the_network_are_put_back(training):
    model = batch_norm_net().train(training)
    kept = copy.deepcopy(model.state_dict())
    expected = int((copy.deepcopy(model).eval()(X).argmax(1) == Y).sum())
    assert quiet(model, attacks={"a": FGSM()})["clean"].correct == expected
    for bad in ({"attacks": {"a": lambda m: 3}}, {"data": (X * 2, Y)}, {"data": (X, Y.float())}, {"norm": "l1"}):
        with pytest.raises(mfoc.MfocError):
            quiet(model, **bad)
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())


def test_any_module_can_be_judged():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else self.inner(-x)

    model, own = Untraceable(), net()
    rows = [[row.correct for row in quiet(m, attacks={"a": still(3)}).rows] for m in (model, own)]
    assert rows[0] == rows[1]


def test_no_progress_prints_nothing(capfd):
    quiet(attacks={"a": FGSM(), "b": lambda m: torchattacks.PGD(m, steps=1)}, progress=False)
    assert capfd.readouterr() == ("", "")
