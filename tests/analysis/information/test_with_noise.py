"""The noise of a bottleneck: standard normals, a function of seed, step and particle."""

import pytest
import torch
from scipy import stats

import mfoc
from mfoc.analysis.information import with_noise
from mfoc.errors import InvalidValue
from tests.problems import labels, normal

DATA = (normal(12, 3), labels(12, 3))


def test_noise_is_a_function_of_seed_step_and_particle():
    whole = with_noise(DATA, 2, seed=1)
    batches = with_noise(DATA, 2, batch_size=5, seed=1)
    assert torch.equal(whole(3).data["noise"], with_noise(DATA, 2, seed=1)(3).data["noise"])
    assert not torch.equal(whole(3).data["noise"], whole(4).data["noise"])
    assert not torch.equal(whole(3).data["noise"], with_noise(DATA, 2, seed=2)(3).data["noise"])
    batch = batches(3)
    assert torch.equal(batch.data["noise"], whole(3).data["noise"][batch.indices()])
    assert torch.equal(batch.data["y"], DATA[1][batch.indices()])
    assert torch.equal(batches.cloud().data["noise"], whole.cloud().data["noise"])


def test_noise_is_standard_normal_and_of_the_type_of_the_state():
    population = with_noise((torch.zeros(5000, 1), torch.zeros(5000)), 2)
    noise = population(0).data["noise"]
    assert noise.dtype == torch.float32
    numbers = torch.cat([noise.flatten(), population(1).data["noise"].flatten()])
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 0.01
    between = torch.corrcoef(torch.cat([noise, noise.roll(1, 0), population(1).data["noise"]], 1).T) - torch.eye(6)
    assert float(between.abs().max()) < 0.06  # coordinates, neighbours and steps are unrelated


def test_particles_are_fetched_by_their_places_with_noise():
    population = with_noise(DATA, 2)
    some, all_of_them = population.fetch(torch.tensor([7, 2]), 5), population.fetch(torch.arange(12), 5)
    assert torch.equal(some.data["noise"], all_of_them.data["noise"][[7, 2]])
    assert torch.equal(some.data["y"], DATA[1][[7, 2]])
    assert not torch.equal(some.data["noise"], population.fetch(torch.tensor([7, 2]), 6).data["noise"])


def test_data_that_is_a_dict_is_given_the_noise():
    particles = with_noise(mfoc.Particles(DATA[0], {"y": DATA[1], "mask": DATA[0]}), 2)(0)
    assert set(particles.data) == {"y", "mask", "noise"}


def test_no_global_random_number_is_drawn():
    state = torch.get_rng_state()
    with_noise(DATA, 2)(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_populations_that_cannot_be_given_noise_are_refused():
    with pytest.raises(InvalidValue, match="on demand"):
        with_noise(lambda n: mfoc.Particles(*DATA), 2)
    with pytest.raises(InvalidValue, match="targets"):
        with_noise(DATA[0], 2)(0)
    with pytest.raises(InvalidValue, match="latent"):
        with_noise(DATA, 0)
