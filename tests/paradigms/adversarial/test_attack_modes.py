"""Our attacks as people use those of torchattacks: normalised images, targets, training modes and saved files."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.games.maximisers import FGSM, PGD, YOPO
from paradigms.adversarial import TRADES, FromTorchattacks, as_attack, game
from tests.oracles.adversaries import their_start
from tests.paradigms.adversarial.images import EPSILON, STEP, STEPS, Y, batch_norm_net, uniform
from tests.problems import D, distance, generator, seeded

torchattacks = pytest.importorskip("torchattacks")

MEAN, STD = [0.3, 0.5], [0.2, 0.6]  # of images of two channels
X = uniform(40, 2, 5, 5, seed=3).to(D)


def shown(mean, std):
    return (X - torch.tensor(mean).view(1, 2, 1, 1)) / torch.tensor(std).view(1, 2, 1, 1)


SHOWN = shown(MEAN, STD)


def colours():
    def layers():
        return nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)

    return seeded(lambda: nn.Sequential(*layers()), seed=2).to(D).eval()


def made(model, loss=F.cross_entropy, norm="linf", **options):
    return game(model, loss, (X, Y), epsilon=EPSILON, norm=norm, **options)


SIGNED = {"eps": EPSILON, "alpha": STEP, "steps": STEPS}
KINDS = {
    "PGD": (PGD(STEPS, STEP, random_start=False), lambda net: torchattacks.PGD(net, **SIGNED, random_start=False)),
    "random start": (PGD(STEPS, STEP), lambda net: torchattacks.PGD(net, **SIGNED)),
    "FGSM": (FGSM(), lambda net: torchattacks.FGSM(net, eps=EPSILON)),
    "l2": (PGD(STEPS, STEP, random_start=False), lambda net: torchattacks.PGDL2(net, **SIGNED, random_start=False)),
}
MODES = {
    "default": lambda attack: None,
    "by label": lambda attack: attack.set_mode_targeted_by_label(quiet=True),
    "random": lambda attack: attack.set_mode_targeted_random(quiet=True),
    "least likely": lambda attack: attack.set_mode_targeted_least_likely(quiet=True),
    "second least likely": lambda attack: attack.set_mode_targeted_least_likely(2, quiet=True),
    "function": lambda attack: attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 3, quiet=True),
    "of the image": lambda attack: attack.set_mode_targeted_by_function(
        lambda x, y: (x.flatten(1).sum(1) > 25).long(), quiet=True
    ),
}


def both(kind, model, **options):
    """Our attack, and the one of torchattacks that it must equal."""
    maximiser, theirs = KINDS[kind]
    return as_attack(made(model, norm="l2" if kind == "l2" else "linf", **options), maximiser), theirs(model)


def found(attack, x=X, y=Y, seed=5):
    torch.manual_seed(seed)
    return attack(x, y)


@pytest.fixture
def their_draws(monkeypatch):
    monkeypatch.setattr(mfoc.Ball, "sample", their_start)


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_is_theirs(kind, mode, normalise, their_draws):
    attacks, x = both(kind, colours()), SHOWN if normalise else X
    for attack in attacks:
        MODES[mode](attack)
        if normalise:
            attack.set_normalization_used(MEAN, STD)
    ours, theirs = (found(attack, x) for attack in attacks)
    assert distance(ours, theirs) < 1e-6
    assert distance(theirs, x) > EPSILON / 4  # it did move
    assert attacks[0].get_mode() == attacks[1].get_mode()


@pytest.mark.parametrize("maximiser", [PGD(2), YOPO(2, 2)], ids=repr)
@pytest.mark.parametrize("loss", [F.cross_entropy, TRADES()], ids=["cross-entropy", "trades"])
def test_normalisation_is_a_first_layer(maximiser, loss):
    """In normalised units the attack on a network is the attack on the network that normalises by itself."""
    model, first = colours(), nn.Conv2d(2, 2, 1).to(D)
    with torch.no_grad():
        first.weight.copy_(torch.diag(1 / torch.tensor(STD)).view(2, 2, 1, 1))
        first.bias.copy_(-torch.tensor(MEAN) / torch.tensor(STD))
    attack = as_attack(made(model, loss), maximiser)
    attack.set_normalization_used(MEAN, STD)
    whole = as_attack(made(nn.Sequential(nn.Sequential(first, model[0]), *model[1:]), loss), maximiser)
    assert distance(attack.inverse_normalize(found(attack, SHOWN)), found(whole)) < 1e-5


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
def test_trades_is_their_tpgd(normalise, monkeypatch):
    """From one start; labels take no part in it and may be left out."""
    model, noise, x = colours(), 0.001 * torch.randn(X.shape, generator=generator(4), dtype=D), X
    monkeypatch.setattr(mfoc.Ball, "sample", lambda *args, **options: noise)
    monkeypatch.setattr(torch, "randn_like", lambda images: noise / 0.001)
    attacks = as_attack(made(model, TRADES()), KINDS["random start"][0]), torchattacks.TPGD(model, **SIGNED)
    if normalise:
        x = SHOWN
        for attack in attacks:
            attack.set_normalization_used(MEAN, STD)
    ours, theirs = (attack(x, Y) for attack in attacks)
    assert distance(ours, theirs) < 1e-6
    assert distance(theirs, x) > EPSILON / 4
    assert torch.equal(attacks[0](x), ours)


def test_no_images_are_attacked_at_once():
    """As when nothing is left to attack, in a combination of one's own."""
    assert all(attack(X[:0], Y[:0]).shape == (0, 2, 5, 5) for attack in both("PGD", colours()))


def test_a_running_cost_sees_what_the_network_sees():
    model = colours()

    def cost(t, x, u, z):
        return 5 * x.flatten(1).square().sum(1) if t == 0 else x.new_zeros(len(x))

    attack = as_attack(made(model, running_cost=cost), PGD(1, EPSILON, random_start=False))
    attack.set_normalization_used(MEAN, STD)
    x = SHOWN.clone().requires_grad_()
    (5 * x.square().sum() + F.cross_entropy(model(x), Y, reduction="sum")).backward()
    expected = attack.normalize((X + EPSILON * x.grad.sign()).clamp(0, 1))
    assert distance(found(attack, SHOWN), expected) < 1e-6


def test_normalisation_is_followed_from_call_to_call():
    attacks = both("PGD", colours())
    for act, x in (
        (lambda attack: attack.set_normalization_used(MEAN, STD), SHOWN),
        (lambda attack: attack.set_normalization_used(STD, MEAN), shown(STD, MEAN)),
        (lambda attack: attack._set_normalization_applied(False), X),  # images are not, the network wants them so
        (lambda attack: attack._set_normalization_applied(True), shown(STD, MEAN)),
        (lambda attack: attack._set_normalization_applied(None), X),  # forgotten
    ):
        for attack in attacks:
            act(attack)
        assert distance(*(found(attack, x) for attack in attacks)) < 1e-6


def test_modes_are_followed_from_call_to_call(capsys):
    attacks, seen = both("PGD", colours()), []
    for mode in ("by label", "least likely", "default", "random"):
        for attack in attacks:
            attack.set_mode_default() if mode == "default" else MODES[mode](attack)
        seen.append([found(attack) for attack in attacks])
        assert distance(*seen[-1]) < 1e-12
    assert min(distance(a, b) for (a, _), (b, _) in pairwise(seen)) > STEP


def test_a_target_is_approached():
    """The loss of the target falls; by label, so does that of the label."""
    model, target = colours(), (Y + 1) % 3
    attack = as_attack(made(model), PGD(STEPS, STEP))
    attack.set_mode_targeted_by_label(quiet=True)
    losses = [F.cross_entropy(model(x), target, reduction="none") for x in (X, found(attack, y=target))]
    assert (losses[1] < losses[0]).all()


@pytest.mark.parametrize("mode", [MODES["random"], MODES["least likely"]], ids=["random", "least likely"])
def test_one_logit_has_two_classes(mode):
    """The class that is not the label is the only target, and less loss of it is more of the label's."""
    model, y = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 1), nn.Flatten(0))).to(D), (Y > 0).to(D)
    attack = as_attack(game(model, nn.BCEWithLogitsLoss(), (X, y), epsilon=EPSILON), PGD(3, random_start=False))
    plain = found(attack, y=y)
    mode(attack)
    assert torch.equal(found(attack, y=y), plain)


def test_targets_of_a_regression():
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 2))).to(D)
    wanted = torch.zeros(40, 2, dtype=D)
    attack = as_attack(game(model, nn.MSELoss(), (X, wanted), epsilon=EPSILON), PGD(3, random_start=False))
    attack.set_mode_targeted_by_label(quiet=True)
    assert (F.mse_loss(model(found(attack, y=wanted)), wanted) < F.mse_loss(model(X), wanted)).all()
    attack.set_mode_targeted_random(quiet=True)
    with pytest.raises(mfoc.InvalidValue, match=r"mode 'targeted\(random\)'.*class labels"):
        attack(X, wanted)


def test_combined_attacks_are_told_at_once():
    """``MultiAttack`` passes normalisation on; the second attack sees what withstood the first."""
    model = colours()
    y = model(SHOWN).argmax(1)
    weak = partial(torchattacks.FGSM, eps=0.01)
    ours, theirs = both("PGD", model)
    combined = [torchattacks.MultiAttack([weak(model), strong]) for strong in (ours, theirs)]
    for attack in combined:
        attack.set_normalization_used(MEAN, STD)
    adversarial = [found(attack, SHOWN, y) for attack in combined]
    assert distance(*adversarial) < 1e-6
    assert (model(adversarial[0]).argmax(1) != y).any()
    assert ours._normalization_applied is theirs._normalization_applied is True


@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_modes_are_theirs(batch_norm):
    """With batch norm in training mode theirs moves its averages; ours does not, and gives the same images."""
    models = [batch_norm_net().double().eval()]
    models.append(copy.deepcopy(models[0]))
    x, kept = uniform(40, 1, 6, 6).to(D), copy.deepcopy(models[0].state_dict())
    ours = as_attack(game(models[0], F.cross_entropy, (x, Y), epsilon=EPSILON), KINDS["PGD"][0])
    theirs = KINDS["PGD"][1](models[1])
    for attack in (ours, theirs):
        attack.set_model_training_mode(model_training=True, batchnorm_training=batch_norm)
    assert distance(ours(x, Y), theirs(x, Y)) < 1e-12
    assert not any(part.training for part in models[0].modules())
    assert all(torch.equal(value, kept[name]) for name, value in models[0].state_dict().items())


def test_every_part_of_the_network_keeps_its_mode():
    model = colours().train()
    model[1].eval()
    attack = as_attack(made(model), PGD(1))
    attack.set_mode_targeted_least_likely(quiet=True)
    with pytest.raises(mfoc.InvalidType, match="labels is a list"):
        attack(X, [0, 1])
    attack(X, Y)
    assert [part.training for part in model] == [True, False, True, True, True]


def test_an_error_leaves_the_attack_as_it_was():
    attack = as_attack(made(colours()), KINDS["PGD"][0])
    attack.set_normalization_used(MEAN, STD)
    before = found(attack, SHOWN)
    with pytest.raises(mfoc.InvalidValue, match="labels are missing"):
        attack(SHOWN)
    assert torch.equal(found(attack, SHOWN), before)


def test_saved_files_are_theirs(tmp_path):
    model, loaded = colours(), []
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(SHOWN, Y), batch_size=15)
    for i, attack in enumerate(both("PGD", model)):
        attack.set_normalization_used(MEAN, STD)
        path = tmp_path / str(i)
        options = {"save_predictions": True, "save_clean_inputs": True, "verbose": False, "return_verbose": True}
        accuracy, l2, _ = attack.save(loader, path, **options)
        loaded.append((torch.load(path), accuracy, l2))
    (ours, *numbers), (theirs, *expected) = loaded
    assert numbers == pytest.approx(expected, rel=1e-6)
    assert ours.keys() == theirs.keys()
    for key in ("adv_inputs", "labels", "preds", "clean_inputs"):
        assert distance(ours[key].to(D), theirs[key].to(D)) < 1e-6


def test_the_precision_of_images_is_kept():
    """A mean of numpy, in double precision, does not turn single-precision images into double ones."""
    model = colours().float()
    attack = as_attack(game(model, F.cross_entropy, (X.float(), Y), epsilon=EPSILON), KINDS["PGD"][0])
    attack.set_normalization_used(*(torch.tensor(v, dtype=D).numpy() for v in (MEAN, STD)))
    adversarial = attack(SHOWN.float(), Y)
    attack.set_normalization_used(MEAN, STD)
    assert adversarial.dtype == torch.float32
    assert distance(adversarial, attack(SHOWN.float(), Y)) < 1e-5


@pytest.mark.parametrize("mode", list(MODES)[1:])
def test_what_has_no_target_is_refused(mode):
    trades = as_attack(made(colours(), TRADES()), PGD(1))
    theirs = as_attack(made(colours()), FromTorchattacks(KINDS["PGD"][1]))
    for attack, words in ((trades, "TRADES game has no target"), (theirs, "modes of its own")):
        with pytest.raises(mfoc.InvalidValue, match=words):
            MODES[mode](attack)
        attack(X, Y)  # as before
        assert attack.get_mode() == "default"


def test_what_does_not_fit_is_refused():
    attack = as_attack(made(colours()), PGD(1))
    attack._set_normalization_applied(False)
    with pytest.raises(mfoc.InvalidValue, match=r"set_normalization_used\(mean, std\) first"):
        attack(X, Y)
    attack.set_normalization_used(MEAN, STD)
    for x in (X[:, :1], X[:, 0]):
        with pytest.raises(mfoc.InvalidValue, match=r"2 channels is for images \[N, 2, H, W\]"):
            attack(x, Y)
    attack = as_attack(made(colours()), PGD(1))
    attack.set_mode_targeted_least_likely(3, quiet=True)  # of two other classes
    with pytest.raises(mfoc.InvalidValue, match="as many classes as it chooses among"):
        attack(X, Y)
    for rubbish, words in ((lambda x, y: 3, "target is an int"), (lambda x, y: y[:2], r"shape \(2,\); expected")):
        attack.set_mode_targeted_by_function(rubbish, quiet=True)
        with pytest.raises(mfoc.MfocError, match=words):
            attack(X, Y)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(50, 3)).to(D).eval()
    attack = as_attack(made(net), PGD(1))
    attack.set_model_training_mode(True, dropout_training=True)
    with pytest.raises(mfoc.InvalidValue, match="dropout_training=False"):
        attack(X, Y)


# ---- the same settings on attacks of torchattacks that we call


def test_their_normalisation_is_refused_within_a_game():
    """The game says the range of its data; their attack would take them to another."""

    def factory(net):
        attack = torchattacks.PGD(net, eps=EPSILON)
        attack.set_normalization_used(MEAN, STD)
        return attack

    with pytest.raises(mfoc.InvalidValue, match=r"normalis.*bounds"):
        as_attack(made(colours()), FromTorchattacks(factory))(X, Y)


def test_their_mode_by_label_is_refused_within_a_game():
    """The labels of a game are the true ones, and it would go towards them."""

    def factory(net, mode):
        attack = torchattacks.PGD(net, **SIGNED, random_start=False)
        MODES[mode](attack)
        return attack

    model = colours()
    with pytest.raises(mfoc.InvalidValue, match="towards the labels"):
        as_attack(made(model), FromTorchattacks(partial(factory, mode="by label")))(X, Y)
    for mode in ("least likely", "function"):
        within = as_attack(made(model), FromTorchattacks(partial(factory, mode=mode)))
        assert distance(within(X, Y), factory(model, mode)(X, Y)) < 1e-12
