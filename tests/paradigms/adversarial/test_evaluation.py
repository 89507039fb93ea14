"""The table of accuracies under attacks, against counts by hand."""

import copy
from functools import partial

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
        (lambda: quiet(attacks={3: FGSM()}), mfoc.InvalidType, "has the key 3, an int"),
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


# ---- whatever the batches


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_table_does_not_depend_on_the_batches(norm):
    """Nor on which particles are attacked with it: only those that are still right are."""
    model, data, epsilon = fitted()
    attacks = {"fgsm": FGSM(random_start=True), "pgd": PGD(2), "yopo": YOPO(2, 2), "free": Free(2)}
    settings = {"attacks": attacks, "epsilon": epsilon * (1 if norm == "linf" else 4), "norm": norm}
    tables = [[row.correct for row in quiet(model, data, batch_size=size, **settings).rows] for size in (1, 7, 256)]
    assert tables[0] == tables[1] == tables[2]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=9)
    assert [row.correct for row in quiet(model, loader, **settings).rows] == tables[0]
    assert min(tables[0]) < 36


def test_attacks_of_torchattacks_draw_anew_for_each_batch():
    starts = []

    def factory(model):
        attack = torchattacks.PGD(model, eps=0.02, alpha=0.01, steps=1)
        plain = attack.forward
        attack.forward = lambda x, y: starts.append(torch.rand(4)) or plain(x, y)
        return attack

    for _ in range(2):
        quiet(*fitted()[:2], epsilon=0.02, attacks={"a": factory}, batch_size=20)
    assert not torch.equal(starts[0], starts[1])
    assert torch.equal(torch.stack(starts[:2]), torch.stack(starts[2:]))


# ---- networks of one number


class One(nn.Module):
    """Positive where the mean of an input exceeds a half; ``last`` is what becomes of that number."""

    def __init__(self, last=None, axis=True):
        super().__init__()
        self.weight = nn.Parameter(torch.full((36,), 1 / 36))
        self.last, self.axis = last or (lambda logit: logit), axis

    def forward(self, x):
        logit = 20 * (x.flatten(1) @ self.weight - 0.5)
        return self.last(logit[:, None] if self.axis else logit)


SIDE = (X.flatten(1).mean(1) > 0.5).long()
BCE = nn.functional.binary_cross_entropy_with_logits
LABELS = {
    "integers": SIDE,
    "floats": SIDE.float(),
    "a last axis": SIDE.float()[:, None],
    "truths": SIDE.bool(),
}


def squares(logit, y):
    return (1 - (2 * y.reshape(len(logit), 1) - 1) * logit.reshape(len(logit), 1)).square()[:, 0]


@pytest.mark.parametrize("axis", [True, False])
@pytest.mark.parametrize("loss", [BCE, nn.BCEWithLogitsLoss(), partial(BCE, pos_weight=torch.tensor(2.0)), squares],
                         ids=["function", "module", "partial", "own"])  # fmt: skip
@pytest.mark.parametrize("name", LABELS)
def test_one_logit_is_cut_at_zero(name, loss, axis):
    y = LABELS[name]
    margin = (X.flatten(1).mean(1) - 0.5).abs()
    epsilon = float(margin.sort().values[14:16].mean())  # breaks fifteen, by hand: the mean moves by epsilon
    table = quiet(One(axis=axis), (X, y), loss=loss, epsilon=epsilon, bounds=None,
                  attacks={"pgd": PGD(3), "fgsm": FGSM()})  # fmt: skip
    assert [row.correct for row in table.rows] == [40, 25, 25]
    wrong = quiet(One(axis=axis), (X, 1 - y.long()), loss=loss, epsilon=epsilon, attacks={})
    assert wrong["clean"].correct == 0


@pytest.mark.parametrize("loss", [nn.functional.binary_cross_entropy, nn.BCELoss()], ids=["function", "module"])
def test_one_probability_is_cut_at_one_half(loss):
    table = quiet(One(torch.sigmoid), (X, SIDE), loss=loss, epsilon=0.01, attacks={"a": still(2)}, bounds=None)
    margin = (X.flatten(1).mean(1) - 0.5).abs()
    assert [row.correct for row in table.rows] == [40, int((margin > 0.01).sum())]


@pytest.mark.parametrize("loss", [nn.functional.soft_margin_loss, nn.SoftMarginLoss()], ids=["function", "module"])
def test_the_soft_margin_has_labels_of_either_sign(loss):
    table = quiet(One(), (X, 2 * SIDE - 1), loss=loss, epsilon=0.01, attacks={"a": still(2)}, bounds=None)
    assert table["clean"].correct == 40
    with pytest.raises(mfoc.InvalidValue, match="the labels hold 0; expected -1 and 1"):
        quiet(One(), (X, SIDE), loss=loss, attacks={})


@pytest.mark.parametrize(
    "loss",
    [None, nn.CrossEntropyLoss(), nn.MSELoss(), nn.functional.nll_loss],
    ids=lambda loss: getattr(loss, "__name__", str(loss)),
)
@pytest.mark.parametrize("axis", [True, False])
def test_a_loss_that_makes_no_two_classes_of_a_number_is_refused_with_the_cure(loss, axis):
    given = {} if loss is None else {"loss": loss}
    cure = r"one number for each particle.*pass loss=F.binary_cross_entropy_with_logits"
    with pytest.raises(mfoc.InvalidValue, match=cure):
        quiet(One(axis=axis), (X, SIDE), attacks={}, **given)


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (SIDE + 1, mfoc.InvalidValue, "the labels hold 2; expected 0 and 1"),
        (SIDE * 0.5, mfoc.InvalidValue, "the labels hold 0.5"),
        (SIDE[:, None].expand(40, 2), mfoc.InvalidType, "a label 0 or 1 for each.*40, 2"),
    ],
)
def test_labels_of_one_logit_that_are_none_are_refused(y, error, words):
    with pytest.raises(error, match=words):
        quiet(One(), (X, y), loss=squares if y.dim() == 1 else (lambda logit, z: logit[:, 0]), attacks={})


@pytest.mark.parametrize("name", ["integers", "floats", "a last axis"])
def test_torchattacks_takes_one_logit(name):
    """Their cross-entropy of (0, logit) is the binary one: the sign of its slope is that of the margin."""
    margin = (X.flatten(1).mean(1) - 0.5).abs()
    attacks = {"theirs": lambda m: torchattacks.FGSM(m, eps=0.005), "ours": FGSM()}
    table = quiet(One(), (X.clamp(0.01, 0.99), LABELS[name]), loss=BCE, epsilon=0.005, attacks=attacks)
    assert table["theirs"].correct == table["ours"].correct < table["clean"].correct
    assert table["clean"].correct >= 38
    assert margin.min() < 0.005


# ---- answers that are no numbers


class Roots(nn.Module):
    """NaN where an input is negative, with an infinite slope at zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        root = x[:, 0].sqrt() * self.weight
        return 9 * torch.stack([root, 1 - root], 1)


@pytest.mark.parametrize("attack", [FGSM(), PGD(5), YOPO(2, 2), Free(2)], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_infinite_slope_breaks_nothing_by_itself(norm, attack):
    x = torch.linspace(0.45, 1, 50)[:, None].repeat(1, 2)
    x[:10, 0] = 0
    y = Roots()(x).argmax(1)
    table = quiet(Roots(), (x, y), epsilon=0.05, norm=norm, attacks={"a": attack})
    assert [row.correct for row in table.rows] == [50, 50]


@pytest.mark.parametrize("one", [False, True])
def test_an_answer_of_nan_is_no_class(one):
    """Where an attack leads there, the particle is lost; where there is no attack, it never was right."""
    net = nn.Sequential(Roots(), *([nn.Linear(2, 1)] if one else []))
    if one:
        net[1].load_state_dict({"weight": torch.tensor([[1.0, -1.0]]), "bias": torch.zeros(1)})
    x = torch.tensor([[0.5, 0.0], [0.01, 0.0], [-0.5, 0.0]])
    settings = {"loss": BCE} if one else {}
    for label in (0, 1):
        y = torch.full((3,), label)
        table = quiet(net, (x, y), epsilon=0.1, bounds=None, attacks={"down": Down()}, **settings)
        with torch.no_grad():
            out = net(x)
            named = out.flatten() > 0 if one else out.argmax(1)
        right = (named == y) & ~out.isnan().any(1)
        assert table["clean"].correct == int(right.sum())
        assert table["down"].correct == int(right[0])


class Down:
    """Takes every input down."""

    def maximise(self, game, controls, particles, generator=None):
        return -0.1 * torch.ones_like(particles.state)


def test_no_progress_prints_nothing(capfd):
    quiet(attacks={"a": FGSM(), "b": lambda m: torchattacks.PGD(m, steps=1)}, progress=False)
    assert capfd.readouterr() == ("", "")
