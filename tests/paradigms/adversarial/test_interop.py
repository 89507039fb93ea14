"""torchattacks in both directions, and the table of accuracies, against attacks and counts by hand."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO, Free
from paradigms.adversarial import TRADES, FromTorchattacks, as_attack, game
from tests.oracles.adversaries import their_start
from tests.paradigms.adversarial.images import (
    CLASSES,
    EPSILON,
    FLAT,
    STEP,
    STEPS,
    X,
    Y,
    batch_norm_net,
    entered,
    images,
    net,
    uniform,
)
from tests.problems import distance, mlp, mlp_net, seeded

torchattacks = pytest.importorskip("torchattacks")


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


@pytest.mark.parametrize(("rubbish", "kind"), [(3, "an int"), (None, "a NoneType"), (nn.Linear(2, 2), "a Linear")])
def test_a_factory_that_makes_no_attack_is_refused(rubbish, kind):
    with pytest.raises(mfoc.InvalidType, match=rf"attack\(net\) returned {kind}"):
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
def test_our_pgd_is_theirs(network, monkeypatch):
    """In training mode too: torchattacks attacks in evaluation mode, and puts the mode back."""
    monkeypatch.setattr(mfoc.Ball, "sample", their_start)
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
