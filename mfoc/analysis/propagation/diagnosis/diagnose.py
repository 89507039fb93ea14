"""A network's own signal propagation, block by block, with theory beside it: will it train, and what breaks it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.analysis.jacobians import random_like
from mfoc.analysis.propagation.diagnosis.measures import Measured, measure
from mfoc.analysis.propagation.diagnosis.report import BlockDiagnosis, Diagnosis
from mfoc.analysis.propagation.diagnosis.verdict import conclude
from mfoc.analysis.propagation.recording.blocks import Block, find_blocks, severed
from mfoc.analysis.propagation.recording.layers import averages, predictions, read_layer
from mfoc.analysis.propagation.recording.record import Recording, carries, record
from mfoc.analysis.propagation.recording.rolled import rolled_out
from mfoc.checks import check_callable, check_instance, check_integer
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.inspection import bare_matrices
from mfoc.problem import Problem
from mfoc.tree import Tree

NAN = float("nan")


def diagnose(
    net: nn.Module | Problem[Any],
    x: Any,
    loss: Callable[..., Tensor] | None = None,
    *,
    targets: Tree = None,
    controls: Any = None,
    seed: int = 0,
    probes: int = 2,
) -> Diagnosis:
    """How signals and gradients pass through a network as it stands: block by block, with a verdict and a cure.

    Containers are unrolled to what they repeat: layers with their activation, residual blocks, transformer layers.
    Nothing of the network changes: a private copy is run, in the mode it is in,
    with batch norm's averages left alone and dropout drawn from ``seed``.

    It costs one forward pass and ``1 + probes`` backward passes through the network, and the memory of its graph.

    Args:
        net: any module, or a ``Problem``, whose stages are the blocks.
        x: a batch of inputs ``[N, ...]`` as the network takes it, a few dozen of them: a tensor, a tuple of several
            arguments, or a dict of named ones. For a problem, what ``mfoc.population`` takes, all of it.
        loss: ``loss(output, targets)``, such as ``F.cross_entropy``, or ``loss(output)`` without targets; its mean is
            differentiated. Without one, a random gradient starts at the output. A problem has its own costs.
        targets: what the loss compares with.
        controls: of a problem: where it stands; its initial guess when None.
        seed: of the random products and of dropout.
        probes: random products for each block's chi.

    Returns:
        The diagnosis; printing it says the verdict first.

    Raises:
        InvalidType: no network or problem, an x without tensors, an output or loss without a derivative.
        InvalidValue: an empty x, a lazy or parameterless network, one that fails on x or that cannot be copied, a lazy
            loss.
    """
    check_integer(0, seed=seed)
    check_integer(1, probes=probes)
    if isinstance(net, Problem):
        return _of_problem(net, x, loss, targets, controls, probes=probes, seed=seed)
    check_instance(nn.Module, "a torch.nn.Module or an mfoc.Problem", net=net)
    if controls is not None:
        raise InvalidValue("controls were given with a module; they belong to a Problem")
    recording = record(net, x, seed=seed)
    with torch.inference_mode(False), torch.enable_grad():
        return _of_recording(recording, loss, targets, probes=probes, seed=seed)


def _of_recording(recording: Recording, loss: Any, targets: Tree, *, probes: int, seed: int) -> Diagnosis:
    blocks = find_blocks(recording)
    value = None if loss is None else _loss(loss, recording.output, targets)
    outputs = [point.tensor for point in recording.root.ends] if value is None else [value]
    cotangents = random_like(outputs, torch.Generator().manual_seed(seed)) if value is None else None
    own = [[p for p in block.parameters.values() if id(p) in recording.trainable] for block in blocks]
    found = measure(blocks, outputs, cotangents, own, probes=probes, seed=seed + 1)
    layers = [read_layer(block) for block in blocks]
    described = []
    for block, measured, layer, theory in zip(blocks, found, layers, predictions(blocks, layers), strict=True):
        one = _described(block, measured, counted=not (block.recurrent or averages(block)))
        if layer is not None:
            one = replace(one, weight_variance=layer.weight_variance, bias_variance=layer.bias_variance)
        if theory is not None:
            one = replace(one, q_theory=theory[0], chi_theory=theory[1])
        described.append(one)
    recurrent = any(block.recurrent for block in blocks[:-1])
    if (len(described) > 2 or recurrent) and (blocks[-1].core is not None or blocks[-1].resizes):
        described[-1] = replace(described[-1], counted=False)  # the readout
    if len(described) > 3 and blocks[0].core is not None and _reads_data(blocks[0], recording):
        described[0] = replace(described[0], counted=False)  # no weights lie behind it for a gradient to reach
    arrives = found[-1].arrives > 0
    return _concluded(
        described,
        blocks,
        recording.size,
        NAN if value is None else float(value.detach()),
        probes,
        severed=severed(recording),
        bare=_bare(blocks, recording),
        idle=_idle(blocks, found, recording) if arrives else (),
        frozen=not recording.trainable,
        flat=value is not None and found[-1].arrives == 0,
    )


def _bare(blocks: Sequence[Block], recording: Recording) -> list[str]:
    """The matrices of containers that no block holds: what they do belongs to the blocks beside them."""
    held = {key for block in blocks for key in block.parameters}
    return [name for name, parameter in bare_matrices(recording.root.module) if id(parameter) not in held]


def _idle(blocks: Sequence[Block], found: Sequence[Measured], recording: Recording) -> list[str]:
    """The matrices of modules that ran whose gradient is exactly zero."""
    still = {key for measured in found for key in measured.idle}
    ran = {id(part.module) for block in blocks for call in block.calls for part in call.walk()}
    return [
        f"{name}.{leaf}" if name else leaf
        for name, part in recording.root.module.named_modules()
        if id(part) in ran
        for leaf, parameter in part.named_parameters(recurse=False)
        if id(parameter) in still and parameter.dim() > 1
    ]


def _reads_data(block: Block, recording: Recording) -> bool:
    """Whether the inputs enter a block as they are; it may hold another place of them on the graph, a view."""
    given = {point.tensor.data_ptr() for point in recording.entering}
    return bool(given) and {point.tensor.data_ptr() for point in block.starts} <= given


def _of_problem(
    problem: Problem[Any], x: Any, loss: Any, targets: Tree, controls: Any, *, probes: int, seed: int
) -> Diagnosis:
    if loss is not None or targets is not None:
        raise InvalidValue("a Problem has costs of its own; expected no loss and no targets beside it")
    with torch.inference_mode(False), torch.enable_grad():
        blocks, value, own, size = rolled_out(problem, x, controls)
        found = measure(blocks, [value], None, own, probes=probes, seed=seed + 1)
    described = [_described(block, measured) for block, measured in zip(blocks, found, strict=True)]
    if len(blocks) > 3:  # what changes the size at the ends is met once, whatever the depth
        for k in (0, -1):
            described[k] = replace(described[k], counted=not blocks[k].resizes)
    return _concluded(described, blocks, size, float(value.detach()), probes)


def _described(block: Block, measured: Measured, *, counted: bool = True) -> BlockDiagnosis:
    end = block.ends[0].seen
    seen = end if block.core is None else block.core.ends[0].seen
    return BlockDiagnosis(
        block.label,
        seen.q,
        seen.c,
        seen.tokens,
        end.constant,
        measured.forward.value,
        measured.forward.error,
        measured.backward,
        measured.arrives,
        measured.gradient,
        weights=sum(parameter.dim() > 1 for parameter in block.parameters.values()),
        counted=counted,
        recurrent=block.recurrent,
    )


def _concluded(
    described: Sequence[BlockDiagnosis], blocks: Sequence[Block], size: int, value: float, probes: int, **seen: Any
) -> Diagnosis:
    entering = blocks[0].starts[0].seen
    finding, verdict = conclude(described, entering, **seen)
    return Diagnosis(finding, verdict, tuple(described), entering, size, value, 1 + probes)


def _loss(loss: Any, output: Any, targets: Tree) -> Tensor:
    check_callable("a function loss(output, targets)", loss=loss)
    if isinstance(loss, type):
        raise InvalidType(f"loss is the class {loss.__name__}; make an instance, {loss.__name__}()")
    leaves = () if not isinstance(loss, nn.Module) else (*loss.parameters(), *loss.buffers())
    if any(isinstance(leaf, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer) for leaf in leaves):
        raise InvalidValue("loss is a lazy module, without weights yet; run it once on a batch")  # it would draw them
    given = "" if targets is None else ", targets"
    try:
        value = loss(output) if targets is None else loss(output, targets)
    except Exception as error:  # whatever the user's loss raises
        cure = "; give targets=, what it compares with" if targets is None else ""
        raise InvalidValue(f"loss(output{given}) failed on an output {tree.describe(output)}: {error}{cure}") from error
    if not carries(value):
        raise InvalidType(f"loss(output{given}) returned {tree.describe(value)}; expected a tensor with a derivative")
    mean: Tensor = value.mean()
    return mean
