"""The inner loop one call at a time, where a learner of learn2learn would stand."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfoc import InvalidType, InvalidValue, tree
from mfoc.checks import check_flag, check_plain
from mfoc.derivatives import check_twice, twice_differentiable
from mfoc.networks import FunctionalModule
from mfoc.networks.inspection import BOOKKEEPING, without_inplace
from mfoc.networks.recomputation import without_reentry
from paradigms.meta.formulations import MetaFormulation, checked_controls, to_module
from paradigms.meta.update_rules import AdaptedRule, Rule

_NAMES = {"alpha": "lrs"}  # a control's name where learn2learn has another


class Learner(nn.Module):
    """The inner loop one call at a time: ``clone()``, ``adapt(loss)``, ``learner(x)``, as learners of learn2learn have.

    It stands where ``learn2learn.algorithms.MAML`` or ``MetaSGD`` stands: ``module`` is the network and its parameters
    are those of the controls, under the same names ("module.0.weight", "lrs.0"), so that optimisers, ``state_dict`` and
    ``zero_grad`` work alike; other attributes are looked up in the network. A clone's parameters are the fast weights
    of one task and derive into those of the learner.

    What differs does so on purpose. A clone has buffers of its own: batch-norm averages of one task are seen by no
    other and do not reach the learner; those of a learner made of a solution are of one pass over the tasks. ``module``
    of a clone is another object after each ``adapt``: what is computed again on the way back, or a hook there, finds
    the weights of its pass. In training mode spectral norm is exact, as in ``maml``. And parameters that require no
    grad are left alone without being asked. Save a learner by its ``state_dict``: the formulation in it cannot be
    pickled.

    With ``copy=False`` the network is the one given to ``maml(...)`` itself, as ``learn2learn.algorithms.MAML(net)``
    holds it: its parameters are the learner's, an optimiser over either moves both, and ``loss.backward()`` through
    clones fills their ``.grad``. Its buffers stay as they are. So are the rule that ``learned_update`` was given, step
    sizes that ``meta_sgd`` was given as parameters, and with ``from_learn2learn`` those of the algorithm.

    Args:
        formulation: an inner loop of steps: what ``maml``, ``meta_sgd``, ``anil``, ``learned_update`` or ``reptile``
            returned.
        solution: where the controls are taken from; when None, the initial guess (with ``copy=False`` the network as
            it is now). With ``copy=False`` a solution is written into the network.
        first_order: treat the slopes as constants; as the formulation has it when None.
        allow_unused: a loss need not depend on every adapted weight; what ``allow_nograd`` is when None.
        allow_nograd: parameters may require no grad; whether the network has such ones when None.
        copy: the learner has a network of its own; else it is the user's.

    Attributes:
        module: the network.
        lr: the step size, where it is a constant; it may be set, to an ``nn.Parameter`` for one.
        lrs: the step sizes of Meta-SGD, in the order of the weights that are adapted.

    Raises:
        InvalidType: an equilibrium (iMAML), which has no steps.
        InvalidValue: a solution of another formulation; with ``copy=False`` a network that has changed its parameters'
            names or shapes since.
    """

    def __init__(
        self,
        formulation: MetaFormulation,
        solution: Any = None,
        *,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
        copy: bool = True,
    ) -> None:
        super().__init__()
        check_flag(copy=copy)
        if not isinstance(formulation, MetaFormulation) or formulation.loop.move is None:
            raise InvalidType("formulation has no inner steps; expected what paradigms.meta.maml(...) returns")
        controls: Any = formulation.problem.controls if solution is None else solution
        if solution is None and not copy:  # the network as it is
            own = dict(formulation.net.named_parameters())
            controls = {**controls, "phi": {name: own[name] for name in controls["phi"] if name in own}}
        controls = checked_controls(formulation, controls)
        self._formulation = formulation
        self._others = {key: like for key, like in formulation.problem.controls.items() if key != "phi"}
        self.module = formulation.net
        if copy:  # the running averages of what was solved for are those of the tasks
            solved = to_module(formulation.net, controls["phi"]) if solution is None else formulation.readout(solution)
            self.module = without_inplace(solved)
        for key, like in self._others.items():
            ordered = tree.map(lambda _, leaf: leaf, like, controls[key])  # as the formulation has them
            fresh = [nn.Parameter(leaf) for leaf in tree.leaves(tree.copy(ordered))]
            owned = nn.ParameterList(fresh if copy else formulation.shared.get(key, fresh))
            setattr(self, _NAMES.get(key, key), owned)
        if solution is not None and not copy:
            with torch.no_grad():
                tree.map(lambda mine, leaf: mine.copy_(leaf), self.controls(), controls)
        if formulation.inner_lr is not None:
            self.lr: Any = formulation.inner_lr
        frozen = not all(p.requires_grad for p in self.module.parameters())
        self.first_order = formulation.first_order if first_order is None else first_order
        self.allow_nograd = frozen if allow_nograd is None else allow_nograd
        self.allow_unused = self.allow_nograd if allow_unused is None else allow_unused
        self._cloned, self._step = False, 0
        self._proved: list[bool] = []  # a memo that clones share: whether a loss has had second derivatives
        self._memory: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None:
                raise
            return getattr(module, name)

    def controls(self) -> Any:
        """The controls: a tree of the parameters; of a clone, with its fast weights."""
        own = dict(self.module.named_parameters())
        others = {key: tree.rebuild(like, getattr(self, _NAMES.get(key, key))) for key, like in self._others.items()}
        return {"phi": {name: own[name] for name in self._formulation.problem.controls["phi"]}, **others}

    def clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> Learner:
        """A learner with fast weights of its own, which derive into the parameters of this one.

        The flags are those of ``Learner``; as here when None.
        """
        twin = Learner.__new__(Learner)
        nn.Module.__init__(twin)
        twin.train(self.training)
        twin.__dict__.update({key: value for key, value in self.__dict__.items() if key not in BOOKKEEPING})
        twin.module = _twin(self.module)
        for key in self._others:  # a plain list: step sizes are no parameters of a task
            name = _NAMES.get(key, key)
            twin.__dict__[name] = [leaf.clone() for leaf in getattr(self, name)]
        if "lr" in self._parameters:  # a step size that is learned
            twin.lr = self.lr
        flags = {
            "_cloned": True,
            "_memory": {},  # of the rule: its first step is from where it stands
            "first_order": first_order,
            "allow_unused": allow_unused,
            "allow_nograd": allow_nograd,
        }
        twin.__dict__.update({name: flag for name, flag in flags.items() if flag is not None})
        return twin

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """One inner step on the loss of the task's support, a scalar computed with this clone.

        The flags are those of ``Learner``; as the clone has them when None.

        Raises:
            InvalidType, InvalidValue: no scalar tensor, a loss that does not depend on the weights, a learner that is
                no clone; or, not of first order, an operation that has no second derivative.
        """
        if not self._cloned:
            raise InvalidValue("adapt was called on the learner itself; call clone() first, and adapt the clone")
        for flag, value in (
            ("first_order", first_order),
            ("allow_unused", allow_unused),
            ("allow_nograd", allow_nograd),
        ):
            if value is not None:
                check_flag(**{flag: value})
        _check_loss(loss)
        unused = self.allow_unused if allow_unused is None else allow_unused
        first = self.first_order if first_order is None else first_order
        move, onward = self._rule(), not first
        if isinstance(move, AdaptedRule):
            move, onward = replace(move, first_order=first), True
        fast = self._free(self.allow_nograd if allow_nograd is None else allow_nograd)
        if onward and not self._proved:  # for the learner and all its clones: once
            check_twice(loss, list(fast.values()), "the derivative of adapt", "first_order=True does without")
            self._proved.append(True)
        slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=onward, allow_unused=True)
        missing = [name for name, slope in zip(fast, slopes, strict=True) if slope is None]
        if missing and (not unused or len(missing) == len(fast)):
            raise InvalidValue(
                f"loss does not depend on {', '.join(missing)}: compute it with this clone, after its last adapt; "
                "allow_unused=True accepts weights that take no part"
            )
        wide = {
            name: (torch.zeros_like(leaf) if slope is None else slope)[None]
            for (name, leaf), slope in zip(fast.items(), slopes, strict=True)
        }
        controls = self.controls()
        memory = self._memory or move.begin(controls, 1)
        moved, self._memory = move.step(self._step, {n: leaf[None] for n, leaf in fast.items()}, wide, controls, memory)
        # A module of its own: the graph of the loss goes on reading the weights that it was computed with.
        self.module = _twin(self.module, {name: leaf[0] for name, leaf in moved.items()})
        for key in self._memory.keys() & self._others.keys():  # fast weights of the rule
            self.__dict__[_NAMES.get(key, key)] = [leaf[0] for leaf in tree.leaves(self._memory[key])]
        self._step += 1

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The network with the present weights."""
        onward = self._cloned and not self.first_order  # a loss of it is differentiated by adapt, and that once more
        with twice_differentiable() if onward else nullcontext(), without_reentry() if self._cloned else nullcontext():
            return self.module(*inputs, **options)

    def _free(self, allow_nograd: bool) -> dict[str, Tensor]:
        """The weights that move."""
        own = dict(self.module.named_parameters())
        still = [name for name, leaf in own.items() if not leaf.requires_grad]
        if still and not allow_nograd:
            raise InvalidValue(f"{', '.join(still)} require no grad; allow_nograd=True leaves them as they are")
        fast: dict[str, Tensor] = {n: own[n] for n in self._formulation.loop.adapted if own[n].requires_grad}
        if not fast:
            raise InvalidValue("no adapted weight requires grad; there is nothing to adapt")
        return fast

    def _rule(self) -> Rule:
        move, lr = self._formulation.loop.move, self.__dict__.get("lr", self._parameters.get("lr"))
        assert move is not None
        return move if lr is None else replace(move, alpha=lambda k, u: lr)


def _check_loss(loss: Any) -> None:
    check_plain("a scalar tensor, the mean over the support", loss=loss)
    if loss.dim() != 0:
        raise InvalidValue(f"loss is no scalar tensor (shape {tuple(loss.shape)}); pass the mean over the support")
    if not loss.requires_grad:
        raise InvalidValue("loss has no graph (computed under no_grad, or detached); adapt differentiates it")


def _twin(module: nn.Module, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The same structure on new tensors: buffers are copies, parameters derive into the old ones or are ``weights``."""
    made = FunctionalModule(module)
    own = dict(module.named_parameters())
    given = {name: own[name].clone() if weights is None else weights.get(name, own[name]) for name in made.names}
    return without_inplace(made.twin(given))  # a network that is shared may write over its inputs
