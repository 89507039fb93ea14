"""Targets that are true or false: class indices, or numbers, as the loss wants them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc

TRUE = torch.tensor([True, False, True, True, False, False])
CASES = {
    "classes": (F.cross_entropy, (6, 2), TRUE, TRUE.long()),
    "a module": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), (6, 2), TRUE, TRUE.long()),
    "none ignored": (nn.CrossEntropyLoss(ignore_index=0), (6, 2), TRUE, TRUE.long()),
    "each sample": (nn.CrossEntropyLoss(reduction="none"), (6, 2), TRUE, TRUE.long()),
    "one logit": (F.binary_cross_entropy_with_logits, (6,), TRUE, TRUE.float()),
    "a column": (nn.BCEWithLogitsLoss(), (6, 1), TRUE[:, None], TRUE[:, None].float()),
    "squares": (F.mse_loss, (6,), TRUE, TRUE.float()),
    "probabilities": (F.cross_entropy, (6, 2), torch.stack([TRUE, ~TRUE], 1), torch.stack([TRUE, ~TRUE], 1).float()),
}


@pytest.mark.parametrize(("loss", "shape", "given", "meant"), CASES.values(), ids=CASES)
def test_bool_targets_are_what_they_say(loss, shape, given, meant):
    net = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2 if shape[1:] == (2,) else 1), nn.Flatten(0 if len(shape) == 1 else 1)
    )
    x = torch.linspace(-1, 1, 18).reshape(6, 3)
    problem = mfoc.from_module(net, loss)
    found = mfoc.rollout(problem, problem.controls, mfoc.population((x, given))(0)).cost
    wanted = mfoc.rollout(problem, problem.controls, mfoc.Particles(x, meant)).cost
    assert torch.equal(found, wanted)
    assert torch.allclose(found.mean(), loss(net(x), meant).mean())
    assert mfoc.evaluate(problem, problem.controls, mfoc.Particles(x, given))[0].isfinite()


def test_masks_stay_masks():
    assert mfoc.population((torch.zeros(6), {"mask": TRUE}))(0).data["mask"].dtype == torch.bool
