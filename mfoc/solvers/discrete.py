"""The method of successive approximations for weights that take two or three values.

Where H is affine in a weight in {-1, 1} its minimiser is known: minus the sign of E dH/du. Li & Hao (2018, "An optimal
control approach to deep learning and applications to discrete-weight neural networks", ICML, arXiv:1803.01299, sec. 4)
go there in steps short enough for the states and costates that H was frozen with: only those entries change in which a
running average of the minibatches' gradients insists. They maximise H; here, as everywhere, it is minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mfoc import tree
from mfoc.checks import (
    check_between,
    check_callable,
    check_choice,
    check_instance,
    check_integer,
    check_non_negative,
    check_signature,
)
from mfoc.distributed import any_rank
from mfoc.errors import InvalidValue
from mfoc.particles import Particles
from mfoc.pontryagin import value_and_slopes
from mfoc.problem import Controls, Problem
from mfoc.solvers.gradient import Gradient
from mfoc.solving import Info
from mfoc.tree import Tree
from mfoc.validation import on_few

_LEVELS = {"binary": (-1.0, 1.0), "ternary": (-1.0, 0.0, 1.0)}


@dataclass(frozen=True)
class DiscreteMSA:
    """MSA for weights in {-1, 1} or {-1, 0, 1}: a minimisation of H in closed form, and a gradient step for the rest.

    At step k, for each discrete leaf theta with slope E dH/dtheta on the batch,

        M <- a M + (1 - a) E dH/dtheta,
        wrong: the entries with theta != -sign(M) (so a zero is wrong wherever M is not zero),
        rho_k = rho max |M| over the wrong entries;
        binary:  theta <- -theta where it is wrong and |M| > rho_k,
        ternary: theta <- argmin over v in {-1, 0, 1} of M v + rho_k/2 (v - theta)^2 + sparsity max|M| |v|,

    where ties leave theta as it is, and max |M| without "wrong" is over all entries of the leaf. All other leaves
    (biases, scales of normalisation layers) take a step of ``others`` along the same gradient.

    What is proved (Li & Hao 2018, thm. 2) is an error estimate: J(new) - J(old) is at most E sum_t of the change of the
    frozen H, plus a constant times the squared norms of the changes that the new weights make to f_t and its
    derivatives. rho_k bounds how many entries change at once, and with them the second part. It is no theorem of
    descent: the constant is not known, J may rise, and a batch's H is not H. With ``threshold=`` rho_k is fixed, and
    the binary step is that of the Bop optimiser (Helwegen et al. 2019, arXiv:1906.02107) with gamma = 1 - a.

    H has to be affine in the discrete leaves, which is checked at the first step: an activation or a normalisation
    belongs in a stage of its own, after the layer's (``mfoc.from_module`` on a flat ``nn.Sequential`` cuts so).

    ``mfoc.networks.packed.pack`` stores what is solved for in one or two bits a weight.

    Problems start from weights of the right kind: ``problem = solver.discretised(problem)``. Networks want a
    normalisation layer after each discrete one, as in the paper, since weights of +-1 carry no scale.

    Attributes:
        levels: "binary", {-1, 1}, or "ternary", {-1, 0, 1}.
        rho: share of max |M| below which no wrong entry changes, at least 0 and less than 1; None with ``threshold``.
        a: of the average M; nearer to 1 for longer runs (``tests/benchmarks/bench_discrete.py`` compares three).
        decay: 1 - a is multiplied by this after each ``per`` steps.
        per: steps in an epoch, for ``decay``; None leaves a as it is.
        sparsity: weight of |theta| in the ternary step, in units of max |M| (an absolute weight would exceed every M as
            the gradients fall, and all weights would become zero).
        threshold: a fixed rho_k, in units of the gradient, in place of ``rho``.
        others: how the other leaves move.
        discrete: ``discrete(name) -> bool``, which leaves are discrete, by their paths in the controls, as in
            "0.weight" for a parameter of stage 0; when None, those of two or more axes.
    """

    levels: str = "binary"
    rho: float | None = 0.25
    a: float = 0.999
    decay: float = 0.95
    per: int | None = None
    sparsity: float = 0.0
    threshold: float | None = None
    others: Gradient = field(default_factory=lambda: Gradient(partial(torch.optim.Adam, lr=1e-2)))
    discrete: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        check_choice(*_LEVELS, levels=self.levels)
        check_non_negative(rho=self.rho, threshold=self.threshold, optional=True)
        if (self.rho is None) == (self.threshold is None):
            raise InvalidValue(
                f"rho is {self.rho} and threshold is {self.threshold}; one of them makes rho_k: give a share rho, or "
                "rho=None and a threshold"
            )
        if self.rho is not None and self.rho >= 1:
            raise InvalidValue(f"rho is {self.rho}; expected a share of max |M| less than 1, or no entry ever changes")
        check_between(0, 1, a=self.a)
        check_non_negative(decay=self.decay, sparsity=self.sparsity)
        if self.decay > 1:
            raise InvalidValue(f"decay is {self.decay}; expected at most 1, or the average ends as a single batch")
        check_integer(1, optional=True, per=self.per)
        if self.sparsity and self.levels == "binary":
            raise InvalidValue(f"sparsity is {self.sparsity} and binary weights have no zero; take levels='ternary'")
        check_instance(Gradient, "mfoc.Gradient(...)", others=self.others)
        check_callable("a function of the name of a leaf", optional=True, discrete=self.discrete)
        check_signature(("name",), optional=True, discrete=self.discrete)

    def discretised(self, problem: Problem[Controls]) -> Problem[Controls]:
        """The same problem, started from weights of these levels; every other leaf is as it was.

        A binary weight is the sign of what it was, 1 where that was zero. A ternary one is zero where it was at most
        0.7 of the leaf's mean magnitude (Li, Zhang, Liu 2016, arXiv:1605.04711, eq. (6)), else the sign.

        Raises:
            InvalidValue: no leaf is discrete.
        """
        which = self._which(problem.controls)
        leaves = [
            self._nearest(leaf) if chosen else leaf
            for leaf, chosen in zip(tree.leaves(problem.controls), which, strict=True)
        ]
        return problem.rebuilt(lambda own: replace(own, controls=tree.rebuild(own.controls, leaves)))

    def init(self, problem: Problem, controls: Tree) -> Tree:
        """Averages of nothing; the memory of ``others``.

        Raises:
            InvalidValue: no leaf is discrete, one holds other values than ``levels``, or the problem has bounds or a
                control for each particle.
        """
        if problem.bounds is not None or problem.per_particle:
            raise InvalidValue(
                "the problem has bounds, or a control for each particle, which DiscreteMSA does not know: levels are "
                "all it keeps to. Leave them out, or use EMSA()"
            )
        which = self._which(controls)
        for (name, leaf), chosen in zip(tree.dotted(controls).items(), which, strict=True):
            if chosen and not _holds(leaf, _LEVELS[self.levels]):
                raise InvalidValue(
                    f"controls {name!r} holds other values than those of {self.levels} weights; start from "
                    "solver.discretised(problem), or choose the discrete leaves with discrete=lambda name: ..."
                )
        weights, rest = _parted(tree.leaves(controls), which)
        memory = self.others.init(problem, rest) if rest else {}
        # In bfloat16 1 - share is one and the average would not forget.
        averages = [weight.new_zeros(weight.shape, dtype=_wide(weight.dtype)) for weight in weights]
        return {"averages": averages, "others": memory, "steps": 0}

    def step(self, problem: Problem, controls: Tree, state: Tree, particles: Particles) -> tuple[Tree, Tree, Info]:
        """One gradient of H; see ``mfoc.Solver``. ``info.extra["flips"]`` counts the discrete entries that changed.

        Raises:
            InvalidValue: at the first step, H is not affine in the discrete leaves.
        """
        which = self._which(controls)
        if state["steps"] == 0:
            self._check_affine(problem, controls, which, particles)
        weights, rest = _parted(tree.leaves(controls), which)
        free = [tree.free(weight) for weight in weights]
        first: list[list[Tensor]] = []  # the slopes of the discrete leaves; an optimiser may evaluate again, elsewhere

        def evaluate(moving: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            leaves = _joined(free, moving, which)
            value, slopes = value_and_slopes(problem, tree.rebuild(controls, leaves), leaves, particles)
            own, other = _parted(slopes, which)
            if not first:
                first.append(own)
            return value, other

        if rest:
            rest, memory, info = self.others.follow(evaluate, rest, state["others"])
            value, slopes = info.value, info.gradient
        else:
            memory, (value, slopes) = {}, evaluate([])
        gradient = tree.rebuild(controls, _joined(first[0], slopes, which))
        share = (1 - self.a) * (1.0 if self.per is None else self.decay ** (state["steps"] // self.per))
        averages = [(1 - share) * m + share * g for m, g in zip(state["averages"], first[0], strict=True)]
        moved = [self._minimised(m, weight) for m, weight in zip(averages, weights, strict=True)]
        flips = torch.stack([(new != old).sum() for new, old in zip(moved, weights, strict=True)]).sum()
        after = {"averages": averages, "others": memory, "steps": state["steps"] + 1}
        return tree.rebuild(controls, _joined(moved, rest, which)), after, Info(value, gradient, {"flips": int(flips)})

    @torch.no_grad()
    def _minimised(self, average: Tensor, weight: Tensor) -> Tensor:
        """The minimiser of H, linear with slope M, and of what keeps theta where it is."""
        size = average.abs()
        wrong = weight != -average.sign()
        largest = (size * wrong).max() if size.numel() else size.new_zeros(())
        rho: Any = self.threshold if self.rho is None else self.rho * largest
        if self.levels == "binary":
            return torch.where(wrong & (size > rho), -weight, weight)
        lasso = self.sparsity * size.max() if size.numel() else 0.0
        best, lowest = weight, average * weight + lasso * weight.abs()
        for level in _LEVELS["ternary"]:
            value = average * level + rho / 2 * (level - weight).square() + lasso * abs(level)
            best, lowest = torch.where(value < lowest, level, best), torch.minimum(value, lowest)
        return best

    def _nearest(self, weight: Tensor) -> Tensor:
        signs = torch.where(weight >= 0, 1.0, -1.0).to(weight)
        if self.levels == "binary":
            return signs
        return torch.where(weight.abs() > 0.7 * weight.abs().mean(), signs, 0.0)

    def _which(self, controls: Tree) -> list[bool]:
        """Whether each leaf is discrete."""
        choose: Callable[[str, Tensor], bool] = lambda name, leaf: (  # noqa: E731
            leaf.dim() >= 2 if self.discrete is None else bool(self.discrete(name))
        )
        named = tree.dotted(controls)
        which = [choose(name, leaf) for name, leaf in named.items()]
        if not any(which):
            chosen = "has two axes" if self.discrete is None else "is chosen by discrete(name)"
            raise InvalidValue(f"no leaf of the controls {chosen}, so none is discrete; they are {list(named)}")
        return which

    def _check_affine(self, problem: Problem, controls: Tree, which: list[bool], particles: Particles) -> None:
        """Refuses dynamics and costs that are not affine in the discrete leaves, on all ranks together."""
        refusal: InvalidValue | None = None
        try:
            on_few(lambda few: self._check_stages(problem, controls, which, few), particles)
        except InvalidValue as error:
            refusal = error
        if any_rank(refusal is not None, controls):
            raise refusal or InvalidValue("another rank refuses the problem: its message says why")

    def _check_stages(self, problem: Problem, controls: Tree, which: list[bool], particles: Particles) -> None:
        """Compares values at levels and half-way between two."""
        leaves, x, z = tree.leaves(controls), particles.state, particles.data
        generator = torch.Generator().manual_seed(0)
        ends = [
            [_signs(leaf, generator) if chosen else leaf for leaf, chosen in zip(leaves, which, strict=True)]
            for _ in range(2)
        ]
        middle = [(left + right) / 2 for left, right in zip(*ends, strict=True)]
        tried = [tree.rebuild(controls, some) for some in (*ends, middle)]
        with torch.no_grad():
            for t in range(problem.stages):
                for name, function in (("dynamics", problem.dynamics), ("running_cost", problem.running_cost)):
                    if function is not None:
                        found = [tree.tensors(function(t, x, problem.schedule(some, t), z)) for some in tried]
                        _check_middle(f"stage {t}: {name}", found)
                x = problem.dynamics(t, x, problem.schedule(controls, t), z)


def _check_middle(what: str, found: list[list[Tensor]]) -> None:
    for left, right, middle in zip(*found, strict=True):
        size = max(float(end.abs().max()) if end.numel() else 0.0 for end in (left, right))
        gap = float((left + right - 2 * middle).abs().max()) if middle.numel() else 0.0
        if gap > torch.finfo(middle.dtype).eps ** 0.5 * size:
            raise InvalidValue(
                f"{what} is not affine in the discrete weights, and H has to be: its minimiser is not known otherwise. "
                "End the stage with the layer, so that an activation or a normalisation is a stage of its own; leave "
                "weight decay off discrete weights; or leave these leaves out, discrete=lambda name: ..."
            )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator, device="cpu").to(like) * 2 - 1


def _holds(leaf: Tensor, levels: tuple[float, ...]) -> bool:
    return bool(torch.isin(leaf.detach(), torch.tensor(levels, dtype=leaf.dtype, device=leaf.device)).all())


def _parted(leaves: list[Any], which: list[bool]) -> tuple[list[Any], list[Any]]:
    """The discrete leaves, and the others."""
    pairs = list(zip(leaves, which, strict=True))
    return [leaf for leaf, chosen in pairs if chosen], [leaf for leaf, chosen in pairs if not chosen]


def _joined(discrete: list[Any], others: list[Any], which: list[bool]) -> list[Any]:
    """The leaves in their order: the inverse of ``_parted``."""
    streams = {True: iter(discrete), False: iter(others)}
    return [next(streams[chosen]) for chosen in which]
