"""A population is a pure function of the step: every particle once an epoch, whatever it is made from."""

import copy
import pickle
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

import mfoc
from mfoc.errors import InvalidValue
from mfoc.populations import orders, shuffled
from mfoc.populations.datasets import stacked
from mfoc.seeding import mixed_seed, seeded
from tests.problems import same_bits
from tests.ranks import on_ranks


class Listed(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, k):
        return torch.tensor([float(k)]), k


class Streaming(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __iter__(self):
        return map(Listed(self.size).__getitem__, range(self.size))


def bits(cloud):
    return [cloud.state, cloud.data]


def visited(source, steps):
    return torch.cat([source(n).state for n in steps]).tolist()


SIZES = st.integers(1, 23)
BATCHES = st.one_of(st.none(), st.integers(1, 30))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, batch=BATCHES, seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_shuffled_every_particle_once_an_epoch_and_pure(size, batch, seed, epoch):
    cloud = torch.arange(size)
    make = lambda: mfoc.population(cloud, batch_size=batch, seed=seed)  # noqa: E731
    source, other = make(), make()
    length = min(batch or size, size)
    assert source.batches_per_epoch == -(-size // length)
    first = epoch * source.batches_per_epoch
    steps = range(first, first + source.batches_per_epoch)
    assert sorted(visited(source, steps)) == list(range(size))
    assert [len(source(n)) for n in steps][:-1] == [length] * (source.batches_per_epoch - 1)
    other(0)  # what was asked before makes no difference
    for n in reversed(steps):
        assert torch.equal(source(n).state, other(n).state)
    assert torch.cat([part.state for part in source.epoch()]).tolist() == list(range(size))


@settings(max_examples=60, deadline=None)
@given(size=SIZES, batch=BATCHES, epoch=st.integers(0, 10**6), loader=st.booleans())
def test_in_order_every_particle_weighs_the_same(size, batch, epoch, loader):
    """Full batches, on and on through the particles: over a cycle the mean of batch means is the mean."""
    cloud = torch.arange(float(size))
    given = DataLoader(TensorDataset(cloud), batch_size=min(batch or size, size))
    source = mfoc.population(given) if loader else mfoc.population(cloud, batch_size=batch, shuffle=False)
    length = min(batch or size, size)
    first = epoch * source.batches_per_epoch
    steps = range(first, first + source.batches_per_epoch)
    assert all(len(source(n)) == length for n in steps)
    rounds = source.batches_per_epoch * length // size
    assert visited(source, steps) == list(range(size)) * rounds
    means = torch.stack([source(n).state.double().mean() for n in steps])
    assert float(means.mean()) == pytest.approx((size - 1) / 2, rel=1e-12)
    earlier = range(1, source.batches_per_epoch)  # no shorter cycle is even
    assert all(n * length % size for n in earlier)
    assert torch.cat([part.state for part in source.epoch()]).tolist() == list(range(size))
    assert source.cloud().state.tolist() == list(range(size))


def doubled(index):
    return mfoc.Particles(torch.arange(10.0), index=index)


@pytest.mark.parametrize(
    ("make", "of"),
    [
        (lambda: mfoc.population(torch.arange(10.0), batch_size=4, seed=1), lambda x: x),
        (lambda: mfoc.population(torch.arange(10.0), batch_size=4, shuffle=False), lambda x: x),
        (lambda: mfoc.population(DataLoader(TensorDataset(torch.arange(10.0)), batch_size=3)), lambda x: x),
        (lambda: mfoc.population(DataLoader(TensorDataset(torch.arange(10.0)), 3, shuffle=True)), lambda x: x),
        (lambda: mfoc.population(lambda n: mfoc.Particles(torch.arange(10.0))), lambda x: x),
        (lambda: mfoc.population(doubled(torch.arange(10) ** 2), batch_size=4), lambda x: x**2),
        (lambda: mfoc.population(doubled(torch.arange(10) ** 2)), lambda x: x**2),
    ],
    ids=["shuffled", "in order", "loader", "shuffled loader", "drawn", "numbered", "numbered, whole"],
)
def test_particles_know_their_number(make, of):
    source = make()
    for cloud in [*map(source, range(7)), *source.epoch(), source.cloud(), source(2)[1:3]]:
        assert torch.equal(cloud.indices(), of(cloud.state).long())


def test_orders_differ_between_epochs_and_seeds():
    cloud = torch.arange(64)
    orders = [
        tuple(visited(mfoc.population(cloud, batch_size=8, seed=seed), range(8 * epoch, 8 * epoch + 8)))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


def test_the_whole_population_is_not_copied():
    x = torch.randn(4, 2)
    assert mfoc.population(x)(3).state is x


def test_the_global_generator_is_left_alone():
    class Noisy(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return torch.rand(2), i

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    source = mfoc.population(Noisy(), batch_size=4)
    first = source(0)
    assert torch.equal(torch.rand(3), expected)
    assert same_bits(bits(source(0)), bits(first))
    assert same_bits(bits(mfoc.population(Noisy(), batch_size=4)(0)), bits(first))
    assert not torch.equal(source(2).state, first.state)
    assert not torch.equal(mfoc.population(Noisy(), batch_size=4, seed=1)(0).state, first.state)


def test_dataset_with_random_transform():
    transforms = pytest.importorskip("torchvision.transforms")
    crop = transforms.Compose([transforms.RandomCrop(6), transforms.RandomHorizontalFlip()])
    images = torch.arange(10 * 64, dtype=torch.float32).view(10, 1, 8, 8)

    class Images(Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            return crop(images[i]), i % 3

    source, again = (mfoc.population(Images(), batch_size=4, seed=2) for _ in range(2))
    clouds = [source(n) for n in range(6)]
    for n in (5, 0, 3):
        assert same_bits(bits(again(n)), bits(clouds[n]))
    assert clouds[0].state.shape == (4, 1, 6, 6)
    assert clouds[0].data.dtype == torch.int64
    corners = [set(source(n).state[:, 0, 0, 0].tolist()) for n in range(0, 30)]
    assert len(set.union(*corners)) > 10  # the crops of a particle vary


def test_loader_decides():
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    still = mfoc.population(DataLoader(data, batch_size=4))
    assert visited(still, range(3)) == [*range(10), 0, 1]
    mixed = mfoc.population(DataLoader(data, batch_size=4, shuffle=True))
    assert visited(mixed, range(3)) != list(range(10))
    assert sorted(visited(mixed, range(3))) == list(range(10))
    dropped = mfoc.population(DataLoader(data, batch_size=4, shuffle=True, drop_last=True))
    assert dropped.batches_per_epoch == 2
    assert [len(dropped(n)) for n in range(5)] == [4] * 5
    assert len(set(visited(dropped, range(2)))) == 8
    assert sorted(torch.cat([part.state for part in dropped.epoch()]).tolist()) == list(range(10))
    both = mfoc.population(DataLoader(data, batch_size=4, drop_last=True))
    assert visited(both, range(4)) == [*range(8), *range(8)]


def test_loader_collates():
    loader = DataLoader(
        TensorDataset(torch.arange(6.0), torch.arange(6.0)),
        batch_size=3,
        collate_fn=lambda rows: (torch.stack([2 * x for x, _ in rows]), torch.stack([z for _, z in rows])),
    )
    cloud = mfoc.population(loader)(1)
    assert cloud.state.tolist() == [6, 8, 10]
    assert cloud.data.tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    "sampler",
    [
        lambda data: RandomSampler(data, replacement=True),
        lambda data: RandomSampler(data, num_samples=3),
        lambda data: SequentialSampler(range(4)),
    ],
)
def test_a_loader_that_does_not_visit_all_is_refused(sampler):
    data = TensorDataset(torch.arange(10.0))
    with pytest.raises(mfoc.InvalidType, match="sampler"):
        mfoc.population(DataLoader(data, batch_size=2, sampler=sampler(data)))


def test_tensor_datasets():
    x, z = torch.randn(5, 2), torch.arange(5)
    assert same_bits(bits(mfoc.population(TensorDataset(x, z))(0)), [x, z])
    assert mfoc.population(TensorDataset(x))(0).data is None

    class Doubled(TensorDataset):
        def __getitem__(self, i):
            x, z = super().__getitem__(i)
            return 2 * x, z

    assert torch.equal(mfoc.population(Doubled(x, z))(0).state, 2 * x)


def test_numpy():
    x, z = np.arange(12.0).reshape(6, 2), np.arange(6, dtype=np.int32)
    cloud = mfoc.population((x, z))(0)
    assert cloud.state.dtype == torch.float64
    assert cloud.data.dtype == torch.int64
    assert cloud.state.tolist() == x.tolist()
    flipped = mfoc.population(x[::-1])(0).state
    assert flipped.tolist() == x[::-1].tolist()
    frozen = np.ones((3, 2))
    frozen.flags.writeable = False
    mfoc.population(frozen)(0).state.add_(1)
    assert frozen.sum() == 6


def test_images_and_labels():
    image = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8)
    cloud = mfoc.population((image, torch.tensor([1, 0], dtype=torch.uint8)))(0)
    torch.testing.assert_close(cloud.state, torch.tensor([[0, 0.2], [0.4, 1]]))
    assert cloud.data.dtype == torch.int64
    assert cloud.data.tolist() == [1, 0]
    masks = mfoc.population((image, image))(0).data
    assert masks.dtype == torch.uint8

    class Pictures(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return image[i], i

    assert torch.equal(mfoc.population(Pictures())(0).state, cloud.state)


def test_pytrees():
    particles = mfoc.Particles(
        {"q": torch.arange(5.0), "pair": (torch.arange(5), torch.ones(5, 2))}, {"z": torch.arange(5)}
    )
    batch = mfoc.population(particles, batch_size=2, shuffle=False)(1)
    assert batch.state["q"].tolist() == [2, 3]
    assert batch.state["pair"][1].shape == (2, 2)
    assert batch.data["z"].tolist() == [2, 3]


def test_callable():
    source = mfoc.population(lambda n: mfoc.Particles(torch.full((3,), float(n))))
    assert source(4).state.tolist() == [4, 4, 4]
    assert (source.size, source.batch_size, source.batches_per_epoch) == (None, None, 1)
    assert [len(part) for part in source.epoch()] == [3]
    assert mfoc.population(source) is source


def test_legacy_generators_are_seeded_too():
    """Transforms that draw from `random` or NumPy's global generator are pure as well, and those are put back."""

    class Old(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return torch.tensor([random.random(), np.random.rand()])  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = (random.random(), np.random.rand())  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    source = mfoc.population(Old())
    first = source(2).state
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert torch.equal(source(2).state, first)
    assert not torch.equal(source(3).state, first)


def test_inference_tensors_can_be_solved_on():
    with torch.inference_mode():
        x = torch.ones(4, 2)
    problem = mfoc.Problem(lambda t, x, u, z: x @ u, lambda x, z: x.square().sum(1), [torch.eye(2)])
    solution = mfoc.solve(problem, mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=0.1)), x, steps=2)
    assert solution.value < 2


@pytest.mark.parametrize("batch", [None, 3], ids=["whole", "batches"])
def test_particles_can_be_fetched_by_their_place(batch):
    source = mfoc.population((torch.arange(10.0), torch.arange(10)), batch_size=batch)
    found = source.fetch(torch.tensor([7, 2, 7]), 0)
    assert found.state.tolist() == found.data.tolist() == found.indices().tolist() == [7, 2, 7]


def test_particles_drawn_on_demand_have_no_place():
    source = mfoc.population(lambda n: mfoc.Particles(torch.randn(3)))
    with pytest.raises(InvalidValue, match="no places to be taken from"):
        source.fetch(torch.tensor([0]), 0)


def test_a_look_back_over_an_epochs_end_shuffles_no_more(monkeypatch):
    made = []
    monkeypatch.setattr(orders, "shuffled", lambda *parts: made.append(parts[-1]) or shuffled(*parts))
    source = mfoc.population(torch.arange(100.0), batch_size=10, seed=3)
    expected = {n: mfoc.population(torch.arange(100.0), batch_size=10, seed=3)(n).state for n in range(8, 23)}
    made.clear()
    for n in [9, 10, 8, 10, 11, 9, 10, *range(11, 20), 20, 18, 20, 19, 21]:
        assert torch.equal(source(n).state, expected.get(n, source(n).state))
    assert made == [0, 1, 2]


def test_seeds_are_mixed_only_where_something_may_draw(monkeypatch):
    """Mixing one takes as long as taking a small batch."""
    held, items = (mfoc.population(s, batch_size=4) for s in (torch.arange(9.0), TensorDatasetLike(9)))
    monkeypatch.setattr("mfoc.populations.stored.mixed_seed", lambda *parts: 1 / 0)
    assert len(held(0)) == 4
    with pytest.raises(ZeroDivisionError):
        items(0)


class TensorDatasetLike(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return torch.tensor([float(i), float(torch.rand(()))])


def test_keys_are_those_of_the_step_whatever_was_asked_before():
    """What is drawn for a particle is seeded by mixed_seed(seed, step, 1): runs of 0.1.0 resume."""
    source = mfoc.population(TensorDatasetLike(8), batch_size=3, seed=5)
    for step in [40, 0, 15, 16, 17, 15, 2**40]:
        cloud = source(step)
        with seeded(mixed_seed(5, step, 1)):
            assert cloud.state[:, 1].tolist() == [float(torch.rand(())) for _ in range(len(cloud))]


def test_datasets_that_give_many_items_at_once_are_asked_so():
    class Many(TensorDatasetLike):
        def __getitems__(self, places):
            return [torch.tensor([10.0 * i]) for i in places]

    assert mfoc.population(Many(6), batch_size=3, shuffle=False)(1).state.tolist() == [[30], [40], [50]]
    assert next(iter(DataLoader(Many(6), 3))).tolist() == [[0], [10], [20]]


def test_all_places_in_another_order_are_fetched_in_that_order():
    order = torch.tensor([2, 0, 1])
    assert mfoc.population(torch.arange(3.0)).fetch(order, 0).state.tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype, bad):
    for place in range(5):
        x = torch.full((5, 3), 2.0, dtype=dtype)
        x[place, place % 3] = bad
        with pytest.raises(InvalidValue, match=f"NaN or infinite values, first at particle {place}"):
            mfoc.population(x)
    mixed = torch.tensor([[float("inf")], [-float("inf")]], dtype=dtype)
    with pytest.raises(InvalidValue, match="first at particle 0"):
        mfoc.population(mixed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_whose_sum_overflows_are_finite(dtype):
    x = torch.full((9, 2), torch.finfo(dtype).max, dtype=dtype)
    assert mfoc.population(x)(0).state is x


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu_and_copy_no_index():
    x, z = torch.randn(100, 3), torch.arange(100)
    here, there = (mfoc.population((x.to(d), z.to(d)), batch_size=7, seed=1) for d in ("cpu", "cuda"))
    there(0)
    torch.cuda.set_sync_debug_mode("error")  # a copy from pageable memory waits
    try:
        clouds = [there(n) for n in range(1, 15)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for n, cloud in enumerate(clouds, 1):
        assert same_bits(bits(cloud.to("cpu")), bits(here(n)))
        assert torch.equal(cloud.indices().cpu(), here(n).indices())


class Mixing:
    """A collate function that draws, as one that mixes two images does."""

    def __call__(self, rows):
        return torch.stack([x for x, _ in rows]) + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("kind", [Listed, Streaming])
def test_what_a_collate_function_draws_is_a_function_of_the_step(kind):
    one, other = (mfoc.population(DataLoader(kind(10), 3, collate_fn=Mixing())) for _ in range(2))
    before = random.getstate(), torch.get_rng_state().tolist()
    found = [one(step).state for step in range(9)]
    for step in (8, 2, 5):
        assert torch.equal(other(step).state, found[step])
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    assert not torch.equal(found[0] - found[0][0], found[1] - found[0][0])
    assert same_bits([c.state for c in one.epoch()], [c.state for c in other.epoch()])


Pair = namedtuple("Pair", "x z")
ROWS = {
    "tensors": [(torch.ones(2) * k, torch.tensor(k)) for k in range(3)],
    "lists": [[torch.ones(2) * k, torch.tensor(k)] for k in range(3)],
    "labels that are numbers": [(torch.ones(2) * k, k) for k in range(3)],
    "arrays": [(np.ones(2) * k, np.float32(k)) for k in range(3)],
    "nested": [((torch.ones(1), {"a": torch.ones(2)}), 0.5)] * 3,
    "named": [Pair(torch.ones(2), 1)] * 3,
    "dicts": [{"a": torch.ones(2)}] * 3,
    "bare": [torch.ones(2)] * 3,
    "parameters": [(torch.nn.Parameter(torch.ones(2)), torch.ones(1))] * 3,
    "one each": [(torch.ones(2),)] * 3,
    "text": [(torch.ones(2), "a")] * 3,
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_put_together_as_by_torch(name):
    one, other = stacked(ROWS[name]), default_collate(ROWS[name])
    assert type(one) is type(other)
    assert repr(one) == repr(other)


@pytest.mark.parametrize("rows", [[(torch.ones(2), 1), (torch.ones(2),)], [(torch.ones(2), 1), (torch.ones(3), 1)]])
def test_ragged_rows_are_refused(rows):
    class Ragged(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return rows[i]

    with pytest.raises(InvalidValue, match="do not collate"):
        mfoc.population(Ragged())(0)


@pytest.mark.parametrize("kind", [Listed, Streaming])
def test_a_population_can_be_copied_and_pickled(kind):
    source = mfoc.population(kind(10), batch_size=3, shuffle=False)
    source(3)  # an iterable is being read
    for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert torch.equal(other(5).state, source(5).state)


ARRAYS = {
    "masked": (lambda: np.ma.masked_array(np.ones(4), [0, 1, 0, 0]), "masked array.*fill it"),
    "long double": (lambda: np.ones(4, np.longdouble), r"which torch has not.*astype\(np\.float64\)"),
    "records": (lambda: np.zeros(4, [("a", "f4"), ("b", "i4")]), "expected numbers"),
    "objects": (lambda: np.array([1, "a"], dtype=object), "ragged"),
    "dates": (lambda: np.array(["2020-01-01"], dtype="M8[D]"), "expected numbers"),
    "a dict": (lambda: {"a": np.ones(4)}, r"\(source, None\) or \(source, z\)"),
    "one number": (lambda: np.array(3.0), "scalar"),
    "complex, not finite": (lambda: np.array([1, complex(0, np.nan)]), "first at particle 1"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_torch_has_no_equal_of_are_refused(name):
    make, words = ARRAYS[name]
    if name == "long double" and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long doubles are doubles here")
    with pytest.raises((mfoc.InvalidType, InvalidValue), match=words):
        mfoc.population(make())


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32])
def test_labels_of_any_width_are_int64(dtype):
    assert mfoc.population((np.ones((4, 2)), np.arange(4, dtype=dtype)), batch_size=2)(0).data.dtype == torch.int64


def explodes(t, x, u, z):
    return x * u


def last_good(source):
    """What a solve that runs into numbers that are not finite ends with."""
    problem = mfoc.Problem(explodes, lambda x, z: x[:, 0].pow(4), [torch.full((1,), 1.5)] * 2)
    return mfoc.solve(problem, mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=3e-4)), source, steps=60)


def test_the_last_good_iterate_is_found_whatever_the_batches_come_from():
    """A solve that looks back asks for its batches once more."""
    listed, read = (mfoc.population(DataLoader(kind(10), 3)) for kind in (Listed, Streaming))
    asked = []
    expected = last_good(listed)
    assert expected.status is mfoc.Status.NONFINITE
    for source in (read, lambda n: asked.append(n) or listed(n)):
        found = last_good(source)
        assert (found.status, found.last.step) == (expected.status, expected.last.step)
        assert same_bits(found.controls, expected.controls)
    assert asked.count(0) > 1  # it has looked back


def shares():
    """Batches of an iterable and of a list of its items, on one rank of two."""
    sources = [mfoc.population(DataLoader(kind(10), 4)) for kind in (Streaming, Listed)]
    return [[[c.state, c.data, c.indices()] for c in map(source, (0, 2, 7, 3))] for source in sources]


@pytest.mark.slow
def test_ranks_share_the_batches_of_an_iterable(tmp_path):
    whole = [mfoc.population(Streaming(10), batch_size=4)(n) for n in (0, 2, 7, 3)]
    ranks = [found[0] for found in on_ranks(tmp_path, shares)]
    for read, listed in ranks:
        assert same_bits(read, listed)
    for k, cloud in enumerate(whole):
        assert sorted(torch.cat([read[k][2] for read, _ in ranks]).tolist()) == sorted(cloud.indices().tolist())


def test_no_particles_are_no_batch():
    source = mfoc.population((torch.randn(5, 2), torch.arange(5)))
    with pytest.raises(mfoc.InvalidValue, match="empty"):
        source.fetch(torch.empty(0, dtype=torch.int64), 0)


@pytest.mark.parametrize("option", [{"num_workers": 2}, {"pin_memory": True}], ids=["workers", "pinned"])
def test_what_a_loader_does_elsewhere_is_refused(option):
    loader = DataLoader(TensorDataset(torch.arange(8.0)), batch_size=4, **option)
    with pytest.raises(mfoc.InvalidValue, match=f"{next(iter(option))}=.*expected {next(iter(option))}"):
        mfoc.population(loader)


def test_the_seed_of_a_loaders_generator_counts():
    def order(seed, own=0):
        generator = torch.Generator().manual_seed(own)
        loader = DataLoader(TensorDataset(torch.arange(32.0)), batch_size=32 // 2, shuffle=True, generator=generator)
        torch.rand(5, generator=generator)  # where it is does not
        return mfoc.population(loader, seed=seed)(0).state.tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, own=1)
