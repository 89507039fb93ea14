"""Arrays in files: the same batches, bit for bit, as the same arrays in memory, and no more than a batch of them."""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap

import mfoc
from mfoc.populations.mapped import mapped
from tests.problems import same_bits

N = 23


@pytest.fixture
def on_file(tmp_path):
    """Writes an array and maps it, in a way of its own each time."""

    def write(array, mode="r"):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode=mode)

    return write


def arrays():
    rng = np.random.default_rng(0)
    return {
        "float32": rng.standard_normal((N, 3)).astype(np.float32),
        "float64": rng.standard_normal((N, 2, 2)),
        "images": rng.integers(0, 256, (N, 2, 3)).astype(np.uint8),
        "scalars": rng.standard_normal(N),
        "flags": rng.integers(0, 2, (N, 2)) == 1,
        "big endian": rng.standard_normal((N, 2)).astype(">f4"),
        "columns first": np.asfortranarray(rng.standard_normal((N, 4))),
        "labels": rng.integers(0, 10, N).astype(np.int32),
    }


ARRAYS = arrays()


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert same_bits([a.state, a.data, a.indices()], [b.state, b.data, b.indices()])


def batches(source, **options):
    population = mfoc.population(source, **options)
    return [*map(population, [0, 5, 2, 9, 1]), *population.epoch(), population.cloud()]


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("name", ARRAYS)
def test_the_same_batches_as_in_memory(name, mode, on_file):
    x, z = on_file(ARRAYS[name], mode), ARRAYS["labels"]
    same(batches(x, batch_size=4, seed=2), batches(ARRAYS[name], batch_size=4, seed=2))
    same(batches((x, on_file(z, mode)), batch_size=5), batches((ARRAYS[name], z), batch_size=5))
    same(batches((x, z), batch_size=6, shuffle=False), batches((ARRAYS[name], z), batch_size=6, shuffle=False))


VIEWS = {
    "a part": lambda x: x[3:19],
    "every other": lambda x: x[::2],
    "backwards": lambda x: x[::-1],
    "a column": lambda x: x[:, 1],
    "as an array": np.asarray,
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_left_in_the_file_too(name, on_file):
    view = VIEWS[name]
    x = view(on_file(ARRAYS["float32"]))
    assert mapped(x)
    same(batches(x, batch_size=4), batches(view(ARRAYS["float32"]), batch_size=4))


def test_trees_of_files_and_tensors(on_file):
    def source(save):
        state = {"a": save(ARRAYS["images"]), "b": (torch.arange(N), save(ARRAYS["float64"]))}
        return state, [save(ARRAYS["labels"]), torch.arange(float(N))]

    same(batches(source(on_file), batch_size=7), batches(source(lambda array: array), batch_size=7))


def test_a_raw_file_from_some_byte_on(tmp_path):
    x = ARRAYS["float32"]
    (tmp_path / "x").write_bytes(b"header" + x.tobytes())
    raw = np.memmap(tmp_path / "x", np.float32, "r", 6, x.shape)
    same(batches(raw, batch_size=4), batches(x, batch_size=4))


def test_what_is_copied_from_a_file_is_in_memory(on_file):
    x = on_file(ARRAYS["float32"])
    assert not mapped(x.copy())
    assert not mapped(x[[1, 2]])
    assert not mapped((torch.ones(2), np.ones(2)))
    assert mapped((torch.ones(N), {"z": x}))


def test_all_of_it_at_once_is_read_once(on_file):
    population = mfoc.population(on_file(ARRAYS["images"]))
    assert population(0).state is population(3).state
    population = mfoc.population(on_file(ARRAYS["images"]), batch_size=N + 1)
    assert population(0).state is population(3).state


def test_what_is_not_finite_is_named_by_its_place_when_it_is_read(on_file):
    x = ARRAYS["float32"].copy()
    x[17, 1] = np.nan
    population = mfoc.population(on_file(x), batch_size=3, shuffle=False)
    assert len(population(0)) == 3
    with pytest.raises(mfoc.InvalidValue, match=r"state holds NaN.*particle 17"):
        population(5)


BAD = {
    "unequal": (lambda save: (save(np.ones((N, 2))), save(np.ones(N - 1))), "data holds 22"),
    "unequal to a tensor": (lambda save: (save(np.ones((N, 2))), torch.ones(4)), "data holds 4"),
    "words": (lambda save: save(np.array(["a"] * N)), "array of <U1"),
    "not finite in memory": (lambda save: (({"a": torch.full((N,), np.nan), "b": save(np.ones(N))}), None), "NaN"),
    "empty": (lambda save: (save(np.ones((N, 2)))[:0], None), "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_population_is_refused_at_once(name, on_file):
    make, words = BAD[name]
    with pytest.raises((mfoc.InvalidType, mfoc.InvalidValue), match=words):
        mfoc.population(make(on_file), batch_size=4)


def test_a_solve_from_a_file_is_that_from_memory(on_file):
    problem = mfoc.Problem(lambda t, x, u, z: x @ u, lambda x, z: (x.sum(1) - z).square(), [torch.eye(3)] * 2)
    solver = mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=0.01))
    x, z = ARRAYS["float32"], ARRAYS["labels"]
    one, other = (
        mfoc.solve(problem, solver, mfoc.population(data, batch_size=5), steps=12)
        for data in ((x, z), (on_file(x), on_file(z)))
    )
    assert same_bits(one.controls, other.controls)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_a_file_larger_than_memory(tmp_path):
    """A sparse file of 1 GiB, with a limit on what this process may allocate that is far below."""
    count = 2**20
    open_memmap(tmp_path / "x.npy", "w+", np.uint8, (count, 1024)).flush()
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    kept = resource.getrlimit(resource.RLIMIT_DATA)
    lines = Path("/proc/self/status").read_text().splitlines()
    used = int(next(line for line in lines if line.startswith("VmData")).split()[1]) * 1024
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (used + 2**28, kept[1]))
        population = mfoc.population((x, np.arange(count, dtype=np.int32)), batch_size=64)
        for step in (0, 1, population.batches_per_epoch):
            cloud = population(step)
            assert torch.equal(cloud.data, cloud.indices())
            assert cloud.state.shape == (64, 1024)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, kept)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_wide_unsigned_integers_are_int64_wherever_they_are(tmp_path, kind, batch_size):
    values = np.arange(8, dtype=kind).reshape(4, 2) + 60_000
    np.save(tmp_path / "x.npy", values)
    wanted = torch.arange(8).reshape(4, 2) + 60_000
    files = np.load(tmp_path / "x.npy", mmap_mode="r")
    for x, y in [
        (values, values[:, 0]),
        (files, files[:, 0]),
        (torch.from_numpy(values), torch.from_numpy(values)[:, 0]),
    ]:
        cloud = mfoc.population((x, {"y": y, "all": x}), batch_size=batch_size, shuffle=False)(0)
        assert torch.equal(cloud.state, wanted[: len(cloud)])
        assert torch.equal(cloud.data["y"], wanted[: len(cloud), 0])
        assert torch.equal(cloud.data["all"], wanted[: len(cloud)])


def test_unsigned_integers_that_int64_does_not_hold_are_refused():
    with pytest.raises(mfoc.InvalidValue, match=r"2\^63"):
        mfoc.population(np.array([1, 2**63], dtype=np.uint64))


@pytest.mark.parametrize("through", ["numpy", "dataset"])
def test_a_large_tensor_over_a_file_is_looked_at_a_batch_at_a_time(tmp_path, monkeypatch, through):
    monkeypatch.setattr("mfoc.populations.door._LARGE", 100)
    np.save(tmp_path / "x.npy", np.where(np.arange(64) == 50, np.nan, 1.0).astype(np.float32))
    x = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    source = x if through == "numpy" else torch.utils.data.TensorDataset(x)
    population = mfoc.population(source, batch_size=16, shuffle=False)
    assert population(0).state.isfinite().all()
    with pytest.raises(mfoc.InvalidValue, match="first at particle 50"):
        population(3)
    for whole in (None, 64, 100):
        with pytest.raises(mfoc.InvalidValue, match="first at particle 50"):
            mfoc.population(source, batch_size=whole)


def test_files_that_are_read_whole_say_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mfoc.populations.door._LARGE", 100)
    np.save(tmp_path / "x.npy", np.ones(64, dtype=np.float32))
    files = np.load(tmp_path / "x.npy", mmap_mode="r")
    mfoc.population(files, batch_size=16)
    assert not caplog.records
    mfoc.population(files)
    assert "read into memory" in caplog.text
