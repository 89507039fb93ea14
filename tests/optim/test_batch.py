"""Batches that grow with the noise scale: by the law, resumed to the bit, and refused where they would differ."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import mfoc
from mfoc import hooks
from mfoc.analysis.noise.scales import noise_scale
from mfoc.errors import InvalidType, InvalidValue
from mfoc.optim import AdaptiveBatch, Measurement
from tests.problems import D, same_bits

N = 400
H = torch.diag(torch.tensor([1.0, 0.3, 0.05], dtype=D))


def data(n=N):
    spread = torch.tensor([0.5, 1.0, 2.0], dtype=D)
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=D) * spread


def bowl():
    """J = E (u - x)'H(u - x) / 2: G = H (u - mean), Sigma = H cov(x) H, whatever u is."""
    return mfoc.Problem(
        dynamics=lambda t, x, u, z: u - x,
        terminal_cost=lambda x, z: ((x @ H) * x).sum(1) / 2,
        controls=[torch.full((3,), 4.0, dtype=D)],
    )


def exact(problem, controls, particles):
    """tr(H Sigma) / (G'HG) of the cloud."""
    x = data()
    slope, noise = H @ (controls[0] - x.mean(0)), H @ torch.cov(x.T, correction=0) @ H
    return float((H @ noise).trace() / (slope @ H @ slope))


SGD = mfoc.Gradient(partial(torch.optim.SGD, lr=0.3))


def batches(scale=exact, source=None, problem=None, **options):
    options = {"batch_size": 4, "every": 5, "seed": 3} | options
    return AdaptiveBatch(data() if source is None else source, problem or bowl(), scale=scale, **options)


def scales(*values):
    """What measures these, one after another, and then the last for ever."""
    left = list(values)
    return lambda problem, controls, particles: left.pop(0) if len(left) > 1 else left[0]


def run(source, steps, start=None, extra=()):
    return mfoc.solve(bowl(), SGD, source, steps=steps, start=start, hooks=[source.measure, *extra])


# ---- the law


def test_the_size_is_the_noise_scale_at_most_doubled_and_never_less():
    source, seen = batches(ratio=0.7, every=2), hooks.Record(lambda iterate: iterate.controls[0], every=2)
    run(source, 60, extra=[seen])
    size, expected = 4, []
    for step, u in zip(seen.steps, seen.values, strict=True):
        wanted = max(size, math.ceil(min(0.7 * exact(None, [u], None), 2 * size)))
        size = wanted if wanted <= N // 2 else N
        expected.append((step, exact(None, [u], None), size))
    assert [(row.step, row.scale, row.batch_size) for row in source.measurements] == expected
    sizes = {size for _, _, size in expected}
    assert len(sizes) > 4  # the scale did grow on the way to the minimum


@pytest.mark.parametrize(
    ("found", "options", "sizes"),
    [
        ([9.2, 1000, 1000, 3], {}, [8, 16, 32, 32]),
        ([5.01, 7], {}, [6, 7]),
        ([5.01, 7], {"ratio": 1.5}, [8, 11]),
        ([None, math.nan, -3.0, 0.0, 6.0], {}, [4, 4, 4, 4, 6]),
        ([math.inf, math.inf, math.inf], {"most": 13}, [8, 13, 13]),
        ([1e4] * 8, {}, [8, 16, 32, 64, 128, 400, 400, 400]),
        ([1e4] * 8, {"most": 300}, [8, 16, 32, 64, 128, 200, 200, 200]),
        ([201, 3], {"batch_size": 101}, [400, 400]),
        ([1e4] * 3, {"most": 4}, [4, 4, 4]),
        ([1e4] * 3, {"most": 10**6, "batch_size": 200}, [400, 400, 400]),
    ],
    ids=[
        "doubled",
        "rounded up",
        "ratio",
        "unresolved",
        "most",
        "all",
        "most above half",
        "all from below half",
        "most is first",
        "from half",
    ],
)
def test_the_rule(found, options, sizes):
    source = batches(scales(*found), **options)
    run(source, 5 * len(found))
    assert [row.batch_size for row in source.measurements] == sizes
    assert source.batch_size == sizes[-1]
    assert len(source(5 * len(found))) == sizes[-1]
    assert source.schedule[0] == (0, options.get("batch_size", 4))
    assert [size for _, size in source.schedule] == sorted({options.get("batch_size", 4), *sizes})


def test_measured_by_default_the_scale_is_the_known_one():
    x, problem, reports = data(4000), bowl(), []

    def scale(*given):
        reports.append(noise_scale(*given, groups=100, confidence=0.999))
        return reports[-1]

    source = AdaptiveBatch(x, problem, batch_size=20, every=3, draws=4000, scale=scale)
    seen = hooks.Record(lambda iterate: iterate.controls[0], every=3)
    mfoc.solve(problem, SGD, source, steps=12, hooks=[source.measure, seen])
    noise = H @ torch.cov(x.T) @ H
    for u, row, report in zip(seen.values, source.measurements, reports, strict=True):
        slope = H @ (u - x.mean(0))
        assert (row.scale, row.simple) == (report.curved.value, report.simple.value)
        assert report.curved.low < float((H @ noise).trace() / (slope @ H @ slope)) < report.curved.high
        assert report.simple.low < float(noise.trace() / (slope @ slope)) < report.simple.high
    assert source.measurements[-1].scale > 4 * source.measurements[0].scale

    plain = AdaptiveBatch(x, problem, batch_size=20, every=3)
    mfoc.solve(problem, SGD, plain, steps=3, hooks=[plain.measure])
    assert plain.measurements[0].scale == pytest.approx(reports[0].curved.value, rel=0.5)


def test_where_the_draws_resolve_nothing_the_least_known_scale_counts():
    """At the mean of all particles G is zero: no number of draws resolves the scale, which is at least n / some."""
    x = data(1000)
    problem = mfoc.Problem(bowl().dynamics, bowl().terminal_cost, [x.mean(0)])
    still = mfoc.Gradient(partial(torch.optim.SGD, lr=1e-9))
    source = AdaptiveBatch(x, problem, batch_size=4, every=1)
    mfoc.solve(problem, still, source, steps=4, hooks=[source.measure])
    assert all(row.scale > 64 for row in source.measurements)
    assert [row.batch_size for row in source.measurements] == [8, 16, 32, 64]


def test_draws_are_new_ones_each_time_and_none_twice():
    clouds = []
    source = batches(lambda problem, controls, particles: clouds.append(particles), draws=50)
    run(source, 20)
    assert [len(cloud.indices().unique()) for cloud in clouds] == [50] * 4
    assert len({tuple(cloud.indices().tolist()) for cloud in clouds}) == 4


def test_at_a_fixed_rate_growing_batches_reach_what_large_ones_do_on_fewer_particles():
    """Where small ones stop at the level of their noise."""
    x, steps = data(), 250
    excess = lambda u: float((u - x.mean(0)) @ H @ (u - x.mean(0)) / 2)  # noqa: E731
    spent, grown, small = [], [], []
    for seed in range(3):
        source = batches(seed=seed, every=10)
        grown.append(excess(run(source, steps).controls[0]))
        spent.append(sum(len(source(step)) for step in range(steps)))
        plain = mfoc.population(x, batch_size=4, seed=seed)
        small.append(excess(mfoc.solve(bowl(), SGD, plain, steps=steps).controls[0]))
    whole = excess(mfoc.solve(bowl(), SGD, x, steps=steps).controls[0])
    assert max(spent) < 0.8 * steps * N
    assert max(grown) < 1.5 * whole
    assert min(small) > 20 * whole


# ---- a population


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: (x, x),
        lambda x: TensorDataset(x),
        lambda x: DataLoader(TensorDataset(x, x), batch_size=7),
        lambda x: mfoc.population(x, batch_size=9),
        lambda x: mfoc.Particles(x, index=torch.arange(N) + 5),
    ],
    ids=["tensor", "pair", "dataset", "loader", "population", "particles"],
)
def test_of_any_data(make):
    source = batches(source=make(data()))
    assert source.size == N
    assert [len(source(step)) for step in range(3)] == [4, 4, 4]
    assert torch.equal(source.cloud().state, data())
    assert torch.equal(source.cloud().indices(), mfoc.population(make(data())).cloud().indices())


def test_while_the_size_stays_it_is_the_plain_population_to_the_bit():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return data()[i] + torch.rand(3)

    source, plain = batches(source=Noisy()), mfoc.population(Noisy(), batch_size=4, seed=3)
    assert all(same_bits(source(step).state, plain(step).state) for step in range(5))
    assert torch.equal(source.cloud().state, plain.cloud().state)


def test_in_order():
    source = batches(source=torch.arange(float(N)), shuffle=False)
    assert source(2).state.tolist() == [8, 9, 10, 11]


def test_every_particle_is_seen_equally_often_along_a_solve():
    source, seen = batches(scales(7, 9, 30, 1e9)), torch.zeros(N, dtype=torch.int64)
    run(source, 60)
    assert source.batch_size == N
    for step in range(60):
        seen += torch.bincount(source(step).indices(), minlength=N)
        assert int(seen.max() - seen.min()) <= 1


def test_the_rest_of_the_library_takes_it():
    source = batches()
    solution = run(source, 10)
    assert repr(source) == f"AdaptiveBatch(size={N}, batch_size={source.batch_size})"
    assert float(mfoc.evaluate(bowl(), solution, source.cloud()).value) > 0
    assert mfoc.certify(bowl(), solution, source)
    for iterate in mfoc.iterate(bowl(), SGD, batches(every=3)):
        if iterate.step == 3:
            break


# ---- resuming


def test_a_resumed_solve_is_the_uninterrupted_one_to_the_bit(tmp_path):
    whole = batches()
    expected = run(whole, 60)
    for cut in (3, 5, 22, 45):
        first = batches()
        keep = lambda iterate, first=first: torch.save(first.state_dict(), tmp_path / "sizes.pt")  # noqa: E731
        run(first, cut, extra=[keep, hooks.Checkpoint(tmp_path / "run.pt", every=1)])
        second = batches()
        second.load_state_dict(torch.load(tmp_path / "sizes.pt", weights_only=True))
        found = run(second, 60, start=hooks.load(tmp_path / "run.pt"))
        assert same_bits(found.controls, expected.controls)
        assert second.measurements == whole.measurements
        assert second.state_dict() == whole.state_dict()


def test_measurements_that_are_ahead_of_the_checkpoint_are_not_made_again():
    """A run that was killed between the two files: what is resumed goes by what was measured then."""
    whole = batches()
    expected, kept = None, []
    expected = run(whole, 60, extra=[lambda iterate: kept.append(iterate) if iterate.step == 12 else None])

    def refuse(problem, controls, particles):
        raise AssertionError("measured again")

    second = batches(refuse)
    second.load_state_dict(whole.state_dict())
    assert same_bits(run(second, 60, start=kept[0]).controls, expected.controls)


def test_a_resumed_solve_without_its_measurements_is_refused():
    first = batches()
    at = run(first, 12).last
    with pytest.raises(InvalidValue, match=r"step 12 hangs on the noise scale at step 10.*load_state_dict"):
        run(batches(), 20, start=at)
    behind = batches()
    behind.load_state_dict(first.state_dict() | {"measurements": first.state_dict()["measurements"][:1]})
    with pytest.raises(InvalidValue, match=r"has not seen \(its last: 5\)"):
        run(behind, 20, start=at)
    with pytest.raises(InvalidValue, match="has not been at step 5"):
        batches().measure(mfoc.Iterate(10, bowl().controls, {}))


def test_a_checkpoint_from_before_a_measurement_is_made_up_for():
    """Of a run that was killed between the two, or whose hooks were in the wrong order."""
    whole, kept = batches(), []
    expected = run(whole, 30, extra=[lambda iterate: kept.append(iterate) if iterate.step == 10 else None])
    second = batches()
    second.load_state_dict(whole.state_dict() | {"measurements": whole.state_dict()["measurements"][:1]})
    with pytest.raises(InvalidValue, match=r"measure\(iterate\) makes up for it"):
        run(second, 30, start=kept[0])
    second.measure(kept[0])
    assert same_bits(run(second, 30, start=kept[0]).controls, expected.controls)


def test_a_solve_without_the_hook_is_refused_where_it_would_measure():
    with pytest.raises(InvalidValue, match=r"hooks=\[batches.measure\]") as raised:
        mfoc.solve(bowl(), SGD, batches(), steps=20)
    assert raised.value.last_iterate.step == 5


def test_a_solve_that_ends_where_it_would_measure_needs_no_more():
    assert run(batches(), 5).last.step == 5


def test_a_second_solve_sees_the_batches_of_the_first():
    source = batches()
    first = run(source, 30)
    kept = list(source.measurements)
    assert same_bits(run(source, 30).controls, first.controls)
    assert source.measurements == kept


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 4}, "seed=4; this population has 3"),
        ({"size": 9}, "size=9"),
        ({"every": 6}, "every=6"),
        ({"shuffle": False}, "shuffle=False"),
        ({"batch_size": 5}, "batch_size=5"),
        ({"measurements": [[5, 1.0, 1.0]]}, "rows of step"),
        ({"measurements": None}, "rows of step"),
        ({"measurements": [[6, 1.0, 1.0, 8]]}, "damaged"),
        ({"measurements": [[5, 1.0, 1.0, 3]]}, "damaged"),
        ({"measurements": [[5, 1.0, 1.0, 300]]}, "damaged"),
        ({"measurements": [[5, 1.0, 1.0, "8"]]}, "rows of step"),
        ({"more": 1}, "expected what AdaptiveBatch.state_dict"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_measurements_of_another_run_are_refused(change, says):
    source = batches()
    with pytest.raises(InvalidValue, match=says):
        source.load_state_dict(batches().state_dict() | change)
    assert source.schedule == [(0, 4)]


def test_a_measurement_reads_by_name():
    source = batches(scales(6.5))
    run(source, 5)
    assert source.measurements == [Measurement(step=5, scale=6.5, simple=None, batch_size=7)]


# ---- the door


def a_network():
    x, y = data(), torch.randint(0, 2, (N,), generator=torch.Generator().manual_seed(1))
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).double()
    return mfoc.from_module(net.train(), F.cross_entropy), (x, y)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"problem": "J"}, InvalidType, "problem is a str"),
        ({"batch_size": 0}, InvalidValue, "batch_size is 0"),
        ({"batch_size": 201}, InvalidValue, "at most half of them to grow from, 200"),
        ({"most": 3}, InvalidValue, "most is 3"),
        ({"every": 0}, InvalidValue, "every is 0"),
        ({"ratio": 0.0}, InvalidValue, "ratio is 0.0"),
        ({"ratio": math.nan}, InvalidValue, "ratio is nan"),
        ({"draws": 1}, InvalidValue, "draws is 1"),
        ({"scale": 3.0}, InvalidType, "scale is a float"),
        ({"scale": lambda particles: 1.0}, InvalidType, "scale takes"),
        ({"shuffle": 1}, InvalidType, "shuffle is 1"),
        ({"seed": -1}, InvalidValue, "seed is -1"),
        ({"source": lambda n: mfoc.Particles(data())}, InvalidType, "on demand"),
        ({"source": data(7)}, InvalidValue, "there are 7 particles; a measurement needs 8 or more"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(change, error, says):
    with pytest.raises(error, match=says):
        batches(**change)


def test_batches_that_are_populations_of_their_own_are_refused():
    problem, cloud = a_network()
    with pytest.raises(InvalidValue, match="its J changes with the size"):
        AdaptiveBatch(cloud, problem, batch_size=4)


def test_what_is_measured_is_an_iterate():
    with pytest.raises(InvalidType, match=r"iterate is an int; expected an mfoc\.Iterate"):
        batches().measure(5)


def test_what_measures_returns_a_number():
    with pytest.raises(InvalidType, match="returned a str; expected NoiseScales, a number or None"):
        run(batches(lambda *_: "large"), 5)
