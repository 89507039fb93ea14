"""A loss as a mean over samples: the doors, gradients sample by sample, products with the Hessian."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc import tree
from mfoc.analysis.noise.samples import Samples, looped_rows, vectorised_rows
from mfoc.errors import InvalidType, InvalidValue
from tests.analysis.noise.cases import classifier, dense_hessian, normal, plain_gradients
from tests.architectures import batch_norm_net, conv_net, mlp_net, seeded


class Tied(nn.Module):
    """One weight, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Branching(nn.Module):
    """Its way depends on the numbers it is given: torch.func.vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        rows = [self.layer(row) if float(row.detach().sum()) > 0 else self.layer(2 * row) for row in x]
        return torch.stack(rows)


def attention():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(8, 3)).eval()


NETS = {
    "dense": (mlp_net, (3,), 2),
    "convolution, in place": (conv_net, (1, 6, 6), 3),
    "tied": (lambda: seeded(Tied), (3,), 3),
    "attention": (lambda: seeded(attention), (2, 4), 3),
    "batch norm, eval": (lambda: seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))).eval(), (3,), 4),
    "branching": (lambda: seeded(Branching), (3,), 2),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_samples_are_those_of_plain_backward_passes(name):
    make, shape, classes = NETS[name]
    net, x, y = make(), normal(7, *shape), torch.arange(7) % classes
    samples = Samples.of(net, F.cross_entropy, (x, y), batch_size=3)
    expected = plain_gradients(net, x, y)
    assert torch.allclose(torch.cat(list(samples.rows())), expected, atol=1e-12)
    assert torch.allclose(samples.gradient(), expected.mean(0), atol=1e-12)
    assert samples.vectorised == (name != "branching")


def test_the_slow_way_is_the_fast_way():
    net, x, y = classifier()
    samples = Samples.of(net, F.cross_entropy, (x, y))
    assert torch.allclose(vectorised_rows(samples, samples.cloud), looped_rows(samples, samples.cloud), atol=1e-13)


def test_a_problem_is_its_network():
    net, x, y = classifier()
    own, other = (
        Samples.of(net, F.cross_entropy, (x, y)),
        Samples.of(mfoc.from_module(net, F.cross_entropy), None, (x, y)),
    )
    assert torch.allclose(torch.cat(list(own.rows())), torch.cat(list(other.rows())), atol=1e-13)
    v = normal(2, own.size)
    assert torch.allclose(own.hessian_products(v), other.hessian_products(v), atol=1e-13)
    assert tree.same_structure(other.shaped(other.gradient()), mfoc.from_module(net, F.cross_entropy).controls)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_products_are_those_of_the_dense_hessian(batch_size):
    net, x, y = classifier()
    samples = Samples.of(net, F.cross_entropy, (x, y), batch_size=batch_size)
    hessian = samples.hessian_products(torch.eye(samples.size, dtype=torch.float64))
    assert torch.allclose(hessian, dense_hessian(net, x, y), atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]).double()), nn.CrossEntropyLoss(ignore_index=1),
     nn.CrossEntropyLoss(label_smoothing=0.1)],
    ids=["weights", "ignored", "smoothing"],
)  # fmt: skip
def test_the_mean_over_chunks_is_the_number_that_torch_gives(loss):
    net, x, y = classifier()
    samples = Samples.of(net, loss, (x, y), batch_size=7)
    assert torch.allclose(samples.losses().mean(), loss(net(x), y))
    expected = torch.autograd.grad(loss(net(x), y), list(net.parameters()))
    assert torch.allclose(samples.gradient(), torch.cat([leaf.flatten() for leaf in expected]))


def test_a_loss_of_ones_own_may_be_a_mean_and_nothing_else():
    net, x, _ = classifier()
    target = normal(len(x), 3)
    mean = Samples.of(net, lambda out, z: (out - z).square().mean(), (x, target))
    each = Samples.of(net, lambda out, z: (out - z).square().mean(1), (x, target))
    assert torch.allclose(torch.cat(list(mean.rows())), torch.cat(list(each.rows())))
    with pytest.raises(InvalidValue, match="a loss that returns one for each"):
        Samples.of(net, lambda out, z: (out - z).square().sum(), (x, target))


def test_data_may_be_whatever_a_population_is_made_of():
    net, x, y = classifier()
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    found = [
        Samples.of(net, F.cross_entropy, data).gradient()
        for data in ((x, y), (x.numpy(), y.numpy()), dataset, loader, mfoc.Particles(x, y), mfoc.population((x, y)))
    ]
    assert all(torch.allclose(each, found[0]) for each in found)


def test_frozen_parameters_are_constants():
    net, x, y = classifier()
    net[0].weight.requires_grad_(False)
    samples = Samples.of(net, F.cross_entropy, (x, y))
    assert list(samples.parameters) == ["0.bias", "2.weight", "2.bias"]
    assert torch.allclose(torch.cat(list(samples.rows())), plain_gradients(net, x, y), atol=1e-13)


def test_nothing_of_the_user_is_changed():
    net, x, y = classifier()
    kept, generator = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    samples = Samples.of(net, F.cross_entropy, (x, y), draws=20, seed=3)
    list(samples.rows())
    samples.hessian_products(normal(1, samples.size))
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), generator)


def test_draws_are_some_of_the_samples_by_seed():
    net, x, y = classifier()
    one, same, other = (Samples.of(net, F.cross_entropy, (x, y), draws=10, seed=s).cloud.state for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len({tuple(row.tolist()) for row in one} & {tuple(row.tolist()) for row in x}) == 10


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 2 * ctx.saved_tensors[0] * slope


def test_what_has_no_second_derivative_is_refused_and_not_taken_for_flat():
    class Net(nn.Linear):
        def forward(self, x):
            return _Once.apply(super().forward(x))

    net = seeded(lambda: Net(2, 3))
    samples = Samples.of(net, F.cross_entropy, (normal(5, 2), torch.arange(5) % 3))
    assert torch.allclose(torch.cat(list(samples.rows())).mean(0), samples.gradient())
    with pytest.raises(InvalidValue, match="_Once is marked once_differentiable"):
        samples.hessian_products(normal(1, samples.size))


def _interacting():
    def dynamics(t, x, u, z):
        return x + u * (x - mfoc.mean(x))

    controls = [torch.ones(1, dtype=torch.float64)]
    return mfoc.Problem(dynamics, lambda x, z: x.square().sum(1), controls)


X, Y = normal(6, 3), torch.arange(6) % 2
REFUSED = {
    "no network": (lambda: (3, F.cross_entropy, (X, Y)), InvalidType, "net is an int"),
    "a class of loss": (lambda: (mlp_net(), nn.CrossEntropyLoss, (X, Y)), InvalidType, "make an instance"),
    "one sample": (lambda: (mlp_net(), F.cross_entropy, (X[:1], Y[:1])), InvalidValue, "two or more"),
    "batch norm": (
        lambda: (nn.Sequential(mlp_net(), nn.BatchNorm1d(2).double()), F.cross_entropy, (X, Y)),
        InvalidValue,
        "the gradient of one sample does not exist",
    ),
    "dropout": (
        lambda: (nn.Sequential(mlp_net(), nn.Dropout(0.5)), F.cross_entropy, (X, Y)),
        InvalidValue,
        r"a gradient is of a function; call \.eval",
    ),
    "frozen": (lambda: (mlp_net().requires_grad_(False), F.cross_entropy, (X, Y)), InvalidValue, "would be zero"),
    "another dtype": (lambda: (mlp_net().float(), F.cross_entropy, (X, Y)), InvalidValue, "cannot be evaluated"),
    "NaN": (lambda: (mlp_net(), F.cross_entropy, (X * torch.nan, Y)), InvalidValue, "NaN"),
    "broadcast": (lambda: (mlp_net(), F.mse_loss, (X, normal(6, 4))), InvalidValue, "loss"),
    "a loss of neither": (lambda: (mlp_net(), lambda out, z: out, (X, Y)), InvalidValue, "a loss for each sample"),
    "a mean over the wrong axis": (
        lambda: (nn.Linear(3, 3).double(), lambda out, z: (out - z).square().mean(0), (X, normal(6, 3))),
        InvalidValue, "on sample 0 alone"),
    "a loss that looks at the batch": (
        lambda: (mlp_net(), lambda out, z: (out - out.mean(0)).square().mean(1), (X, Y)), InvalidValue, "that sample"),
    "targets of NaN": (
        lambda: (mlp_net(), F.mse_loss, (X, normal(6, 2).index_fill_(0, torch.tensor([4]), torch.nan))),
        InvalidValue, "the loss of sample 4 is not finite"),
    "parallel": (lambda: (nn.DataParallel(mlp_net()), F.cross_entropy, (X, Y)), InvalidValue, "the plain module"),
    "a script": (
        lambda: (torch.jit.script(mlp_net()), F.cross_entropy, (X, Y)), InvalidValue, "the plain module"),
    "a loss of nothing": (lambda: (mlp_net(), lambda out, z: z.double(), (X, Y)), InvalidValue, "does not depend"),
    "a broadcast of targets": (lambda: (mlp_net(), F.mse_loss, (X, normal(6, 1))), InvalidValue, "target size"),
    "interacting": (lambda: (_interacting(), None, X), InvalidValue, "the particles interact"),
    "batch norm as a problem": (
        lambda: (mfoc.from_module(batch_norm_net(), F.cross_entropy), None, (X, Y)),
        InvalidValue,
        "the particles interact",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_gradient_of_one_sample_is_refused(name):
    make, kind, match = REFUSED[name]
    with pytest.raises(kind, match=match):
        Samples.of(*make())


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"draws": 1}, {"draws": 99}, {"seed": -1}], ids=str)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InvalidValue):
        Samples.of(mlp_net(), F.cross_entropy, (X, Y), **setting)


def test_a_gradient_that_is_not_finite_is_named():
    net = seeded(lambda: nn.Linear(2, 1, bias=False))
    x = normal(5, 2)
    loss = lambda out, z: torch.where(z > 0, out[:, 0], out[:, 0].abs().sqrt() * 0)  # noqa: E731
    x[3] = 0.0
    with pytest.raises(InvalidValue, match="the gradient of sample 3 is not finite"):
        list(Samples.of(net, loss, (x, torch.tensor([1.0, 1, 1, -1, 1]).double())).rows())


def test_second_derivatives_that_are_not_finite_are_refused():
    """(x'u)^(3/2) at zero has the slope 0 and no curvature."""
    net = seeded(lambda: nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net.weight.zero_()
    samples = Samples.of(net, lambda out, z: out[:, 0].abs() ** 1.5, (normal(5, 2), normal(5)))
    assert bool(samples.gradient().eq(0).all())
    with pytest.raises(InvalidValue, match="second derivatives of the loss are not finite"):
        samples.hessian_products(normal(1, samples.size))


def test_a_weighted_mean_of_ones_own_is_refused_also_on_data_sorted_by_class():
    """On samples of one class it is their mean."""
    weight = torch.tensor([1.0, 5.0]).double()
    with pytest.raises(InvalidValue, match="expected a mean over samples"):
        Samples.of(mlp_net(), lambda out, z: F.cross_entropy(out, z, weight), (normal(20, 3), torch.arange(20) // 10))


def test_a_mean_of_ones_own_without_ignored_targets_says_that_it_fails_on_a_sample_alone():
    """On the batch it is finite, and on a sample that is ignored 0 / 0."""
    y = torch.tensor([0, 1, 0, 1])
    with pytest.raises(InvalidValue, match=r"loss is not finite on .*, sample by sample"):
        Samples.of(mlp_net(), lambda out, z: F.cross_entropy(out, z, ignore_index=1), (normal(4, 3), y))
