"""Groups and folds of a cloud, and whether its particles interact."""

import pytest
import torch
import torch.nn.functional as F

import mfoc
from mfoc.certificate.split import Split, interact
from tests.problems import CATALOGUE, INTERACTING, D, generator, normal


@pytest.mark.parametrize("name", CATALOGUE)
def test_particles_that_interact_are_known(name):
    problem, cloud = CATALOGUE[name]()
    assert interact(problem, problem.controls, cloud) == (name in INTERACTING)


def test_a_law_that_is_at_rest_at_the_controls_is_found_beside_them():
    """J = (E u x)^2: at u = 0 no particle moves another, but J has the curvature 2 (E x)^2 there."""
    problem = mfoc.Problem(
        lambda t, x, u, z: u * x.mean(0).expand_as(x), lambda x, z: x[:, 0].square(), [torch.zeros(1, dtype=D)]
    )
    cloud = normal(40, 1) + 1
    assert not interact(problem, problem.controls, mfoc.Particles(cloud))
    found = mfoc.certify(problem, problem, cloud)
    assert found.interacting
    assert found.hessian.value == pytest.approx(2 * cloud.mean().item() ** 2)
    assert found.hessian.low < found.hessian.value < found.hessian.high


def test_losses_that_share_a_normaliser_are_no_independent_particles():
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0], dtype=D))
    net = torch.nn.Sequential(torch.nn.Linear(2, 2)).double()
    problem = mfoc.Problem(
        lambda t, x, u, z: x @ u,
        lambda x, z: (
            len(z) * F.cross_entropy(x, z, weight=weighted.weight, reduction="none") / weighted.weight[z].sum()
        ),
        [net[0].weight.detach().mT.clone()],
    )
    labels = (torch.arange(20) > 14).long()
    assert interact(problem, problem.controls, mfoc.Particles(normal(20, 2), labels))


@pytest.mark.parametrize(("count", "groups"), [(1, 20), (2, 20), (7, 3), (100, 20)])
def test_every_particle_is_in_one_group_and_every_group_in_one_fold(count, groups):
    cloud = mfoc.Particles(torch.arange(count, dtype=D)[:, None])
    split = Split.of(cloud, groups, generator(), interacting=False)
    assert torch.cat(split.groups).sort().values.tolist() == list(range(count))
    assert len(split) == min(groups, count)
    assert float(split.weights.sum()) == pytest.approx(1)
    rests = list(split.without_folds())
    assert len(rests) == (0 if count == 1 else min(5, count, groups))
    for fold, rest in enumerate(rests):
        own = cloud[split.members(fold)].state
        assert torch.cat([rest.state, own]).sort(0).values.tolist() == cloud.state.tolist()


def test_pseudo_values_of_means_are_the_groups_own():
    cloud = mfoc.Particles(normal(12, 3))
    alone = Split.of(cloud, 4, generator(), interacting=False)
    rest = Split.of(cloud, 4, generator(), interacting=True)
    whole = cloud.state.mean(0)
    means = [torch.stack([part.state.mean(0) for part in split.parts()]) for split in (alone, rest)]
    assert torch.allclose(alone.values(whole, means[0]), rest.values(whole, means[1]))
