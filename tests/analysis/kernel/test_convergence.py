"""What the kernel predicts of gradient descent is what gradient descent does, where it is linear."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import nn

from mfoc.analysis.kernel import ntk_convergence
from mfoc.analysis.kernel.theorem import limiting_eigenvalue
from mfoc.errors import InvalidType, InvalidValue
from tests.architectures import NETWORKS, batch_norm_net, mlp_net, seeded

N, D, C = 6, 8, 2


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = F.normalize(normal(N, D), dim=1), normal(N, C, seed=1)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def linear():
    return seeded(lambda: nn.Linear(D, C))


def two_layers(width, *, seed=0):
    """As in the theorem: only the first layer is trained."""

    def make():
        net = nn.Sequential(nn.Linear(D, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))
        nn.init.normal_(net[0].weight)
        with torch.no_grad():
            net[2].weight.copy_(torch.randn(1, width).sign() / math.sqrt(width))
        net[2].weight.requires_grad_(False)
        return net

    return seeded(make, seed)


def trained(net, loss, lr, steps):
    """Plain gradient descent on the weight and bias of a dense layer."""
    weight, bias = (p.detach().clone().requires_grad_() for p in (net.weight, net.bias))
    found = []
    for _ in range(steps + 1):
        value = loss(X @ weight.mT + bias)
        found.append(value.item())
        slopes = torch.autograd.grad(value, (weight, bias))
        with torch.no_grad():
            weight -= lr * slopes[0]
            bias -= lr * slopes[1]
    return torch.tensor(found, dtype=torch.float64)


SQUARED = {
    "mean": (nn.MSELoss(), 2 / (N * C)),
    "function": (F.mse_loss, 2 / (N * C)),
    "sum": (nn.MSELoss(reduction="sum"), 2.0),
    "none": (nn.MSELoss(reduction="none"), 2 / (N * C)),
    "of one's own": (lambda output, target: 0.5 * (output - target).square().sum(), 1.0),
    "for each sample": (lambda output, target: (output - target).square().sum(1), 2 / N),
    "with a constant": (lambda output, target: (output - target).square().sum() + 3, 2.0),
}


@pytest.mark.parametrize("name", SQUARED)
def test_a_linear_network_is_predicted_to_rounding(name):
    """Theta = (x x^T + 1) (x) I, and the loss's Hessian is a number."""
    loss, scale = SQUARED[name]
    found = ntk_convergence(linear(), X, Y, loss, steps=40)
    expected = torch.linalg.eigvalsh(X @ X.mT + 1)
    assert found.squared
    assert torch.allclose(found.kernel_eigenvalues, expected.repeat_interleave(C))
    assert found.lambda_max == pytest.approx(scale * float(expected[-1]))
    assert found.lambda_min == pytest.approx(scale * float(expected[0]))
    assert found.stable_lr == pytest.approx(2 / (scale * float(expected[-1])))
    assert found.lr == pytest.approx(found.stable_lr / 2)
    assert found.contraction == pytest.approx(1 - found.lr * found.lambda_min)
    assert torch.allclose(found.predicted, found.measured, rtol=1e-10, atol=0)
    assert torch.allclose(found.measured, trained(linear(), lambda f: loss(f, Y).mean(), found.lr, 40))
    assert found.gap < 1e-10
    assert found.linear
    assert str(found).startswith("trains as the kernel predicts")


@pytest.mark.parametrize(("factor", "converges"), [(0.98, True), (1.02, False)])
def test_the_largest_stable_step_is_where_convergence_ends(factor, converges):
    stable = ntk_convergence(linear(), X, Y, F.mse_loss, steps=1).stable_lr
    found = ntk_convergence(linear(), X, Y, F.mse_loss, lr=factor * stable, steps=600)
    assert found.stable == converges
    assert (float(found.measured[-1]) < 1e-2 * float(found.measured[0])) == converges
    assert (float(found.predicted[-1]) < 1e-2 * float(found.predicted[0])) == converges
    assert ("too large" in str(found)) != converges
    if not converges:
        assert "training diverged" in str(found)


def test_a_step_that_overflows_is_told_and_not_raised():
    found = ntk_convergence(linear(), X, Y, F.mse_loss, lr=1e30, steps=30)
    assert len(found.measured) < 31
    assert found.gap == 1
    assert "training diverged" in str(found)


def test_a_target_out_of_reach_is_part_of_the_closed_form():
    """More samples than weights: the loss ends above zero, and Theta has directions that do not move."""
    x, y = normal(12, 3), normal(12, 1)
    found = ntk_convergence(seeded(lambda: nn.Linear(3, 1)), x, y, F.mse_loss, steps=50)
    assert found.lambda_min == 0
    assert found.gap < 1e-10
    assert "some directions do not shrink" in str(found)


def test_wide_networks_are_predicted_and_narrow_ones_are_not():
    y = Y[:, :1]
    wide = ntk_convergence(two_layers(4096), X, y, F.mse_loss, steps=15, lr=1.0)
    narrow = ntk_convergence(two_layers(8), X, y, F.mse_loss, steps=15, lr=1.0)
    assert wide.gap < 0.05
    assert narrow.gap > 4 * wide.gap


def test_cross_entropy_has_the_hessian_of_the_present_outputs():
    """H = (diag p - p p^T) / N for each sample, by scipy's softmax; and the loss by hand."""
    net = linear()
    found = ntk_convergence(net, X, LABELS, F.cross_entropy, steps=30)
    p = torch.from_numpy(softmax(net(X).detach().numpy(), axis=1))
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    hessian = torch.block_diag(*blocks) / N
    theta = torch.kron(X @ X.mT + 1, torch.eye(C, dtype=torch.float64))
    spectrum = torch.linalg.eigvals(theta @ hessian).real
    assert not found.squared
    assert found.lambda_max == pytest.approx(float(spectrum.max()))
    assert found.lambda_min == pytest.approx(0, abs=1e-12)  # a constant added to all logits changes nothing
    assert found.gap < 1e-10
    assert torch.allclose(found.measured, trained(net, lambda f: F.cross_entropy(f, LABELS), found.lr, 30))
    assert "present outputs" in str(found)


def test_a_sum_is_as_many_times_steeper():
    mean = ntk_convergence(linear(), X, LABELS, F.cross_entropy, steps=1)
    total = ntk_convergence(linear(), X, LABELS, nn.CrossEntropyLoss(reduction="sum"), steps=1)
    assert mean.stable_lr == pytest.approx(N * total.stable_lr)


@pytest.mark.parametrize("loss", [F.smooth_l1_loss, F.l1_loss, nn.HuberLoss(delta=0.1)])
def test_losses_that_are_squared_here_and_there_are_not_taken_for_squared(loss):
    assert not ntk_convergence(linear(), X, Y, loss, steps=2, lr=0.1).squared


def test_the_network_is_not_trained():
    net = linear()
    before = copy.deepcopy(net.state_dict())
    ntk_convergence(net, X, Y, F.mse_loss, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.weight.grad is None


def test_samples_are_not_written_over():
    x = normal(5, 3)
    kept = x.clone()
    ntk_convergence(NETWORKS["in place"][0](), x, normal(5, 3, seed=1), F.mse_loss, steps=2)
    assert torch.equal(x, kept)


def test_float32_networks():
    found = ntk_convergence(linear().float(), X.float(), Y.float(), F.mse_loss, steps=20)
    assert found.kernel_eigenvalues.dtype == torch.float32
    assert found.squared
    assert found.gap < 1e-4


# ---- the theorem of Du, Zhai, Poczos & Singh


def test_the_limiting_kernel_is_the_mean_over_gaussian_weights():
    generator = torch.Generator().manual_seed(0)
    active = (X @ torch.randn(D, 400_000, dtype=torch.float64, generator=generator) > 0).double()
    sampled = torch.linalg.eigvalsh((X @ X.mT) * (active @ active.mT) / 400_000)
    assert limiting_eigenvalue(X) == pytest.approx(float(sampled[0]), abs=5e-3)


def test_the_limiting_kernel_is_that_of_a_wide_network():
    found = ntk_convergence(two_layers(20_000), X, Y[:, :1], F.mse_loss, steps=1)
    assert float(found.kernel_eigenvalues[0]) == pytest.approx(limiting_eigenvalue(X), rel=0.05)


def test_the_condition_counts_the_width_that_is_needed():
    net = two_layers(16)
    found = ntk_convergence(net, X, Y[:, :1], nn.MSELoss(reduction="sum"), steps=1, delta=0.2, lr=1e-4).theorem
    lowest = limiting_eigenvalue(X)
    assert found.unmet == ()
    assert found.width == 16
    assert found.needed == pytest.approx(N**6 / (lowest**4 * 0.2**3))
    assert found.step == pytest.approx(2e-4)  # the theorem's loss is half of the sum of squares
    assert found.allowed == pytest.approx(lowest / N**2)
    assert not found.holds
    assert "does not hold, which forbids nothing" in str(found)


def test_the_condition_can_hold():
    x = torch.eye(1, D, dtype=torch.float64)
    net = two_layers(20_000)
    found = ntk_convergence(net, x, Y[:1, :1], nn.MSELoss(reduction="sum"), steps=1, lr=0.1, delta=0.5).theorem
    assert found.needed == pytest.approx(1 / (0.5**4 * 0.5**3))  # lambda_0 = 1/2 for one sample
    assert found.holds
    assert "its condition holds" in str(found)


def all_trained():
    net = two_layers(16)
    net[2].weight.requires_grad_(True)
    return net


def with_tanh():
    net = two_layers(16)
    net[1] = nn.Tanh()
    return net


UNMET = {
    "the activation is not ReLU": (with_tanh, X, F.mse_loss),
    "not the first layer's weight alone is trained": (all_trained, X, F.mse_loss),
    "the samples are not of length 1": (lambda: two_layers(16), 2 * X, F.mse_loss),
    "two samples are parallel": (lambda: two_layers(16), torch.cat([X[:-1], X[:1]]), F.mse_loss),
    "the loss is not squared": (lambda: two_layers(16), X, F.smooth_l1_loss),
    "no nn.Sequential of two dense layers": (lambda: seeded(lambda: nn.Linear(D, 1)), X, F.mse_loss),
    "weights do not have variance 1": (
        lambda: seeded(lambda: nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, 1))), X, F.mse_loss,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNMET)
def test_assumptions_that_do_not_hold_are_named(what):
    make, x, loss = UNMET[what]
    theorem = ntk_convergence(make(), x, Y[:, :1], loss, steps=1, lr=0.01).theorem
    assert any(what in said for said in theorem.unmet)
    assert "does not apply" in str(theorem)
    assert not theorem.holds


# ---- how it is shown, and what is refused


def test_it_is_printed_verdict_first_and_without_walls_of_numbers():
    found = ntk_convergence(mlp_net(), normal(5, 3), normal(5, 2), F.mse_loss, steps=3)
    lines = str(found).splitlines()
    assert lines[0] == found.verdict
    assert lines[1].startswith("largest stable step")
    assert lines[3].startswith("Du et al. 2018, theorem 4.1: does not apply")
    assert "tensor(" not in repr(found)


def test_it_is_drawn():
    pytest.importorskip("matplotlib")
    found = ntk_convergence(linear(), X, Y, F.mse_loss, steps=5)
    axis = found.plot().axes[0]
    assert axis.get_yscale() == "log"
    assert [line.get_label() for line in axis.lines] == ["measured", "predicted by the kernel"]
    assert list(axis.lines[0].get_ydata()) == found.measured.tolist()


@pytest.mark.parametrize(
    ("make", "x", "y", "loss", "kind", "match"),
    [
        (linear, X, LABELS, F.mse_loss, InvalidValue, "loss"),
        (linear, X, Y[:, :1], F.mse_loss, InvalidValue, "target size"),
        (linear, X, Y[:3], F.mse_loss, InvalidValue, "y has 3 entries for 6 samples"),
        (linear, X, Y, F.cross_entropy, None, None),  # probabilities: torch takes them
        (linear, X, Y, nn.MSELoss, InvalidType, "make an instance"),
        (linear, X, Y, 3, InvalidType, "loss is an int"),
        (linear, X, Y, lambda f, y: y.sum(), InvalidValue, "does not depend on the outputs"),
        (linear, X, Y, lambda f, y: f.sum() / 0, InvalidValue, "expected a finite number"),
        (linear, X, Y, lambda f, y: 1.0, InvalidType, "returned a float"),
        (linear, X[:0], Y[:0], F.mse_loss, InvalidValue, "at least one sample"),
        (batch_norm_net, normal(4, 3), Y[:4], F.mse_loss, InvalidValue, "BatchNorm1d"),
    ],
)
def test_bad_input_is_refused(make, x, y, loss, kind, match):
    if kind is None:
        ntk_convergence(make(), x, y.softmax(1), loss, steps=1)
        return
    with pytest.raises(kind, match=match):
        ntk_convergence(make(), x, y, loss)


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1.0}, {"steps": 0}, {"delta": 1.0}, {"memory": 10}])
def test_options_are_checked(options):
    with pytest.raises(InvalidValue, match=next(iter(options))):
        ntk_convergence(linear(), X, Y, F.mse_loss, **options)


def test_a_loss_without_curvature_has_no_rate_and_is_not_said_to_stand_still():
    found = ntk_convergence(linear(), X, Y, F.l1_loss, steps=3, lr=0.01)
    assert found.measured[-1] < found.measured[0]
    assert "no largest stable step" in found.verdict


def test_a_loss_that_rises_is_not_called_training():
    net = seeded(lambda: nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, C)))
    found = ntk_convergence(net, X, Y, F.mse_loss, steps=2)
    risen = replace(found, measured=found.measured.flip(0), gap=1.0)
    assert found.verdict.startswith("trains")
    assert risen.verdict.startswith("does not train")
