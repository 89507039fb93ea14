"""Meta-learning of networks with attention, and of networks that can be differentiated once: against loops by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mfoc
from paradigms.meta import Learner, anil, imaml, learned_update, maml, meta_sgd, reptile, residuals, tasks
from tests.oracles.meta import error, inner_loop
from tests.oracles.meta import maml as by_hand
from tests.test_second_derivatives import ONCE, Attention, Causal, encoder

LR = 0.1


class Tokens(nn.Module):
    """Numbers ``[shots, 6]`` as two tokens of three through a block, to one number a shot."""

    def __init__(self, block):
        super().__init__()
        self.into, self.block, self.out = nn.Linear(3, 4), block, nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.block(self.into(x.unflatten(-1, (2, 3))))).mean(-2)


def network(block):
    torch.manual_seed(0)
    return Tokens(block()).double()


def cloud(width=6, n=3, shots=4):
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return tasks((drawn(n, shots, width), drawn(n, shots, 1)), (drawn(n, shots, width), drawn(n, shots, 1)))


BLOCKS = {"attention": Attention, "causal": Causal, "encoder": encoder, "evaluated": lambda: encoder().eval()}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_of_attention(block, first_order):
    net, seen = network(BLOCKS[block]), cloud()
    made = maml(net, F.mse_loss, seen, inner_steps=2, inner_lr=LR, first_order=first_order)
    with sdpa_kernel(SDPBackend.MATH):
        expected = by_hand(net, F.mse_loss, seen, steps=2, lr=LR, first_order=first_order)
    assert error(made.problem, seen, expected) < 1e-9


def test_the_second_order_of_attention_is_there():
    """What the test above compares would be wrong by this much if the second derivative were left out."""
    net, seen = network(Causal), cloud()
    with sdpa_kernel(SDPBackend.MATH):
        exact, rough = (by_hand(net, F.mse_loss, seen, steps=2, lr=LR, first_order=flag) for flag in (False, True))
    assert max(float((a - b).abs().max()) for a, b in zip(exact, rough, strict=True)) > 1e-3


def test_meta_sgd_of_attention():
    net, seen = network(Causal), cloud()
    made = meta_sgd(net, F.mse_loss, seen, inner_steps=2, inner_lr=LR)
    alpha = {name: a.clone().requires_grad_() for name, a in made.problem.controls["alpha"].items()}

    def update(k, name, phi, slope):
        return phi - alpha[name] * slope

    with sdpa_kernel(SDPBackend.MATH):
        expected = inner_loop(net, F.mse_loss, seen, update, list(alpha.values()), steps=2)
    assert error(made.problem, seen, expected) < 1e-9


def test_imaml_of_attention():
    """At the equilibrium the gradient is that of an inner loop so long that it ends there."""
    net, seen = network(Causal), cloud()
    made = imaml(net, F.mse_loss, seen, inner_steps=60, inner_lr=0.1, strength=6.0, cg_steps=200, cg_tol=1e-14)
    start = {name: p.detach() for name, p in net.named_parameters()}
    phi = {name: p.clone().requires_grad_() for name, p in start.items()}

    (x, y), (a, b) = seen.data["support"], seen.data["query"]
    total = 0.0
    for i in range(len(seen)):
        fast = dict(phi)
        for _ in range(60):
            with sdpa_kernel(SDPBackend.MATH):
                value = F.mse_loss(torch.func.functional_call(net, fast, (x[i],)), y[i])
            slopes = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {
                name: leaf - 0.1 * (slope + 6.0 * (leaf - phi[name]))
                for (name, leaf), slope in zip(fast.items(), slopes, strict=True)
            }
        total = total + F.mse_loss(torch.func.functional_call(net, fast, (a[i],)), b[i]) / len(seen)
    expected = [total.detach(), *torch.autograd.grad(total, list(phi.values()))]
    assert error(made.problem, seen, expected) < 1e-7
    assert residuals(made, made.problem).worst[1] < 1e-6


@pytest.mark.parametrize("block", BLOCKS)
def test_a_learner_of_attention(block):
    net, seen = network(BLOCKS[block]), cloud()
    learner = Learner(maml(net, F.mse_loss, seen, inner_steps=2, inner_lr=LR))
    (x, y), (a, b) = seen.data["support"], seen.data["query"]
    total = 0.0
    for i in range(len(seen)):
        own = learner.clone()
        for _ in range(2):
            own.adapt(F.mse_loss(own(x[i]), y[i]))
        total = total + F.mse_loss(own(a[i]), b[i]) / len(seen)
    total.backward()
    with sdpa_kernel(SDPBackend.MATH):
        expected = by_hand(net, F.mse_loss, seen, steps=2, lr=LR)
    for parameter, slope in zip(learner.module.parameters(), expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=1e-9, atol=1e-11)


def test_first_order_keeps_the_fast_kernel(monkeypatch):
    net, seen = network(Causal), cloud()
    made = maml(net, F.mse_loss, seen, inner_steps=1, inner_lr=LR, first_order=True)
    seen_by, own = [], F.scaled_dot_product_attention

    def watched(*args, **options):
        seen_by.append(torch.backends.cuda.flash_sdp_enabled())
        return own(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    mfoc.evaluate(made.problem, made.problem.controls, seen)
    assert seen_by
    assert all(seen_by)


# Networks that have no second derivative.


def once(name):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), ONCE[name](), nn.Linear(3, 1)).double()


SECOND_ORDER = {
    "maml": lambda net, seen, **own: maml(net, F.mse_loss, seen, inner_steps=1, inner_lr=LR, **own),
    "meta_sgd": lambda net, seen, **own: meta_sgd(net, F.mse_loss, seen, inner_steps=1, inner_lr=LR, **own),
    "anil": lambda net, seen, **own: anil(net, F.mse_loss, seen, inner_steps=1, inner_lr=LR, head=["0", "2"], **own),
    "learned_update": lambda net, seen, **own: learned_update(net, F.mse_loss, seen, rule=Own(), inner_steps=1, **own),
}


class Own(nn.Module):
    """A rule that scales slopes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, slope, weight):
        return self.scale * slope


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("door", SECOND_ORDER)
def test_what_is_differentiable_once_is_refused_at_the_door_and_first_order_does_without(door, name):
    net, seen = once(name), cloud(3)
    if name == "embedding_bag" and door == "anil":  # nothing of the head goes through it
        net = nn.Sequential(net[1], net[0], net[2])
        SECOND_ORDER["maml"](net, seen, first_order=True)
        with pytest.raises(mfoc.InvalidValue, match="embedding_bag"):
            SECOND_ORDER["maml"](net, seen)
        return
    with pytest.raises(mfoc.InvalidValue, match=f"{name}.*first_order=True") as caught:
        SECOND_ORDER[door](net, seen)
    assert "aten" not in str(caught.value)
    made = SECOND_ORDER[door](net, seen, first_order=True)
    gradient = mfoc.evaluate(made.problem, made.problem.controls, seen).gradient
    assert float(mfoc.tree.norm(gradient)) > 0


@pytest.mark.parametrize("name", ONCE)
def test_imaml_refuses_and_reptile_does_not(name):
    net, seen = once(name), cloud(3)
    with pytest.raises(mfoc.InvalidValue, match=rf"{name}.*maml\(first_order=True\)"):
        imaml(net, F.mse_loss, seen, inner_steps=2, inner_lr=LR, strength=2.0)
    reptile(net, F.mse_loss, seen, inner_steps=1, inner_lr=LR)


def test_anil_needs_no_second_derivative_of_the_body():
    """Only the head's slopes are differentiated again."""
    net, seen = once("hardsigmoid"), cloud(3)
    made = anil(net, F.mse_loss, seen, inner_steps=2, inner_lr=LR)
    smooth = nn.Sequential(net[0], nn.Sequential(Relu6()), net[2])
    same = anil(smooth, F.mse_loss, seen, inner_steps=2, inner_lr=LR)
    pair = (mfoc.evaluate(each.problem, each.problem.controls, seen).gradient for each in (made, same))
    for a, b in zip(*map(mfoc.tree.leaves, pair), strict=True):
        torch.testing.assert_close(a, b)


class Relu6(nn.Module):
    """Hardsigmoid as the message of its refusal writes it."""

    def forward(self, x):
        return F.relu6(x + 3) / 6


@pytest.mark.parametrize("name", ONCE)
def test_a_learner_refuses_at_its_first_adaptation(name):
    net, seen = once(name), cloud(3)
    learner = Learner(maml(net, F.mse_loss, seen, inner_steps=1, inner_lr=LR, first_order=True))
    (x, y), own = seen.data["support"], learner.clone(first_order=False)
    with pytest.raises(mfoc.InvalidValue, match=f"{name}.*first_order=True"):
        own.adapt(F.mse_loss(own(x[0]), y[0]))
    own = learner.clone()
    own.adapt(F.mse_loss(own(x[0]), y[0]))


def test_a_loss_without_a_second_derivative_is_refused():
    torch.manual_seed(0)
    net, seen = nn.Linear(3, 2).double(), cloud(3)
    data = {part: (x, (y[..., 0] > 0).long()) for part, (x, y) in seen.data.items()}
    labelled = tasks(data["support"], data["query"])
    with pytest.raises(mfoc.InvalidValue, match=r"multi_margin_loss.*first_order=True"):
        maml(net, F.multi_margin_loss, labelled, inner_steps=1, inner_lr=LR)
