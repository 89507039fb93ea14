"""Doors that differentiate twice: attention gives what plain autograd gives, and what cannot be is refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mfoc
from mfoc import tree
from mfoc.derivatives import gradients, no_derivative, once_differentiable, second_order, twice_differentiable
from mfoc.solvers.expansion import expand

N, WIDTH = 6, 4


class Head(nn.Module):
    """Tokens ``[N, L, d]`` to ``[N, 1]``."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.out(x).mean(1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        return x + self.mha(x, x, x, need_weights=False)[0]


class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]


def encoder():
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, dropout=0.0)


BLOCKS = {"attention": Attention, "causal": Causal, "encoder": encoder, "evaluated": lambda: encoder().eval()}


def network(block):
    torch.manual_seed(0)
    return nn.Sequential(block(), Head()).double()


def sample():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randn(N, 1, generator=generator, dtype=torch.float64)


def hessian_by_hand(net, x, y):
    """The Hessian of the mean loss in all weights, a row at a time; attention by its plain formula."""
    weights = list(net.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        value = F.mse_loss(net(x), y)
    slope = tree.ravel(torch.autograd.grad(value, weights, create_graph=True))
    return torch.stack([tree.ravel(torch.autograd.grad(one, weights, retain_graph=True)) for one in slope])


@pytest.mark.parametrize("block", BLOCKS)
def test_the_second_order_of_attention_is_that_of_plain_autograd(block):
    net, (x, y) = network(BLOCKS[block]), sample()
    problem = mfoc.from_module(net, F.mse_loss)
    found = expand(problem, problem.controls, mfoc.Particles(x, y), gauss_newton=False)
    plain = hessian_by_hand(net, x, y)
    v = torch.linspace(-1, 1, len(plain), dtype=torch.float64)
    torch.testing.assert_close(found.product(v), plain @ v, rtol=1e-9, atol=1e-11)


def test_the_certificate_of_attention_has_the_lowest_eigenvalue_of_the_hessian():
    net, (x, y) = network(Causal), sample()
    found = mfoc.certify_module(net, F.mse_loss, (x, y), starts=1, lanczos=100, groups=2)
    lowest = float(torch.linalg.eigvalsh(hessian_by_hand(net, x, y))[0])
    assert found.hessian_note == ""
    assert abs(found.hessian.value - lowest) < 1e-6


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    "solver", [mfoc.NewtonCG(), mfoc.EMSA(rho=1.0), mfoc.EMSA()], ids=["newton", "emsa", "emsa by itself"]
)
def test_attention_is_solved_to_second_order(block, solver):
    net, (x, y) = network(BLOCKS[block]), sample()
    problem = mfoc.from_module(net, F.mse_loss)
    solution = mfoc.solve(problem, solver, (x, y), steps=2)
    assert solution.history[-1]["value"] < solution.history[0]["value"]


def test_ddp_of_attention_per_particle():
    (x, _), mixing = sample(), Causal().double()

    def dynamics(t, x, u, z):
        return mixing(x) + u

    problem = mfoc.Problem(
        dynamics,
        lambda x, z: x.square().sum((1, 2)),
        [torch.zeros_like(x) for _ in range(2)],
        running_cost=lambda t, x, u, z: u.square().sum((1, 2)),
        per_particle=True,
    )
    solution = mfoc.solve(problem, mfoc.DDP(), x, steps=12)
    assert float(tree.norm(mfoc.evaluate(problem, solution, x).gradient)) < 1e-8


def test_first_order_keeps_the_fast_kernel(monkeypatch):
    """One derivative is enough for Gradient: the kernel torch chooses by itself is left."""
    net, (x, y) = network(Causal), sample()
    seen = []
    own = F.scaled_dot_product_attention

    def watched(*args, **options):
        out = own(*args, **options)
        seen.append(type(out.grad_fn).__name__)
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    solver = mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=0.1))
    mfoc.solve(mfoc.from_module(net, F.mse_loss), solver, (x, y), steps=1)
    assert any("Flash" in name for name in seen)


def test_the_kernels_are_as_they_were_afterwards():
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()

    def failing():
        with twice_differentiable():
            assert not torch.backends.cuda.flash_sdp_enabled()
            assert not torch.backends.mha.get_fastpath_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()) == before


# Operations of torch that have no second derivative, each on its own.

TOKENS = torch.tensor([[0, 1], [2, 1]])
LACKING = {
    "hardsigmoid": lambda w: F.hardsigmoid(w).square().sum(),
    "embedding_bag": lambda w: F.embedding_bag(TOKENS, w).square().sum(),
    "multi_margin_loss": lambda w: F.multi_margin_loss(w, torch.tensor([0, 1, 2])),
    "multilabel_margin_loss": lambda w: F.multilabel_margin_loss(w, torch.tensor([[0, 1, -1, 0]] * 3)),
    "ctc_loss": lambda w: F.ctc_loss(
        w.log_softmax(1)[:, None], torch.tensor([[1, 2]]), torch.tensor([3]), torch.tensor([2])
    ),
    "segment_reduce": lambda w: torch.segment_reduce(w, "sum", lengths=torch.tensor([1, 2])).square().sum(),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_has_no_second_derivative_is_named(name):
    w = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()

    def twice():
        with second_order("this", "do that"):
            slope = gradients(LACKING[name](w), [w], create_graph=True)[0]
            gradients(slope.square().sum(), [w])

    with pytest.raises(mfoc.InvalidValue) as caught:
        twice()
    assert f"torch's {name} has no second derivative" in str(caught.value)
    assert "aten" not in str(caught.value)
    assert "not implemented" not in str(caught.value)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), second_order("this", "do that"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert no_derivative(RuntimeError("out of luck")) == ""


class Doubled(torch.autograd.Function):
    """Twice its input; its backward pass is marked once_differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0].cos()


def test_a_marked_function_is_seen_through_vmap():
    x = torch.ones(3, 2, requires_grad=True)
    assert once_differentiable(Doubled.apply(x)) == "Doubled"
    assert "Doubled" in once_differentiable(torch.func.vmap(Doubled.apply)(x))


class Marked(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


class Bag(nn.Module):
    """A first layer without a second derivative, in its weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return x + F.embedding_bag(torch.tensor([[0, 1], [2, 1], [0, 0]]), self.weight).sum(0).square()


ONCE = {"Doubled": Marked, "hardsigmoid": nn.Hardsigmoid, "embedding_bag": Bag}


def once_network(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), ONCE[name](), nn.Linear(3, 1)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return net, (x, torch.randn(N, 1, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_newton_refuses_what_is_differentiable_once(name, gauss_newton):
    net, data = once_network(name)
    problem = mfoc.from_module(net, F.mse_loss)
    with pytest.raises(mfoc.InvalidValue, match=f"{name}.*use Gradient, EMSA or MSA"):
        mfoc.solve(problem, mfoc.NewtonCG(gauss_newton=gauss_newton), data, steps=1)


@pytest.mark.parametrize("name", ["Doubled", "hardsigmoid"])
def test_the_penalty_on_costates_refuses_what_is_differentiable_once(name):
    net, data = once_network(name)
    problem = mfoc.from_module(net, F.mse_loss, stages=[["0", "1"], "2"])
    with pytest.raises(mfoc.InvalidValue, match=rf"{name}.*EMSA\(costate_rho=0\)"):
        mfoc.solve(problem, mfoc.EMSA(rho=1.0), data, steps=1)
    solution = mfoc.solve(problem, mfoc.EMSA(rho=1.0, costate_rho=0), data, steps=1)
    assert solution.status is not None


@pytest.mark.parametrize("name", ONCE)
def test_the_certificate_says_what_it_cannot_measure_and_why(name):
    net, data = once_network(name)
    found = mfoc.certify_module(net, F.mse_loss, data, stages=[["0", "1"], "2"], starts=1, groups=2)
    assert name in found.hessian_note
    assert "aten" not in str(found)
    assert found.stages[0].residual.value > 0


@pytest.mark.parametrize("name", ["Doubled", "hardsigmoid"])
def test_ddp_refuses_at_its_first_step(name):
    bend = ONCE[name]()
    problem = mfoc.Problem(
        lambda t, x, u, z: bend(x) + u,
        lambda x, z: x.square().sum(1),
        [torch.zeros(N, 2) for _ in range(3)],
        running_cost=lambda t, x, u, z: u.square().sum(1),
        per_particle=True,
    )
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(mfoc.InvalidValue, match=rf"{name}.*DDP\(second_order=False\)"):
        mfoc.solve(problem, mfoc.DDP(), x, steps=1)
    solution = mfoc.solve(problem, mfoc.DDP(second_order=False), x, steps=2)
    assert solution.history[-1]["value"] < solution.history[0]["value"]


def test_what_the_message_suggests_for_hardsigmoid_is_the_same_function():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(F.relu6(x + 3) / 6, F.hardsigmoid(x))


@pytest.mark.parametrize("solver", [mfoc.MSA(mfoc.minimisers.Descent(0.1)), mfoc.EMSA(rho=1.0)], ids=["msa", "emsa"])
def test_stages_of_encoders_in_evaluation_mode_are_stacked(solver):
    """Under vmap their fast path does not see that derivatives are wanted; training mode has none of it."""
    torch.manual_seed(0)
    net = nn.Sequential(encoder(), encoder(), Head()).double()
    found = []
    for mode in (True, False):
        problem = mfoc.from_module(net.train(mode), F.mse_loss)
        assert problem.kind(0) == problem.kind(1)
        found.append(mfoc.solve(problem, solver, sample(), steps=1).controls)
    for a, b in zip(*map(tree.leaves, found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("maximiser", [mfoc.maximisers.PGD(steps=2), mfoc.maximisers.YOPO(2, 1)], ids=["pgd", "yopo"])
def test_games_are_of_first_order(block, maximiser):
    """Whatever kernel runs, the step is that of the plain formula; nothing is differentiated twice."""
    net, data = network(BLOCKS[block]), sample()
    game = mfoc.Game.of(mfoc.from_module(net, F.mse_loss), mfoc.Ball(0.1))
    solver = mfoc.Minimax(maximiser, lambda p: torch.optim.SGD(p, lr=0.1))
    fast = mfoc.solve(game, solver, data, steps=1).controls
    with sdpa_kernel(SDPBackend.MATH):
        plain = mfoc.solve(game, solver, data, steps=1).controls
    for a, b in zip(*map(tree.leaves, (fast, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ONCE)
def test_games_need_no_second_derivative(name):
    net, data = once_network(name)
    game = mfoc.Game.of(mfoc.from_module(net, F.mse_loss), mfoc.Ball(0.1))
    for maximiser in (mfoc.maximisers.PGD(steps=2), mfoc.maximisers.YOPO(2, 1)):
        solver = mfoc.Minimax(maximiser, lambda p: torch.optim.SGD(p, lr=0.01))
        found = mfoc.solve(game, solver, data, steps=2)
        assert found.history[-1]["value"] < found.history[0]["value"]


def state_and_control(bend):
    """Two stages of a scalar state whose running cost bends the control."""
    return mfoc.Problem(
        lambda t, x, u, z: x + u,
        lambda x, z: x[:, 0].square(),
        [torch.zeros(1)] * 2,
        running_cost=lambda t, x, u, z: bend(u[None]).square().sum().expand(len(x)),
    )


@pytest.mark.parametrize("name", ["Doubled", "hardsigmoid"])
def test_dynamic_programming_refuses_what_is_differentiable_once(name):
    with pytest.raises(mfoc.InvalidValue, match=f"{name}.*second derivative"):
        mfoc.hjb.solve(state_and_control(ONCE[name]()), [torch.linspace(-1, 1, 5)])


@pytest.mark.parametrize("name", ["Doubled", "hardsigmoid"])
def test_a_fit_of_slopes_refuses_a_network_that_is_differentiable_once(name):
    net = nn.Sequential(nn.Linear(2, 4), ONCE[name](), nn.Linear(4, 1))
    with pytest.raises(mfoc.InvalidValue, match=f"{name}.*gradient_weight=0"):
        mfoc.hjb.fit(state_and_control(nn.Identity()), torch.linspace(-1, 1, 9)[:, None], net=net)


def test_rates_are_refused_for_a_loss_that_is_differentiable_once():
    net, (x, y) = once_network("hardsigmoid")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    control = mfoc.optim.LearningRateControl(optimizer)
    F.mse_loss(net(x), y).backward()
    with pytest.raises(mfoc.InvalidValue, match="torch's hardsigmoid has no second derivative"):
        control.step(lambda: F.mse_loss(net(x), y))


def test_sharpness_is_refused_for_a_loss_that_is_differentiable_once():
    net, data = once_network("hardsigmoid")
    with pytest.raises(mfoc.InvalidValue, match="torch's hardsigmoid has no second derivative"):
        mfoc.analysis.noise.sharpness(net, F.mse_loss, data)
