"""One population object, or problem, in several threads: each sees what a single thread sees."""

import copy
import os
import pickle
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import mfoc
from mfoc.optim.orders import Orders
from mfoc.populations import Population, fingerprint
from mfoc.seeding import seeded

THREADS, STEPS = 4, 30


class Augmented(Dataset):
    """Items that are drawn anew each time, from three global generators."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.rand(2) + i, torch.tensor([np.random.rand(), random.random()])  # noqa: NPY002


class Stream(IterableDataset):
    """A buffer that shuffles, as iterables do."""

    def __len__(self):
        return 12

    def __iter__(self):
        rows = list(torch.arange(12.0))
        while rows:
            yield rows.pop(int(torch.randint(len(rows), ())))


class Taken:
    """A population as AdaptiveBatch takes it from its orders."""

    def __init__(self):
        self.orders = Orders(12, [(0, 5)], shuffle=True, seed=0)

    def __call__(self, step):
        return mfoc.Particles(self.orders(step).double())


def mapped(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float32, shape=(12, 2))
    rows[:] = np.arange(24).reshape(12, 2)
    return np.load(tmp_path / "rows.npy", mmap_mode="r")


SOURCES = {
    "held": lambda path: mfoc.population(torch.arange(24.0).reshape(12, 2), batch_size=5),
    "mapped": lambda path: mfoc.population(mapped(path), batch_size=5),
    "items": lambda path: mfoc.population(Augmented(), batch_size=5),
    "stream": lambda path: mfoc.population(Stream(), batch_size=5),
    "orders": lambda path: Taken(),
}


@pytest.fixture(autouse=True)
def _eager():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_threads_see_the_batches_of_one(make, tmp_path):
    alone = make(tmp_path)
    wanted = [fingerprint(alone(step)) for step in range(STEPS)]
    for _ in range(5):
        population, begin = make(tmp_path), threading.Barrier(THREADS)

        def run(number, population=population, begin=begin):
            begin.wait()
            steps = [(step * (2 * number + 1)) % STEPS for step in range(STEPS)]  # in orders that clash
            return {step: fingerprint(population(step)) for step in steps}

        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(run, range(THREADS)):
                assert all(wanted[step] == seen for step, seen in found.items())


@pytest.mark.parametrize("make", list(SOURCES.values())[:4], ids=list(SOURCES)[:4])
def test_a_copy_of_a_population_that_was_used_goes_on_alike(make, tmp_path):
    population = make(tmp_path)
    wanted = [fingerprint(population(step)) for step in range(8)]
    made = [copy.copy(population), copy.deepcopy(population), pickle.loads(pickle.dumps(population))]
    for each in made:
        assert isinstance(each, Population)
        assert [fingerprint(each(step)) for step in range(8)] == wanted


def test_seeded_blocks_of_threads_do_not_mix():
    def draw(key):
        with seeded(key):
            return [(float(torch.rand(())), float(np.random.rand()), random.random()) for _ in range(20)]  # noqa: NPY002

    wanted = [draw(key) for key in range(8)]
    before = torch.get_rng_state(), random.getstate()
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(draw, list(range(8)) * 5)) == wanted * 5
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("interacting", [False, True])
def test_two_solves_of_one_problem_give_the_bits_of_one(interacting):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8) if interacting else nn.Tanh(), nn.Linear(8, 3))
    problem = mfoc.from_module(net, nn.functional.cross_entropy)
    x = torch.randn(24, 2)
    population = mfoc.population((x, torch.arange(24) % 3), batch_size=None if interacting else 5, seed=3)

    def solve(lr):
        found = mfoc.solve(problem, mfoc.Gradient(lambda p: torch.optim.SGD(p, lr=lr)), population, steps=12)
        return torch.cat([leaf.flatten() for leaf in mfoc.tree.leaves(found.controls)])

    rates = [0.1, 0.2, 0.3, 0.1]
    wanted = [solve(lr) for lr in rates]
    for _ in range(2):
        with ThreadPoolExecutor(len(rates)) as pool:
            assert all(map(torch.equal, pool.map(solve, rates), wanted))


@pytest.mark.parametrize("flag", ["distributions", "fast path"])
def test_a_flag_of_the_process_is_put_back_by_whoever_leaves_last(flag):
    from mfoc.derivatives import without_fast_path
    from paradigms.bayesian.laws.normal import unvalidated

    switched, read = {
        "distributions": (unvalidated, lambda: torch.distributions.Distribution._validate_args),
        "fast path": (without_fast_path, torch.backends.mha.get_fastpath_enabled),
    }[flag]
    before, first, second = read(), switched(), switched()
    assert before
    first.__enter__()
    second.__enter__()  # in another thread, say
    first.__exit__(None, None, None)
    assert not read()
    second.__exit__(None, None, None)
    assert read()


def test_a_forked_process_takes_its_turn_though_another_thread_had_it():
    held, over = threading.Event(), threading.Event()

    def hold():
        with seeded(0):
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:  # pragma: no cover
        with seeded(1):
            os._exit(7)
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
