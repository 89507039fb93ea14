"""What is asked of modules: each question on modules that have what it asks for, and on some that have not."""

import copy

import pytest
import torch
from torch import nn

import mfoc
from mfoc.networks import inspection
from tests.architectures import Reused, batch_norm_net, conv_net, mlp_net, seeded
from tests.problems import distance, normal, same_bits


def names(found):
    return [name for name, _ in found]


# ---- hooks, chains, layers


def nothing(*_):
    return None


HOOKS = {
    "forward": lambda m: m.register_forward_hook(nothing),
    "before": lambda m: m.register_forward_pre_hook(nothing),
    "backward": lambda m: m.register_full_backward_hook(nothing),
    "before backward": lambda m: m.register_full_backward_pre_hook(nothing),
    "state": lambda m: m.register_state_dict_post_hook(nothing),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_found_on_the_module_that_has_them_alone(kind):
    net = mlp_net()
    assert not inspection.hooked(net)
    handle = HOOKS[kind](net[1])
    assert inspection.hooked(net[1])
    assert not inspection.hooked(net)
    assert not inspection.hooked(net[0])
    handle.remove()
    assert not inspection.hooked(net[1])


def test_chains():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(2 * x)

    class Named(nn.Sequential):
        pass

    assert inspection.is_chain(mlp_net())
    assert inspection.is_chain(Named(nn.Tanh()))
    assert not inspection.is_chain(Doubled(nn.Tanh()))
    assert not inspection.is_chain(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", inspection.ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_elementwise_layers_act_on_each_number_alone(kind):
    """In any shape, place and mode, with two derivatives."""
    layer, x = kind(), 3 * normal(4, 5, 6)
    alone = torch.stack([layer(number) for number in x.flatten()]).view_as(x)
    assert distance(layer(x), alone) < 1e-15  # a vector's exponentials may be rounded otherwise
    assert distance(layer(x.transpose(0, 2)), alone.transpose(0, 2)) < 1e-15
    assert not list(layer.parameters())
    few = (4 * normal(7, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(layer, few)
    if kind is not nn.Hardsigmoid:  # torch has no second derivative of it
        assert torch.autograd.gradgradcheck(layer, few)
    for training in (True, False):
        assert distance(layer.train(training)(x), alone) < 1e-15


AFFINE = {
    "linear": (nn.Linear(2, 2), True),
    "convolution": (nn.Conv2d(1, 1, 3), True),
    "average": (nn.AvgPool2d(2), True),
    "chain": (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), True),
    "activation": (nn.Tanh(), False),
    "maximum": (nn.MaxPool2d(2), False),
    "chain with an activation": (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), False),
    "one's own": (type("Own", (nn.Linear,), {})(2, 2), False),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine_layers(name):
    module, affine = AFFINE[name]
    assert inspection.is_affine(module) is affine


def test_a_hooked_layer_is_not_known_to_be_affine():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(nothing)
    assert not inspection.is_affine(layer)


def test_dropout_layers_and_those_that_are_on():
    layers = {nn.Dropout(0.5): (True, True), nn.AlphaDropout(0.0): (True, False), nn.Tanh(): (False, False)}
    for layer, (known, active) in layers.items():
        assert inspection.is_dropout(layer) is known
        assert inspection.is_dropout(layer, active=True) is active
        assert inspection.is_dropout(layer.eval(), active=True) is False


# ---- parameters


def test_trainable_parameters_are_those_that_require_grad_in_order():
    net = mlp_net()
    net[2].weight.requires_grad_(False)
    assert list(inspection.trainable(net)) == ["0.weight", "0.bias", "2.bias", "4.weight", "4.bias"]
    assert inspection.trainable(net)["2.bias"] is net[2].bias


def test_a_parameter_of_two_submodules_and_a_submodule_of_two_names():
    linear, other = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    twice = nn.Sequential(linear, nn.Tanh(), linear)
    both = [("2.weight", "0.weight"), ("2.bias", "0.bias")]
    assert list(inspection.shared_parameters(twice)) == both
    assert list(inspection.shared_parameters(twice, aliases=False)) == []
    assert inspection.has_aliases(twice)
    other.weight = linear.weight
    tied = nn.Sequential(linear, other)
    assert list(inspection.shared_parameters(tied, aliases=False)) == [("1.weight", "0.weight")]
    assert not inspection.has_aliases(tied)
    activation = nn.Tanh()
    assert not inspection.has_aliases(nn.Sequential(activation, activation))
    assert not list(inspection.shared_parameters(Reused()))


def test_sharing_is_refused_by_name():
    linear = nn.Linear(3, 3)
    net = nn.Sequential(linear, linear)
    with pytest.raises(mfoc.InvalidValue, match=r"'1\.weight' is shared with '0\.weight'"):
        inspection.refuse_sharing(net)
    inspection.refuse_sharing(net, aliases=False)


def test_parameters_without_a_shape_are_refused():
    with pytest.raises(mfoc.InvalidValue, match=r"'0\.weight' is lazy"):
        inspection.refuse_lazy(nn.Sequential(nn.LazyLinear(3)))
    inspection.refuse_lazy(mlp_net())


# ---- norms and randomness


def test_norms_that_use_the_statistics_of_a_batch():
    net = nn.Sequential(
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3).eval(),
        nn.BatchNorm2d(3, track_running_stats=False).eval(),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.GroupNorm(1, 3),
        nn.LayerNorm(3),
    )
    assert names(inspection.training_norms(net)) == ["0", "3"]
    assert names(inspection.training_norms(net, instance=False)) == ["0"]
    assert [inspection.mixes(part) for part in net] == [True, False, True, False, False, False]


RANDOM = {
    "dropout": lambda: nn.Dropout(0.1),
    "alpha dropout": lambda: nn.FeatureAlphaDropout(0.1),
    "rrelu": lambda: nn.RReLU(),
    "pool": lambda: nn.FractionalMaxPool2d(2, output_size=2),
    "recurrent": lambda: nn.GRU(2, 2, num_layers=2, dropout=0.3),
    "attention": lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_random_parts_are_those_in_training_mode(kind):
    net = nn.Sequential(nn.Linear(2, 2), RANDOM[kind]())
    assert names(inspection.random_parts(net))[0] == "1"
    with pytest.raises(mfoc.InvalidValue, match=r"module '1' .* is random in training mode"):
        inspection.refuse_randomness(net)
    assert not list(inspection.random_parts(net.eval()))
    inspection.refuse_randomness(net)


def test_what_draws_nothing_is_not_random():
    net = nn.Sequential(nn.Dropout(0.0), nn.GRU(2, 2), mfoc.networks.MaskedDropout(0.5, "mask"), batch_norm_net())
    assert not list(inspection.random_parts(net))


# ---- private copies


def test_a_pure_copy_writes_into_nothing_and_computes_the_same():
    for make, shape in ((conv_net, (4, 1, 6, 6)), (batch_norm_net, (4, 3))):
        net, x = make(), normal(*shape)
        private = inspection.pure_copy(net)
        kept, given = copy.deepcopy(private.state_dict()), x.clone()
        found = private(x)
        assert torch.equal(x, given)
        assert same_bits(kept, private.state_dict())
        assert torch.equal(found, copy.deepcopy(net)(x.clone()))
        assert not any(a is b for a, b in zip(net.parameters(), private.parameters(), strict=True))


def test_a_pure_copy_keeps_averages_that_are_constants():
    net = batch_norm_net()
    net(normal(9, 3))
    assert same_bits(net.eval().state_dict(), inspection.pure_copy(net).state_dict())


def test_layers_in_place_are_so_no_more():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(inplace=True)), nn.Tanh()))
    assert inspection.without_inplace(net) is net
    assert not net[1][0].inplace


def test_what_cannot_be_copied_is_named():
    net = mlp_net()
    net.handle = (i for i in range(3))
    with pytest.raises(mfoc.InvalidValue, match="module 'stem' cannot be copied"):
        inspection.pure_copy(net, "stem")
