"""torchattacks in both directions, and the table of accuracies, against attacks and counts by hand."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from paradigms.adversarial import TRADES, FromTorchattacks, as_attack, evaluate, game
from paradigms.adversarial.evaluation import wilson
from tests.problems import conv_net, distance, generator, labels, mlp, mlp_net, seeded

torchattacks = pytest.importorskip("torchattacks")


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


X, Y = uniform(40, 1, 6, 6), labels(40, 3)
FLAT, CLASSES = uniform(40, 3), labels(40, 2)
EPSILON, STEP, STEPS = 0.1, 0.03, 7


def net():
    return conv_net().float()


def batch_norm_net():
    layers = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    made = seeded(lambda: nn.Sequential(*layers)).float().train()
    made(X + 1)  # running averages far from the batch's
    return made


def images(network=None, loss=F.cross_entropy, data=(X, Y), **options):
    return game(net() if network is None else network, loss, data, **({"epsilon": EPSILON} | options))


def entered(formulation, maximiser, seed=None):
    """What the network is shown."""
    made, particles = formulation.problem, formulation.population(0)
    eta = maximiser.maximise(made, made.controls, particles, None if seed is None else generator(seed))
    return made.ball.enter(made.target(particles.state), eta)


def theirs(**options):
    settings = {"eps": EPSILON, "alpha": STEP, "steps": STEPS, "random_start": False} | options
    return FromTorchattacks(lambda model: torchattacks.PGD(model, **settings))


OURS = PGD(STEPS, STEP, random_start=False)

# ---- attacks of torchattacks as maximisers


@pytest.mark.parametrize("network", [net, lambda: batch_norm_net().eval()], ids=["plain", "batch norm"])
def test_their_pgd_is_ours(network):
    formulation = images(network())
    found = entered(formulation, theirs())
    assert torch.equal(found, entered(formulation, OURS))
    assert distance(found, X) > EPSILON / 2


def test_their_pgd_is_ours_on_another_range():
    """On data in (-1, 1) their radius and step are in units of the range, which is two."""
    formulation = images(data=(2 * X - 1, Y), bounds=(-1, 1))
    found = entered(formulation, theirs(eps=EPSILON / 2, alpha=STEP / 2))
    assert distance(found, entered(formulation, OURS)) < 1e-6
    assert distance(found, 2 * X - 1) == pytest.approx(EPSILON, rel=1e-5)


def test_their_pgd_is_ours_on_a_pair_of_states():
    """With TRADES the attack sees the network on x', and maximises its own loss."""
    assert torch.equal(entered(images(loss=TRADES()), theirs()), entered(images(), OURS))


def test_an_attack_draws_from_the_generator_alone():
    formulation, attack = images(), theirs(random_start=True)
    drawn = torch.get_rng_state()
    first, again, other = (entered(formulation, attack, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(first, again)
    assert distance(first, other) > 1e-3
    torch.manual_seed(3)
    free = entered(formulation, attack)  # without a generator, torch's own
    assert not torch.equal(torch.get_rng_state(), drawn)
    torch.manual_seed(3)
    assert torch.equal(free, entered(formulation, attack))


@pytest.mark.parametrize(("bounds", "eps"), [((0, 1), "0.1"), ((-1, 1), "0.05")])
def test_an_attack_that_leaves_the_ball_is_told_its_radius(bounds, eps):
    formulation = images(bounds=bounds)
    with pytest.raises(mfoc.InvalidValue, match=rf"PGD left the ball .*epsilon 0\.1, linf.*eps={eps}$"):
        entered(formulation, theirs(eps=0.3, alpha=0.3))


def test_an_attack_made_for_images_says_so():
    formulation = game(mlp_net().float(), F.cross_entropy, (FLAT, CLASSES), epsilon=EPSILON)
    attack = FromTorchattacks(lambda model: torchattacks.APGD(model, eps=EPSILON, steps=2))
    with pytest.raises(mfoc.InvalidValue, match=r"APGD failed .*\(40, 3\).*\[N, C, H, W\]"):
        entered(formulation, attack)


def test_an_attack_needs_bounds():
    with pytest.raises(mfoc.InvalidValue, match=r"bounds is None.*torchattacks clamps"):
        entered(images(bounds=None), theirs())


def test_an_attack_needs_labels():
    regression = images(loss=nn.MSELoss(), data=(X, uniform(40, 3)))
    unlabelled = images(loss=lambda output, z: output.square().sum(1), data=X)
    for formulation in (regression, unlabelled):
        with pytest.raises(mfoc.InvalidType, match=r"needs class labels.*integer tensor \[N\]"):
            entered(formulation, theirs())


@pytest.mark.parametrize(("rubbish", "kind"), [(3, "int"), (None, "NoneType"), (nn.Linear(2, 2), "Linear")])
def test_a_factory_that_makes_no_attack_is_refused(rubbish, kind):
    with pytest.raises(mfoc.InvalidType, match=rf"attack\(net\) returned a {kind}"):
        entered(images(), FromTorchattacks(lambda model: rubbish))


def test_an_attack_is_made_once_and_sees_the_controls_of_each_call():
    made = []

    def factory(model):
        made.append(model)
        return torchattacks.PGD(model, eps=EPSILON, alpha=STEP, steps=STEPS, random_start=False)

    attack = FromTorchattacks(factory)
    first = images(batch_size=4)
    first.solve(mfoc.Minimax(attack, partial(torch.optim.SGD, lr=0.1)), steps=20)
    other = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), seed=1).float()
    for network in (net(), other):
        assert torch.equal(entered(images(network), attack), entered(images(network), OURS))
    assert len(made) == 1


# ---- maximisers as attacks of torchattacks


@pytest.mark.parametrize("network", [net, batch_norm_net], ids=["plain", "batch norm"])
def test_our_pgd_is_theirs(network):
    """In training mode too: torchattacks attacks in evaluation mode, and puts the mode back."""
    model = network().train()
    ours = as_attack(images(model), PGD(STEPS, STEP))
    reference = torchattacks.PGD(model, eps=EPSILON, alpha=STEP, steps=STEPS)
    assert isinstance(ours, torchattacks.attack.Attack)
    kept = copy.deepcopy(model.state_dict())
    for _ in range(2):
        found = []
        for attack in (ours, reference):
            torch.manual_seed(5)
            found.append(attack(X, Y))
        assert torch.equal(*found)
        assert distance(found[0], X) > EPSILON / 2
        assert all(module.training for module in model.modules())
        for name, value in model.state_dict().items():
            assert torch.equal(value, kept[name])
        with torch.no_grad():  # the attack follows the network's weights
            model[-1].weight.mul_(-1)
        kept = copy.deepcopy(model.state_dict())


def test_an_attack_can_be_given_another_network():
    model, other = net(), seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), seed=1).float()
    attack = as_attack(images(model), OURS, other)
    assert attack.model is other
    assert torch.equal(attack(X, Y), entered(images(other), OURS))


@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES()], ids=["cross-entropy", "trades"])
@pytest.mark.parametrize("maximiser", [PGD(2), FGSM(random_start=True), YOPO(2, 2), Free(2)], ids=repr)
def test_every_maximiser_is_an_attack(maximiser, loss):
    model = net()
    found = as_attack(images(model, loss), maximiser)(X, Y)
    assert 1e-3 < distance(found, X) <= EPSILON * (1 + 1e-5)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attacks_combine():
    model = net()
    weak = torchattacks.PGD(model, eps=EPSILON, alpha=EPSILON, steps=1, random_start=False)
    strong = as_attack(images(model), OURS)
    y = model(X).argmax(1)
    found = torchattacks.MultiAttack([weak, strong])(X, y)
    wrong = [model(point).argmax(1) != y for point in (weak(X, y), strong(X, y), found)]
    assert torch.equal(wrong[2], wrong[0] | wrong[1])
    assert wrong[2].any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: images(bounds=(-1, 1)), r"bounds \(-1\.0, 1\.0\); torchattacks works"),
        (lambda: images(bounds=None), "bounds None"),
        (lambda: images(at=1, bounds=(-9, 9)), "bounds"),
        (lambda: game(nn.Sequential(nn.Flatten(), net()[-1:]), F.cross_entropy, (X[:, :, :3], Y), epsilon=0.1, at=1),
         "disturbs stage 1.*stage 0"),
        (lambda: game(mlp()[0], None, mlp()[1], epsilon=0.1, bounds=None), "formulation has no network"),
        (net, "formulation has no network"),
    ],
)  # fmt: skip
def test_a_formulation_that_torchattacks_cannot_take_is_refused(make, words):
    with pytest.raises(mfoc.MfocError, match=words):
        as_attack(make(), OURS)


def test_something_else_is_no_maximiser():
    with pytest.raises(mfoc.InvalidType, match="maximiser is a str"):
        as_attack(images(), "pgd")


# ---- accuracies


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
