"""OptimalAnnealing is the law of Li, Tai & E (2017), step by step, and the best of schedules on a noisy quadratic."""

import math
import warnings
from itertools import pairwise

import pytest
import torch

from mfoc.analysis.noise.theory.annealing import optimal_annealing
from mfoc.errors import InvalidType, InvalidValue
from mfoc.optim import OptimalAnnealing

A, SIGMA, M0, LR = 0.7, 0.5, 3.0, 0.05


def sgd(lr=LR, groups=1):
    rates = [lr / 2**k for k in range(groups)]
    return torch.optim.SGD([{"params": [torch.zeros(2, requires_grad=True)], "lr": rate} for rate in rates])


def rates(optimizer, scheduler, steps):
    """The rate of each group at each step of a loop as a user writes it."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def published(a, sigma, m0, lr, k):
    """The factor, as in the paper."""
    t = lr * k
    if 2 * m0 <= lr * sigma:
        return 1 / (lr * sigma / (2 * m0) + a * t)
    switch = math.log(4 * m0 / (lr * sigma) - 1) / (2 * a)
    return 1.0 if t <= switch else 1 / (1 + a * (t - switch))


@pytest.mark.parametrize("m0", [3.0, 0.05, 0.0125, 0.001], ids=["far", "near", "at the switch", "below it"])
def test_the_rate_of_each_step_is_the_published_one(m0):
    optimizer = sgd()
    found = rates(optimizer, OptimalAnnealing(optimizer, A, SIGMA, m0), 400)
    assert [rate for (rate,) in found] == pytest.approx([LR * published(A, SIGMA, m0, LR, k) for k in range(400)])


def test_each_group_is_annealed_from_its_own_rate():
    optimizer = sgd(groups=3)
    found = rates(optimizer, OptimalAnnealing(optimizer, A, SIGMA, M0), 300)
    for g in range(3):
        lr = LR / 2**g
        assert [row[g] for row in found] == pytest.approx([lr * published(A, SIGMA, M0, lr, k) for k in range(300)])


@pytest.mark.parametrize(
    ("curvature", "noise", "m0"),
    [(0.0, 1.0, 0.0), (-1.0, 1.0, -2.0), (1.0, 0.0, 1.0)],
    ids=["flat", "concave", "quiet"],
)
def test_without_a_minimum_or_without_noise_the_rate_is_full(curvature, noise, m0):
    optimizer = sgd()
    assert rates(optimizer, OptimalAnnealing(optimizer, curvature, noise, m0), 50) == [[LR]] * 50


def test_a_group_that_is_held_still_stays_so():
    optimizer = sgd(lr=0.0)
    assert rates(optimizer, OptimalAnnealing(optimizer, A, SIGMA, M0), 3) == [[0.0]] * 3


def final_losses(schedule, steps, runs=20_000):
    """f at each step, of many runs of SGD at once: each coordinate is a run."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((runs,), math.sqrt(2 * M0 / A), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=LR)
    scheduler = schedule(optimizer)
    losses = []
    for _ in range(steps):
        losses.append(A * x.detach().square() / 2)
        x.grad = A * x.detach() + math.sqrt(SIGMA) * torch.randn(runs, generator=generator, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    losses.append(A * x.detach().square() / 2)
    return torch.stack(losses)


STEPS = 300


@pytest.fixture(scope="module")
def annealed():
    return final_losses(lambda optimizer: OptimalAnnealing(optimizer, A, SIGMA, M0), STEPS)


def recursion(lr, steps):
    """E f of SGD itself under the schedule, exactly: m_(k+1) = (1 - eta u a)^2 m_k + a (eta u)^2 Sigma / 2."""
    found = [M0]
    for k in range(steps):
        step = lr * published(A, SIGMA, M0, lr, k)
        found.append((1 - step * A) ** 2 * found[-1] + A * step**2 * SIGMA / 2)
    return torch.tensor(found, dtype=torch.float64)


def test_the_mean_loss_of_many_runs_is_that_of_the_recursion(annealed):
    error = annealed.std(1) / math.sqrt(annealed.shape[1])
    assert ((annealed.mean(1) - recursion(LR, STEPS)).abs() <= 5 * error + 1e-12).all()
    assert (error[1:] < 0.02 * annealed.mean(1)[1:]).all()  # so that this says something


def test_the_recursion_is_the_theory_to_first_order_in_the_rate():
    """At a fixed time, early and late, the difference halves with the rate."""
    for time in (2.0, 15.0):
        gaps = []
        for lr in (LR, LR / 2, LR / 4):
            steps = round(time / lr)
            theory = optimal_annealing(A, SIGMA, M0, lr).loss(time)
            gaps.append(abs(float(recursion(lr, steps)[-1]) / theory - 1))
        assert gaps[0] < 0.1
        for coarse, fine in pairwise(gaps):
            assert coarse / fine == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.3, total_iters=10**6),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99),
    ],
    ids=["constant", "a third", "cosine", "exponential"],
)
def test_no_other_schedule_ends_lower(annealed, schedule):
    other = final_losses(schedule, STEPS)[-1]
    gap = other.mean() - annealed[-1].mean()
    error = math.sqrt(float(other.var() + annealed[-1].var()) / len(other))
    assert float(gap) > 4 * error


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = sgd(groups=2)
    expected = rates(whole, OptimalAnnealing(whole, A, SIGMA, M0), 120)

    first = sgd(groups=2)
    scheduler = OptimalAnnealing(first, A, SIGMA, M0)
    head = rates(first, scheduler, 70)
    torch.save([first.state_dict(), scheduler.state_dict()], tmp_path / "saved.pt")

    second = sgd(groups=2)
    again = OptimalAnnealing(second, A, SIGMA, M0)
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    second.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert head + rates(second, again, 50) == expected


def test_last_epoch_resumes_without_a_state():
    whole, resumed = sgd(), sgd()
    expected = rates(whole, OptimalAnnealing(whole, A, SIGMA, M0), 120)
    resumed.param_groups[0]["initial_lr"] = LR
    assert rates(resumed, OptimalAnnealing(resumed, A, SIGMA, M0, last_epoch=69), 50) == expected[70:]


def test_torch_finds_nothing_to_warn_of():
    optimizer = sgd()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rates(optimizer, OptimalAnnealing(optimizer, A, SIGMA, M0), 3)
    assert not said


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"optimizer": torch.zeros(2)}, InvalidType, "optimizer is a Tensor"),
        ({"curvature": "steep"}, InvalidType, "curvature"),
        ({"curvature": math.nan}, InvalidValue, "curvature"),
        ({"noise": -1.0}, InvalidValue, "noise is -1.0"),
        ({"m0": math.inf}, InvalidValue, "m0"),
        ({"m0": -1.0}, InvalidValue, "m0 is -1.0"),
        ({"last_epoch": 0.5}, InvalidType, "last_epoch is 0.5"),
        ({"last_epoch": -2}, InvalidValue, "last_epoch is -2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused_leaves_the_optimiser_alone(change, error, says):
    optimizer = sgd()
    before = optimizer.state_dict()
    given = {"optimizer": optimizer, "curvature": A, "noise": SIGMA, "m0": M0} | change
    with pytest.raises(error, match=says):
        OptimalAnnealing(**given)
    assert optimizer.state_dict() == before
