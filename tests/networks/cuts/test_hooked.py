"""Networks that tracing cannot read: run again up to each cut, they are the same function, or are refused."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mfoc
from mfoc.networks.cuts import cut
from tests.networks.cuts import branching
from tests.networks.cuts.branching import BLOCKS, made
from tests.networks.cuts.test_alive import agrees
from tests.oracles.training import output
from tests.problems import normal, same_bits


@pytest.mark.parametrize(
    "x", [normal(4, 3), {"x": normal(4, 3), "scale": normal(4, 1, seed=2).abs()}], ids=["alone", "scaled"]
)
@pytest.mark.parametrize("stages", [BLOCKS, BLOCKS[1:], [*BLOCKS, "norm"], ["blocks.0.0", "blocks.2.1"]], ids=str)
def test_control_flow(x, stages):
    agrees(made(branching.Branching), x, stages)


def test_the_route_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="mfoc"):
        cut(made(branching.Branching), BLOCKS)
    assert "cannot be traced" in caplog.text


def test_an_earlier_output_that_is_used_at_the_end_is_carried():
    net, x = made(branching.Stacked), normal(4, 3)
    problem = agrees(net, x, BLOCKS)
    states = mfoc.rollout(problem, problem.controls, mfoc.Particles(x, normal(4, 2))).states
    assert [sorted(state) for state in states[1:3]] == [["input", "value"], ["blocks.0", "input", "value"]]


def test_blocks_that_return_tuples():
    net, x = made(branching.Answering), normal(4, 3)
    expected = net(x)
    problem = mfoc.from_module(net, lambda y, z: y["logits"].sum(1), stages=BLOCKS)
    assert same_bits(output(problem, x), expected)


def test_the_weights_of_a_stage_are_its_own():
    """A head counts to the last stage wherever it is registered; J depends on each control as torch says."""
    problem = mfoc.from_module(made(branching.Branching), F.mse_loss, stages=BLOCKS)
    first, middle, last = (sorted({key.split(".")[0] for key in u}) for u in problem.controls)
    assert (first, middle, last) == (["blocks", "embed"], ["blocks"], ["blocks", "head", "norm"])
    shaken = mfoc.tree.map(lambda leaf: leaf + 0.1 * torch.ones_like(leaf), problem.controls)
    solved = mfoc.to_module(made(branching.Branching), shaken, stages=BLOCKS)
    x = normal(4, 3)
    torch.testing.assert_close(output(problem, x, controls=shaken), solved(x), rtol=1e-13, atol=1e-14)


def test_fewer_particles_than_on_the_first_call():
    net, x = made(branching.Stacked), normal(4, 3)
    problem = mfoc.from_module(net, F.mse_loss, stages=BLOCKS)
    for n in (4, 2, 1):
        torch.testing.assert_close(output(problem, x[:n]), net(x[:n]), rtol=1e-13, atol=1e-14)


def test_solving_is_training():
    net, x, z = made(branching.Branching), normal(6, 3), normal(6, 2, seed=1)
    problem = mfoc.from_module(net, F.mse_loss, stages=BLOCKS)
    solution = mfoc.solve(problem, mfoc.Gradient(lambda p: torch.optim.SGD(p, 0.1)), (x, z), steps=3)
    own = made(branching.Branching)
    optimiser = torch.optim.SGD(own.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        F.mse_loss(own(x), z).backward()
        optimiser.step()
    solved = mfoc.to_module(net, solution, stages=BLOCKS)
    for a, b in zip(solved.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_layers_between_the_blocks_are_named_too():
    net, x = made(branching.Between), normal(4, 3)
    with pytest.raises(mfoc.InvalidValue, match=r"norms\.1\..*name 'norms\.1' in stages"):
        output(mfoc.from_module(net, F.mse_loss, stages=["blocks.0", "blocks.1"]), x)
    agrees(net, x, ["norms.0", "blocks.0", "norms.1", "blocks.1"])


@pytest.mark.parametrize(
    ("kind", "stages", "message"),
    [
        (branching.Shared, BLOCKS, r"'embed\..*is used in \['blocks.1', 'blocks.2'\]"),
        (branching.Hidden, BLOCKS, r"cannot be cut at .*gives another value"),
        (branching.Branching, BLOCKS[::-1], r"these modules run as \['blocks.0'"),
        (branching.Branching, ["blocks"], r"these modules run as \[\]"),
    ],
)
def test_refusals(kind, stages, message):
    problem = mfoc.from_module(made(kind), F.mse_loss, stages=stages)
    with pytest.raises(mfoc.InvalidValue, match=message):
        problem.validate(mfoc.Particles(normal(4, 3), normal(4, 2)))


def test_many_weights_at_once():
    """Under ``torch.func`` values cannot be looked at: all is carried then, and the outcome is the same."""
    problem = mfoc.from_module(made(Quiet), F.mse_loss, stages=BLOCKS)
    x, scales = normal(4, 3), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def at(scale):
        controls = mfoc.tree.map(lambda leaf: scale * leaf, problem.controls)
        return output(problem, x, controls=controls)

    early = torch.func.vmap(at)(scales)  # before anything was verified
    alone = torch.stack([at(scale) for scale in scales])
    torch.testing.assert_close(early, alone, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.func.vmap(at)(scales), alone, rtol=1e-12, atol=1e-13)


class Quiet(branching.Stacked):
    """Decides by what is no tensor."""

    def forward(self, x, scale=None):
        h = self.embed(x)
        kept = []
        for layer in self.blocks if len(x) else []:
            h = layer(h)
            kept.append(h)
        return self.finish(h + kept[0] + x)


def test_a_whole_encoder_in_evaluation_mode():
    """Its own fast path, which packs what is not padding, is left."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).double().eval()
    x = normal(3, 5, 4)
    pad = torch.arange(5).expand(3, 5) > 3
    agrees(net, x, ["layers.0", "layers.1"])
    agrees(net, {"src": x, "src_key_padding_mask": pad}, ["layers.0", "layers.1"])
