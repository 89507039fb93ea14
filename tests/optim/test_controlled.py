"""CSGD and CMSGD: the published algorithms, as torch's optimisers are."""

import copy
import io
import math
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import mfoc
from mfoc.analysis.noise import annealing_control, momentum_control
from mfoc.errors import InvalidType, InvalidValue
from mfoc.optim import CMSGD, CSGD, controlled
from tests.oracles.controlled import path
from tests.problems import mlp

MAKERS = {
    "csgd": lambda params, lr=0.1, **kw: CSGD(params, lr, **kw),
    "csgd mean": lambda params, lr=0.1, **kw: CSGD(params, lr, signal="mean", **kw),
    "cmsgd": lambda params, lr=0.1, **kw: CMSGD(params, lr, 0.9, **kw),
}


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def noisy(shape, steps, seed=0, scale=1.0):
    return scale * torch.randn(steps, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descended(optimiser, weights, slopes, noise):
    """The iterates on sum a/2 x^2, the gradient disturbed."""
    found = [[w.detach().clone() for w in weights]]
    for k in range(len(noise[0])):
        for w, a, xi in zip(weights, slopes, noise, strict=True):
            w.grad = a * w.detach() + xi[k]
        optimiser.step()
        found.append([w.detach().clone() for w in weights])
    return found


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0])
def test_it_is_the_published_algorithm_in_each_coordinate(make, foreach, scale, monkeypatch):
    monkeypatch.setattr(controlled, "_PIECE", 5)  # a tensor in several pieces, the last one short
    shapes = [(3, 4), (), (2,)]
    noise = [noisy(shape, 60, seed, scale) for seed, shape in enumerate(shapes)]
    slopes = [torch.linspace(-0.2, 12, math.prod(s), dtype=torch.float64).reshape(s) for s in shapes]
    weights = [nn.Parameter(1 + 0.5 * noisy(shape, 1, 9)[0]) for shape in shapes]
    found = descended(make(weights, foreach=foreach), weights, slopes, noise)
    step = "cmsgd" if make is MAKERS["cmsgd"] else "csgd"
    start, signal = (0.9, "") if step == "cmsgd" else (1.0, "mean" if make is MAKERS["csgd mean"] else "second")
    for i, shape in enumerate(shapes):
        for j in range(math.prod(shape)):
            xs = torch.stack([iterate[i].reshape(-1)[j] for iterate in found])
            a, xi = slopes[i].reshape(-1)[j].item(), noise[i].reshape(60, -1)[:, j].tolist()
            expected = torch.tensor(path(step, xs[0].item(), xi, a, 0.1, start, signal), dtype=torch.float64)
            torch.testing.assert_close(xs, expected, rtol=1e-9, atol=1e-12)


def test_memory_in_any_order_gives_the_same_numbers(make):
    """Transposed weights, channels last, a gradient in another order than its weight."""
    noise = noisy((4, 6, 5, 3), 20)
    plain = nn.Parameter(noisy((4, 6, 5, 3), 1, 3)[0])
    last = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    turned = nn.Parameter(plain.detach().permute(3, 2, 1, 0).clone().permute(3, 2, 1, 0))
    a = torch.ones(())
    for weight in (last, turned):
        fresh = nn.Parameter(plain.detach().clone())
        one = descended(make([fresh]), [fresh], [a], [noise])
        other = descended(make([weight]), [weight], [a], [noise])
        assert all(torch.equal(x[0], y[0]) for x, y in zip(one, other, strict=True))


def test_the_momentum_of_a_quadratic_is_its_critical_damping():
    """Without noise the regression is exact: mu tends to 1 - 2 sqrt(lr a), the fastest decay without oscillation."""
    a = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    x = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimiser = CMSGD([x], 0.01, 0.5)
    descended(optimiser, [x], [a], [torch.zeros(300, 3)])
    mu = 1 - optimiser.state[x]["friction"]
    torch.testing.assert_close(mu[1:], 1 - 2 * (0.01 * a[1:]).sqrt(), rtol=0, atol=2e-3)
    assert optimiser.mean_momentum() == pytest.approx(mu.mean().item())


def test_the_rate_is_capped_near_the_inverse_curvature():
    """The authors' m = E[g^2] / (2a) leaves lr u at about 1/a or above, however long it runs; "mean" anneals."""
    rates = {}
    for signal in ("second", "mean"):
        x = nn.Parameter(torch.zeros(400, dtype=torch.float64))
        optimiser = CSGD([x], 0.5, signal=signal)
        descended(optimiser, [x], [torch.tensor(4.0)], [noisy((400,), 2000, 1)])
        rates[signal] = 0.5 * optimiser.mean_control()
    assert 0.7 / 4 < rates["second"] < 1.5 / 4
    assert rates["mean"] < 0.1 * rates["second"]


def test_below_the_inverse_curvature_it_is_sgd():
    x, y = (nn.Parameter(torch.ones(50, dtype=torch.float64)) for _ in range(2))
    noise = noisy((50,), 200, 2)
    optimiser = CSGD([x], 0.01)
    one = descended(optimiser, [x], [torch.tensor(1.0)], [noise])
    other = descended(torch.optim.SGD([y], 0.01), [y], [torch.tensor(1.0)], [noise])
    assert optimiser.mean_control() > 0.98
    assert (one[-1][0] - other[-1][0]).abs().max() < 0.01


def net_of(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)


def trained(net, optimiser, steps, first=0, scheduler=None):
    for k in range(first, first + steps):
        x = noisy((16, 5), 1, k)[0].to(next(net.parameters()).dtype)
        optimiser.zero_grad()
        net(x).square().mean().backward()
        optimiser.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in net.parameters()]


def equal(one, other):
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carry", ["saved", "copied", "pickled"])
def test_a_run_goes_on_where_it_stopped(make, dtype, carry):
    whole = net_of(dtype=dtype)
    expected = trained(whole, make(whole.parameters()), 12)
    net = net_of(dtype=dtype)
    optimiser = make(net.parameters())
    trained(net, optimiser, 5)
    if carry == "saved":
        buffer = io.BytesIO()
        torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict()}, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        net = net_of(1, dtype)
        net.load_state_dict(loaded["net"])
        optimiser = make(net.parameters(), lr=0.7)
        optimiser.load_state_dict(loaded["optimiser"])
    else:
        pair = (net, optimiser)
        net, optimiser = copy.deepcopy(pair) if carry == "copied" else pickle.loads(pickle.dumps(pair))
    assert equal(trained(net, optimiser, 7, first=5), expected)
    assert optimiser.skipped == 0


def test_groups_have_settings_of_their_own():
    one, other = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    still = nn.Parameter(torch.ones(3, dtype=torch.float64))
    both = CMSGD([{"params": [one], "lr": 0.2}, {"params": [other, still], "momentum": 0.5, "weight_decay": 0.1}], 0.1)
    for weight in (one, other):
        weight.grad = torch.ones(3, dtype=torch.float64)
    both.step()
    assert torch.equal(still, torch.ones(3))  # it has no gradient
    torch.testing.assert_close(one.detach(), torch.full((3,), 0.8, dtype=torch.float64))
    torch.testing.assert_close(other.detach(), torch.full((3,), 1 - 0.1 * 1.1, dtype=torch.float64))
    both.add_param_group({"params": [nn.Parameter(torch.ones(2))], "momentum": 0.0})
    assert both.param_groups[-1]["lr"] == 0.1


def test_weight_decay_is_that_of_sgd(make):
    """The gradient of weight_decay/2 |x|^2 is part of what is seen."""
    one, other = net_of(), net_of()
    decayed = trained(one, make(one.parameters(), weight_decay=0.3), 8)
    optimiser = make(other.parameters())
    for k in range(8):
        optimiser.zero_grad()
        penalty = sum(p.square().sum() for p in other.parameters())
        (other(noisy((16, 5), 1, k)[0]).square().mean() + 0.15 * penalty).backward()
        optimiser.step()
    for x, y in zip(decayed, other.parameters(), strict=True):
        torch.testing.assert_close(x, y.detach())


def test_a_scheduler_sets_the_rate(make):
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimiser = make([x])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3)
    for _ in range(3):
        x.grad = torch.ones(2, dtype=torch.float64)
        optimiser.step()
        schedule.step()
    before = x.detach().clone()
    x.grad = torch.ones(2, dtype=torch.float64)
    optimiser.step()  # at a rate of 0
    if isinstance(optimiser, CSGD):
        assert torch.equal(x, before)
    assert torch.isfinite(x).all()


def test_a_scheduler_of_the_momentum_is_refused():
    net = net_of()
    optimiser = CMSGD(net.parameters(), 0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=10)
    with pytest.raises(InvalidValue, match="CMSGD itself controls it"):
        trained(net, optimiser, 2, scheduler=cycle)
    optimiser = CMSGD(net.parameters(), 0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=10, cycle_momentum=False)
    trained(net, optimiser, 3, scheduler=cycle)


def test_a_group_that_is_refused_stops_the_others_too(make):
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimiser = make([{"params": [x], "nonfinite": "skip"}, {"params": [y]}])
    x.grad, y.grad = torch.full((2,), math.nan), torch.full((2,), math.nan)
    with pytest.raises(InvalidValue, match="not finite"):
        optimiser.step()
    x.grad, y.grad = torch.ones(2), torch.ones(2)
    if isinstance(optimiser, CMSGD):
        optimiser.param_groups[1]["momentum"] = 0.5
        with pytest.raises(InvalidValue, match="CMSGD itself controls it"):
            optimiser.step()
    assert torch.equal(x, torch.ones(2))
    assert torch.equal(y, torch.ones(2))


def test_a_closure_is_evaluated_with_gradients(make):
    net = net_of()
    optimiser = make(net.parameters())

    def closure():
        optimiser.zero_grad()
        loss = net(torch.ones(3, 5, dtype=torch.float64)).square().mean()
        loss.backward()
        return loss

    losses = [optimiser.step(closure).item() for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]


def test_half_precision_learns_from_averages_in_single(make):
    net = net_of(dtype=torch.bfloat16)
    optimiser = make(net.parameters())
    trained(net, optimiser, 3)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert all(v.dtype is torch.float32 for state in optimiser.state.values() for v in state.values())


def test_a_gradient_that_was_scaled_for_half_precision_is_the_same(make):
    """And a step whose gradient overflowed is left out by the scaler itself."""
    one, other = net_of(dtype=torch.float32), net_of(dtype=torch.float32)
    optimiser, plain = make(one.parameters()), make(other.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    x = noisy((16, 5), 1)[0].float()
    for factor in (1.0, 1.0, math.inf, 1.0):
        optimiser.zero_grad()
        scaler.scale(one(x).square().mean() * factor).backward()
        scaler.step(optimiser)
        scaler.update()
        if factor == 1.0:
            plain.zero_grad()
            other(x).square().mean().backward()
            plain.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_solve_takes_it_and_resumes_bit_for_bit(make, tmp_path):
    problem, cloud = mlp()
    solver = mfoc.Gradient(partial(make, lr=0.05))
    population = mfoc.population(cloud, batch_size=3, seed=1)
    whole = mfoc.solve(problem, solver, population, steps=9)
    saved = tmp_path / "half"
    mfoc.solve(problem, solver, population, steps=4, hooks=[mfoc.hooks.Checkpoint(saved)])
    resumed = mfoc.solve(problem, solver, population, steps=9, start=mfoc.hooks.load(saved))
    assert equal(mfoc.tree.leaves(whole.controls), mfoc.tree.leaves(resumed.controls))


def test_a_solve_that_blows_up_ends_with_a_status(make):
    problem = mfoc.Problem(
        dynamics=lambda t, x, u, z: x * u,
        terminal_cost=lambda x, z: x.pow(4).sum(1),
        controls=[torch.full((3,), 4.0)] * 3,
    )
    cloud = noisy((3,), 20).float()
    found = mfoc.solve(problem, mfoc.Gradient(partial(make, lr=10.0)), cloud, steps=5)
    assert found.status is mfoc.Status.NONFINITE
    assert "the terminal cost" in found.message
    assert math.isfinite(found.value)


def test_a_gradient_that_is_not_finite_moves_nothing(make):
    net = net_of()
    optimiser = make(net.parameters())
    trained(net, optimiser, 2)
    weights = [p.detach().clone() for p in net.parameters()]
    state = copy.deepcopy(optimiser.state_dict())
    net[0].bias.grad[0] = float("nan")
    with pytest.raises(InvalidValue, match=r"gradient of 1 of 4 tensors is not finite \(shape \(7,\)\)"):
        optimiser.step()
    assert equal([p.detach() for p in net.parameters()], weights)
    for group in optimiser.param_groups:
        group["nonfinite"] = "skip"
    optimiser.step()
    assert optimiser.skipped == 1
    assert equal([p.detach() for p in net.parameters()], weights)
    for one, other in zip(state["state"].values(), optimiser.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_that_cannot_be_squared_moves_nothing(make):
    x = nn.Parameter(torch.ones(3))
    optimiser = make([x])
    x.grad = torch.tensor([1.0, 1e25, 1.0])  # finite, and its square is not, in single precision
    with pytest.raises(InvalidValue, match="too large to be squared"):
        optimiser.step()
    assert torch.equal(x, torch.ones(3))
    assert not optimiser.state


def test_many_finite_elements_whose_norm_overflows_are_fine(make):
    x = nn.Parameter(torch.zeros(1000, dtype=torch.float16))
    optimiser = make([x], lr=1e-3)
    x.grad = torch.full_like(x, 6e4)
    optimiser.step()
    assert torch.allclose(x, torch.full_like(x, -60.0))


def test_the_state_of_another_optimiser_is_refused(make):
    x = nn.Parameter(torch.ones(3))
    optimiser = make([x])
    x.grad = torch.ones(3)
    for other in (torch.optim.Adam, CSGD if isinstance(optimiser, CMSGD) else CMSGD):
        theirs = other([x], lr=0.1)
        theirs.step()
        with pytest.raises(InvalidValue, match=f"another optimiser; expected what {type(optimiser).__name__} has"):
            optimiser.load_state_dict(theirs.state_dict())
    assert not optimiser.state


def test_a_sparse_gradient_is_refused_before_anything_moves(make):
    table, other = nn.Embedding(5, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimiser = make([other, table.weight])
    (table(torch.tensor([1, 2])) * other).sum().backward()
    with pytest.raises(InvalidType, match="sparse=False"):
        optimiser.step()
    assert torch.equal(other, torch.ones(2))


def test_nothing_and_next_to_nothing(make):
    empty, single = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(()))
    optimiser = make([empty, single])
    optimiser.step()  # no gradients yet
    assert torch.equal(single, torch.ones(()))
    (empty.sum() + single.square()).backward()
    optimiser.step()
    assert 0 < single.item() < 1
    mean = optimiser.mean_control if isinstance(optimiser, CSGD) else optimiser.mean_momentum
    assert 0 < mean() <= 1


def test_a_coordinate_without_a_gradient_stays(make):
    x = nn.Parameter(torch.ones(4))
    optimiser = make([x])
    for _ in range(50):
        x.grad = torch.tensor([0.0, 0.0, 1.0, 1.0])
        optimiser.step()
    assert torch.equal(x[:2], torch.ones(2))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("bad", [0.0, -0.1, math.inf, math.nan, "0.1", True])
def test_the_rate_is_a_positive_number(make, bad):
    with pytest.raises((InvalidType, InvalidValue), match="lr is"):
        make([nn.Parameter(torch.ones(2))], lr=bad)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"u0": 0.0}, "u0 is 0.0"),
        ({"u0": 1.5}, r"\(0, 1\]"),
        ({"signal": "third"}, "signal is 'third'"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"nonfinite": "ignore"}, "nonfinite is 'ignore'"),
        ({"foreach": 1}, "foreach is 1"),
        ({"foreach": True, "fused": True}, "both True"),
    ],
)
def test_settings_of_csgd_are_checked_of_every_group(settings, match):
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises((InvalidType, InvalidValue), match=match):
        CSGD([x], 0.1, **settings)
    optimiser = CSGD([x], 0.1)
    with pytest.raises((InvalidType, InvalidValue), match=match):
        optimiser.add_param_group({"params": [y], **settings})
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2, "0.9"])
def test_the_momentum_begins_below_one(bad):
    with pytest.raises((InvalidType, InvalidValue), match="momentum is"):
        CMSGD([nn.Parameter(torch.ones(2))], 0.1, bad)


def test_integers_and_complex_numbers_are_no_weights(make):
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(InvalidType, match="floating-point"):
            make([torch.ones(2, dtype=dtype)])


@pytest.mark.slow
def test_one_compiled_kernel_gives_the_same_numbers(make):
    """Of tensors of any dtype, in one group."""
    noise = [noisy((3, 4), 30, 1).float(), noisy((2, 5), 30, 2), noisy((), 30, 3)]
    slopes = [torch.tensor(a) for a in (0.5, 2.0, 8.0)]
    weights = {
        fused: [nn.Parameter(torch.ones(xi.shape[1:], dtype=xi.dtype)) for xi in noise] for fused in (False, True)
    }
    plain, found = (descended(make(w, fused=fused), w, slopes, noise)[-1] for fused, w in weights.items())
    for x, y, rtol in zip(plain, found, (1e-4, 1e-9, 1e-9), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol)


def test_no_compiler_is_said_and_moves_nothing(make, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def broken(*arguments):
        raise TorchDynamoException("InvalidCxxCompiler: no compiler\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda move, dynamic: broken)
    controlled._compiled.cache_clear()
    try:
        x = nn.Parameter(torch.ones(3))
        x.grad = torch.ones(3)
        with pytest.raises(mfoc.MissingExtra, match=r"no compiler\. Install a C\+\+ compiler, or leave fused out"):
            make([x], fused=True).step()
        assert torch.equal(x, torch.ones(3))
    finally:
        controlled._compiled.cache_clear()


@pytest.mark.slow
def test_a_compiled_kernel_leaves_the_validation_of_distributions_on():
    """torch.compile switches it off for good, the first time in a process."""
    lines = [
        "import torch, mfoc.optim",
        "x = torch.nn.Parameter(torch.ones(3)); x.grad = torch.ones(3)",
        "mfoc.optim.CMSGD([x], 0.1, fused=True).step()",
        "torch.testing.assert_close(x.detach(), torch.full((3,), 0.9))",
        "assert torch.distributions.Distribution._validate_args",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=300)


@pytest.mark.parametrize(
    ("name", "kept"), [("csgd", "rate_control"), ("csgd mean", "rate_control"), ("cmsgd", "friction")]
)
def test_the_control_moves_towards_the_law_of_analysis(name, kept):
    """By the share that is forgotten, towards the best for the curvature, noise and loss that are seen."""
    x = nn.Parameter(noisy((200,), 1, 5)[0])
    slopes, noise = torch.linspace(-1, 40, 200, dtype=torch.float64), noisy((200,), 30, 6, 0.5)
    optimiser = MAKERS[name]([x])
    for k in range(30):
        before = {key: value.clone() for key, value in optimiser.state[x].items()}
        x.grad = slopes * x.detach() + noise[k]
        optimiser.step()
    seen = optimiser.state[x]
    a = seen["covariance"] / seen["weight_variance"]
    square = seen["gradient_mean"].square() + (0 if name == "csgd mean" else seen["gradient_variance"])
    excess = square / (2 * a)
    law = momentum_control if name == "cmsgd" else annealing_control
    best = law(a, seen["gradient_variance"], excess, 0.1)
    expected = before[kept].lerp(1 - best if name == "cmsgd" else best, before["forgetting"])
    torch.testing.assert_close(seen[kept], expected)
    assert ((best > 0) & (best < 1)).sum() > 10  # not at the ends of the law alone
