"""The information plane of a network: which layers, what is told of them, and what the network keeps."""

import copy
import math
from dataclasses import astuple

import pytest
import torch
from torch import nn

from mfoc.analysis.information import KDE, Binned, Bounds, information_plane
from mfoc.errors import InvalidType, InvalidValue
from tests.problems import D, normal


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).to(D)


X, Y = normal(40, 3), torch.arange(40) % 2


def test_activations_and_the_output_are_the_layers():
    plane = information_plane(net(), X, Y)
    assert [(layer.name, layer.units) for layer in plane.layers] == [("1", 5), ("3", 4), ("output", 2)]
    assert plane.samples == 40
    assert plane.label_entropy == pytest.approx(math.log(2))


@pytest.mark.parametrize("estimator", [KDE(0.3), Binned(7)], ids=repr)
def test_each_layer_is_told_what_the_estimator_says_of_its_activity(estimator):
    own = net()
    activity = own[:4](X)
    told = information_plane(own, X, Y, estimator=estimator, layers=["3"]).layers
    assert [layer.name for layer in told] == ["3"]
    assert told[0].about_input == estimator.about_input(activity)
    assert told[0].about_labels == estimator.about_labels(activity, Y)


def test_an_estimator_of_ones_own():
    class Nothing:
        caveat = "nothing"

        def about_input(self, activity):
            return Bounds(0, 0)

        def about_labels(self, activity, labels):
            return Bounds(0, 0)

    assert information_plane(net(), X, Y, estimator=Nothing()).verdict == "nothing"


def test_images_are_flattened_and_a_network_without_activation_modules_shows_its_parts():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(1, 2, 3), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.convolution(x).relu_().flatten(1))  # the layer's own output is written over

    own = Functional().to(D)
    plane = information_plane(own, normal(10, 1, 4, 4), torch.arange(10) % 2)
    assert [(layer.name, layer.units) for layer in plane.layers] == [("convolution", 8), ("head", 2), ("output", 2)]
    wanted = KDE().about_input(own.convolution(normal(10, 1, 4, 4)))
    assert astuple(plane.layers[0].about_input) == pytest.approx(astuple(wanted))


def test_a_module_that_is_called_again_counts_again():
    act = nn.Tanh()
    shared = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act).to(D)
    assert [layer.name for layer in information_plane(shared, X, Y).layers] == ["1", "1 (call 2)", "output"]


def test_a_name_that_a_shared_module_does_not_go_by_is_refused_with_the_cure():
    act = nn.Tanh()
    shared = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act).to(D)
    with pytest.raises(InvalidValue, match="first name"):
        information_plane(shared, X, Y, layers=["3"])


def test_nothing_of_the_users_is_changed():
    own = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2)).to(D)
    before, inputs, state = copy.deepcopy(own.state_dict()), X.clone(), torch.get_rng_state()
    information_plane(own, inputs, Y)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert torch.equal(inputs, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert own.training
    assert own[2].inplace
    assert all(p.grad is None for p in own.parameters())
    assert not any(part._forward_hooks for part in own.modules())


def test_compression_is_in_the_eye_of_the_bins():
    """A layer that is scaled up by training: fixed bins see it compress, few and many see different amounts of it."""

    def scaled(factor):
        own = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).to(D)
        own[0].weight.data.fill_(factor)
        return own

    x = torch.linspace(-1, 1, 200, dtype=D)[:, None]
    y = (x[:, 0] > 0).long()
    for bins in (10, 1000):
        edges = Binned(torch.linspace(-1, 1, bins + 1, dtype=D))
        before, after = (information_plane(scaled(f), x, y, estimator=edges).layers[0].about_input for f in (1, 20))
        assert before.lower - after.lower > 0.5 * (bins == 10) + 0.05
    mass = [information_plane(scaled(f), x, y, estimator=Binned(10, "mass")).layers[0].about_input for f in (1, 5)]
    assert mass[0].lower == pytest.approx(mass[1].lower)  # the same layer, up to the names of its values


def test_layers_that_show_all_the_samples_are_said_to():
    plane = information_plane(net(), X, Y, estimator=KDE(1e-6), layers=["0", "1"])
    assert all(layer.saturated for layer in plane.layers)
    assert "2 of 2 layers show as much of the input as 40 samples can (ln N = 3.69)" in plane.verdict
    middling = information_plane(net(), X, Y, estimator=KDE(0.01), layers=["1"]).layers[0]
    assert 0.5 * math.log(40) < middling.about_input.lower < 0.95 * math.log(40)
    assert not middling.saturated


@pytest.mark.parametrize("estimator", [KDE(0.3), Binned(7)], ids=repr)
def test_the_report_warns_of_what_is_drawn(estimator):
    text = str(information_plane(net(), X, Y, estimator=estimator))
    assert "infinite or constant" in text
    assert "[nats]" in text
    assert len(text.splitlines()) == 1 + 1 + 3 + 1
    assert "tensor(" not in text


def test_the_figure_follows_layers_through_a_training():
    planes = [information_plane(net(seed), X, Y) for seed in range(3)]
    figure = planes[0].plot(*planes[1:], title="three moments")
    axis = figure.axes[0]
    assert axis.get_title() == "three moments"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1", "3", "output"]
    assert "open" in figure.legends[0].get_title().get_text()
    assert "open" not in planes[0].plot().legends[0].get_title().get_text()
    path = axis.lines[2]
    assert list(path.get_xdata()) == [plane.layers[0].about_input.middle for plane in planes]
    assert list(path.get_ydata()) == [plane.layers[0].about_labels.middle for plane in planes]


def test_planes_of_other_layers_are_not_drawn_together():
    plane = information_plane(net(), X, Y)
    with pytest.raises(InvalidValue, match="layers"):
        plane.plot(information_plane(net(), X, Y, layers=["1"]))
    with pytest.raises(InvalidValue, match="samples"):
        plane.plot(information_plane(net(), X[:20], Y[:20]))
    with pytest.raises(InvalidType, match="information_plane"):
        plane.plot("later")


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"net": len}, InvalidType, "Module"),
        ({"x": [[1.0]]}, InvalidType, "tensor of inputs"),
        ({"x": X[:1], "y": Y[:1]}, InvalidValue, "two inputs"),
        ({"x": X.log()}, InvalidValue, "NaN"),
        ({"x": X[:, :2]}, InvalidValue, "cannot be evaluated"),
        ({"y": Y[:-1]}, InvalidValue, r"\(40,\)"),
        ({"y": X[:, 0]}, InvalidType, "bucketize"),
        ({"layers": []}, InvalidValue, "empty"),
        ({"layers": "1"}, InvalidType, "list"),
        ({"layers": ["7"]}, InvalidValue, "no submodule"),
        ({"estimator": "kde"}, InvalidType, "KDE"),
        ({"estimator": KDE}, InvalidType, "make an instance"),
        ({"net": nn.Sequential(nn.Linear(3, 2), nn.Dropout()).to(D)}, InvalidValue, r"\.eval\(\)"),
        ({"net": nn.Sequential(nn.LazyLinear(2))}, InvalidValue, "lazy"),
        ({"net": nn.Sequential(nn.Linear(3, 2), nn.Flatten(0), nn.Tanh()).to(D)}, InvalidValue, "first axis"),
    ],
    ids=[
        "no module",
        "list",
        "one input",
        "nan",
        "shape",
        "few labels",
        "continuous labels",
        "no layers",
        "one word",
        "unknown layer",
        "word",
        "class",
        "dropout",
        "lazy",
        "samples lost",
    ],
)
def test_what_cannot_be_placed_is_refused(change, kind, says):
    arguments = {"net": net(), "x": X, "y": Y} | change
    if says == "first axis":
        arguments["layers"] = ["2"]
    with pytest.raises(kind, match=says):
        information_plane(**arguments)


def test_a_layer_that_was_not_called_is_refused():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(InvalidValue, match="'idle' was not called"):
        information_plane(Idle().to(D), X, Y, layers=["idle"])


def test_activity_that_is_not_finite_is_refused_by_the_name_of_its_layer():
    broken = net()
    broken[2].weight.data.fill_(math.nan)
    with pytest.raises(InvalidValue, match=r"layer '3'.*NaN"):
        information_plane(broken, X, Y)
