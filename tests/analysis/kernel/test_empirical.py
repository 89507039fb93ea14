"""The empirical kernel is the product of plain Jacobians, for networks of every kind, or refused with the cure."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mfoc.analysis.kernel import NTKOperator, empirical_ntk
from mfoc.analysis.kernel.empirical import Source
from mfoc.analysis.kernel.jacobians import looped_rows, vectorised_rows
from mfoc.errors import InvalidType, InvalidValue
from tests.architectures import NETWORKS, Reused, batch_norm_net, mlp_net, seeded
from tests.oracles.ntk import dense_ntk, jacobian

EXACT = 1e-12  # relative, in float64


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def tokens(*shape):
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(0))


class Made(nn.Module):
    """Parts, and a forward pass that is a function of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def tied():
    net = Made(lambda s, x: s.head(s.body(s.words(x)).tanh().mean(1)),
               words=nn.Embedding(7, 4, padding_idx=0), body=nn.Linear(4, 4), head=nn.Linear(4, 7))  # fmt: skip
    net.head.weight = net.words.weight
    return net


def frozen_parts():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(4), nn.PReLU(), nn.Linear(4, 2, bias=False))
    net[0].weight.requires_grad_(False)
    net[1].bias.requires_grad_(False)
    return net


def writes_over():
    """In-place operations after layers, and on the input of one."""

    def forward(net, x):
        y = net.first(x)
        y.add_(1)
        z = net.second(y)
        z.mul_(2)
        return net.head(z.relu_())

    return Made(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4), head=nn.Linear(4, 2))


def folds_samples():
    """Two frames of each sample side by side in the first axis."""

    def forward(net, x):
        y = net.conv(x.reshape(-1, 1, *x.shape[2:])).mean((2, 3))
        return net.head(y.reshape(len(x), -1, 3).tanh().mean(1))

    conv = nn.Conv2d(1, 3, 3, stride=2, padding=(1, 0), padding_mode="circular")
    return Made(forward, conv=conv, head=nn.Linear(3, 2))


def routes_tokens():
    """Each token to one of two experts."""

    def forward(net, x):
        there = x[..., 0] > 0
        y = torch.zeros(*x.shape[:2], 3, dtype=x.dtype)
        y[there], y[~there] = net.one(x[there]), net.other(x[~there])
        return net.head(y.tanh().mean(1))

    return Made(forward, one=nn.Linear(4, 3), other=nn.Linear(4, 3), head=nn.Linear(3, 2))


class Twice(torch.autograd.Function):
    """An operation that ``vmap`` cannot see into."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


OWN = {
    "one layer": (lambda: nn.Linear(3, 2), normal(4, 3)),
    "one output": (lambda: Made(lambda s, x: s.body(x)[:, 0], body=nn.Linear(3, 1)), normal(4, 3)),
    "outputs of several axes": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (1, 3))), normal(3, 4)),
    "two positions": (lambda: nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20)), normal(3, 2, 20)),
    "conv 1d": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3, dilation=2, groups=2, padding="same", padding_mode="reflect"),
            nn.GroupNorm(3, 6), nn.SiLU(), nn.Conv1d(6, 3, 5, padding="same"), nn.InstanceNorm1d(3, affine=True),
        ),
        normal(3, 4, 9),
    ),
    "conv 3d": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2), groups=2), nn.BatchNorm3d(4), nn.ReLU(),
            nn.ConvTranspose3d(4, 1, 2), nn.Flatten(),
        ).eval(),
        normal(2, 2, 2, 3, 3),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(4, 6), nn.RMSNorm(6), nn.Unflatten(1, (2, 3)), nn.LayerNorm((2, 3), bias=False), nn.Linear(3, 2),
        ),
        normal(4, 4),
    ),
    "frozen parts": (frozen_parts, normal(5, 4)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0, sparse=True), nn.Flatten(), nn.Linear(12, 2)),
        tokens(5, 3),
    ),
    "large embedding": (lambda: nn.Sequential(nn.Embedding(500, 4), nn.Flatten(), nn.Linear(8, 2)), tokens(4, 2)),
    "tied embedding": (tied, tokens(5, 3)),
    "reused": (Reused, normal(4, 3)),
    "a layer whose weight is read elsewhere": (
        lambda: Made(lambda s, x: s.b(F.linear(s.a(x).tanh(), s.a.weight)), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
        normal(5, 4),
    ),
    "writes over": (writes_over, normal(5, 4)),
    "time first": (
        lambda: Made(lambda s, x: s.head(s.rnn(s.body(x.mT.permute(2, 0, 1)).tanh())[0][-1]),
                     body=nn.Linear(3, 4), rnn=nn.LSTM(4, 3), head=nn.Linear(3, 2)),
        normal(3, 4, 3),
    ),
    "folds samples": (folds_samples, normal(4, 2, 6, 7)),
    "siamese": (
        lambda: Made(lambda s, x: s.head(torch.mul(*s.body(torch.cat([x, 2 * x])).tanh().chunk(2))),
                     body=nn.Linear(4, 3), head=nn.Linear(3, 2)),
        normal(4, 4),
    ),
    "weights made by a layer": (
        lambda: Made(lambda s, x: s.head(x @ s.maker(s.seed)[0].reshape(4, 2)),
                     maker=nn.Linear(3, 8), seed=nn.Parameter(torch.randn(3, 3)), head=nn.Linear(2, 2)),
        normal(5, 4),
    ),
    "routes tokens": (routes_tokens, normal(6, 3, 4)),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), normal(4, 4)),
    "gru": (
        lambda: Made(lambda s, x: s.rnn(x)[0], rnn=nn.GRU(4, 2, batch_first=True)), normal(3, 2, 4)
    ),
    "unseen by vmap": (
        lambda: Made(lambda s, x: Twice.apply(s.body(x) @ s.weight), body=nn.Linear(4, 4),
                     weight=nn.Parameter(torch.randn(4, 2))),
        normal(3, 4),
    ),
    "slopes that vanish": (
        lambda: Made(lambda s, x: s.head(s.body(x).tanh()) * 0 + s.head(x[:, :3]), body=nn.Linear(4, 3),
                     head=nn.Linear(3, 2)),
        normal(4, 4),
    ),
}  # fmt: skip
CASES = {name: (functools.partial(seeded, make), x) for name, (make, x) in OWN.items()}
CASES |= {name: (make, normal(*shape)) for name, (make, shape, _) in NETWORKS.items() if name != "batch norm"}


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_product_of_plain_jacobians(name):
    make, x = CASES[name]
    net = make()
    expected = dense_ntk(net, x)
    found = empirical_ntk(net, x)
    assert found.dtype == torch.float64
    assert found.shape == expected.shape
    assert error(found, expected) < EXACT
    assert error(empirical_ntk(net, x, batch_size=2), expected) < EXACT
    assert error(empirical_ntk(net, x, x[:2], batch_size=1), expected[:, :2]) < EXACT
    traced = expected.diagonal(dim1=2, dim2=3).sum(-1)
    assert error(empirical_ntk(net, x, trace=True), traced) < EXACT
    assert error(empirical_ntk(net, x[:1], x, trace=True), traced[:1]) < EXACT


@pytest.mark.parametrize("name", ["mlp", "conv", "attention", "weight norm", "embedding", "two positions", "conv 3d"])
def test_products_and_diagonal_are_those_of_the_matrix(name):
    make, x = CASES[name]
    net = make()
    theta = dense_ntk(net, x)
    matrix = theta.transpose(1, 2).flatten(2).flatten(0, 1)
    operator = NTKOperator(net, x, batch_size=2)
    v = normal(len(x), operator.outputs, 2)
    assert operator.shape == matrix.shape
    flat = v.flatten(0, 1)
    for vector, expected in ((flat, matrix @ flat), (flat[:, 0], matrix @ flat[:, 0])):
        assert error(operator @ vector, expected) < EXACT
    assert error((operator @ v).flatten(0, 1), matrix @ flat) < EXACT
    assert error(operator.diagonal().flatten(), matrix.diagonal()) < EXACT
    assert float(operator.trace()) == pytest.approx(float(matrix.trace()))
    values, vectors, errors, _ = operator.top(2, tol=1e-9)
    assert torch.allclose(values, torch.linalg.eigvalsh(matrix).flip(0)[:2])
    residual = matrix @ vectors.flatten(0, 1) - vectors.flatten(0, 1) * values
    assert torch.allclose(residual.norm(dim=0), errors, atol=1e-9 * float(values[0]))


def test_eigenvalues_of_equal_size_are_all_found():
    """A linear network: Theta = (x x^T + 1) (x) I, so that each eigenvalue is there three times."""
    net, x = seeded(lambda: nn.Linear(5, 3)), normal(8, 5)
    expected = torch.linalg.eigvalsh(x @ x.mT + 1).flip(0)
    found = NTKOperator(net, x).top(6, tol=1e-10)
    assert torch.allclose(found.values, expected[:2].repeat_interleave(3))
    assert NTKOperator(net, x).top(24, tol=1e-10).values.clamp_min(0).allclose(expected.repeat_interleave(3), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_has_the_dtype_of_the_network(dtype):
    net, x = mlp_net(), normal(5, 3)
    found = empirical_ntk(copy.deepcopy(net).to(dtype), x.to(dtype))
    assert found.dtype == dtype
    assert error(found.double(), dense_ntk(net, x)) < 20 * torch.finfo(dtype).eps


def test_it_is_symmetric_and_positive_semidefinite():
    net, x = CASES["conv"][0](), normal(6, 1, 6, 6)
    matrix = empirical_ntk(net, x, batch_size=4).transpose(1, 2).flatten(2).flatten(0, 1)
    assert torch.equal(matrix, matrix.mT)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-12 * float(matrix.trace())


def test_by_hand():
    """f(x) = a relu(w x): d/dw = a x, d/da = w x where w x > 0."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[2].weight.fill_(3.0)
    found = empirical_ntk(net, torch.tensor([[1.0], [0.5], [-1.0]], dtype=torch.float64))[..., 0, 0]
    assert found.tolist() == [[13.0, 6.5, 0.0], [6.5, 3.25, 0.0], [0.0, 0.0, 0.0]]


def test_the_way_through_vmap_and_the_plain_loop_agree():
    net, x = CASES["conv"][0](), normal(3, 1, 6, 6)
    names = [name for name, _ in net.named_parameters()]
    plain = jacobian(net, x)
    assert error(vectorised_rows(net, x, names, 3), plain) < EXACT
    assert error(looped_rows(net, x, names, 2), plain[:, :2]) < EXACT


def known(net, x):
    return set(Source.of(net, x, None).jacobians.known)


def test_layers_that_are_known_are_not_sent_the_slow_way():
    """The other tests would pass if all were: which layers are taken apart is a promise of speed."""
    assert known(CASES["conv"][0](), normal(5, 1, 6, 6)) == {"0", "4"}
    assert known(CASES["attention"][0](), normal(5, 3, 4)) == {"0.linear1", "0.linear2", "0.norm1", "0.norm2"}
    assert known(CASES["folds samples"][0](), CASES["folds samples"][1]) == {"conv", "head"}
    assert known(CASES["reused"][0](), normal(4, 3)) == {"first", "shared", "last"}
    assert known(CASES["time first"][0](), normal(3, 4, 3)) == {"head"}
    assert known(CASES["tied embedding"][0](), tokens(5, 3)) == {"body"}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_modules_that_cannot_be_given_other_parameters():
    """What torch.func does to a traced module has no effect, and no error either."""
    net, x = mlp_net(), normal(4, 3)
    traced, theta = torch.jit.trace(net, x), dense_ntk(net, x)
    assert error(empirical_ntk(traced, x), theta) < EXACT
    v = normal(4, 2)
    assert error(NTKOperator(traced, x) @ v, torch.einsum("ijab,jb->ia", theta, v)) < EXACT


@pytest.mark.parametrize("axis", [(4,), (2, 4)])
def test_samples_that_take_another_way_than_the_first_ones(axis):
    """Experts chosen by sample, or by token: of the first three samples each sends one to the first expert.

    Of all six together as many are sent there, but not one by each.
    """

    def forward(net, x):
        there = x[..., 0] > 0
        y = torch.zeros(*x.shape[:-1], 3, dtype=x.dtype)
        y[there], y[~there] = net.one(x[there]), net.other(x[~there])
        return net.head(y.tanh()).reshape(len(x), -1)

    net = seeded(lambda: Made(forward, one=nn.Linear(4, 3), other=nn.Linear(4, 3), head=nn.Linear(3, 2)))
    x = normal(6, *axis)
    x[..., 0] = -1
    if axis == (4,):
        x[[0, 1, 2, 4], 0] = 1
    else:
        x[[0, 1, 2, 3, 3, 5], [0, 0, 0, 0, 1, 1], 0] = 1
    assert "one" in known(net, x)
    assert error(empirical_ntk(net, x), dense_ntk(net, x)) < EXACT


def test_few_outputs_at_once_where_memory_is_short():
    net, x = CASES["mlp"][0](), normal(4, 3)
    source = Source.of(net, x, None)
    whole, split = source.jacobians.shares(x), source.jacobians.shares(x, 1)
    assert len(whole) == len(split) == 3
    for one, other in zip(whole, split, strict=True):
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(other, name)) if isinstance(value, torch.Tensor) else True


def test_many_batches_are_the_same_kernel():
    """Gradients that do not fit beside the kernel are taken anew for each block."""
    net, x = CASES["mlp"][0](), normal(9, 3)
    small = 8 * 9 * 9 * 4
    assert error(empirical_ntk(net, x, batch_size=2, memory=small), dense_ntk(net, x)) < EXACT


def test_the_network_is_as_before():
    net, x = CASES["attention"][0](), normal(5, 3, 4)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    net(x).sum().backward()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]
    random, kept = torch.get_rng_state(), x.clone()
    fast = torch.backends.mha.get_fastpath_enabled()
    empirical_ntk(net, x)
    _ = NTKOperator(net, x) @ normal(5, 12)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, kept)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert net.training
    assert len(net._forward_hooks) == 1
    assert all("forward" not in part.__dict__ for part in net.modules())


def test_samples_are_not_written_over():
    net, x = CASES["in place"]
    kept = x.clone()
    empirical_ntk(net(), x)
    _ = NTKOperator(net(), x) @ normal(5, 3)
    assert torch.equal(x, kept)


def test_it_works_without_gradients_enabled():
    net, x = mlp_net(), normal(4, 3)
    with torch.no_grad():
        assert error(empirical_ntk(net, x), dense_ntk_enabled(net, x)) < EXACT


def dense_ntk_enabled(net, x):
    with torch.enable_grad():
        return dense_ntk(net, x)


@pytest.mark.slow
def test_ten_thousand_points_by_products():
    """The kernel would take 3 GiB."""
    net, x = mlp_net(), normal(10_000, 3)
    with pytest.raises(InvalidValue, match=r"2.98 GiB.*NTKOperator"):
        empirical_ntk(net, x, memory=2**30)
    operator = NTKOperator(net, x)
    v = normal(10_000, 2)
    found = operator @ v
    few = torch.tensor([0, 5_000, 9_999])
    left = jacobian(net, x[few])
    slope = torch.autograd.grad((net(x) * v).sum(), list(net.parameters()))
    expected = left @ torch.cat([part.flatten() for part in slope])
    assert error(found[few], expected) < 1e-10


# ---- what is refused


def dropout_by_function(net, x):
    return F.dropout(net.body(x), 0.5)


REFUSED = {
    "no module": (lambda: torch.relu, normal(4, 3), InvalidType, r"net is .*expected a torch.nn.Module"),
    "no tensor": (mlp_net, [[1.0]], InvalidType, "x1 is a list"),
    "no sample": (mlp_net, normal(0, 3), InvalidValue, r"x1 has shape \(0, 3\)"),
    "a number": (mlp_net, torch.tensor(1.0), InvalidValue, "x1 has shape"),
    "nan": (mlp_net, torch.full((2, 3), torch.nan), InvalidValue, "x1 holds NaN"),
    "another width": (mlp_net, normal(4, 5), InvalidValue, r"cannot be evaluated on samples float64\[3, 5\]"),
    "another dtype": (mlp_net, normal(4, 3).float(), InvalidValue, "cannot be evaluated"),
    "batch norm": (batch_norm_net, normal(4, 3), InvalidValue, r"'1' \(BatchNorm1d\).*\.eval\(\)"),
    "batch norm without averages": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval(),
        normal(4, 3), InvalidValue, "track_running_stats=True",
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout()).double(), normal(4, 3), InvalidValue,
        r"'1' \(Dropout\) is random",
    ),
    "dropout by function": (
        lambda: Made(dropout_by_function, body=nn.Linear(3, 3)).double(), normal(4, 3), InvalidValue, "draws random",
    ),
    "interacting": (
        lambda: Made(lambda s, x: s.body(x - x.mean(0)), body=nn.Linear(3, 3)).double(), normal(4, 3), InvalidValue,
        "samples of a batch interact",
    ),
    "interacting without a slope": (
        lambda: Made(lambda s, x: s.body(x) / x.detach().std(0), body=nn.Linear(3, 3)).double(), normal(4, 3),
        InvalidValue, "samples of a batch interact",
    ),
    "a tuple": (
        lambda: Made(lambda s, x: (s.body(x), x), body=nn.Linear(3, 3)).double(), normal(4, 3), InvalidType,
        "output is a tuple",
    ),
    "samples elsewhere": (
        lambda: Made(lambda s, x: s.body(x).mT, body=nn.Linear(3, 4)).double(), normal(4, 3), InvalidValue,
        r"has shape \(4, 3\); expected the samples in its first axis",
    ),
    "a sum": (
        lambda: Made(lambda s, x: s.body(x).sum(), body=nn.Linear(3, 4)).double(), normal(4, 3), InvalidValue,
        "expected the samples in its first axis",
    ),
    "classes": (
        lambda: Made(lambda s, x: s.body(x).argmax(1), body=nn.Linear(3, 4)).double(), normal(4, 3), InvalidType,
        "expected real floating-point",
    ),
    "cut off": (
        lambda: Made(lambda s, x: s.body(x).detach(), body=nn.Linear(3, 4)).double(), normal(4, 3), InvalidValue,
        "depends on no parameter",
    ),
    "writes over its input": (
        lambda: Made(lambda s, x: s.body(x.relu_()), body=nn.Linear(3, 4)).double(), normal(4, 3), InvalidValue,
        "writes over the samples",
    ),
    "without a derivative": (
        lambda: Made(lambda s, x: s.body(x).exp().add_(1), body=nn.Linear(3, 4)).double(), normal(4, 3), InvalidValue,
        "cannot be differentiated",
    ),
    "another function for one sample": (
        lambda: Made(lambda s, x: x @ s.weight * (1 + (len(x) == 1)),
                     weight=nn.Parameter(torch.ones(3, 2, dtype=torch.float64))),
        normal(4, 3), InvalidValue, "given one sample",
    ),
    "nothing trained": (lambda: mlp_net().requires_grad_(False), normal(4, 3), InvalidValue, "no parameter that req"),
    "lazy": (lambda: nn.LazyLinear(3), normal(4, 3), InvalidValue, "'weight' is lazy"),
    "complex": (lambda: nn.Linear(3, 3, dtype=torch.complex128), normal(4, 3), InvalidValue, "is complex"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_what_to_do(name):
    make, x, kind, match = REFUSED[name]
    with pytest.raises(kind, match=match):
        empirical_ntk(make(), x)
    with pytest.raises(kind, match=match.replace("x1 ", "x ")):
        NTKOperator(make(), x)


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(InvalidValue, match="outside of it"):
        empirical_ntk(mlp_net(), normal(4, 3))


def test_two_sets_of_samples_are_of_one_kind():
    with pytest.raises(InvalidValue, match=r"samples of shape \(3,\) and x2 \(4,\)"):
        empirical_ntk(mlp_net(), normal(2, 3), normal(2, 4))
    with pytest.raises(InvalidValue, match="dtype"):
        empirical_ntk(mlp_net(), normal(2, 3), normal(2, 3).float())
    with pytest.raises(InvalidValue, match="x2 has shape"):
        empirical_ntk(mlp_net(), normal(2, 3), normal(0, 3))


def test_a_kernel_that_would_not_fit_is_refused_with_its_size():
    with pytest.raises(InvalidValue, match=r"\[40, 40, 2, 2\] would take 50 KiB.*trace=True"):
        empirical_ntk(mlp_net(), normal(40, 3), memory=20_000)
    assert empirical_ntk(mlp_net(), normal(40, 3), trace=True, memory=20_000).shape == (40, 40)


def test_options_are_checked():
    net, x = mlp_net(), normal(3, 3)
    for options in ({"batch_size": 0}, {"batch_size": 1.5}, {"memory": 0}, {"trace": 1}):
        with pytest.raises((InvalidType, InvalidValue), match=next(iter(options))):
            empirical_ntk(net, x, **options)
    operator = NTKOperator(net, x)
    assert repr(operator) == "NTKOperator(3 samples, 2 outputs, float64 on cpu)"
    for v in (normal(2, 3), normal(5), normal(3, 2, 1, 1)):
        with pytest.raises(InvalidValue, match="v has shape"):
            _ = operator @ v
    for options in ({"count": 0}, {"count": 7}, {"steps": 0}, {"tol": 0.0}, {"seed": -1}):
        with pytest.raises(InvalidValue, match=next(iter(options))):
            operator.top(**options)


def test_samples_made_in_inference_mode_are_samples_like_any():
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    x = normal(3, 4)
    with torch.inference_mode():
        made = x.clone()
    assert torch.equal(empirical_ntk(net, made), empirical_ntk(net, x))
    assert torch.equal(NTKOperator(net, made).diagonal(), NTKOperator(net, x).diagonal())


def test_products_are_refused_where_no_second_derivative_is():
    bag = seeded(lambda: nn.Sequential(nn.EmbeddingBag(7, 3), nn.Linear(3, 2)))
    with pytest.raises(InvalidValue, match="empirical_ntk needs first derivatives only"):
        NTKOperator(bag, tokens(3, 4))


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_spectral_norms_in_training_mode_are_refused_even_where_they_stand_still(norm):
    net, x = seeded(lambda: nn.Sequential(norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2))), normal(5, 4)
    for _ in range(200):
        net(x)
    with pytest.raises(InvalidValue, match="layer '0' has a spectral norm in training mode"):
        empirical_ntk(net, x)
    assert error(empirical_ntk(net.eval(), x), dense_ntk(net, x)) < EXACT


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_refused_with_the_cure(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.readout = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.readout(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=reentrant))

    for compute in (empirical_ntk, NTKOperator):
        with pytest.raises(InvalidValue, match=r"torch.utils.checkpoint.*checkpointing off meanwhile"):
            compute(seeded(Checkpointed), normal(5, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_an_old_weight_norm_is_that_of_its_parameters():
    net, x = seeded(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Tanh())), normal(3, 4)
    net(x)
    assert error(empirical_ntk(net, x), dense_ntk(net, x)) < EXACT
