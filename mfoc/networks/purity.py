"""Whether a module is a function of its weights and inputs, seen at its first call; and what of it has to be copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import tree
from mfoc.checks import kind_of
from mfoc.draws import draws, watched
from mfoc.errors import InvalidType, InvalidValue
from mfoc.networks.copies import without_computed
from mfoc.networks.functional import FunctionalModule, asks_for_gradients
from mfoc.networks.inspection import HOOKS
from mfoc.tree import Tree
from mfoc.tree_nodes import registered
from mfoc.validation import same_values

_CAUGHT = (RuntimeError, ValueError, LookupError, AttributeError)


@torch.no_grad()
def check_pure(
    function: FunctionalModule, name: str, weights: Mapping[str, Tensor], /, *args: Any, **kwargs: Any
) -> None:
    """Refuses a module whose output depends on what its own forward pass has changed in it.

    It is run on copies, twice. From now on ``function`` copies only what may change: buffers in training mode or that
    were written, and inputs if they were.

    Args:
        function: the module.
        name: what an error calls it.
        weights: its weights.
        *args: its inputs,
        **kwargs: and those by name.

    Raises:
        InvalidType: it returns something that holds no tensors.
        InvalidValue: it is another function after it has run, writes into its weights, reads what does not follow them,
            or makes parts of itself.
    """
    drawn, own = watched(), function.on(weights)
    own.fresh_hooks = True
    trial = _Trial(own, weights, args, kwargs)
    try:
        first = trial.run(trial.module)
    except RuntimeError as error:
        if not asks_for_gradients(error):
            raise
        function.differentiates = True
        trial = _Trial(own, weights, args, kwargs, gradients=True)
        first = trial.run(trial.module)
    _refuse_growing(name, trial.module, own)
    _refuse_stale(name, first, trial, own)
    _refuse_written(name, weights, trial.weights)
    _refuse_strange(name, first)
    _settle(function, own, trial)
    try:
        same = same_values(first, trial.run(trial.module))
    except _CAUGHT:
        same = False
    # Random numbers are another matter.
    if not same and not (drawn() and draws(lambda: trial.run(trial.module))):
        raise InvalidValue(
            f"{name} is another function after it has run: its output depends on a buffer or an attribute that its "
            "forward pass changes (a counter, a running average it normalises by, a cache), and it must be pure; "
            "call .eval() on that part, or take what changes from the data"
        )


class _Trial:
    """Runs of a module on copies of weights and inputs."""

    def __init__(
        self, own: FunctionalModule, weights: Mapping[str, Tensor], args: Any, kwargs: Any, *, gradients: bool = False
    ) -> None:
        self.weights = {key: weight.detach().clone().requires_grad_(gradients) for key, weight in weights.items()}
        self.module, self.inputs = own.at(self.weights), tree.copy([args, kwargs])
        self._own, self._given, self._gradients = own, [args, kwargs], gradients

    def run(self, module: nn.Module) -> Tree:
        """The output of a module, on fresh copies of the inputs."""
        self.inputs = tree.copy(self._given)
        with torch.set_grad_enabled(self._gradients):
            return tree.copy(registered(self._own.run(module, *self.inputs[0], **self.inputs[1])))


def _settle(function: FunctionalModule, own: FunctionalModule, trial: _Trial) -> None:
    met = [leaf for leaf in tree.leaves(trial.inputs) if isinstance(leaf, Tensor)]
    function.writes = own.writes = any(leaf._version or leaf.requires_grad for leaf in met)
    hooks = [len(part.__dict__[key]) for part in trial.module.modules() for key in HOOKS]
    own.fresh_hooks = hooks != [len(part.__dict__[key]) for part in own.parts for key in HOOKS]
    function.fresh_hooks = own.fresh_hooks
    own.settle(trial.module)


def _refuse_growing(name: str, module: nn.Module, own: FunctionalModule) -> None:
    if len(list(module.modules())) != len(own.parts):
        raise InvalidValue(
            f"{name} makes parts of itself in its forward pass, whose weights would be left out; run the network once "
            "on a batch, and give it then"
        )


def _refuse_stale(name: str, first: Tree, trial: _Trial, own: FunctionalModule) -> None:
    stale = own.at(trial.weights)
    if not without_computed(stale):
        return
    try:
        follows = same_values(first, trial.run(stale))
    except _CAUGHT:
        follows = False
    if not follows:
        raise InvalidValue(
            f"{name} reads an attribute that was computed before, from its weights say, and does not follow them: "
            "compute it in the forward pass, or hold it detached"
        )


def _refuse_written(name: str, weights: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    for key, weight in weights.items():
        if not torch.equal(weight.nan_to_num(), now[key].nan_to_num()):
            raise InvalidValue(
                f"{name} writes into its weight {key!r} in its forward pass, and it must be pure: run the network "
                "once on a batch where it sets its first weights by the data, compute what it normalises in place of "
                "writing it (torch.nn.utils.parametrize), or make it a buffer"
            )


def _refuse_strange(name: str, output: Tree) -> None:
    for leaf in tree.leaves(output):
        if not isinstance(leaf, Tensor):
            raise InvalidType(
                f"{name} returns {kind_of(leaf)}; expected tensors (None, numbers and text may stand beside them). "
                "Switch off what is not needed (a cache: use_cache=False), or wrap the network in a module that "
                "returns what the loss takes"
            )
