"""Pytrees of tensors: what the library needs beyond ``torch.utils._pytree``.

A state, a control and a datum are pytrees (tensor, dict, list, tuple, nested). Leaves that are not
floating point (labels, tokens) carry no gradient and no costate; the helpers here pass them by.

This is below the public doors: it does not check its arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as general

from mfoc.checks import kind_of
from mfoc.errors import InvalidType, InvalidValue

Tree = Any


def leaves(tree: Tree) -> list[Any]:
    """The leaves in order.

    Dicts, lists, tuples and tensors, which are nearly all there is, are read directly: several times faster than the
    general machinery, to which registered nodes (named tuples, ...) fall through.
    """
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Any] = []
    _collect(tree, found)
    return found


def _collect(tree: Tree, found: list[Any]) -> None:
    kind = type(tree)
    if kind is dict or kind is list or kind is tuple:
        for value in tree.values() if kind is dict else tree:
            if isinstance(value, Tensor):  # spares a call for nearly every leaf
                found.append(value)
            else:
                _collect(value, found)
    elif isinstance(tree, Tensor):
        found.append(tree)
    else:
        found += general.tree_leaves(tree)


def rebuild(like: Tree, values: Iterable[Any]) -> Tree:
    """A tree of the structure of ``like`` with these leaves, in the order of ``leaves``.

    Raises:
        InvalidValue: there are fewer or more of them.
    """
    stream = iter(values)
    try:
        made = _rebuild(like, stream)
    except StopIteration:
        raise InvalidValue(f"there are fewer leaves than in {describe(like)}") from None
    if next(stream, None) is not None:
        raise InvalidValue(f"there are more leaves than in {describe(like)}")
    return made


def _rebuild(like: Tree, values: Iterator[Any]) -> Tree:
    kind = type(like)
    if kind is dict:
        # Not every leaf a call: most dicts hold tensors.
        return {k: next(values) if isinstance(v, Tensor) else _rebuild(v, values) for k, v in like.items()}
    if kind is list:
        return [_rebuild(value, values) for value in like]
    if kind is tuple:
        return tuple([_rebuild(value, values) for value in like])
    if isinstance(like, Tensor):
        return next(values)
    old, spec = general.tree_flatten(like)
    return general.tree_unflatten([next(values) for _ in old], spec)


def map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """``function`` applied to each leaf (and the leaves of the others beside it; dicts are matched by key)."""
    if isinstance(tree, Tensor) and not others:
        return function(tree)
    columns = [leaves(tree), *(_leaves_beside(tree, other) for other in others)]
    return rebuild(tree, [function(*row) for row in zip(*columns, strict=True)])


def _leaves_beside(like: Tree, tree: Tree) -> list[Any]:
    """The leaves of ``tree`` in the order of those of ``like``.

    Raises:
        InvalidValue: a dict has other keys, or the trees differ in their number of leaves.
    """
    found = leaves(_in_order(like, tree))
    if len(found) != len(leaves(like)):
        raise InvalidValue(f"two trees do not match: {describe(like)} and {describe(tree)}")
    return found


def _in_order(like: Tree, tree: Tree) -> Tree:
    if isinstance(like, dict) and isinstance(tree, dict):
        if like.keys() != tree.keys():
            raise InvalidValue(f"two trees do not match: one has keys {list(like)} and the other {list(tree)}")
        return [_in_order(value, tree[key]) for key, value in like.items()]
    if type(like) in (list, tuple) and isinstance(tree, list | tuple) and len(like) == len(tree):
        return [_in_order(a, b) for a, b in zip(like, tree, strict=True)]
    return tree


def is_leaf(tree: Tree) -> bool:
    """Whether it is no container: a tensor, or anything else that is not made of trees."""
    return bool(general.tree_structure(tree).is_leaf())


def same_structure(left: Tree, right: Tree) -> bool:
    """Whether two trees differ in their leaves only."""
    return bool(general.tree_structure(left) == general.tree_structure(right))


def differentiable(leaf: Any) -> bool:
    """Whether a leaf can carry a gradient."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def named_leaves(tree: Tree, name: str) -> list[tuple[str, Tensor]]:
    """The leaves with the path to each, for error messages.

    Raises:
        InvalidType: a leaf is not a tensor.
    """
    named = []
    try:
        found = [(general.keystr(path), leaf) for path, leaf in general.tree_flatten_with_path(tree)[0]]
    except ValueError:  # a node that was registered without the keys of its entries
        found = [(f"[{k}]", leaf) for k, leaf in enumerate(leaves(tree))]
    for path, leaf in found:
        label = name + path
        if not isinstance(leaf, Tensor):
            cure = " (torch.as_tensor makes one)" if hasattr(leaf, "__array__") or isinstance(leaf, int | float) else ""
            raise InvalidType(f"{label} is {kind_of(leaf)}; expected a torch.Tensor{cure}")
        named.append((label, leaf))
    return named


def dotted(tree: Tree) -> dict[str, Any]:
    """The leaves by the path to each, its keys and indices joined by dots: ``"0.weight"``."""
    paths = general.tree_flatten_with_path(tree)[0]
    return {".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): leaf for path, leaf in paths}


def tensors(tree: Tree) -> list[Tensor]:
    """The differentiable leaves."""
    return [leaf for leaf in leaves(tree) if differentiable(leaf)]


def describe(tree: Tree) -> str:
    """Shapes and dtypes of a tree, in one line."""
    found = leaves(tree)
    if not found:
        return "an empty tree"
    parts = [
        f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}" if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in found
    ]
    return parts[0] if isinstance(tree, Tensor) else f"[{', '.join(parts)}]"


def tensor_of(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor where it is; of numbers and arrays one on the CPU, whatever torch's default device is."""
    if isinstance(value, Tensor):
        return value if dtype is None else value.to(dtype)
    return torch.as_tensor(value, dtype=dtype, device="cpu")


def detached(tree: Tree, *, requires_grad: bool = False) -> Tree:
    """The same values cut from any graph; differentiable leaves may become graph leaves."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return free(leaf) if requires_grad and differentiable(leaf) else leaf.detach()

    return map(cut, tree)


def free(leaf: Tensor) -> Tensor:
    """The same values as a leaf of the graph; those of a tensor that was made in inference mode are copied."""
    return plain(leaf.detach()).requires_grad_()


def plain(leaf: Tensor) -> Tensor:
    """A tensor that autograd takes: a copy of one that was made in inference mode, others as they are."""
    return leaf.clone() if leaf.is_inference() and not torch.is_inference_mode_enabled() else leaf


def copy(tree: Tree) -> Tree:
    """A detached copy: nothing done to it reaches the original."""
    return map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def dot(left: Tree, right: Tree) -> Tensor:
    """<left, right> per particle, summed over every axis but the first: ``[N]``."""
    total: Tensor | None = None
    for a, b in zip(leaves(left), leaves(right), strict=True):
        if differentiable(a):
            # Re(a conj b): a complex leaf is a pair of real ones, and that is how autograd differentiates it.
            term = (a * b.conj()).real if a.is_complex() else a * b
            term = term.flatten(1).sum(1) if term.dim() > 1 else term
            total = term if total is None else total + term
    if total is None:
        raise InvalidType("the state has no floating-point leaf, so it has no costate")
    return total


def norms(tree: Tree) -> list[Tensor]:
    """Euclidean norm of each differentiable leaf, right over the whole range of its dtype.

    Scalars, in double precision where another would not hold them; the root of the sum of their squares is the norm of
    the tree.
    """
    found = tensors(tree)
    if not all(leaf.is_cpu for leaf in found):  # to look twice is to wait for the device
        if any(leaf.is_complex() or leaf.dtype == torch.float64 or leaf.device.type == "mps" for leaf in found):
            return [length(leaf, wide=True) for leaf in found]
        return list(torch._foreach_norm(found, 2, torch.float64))
    plain = torch._foreach_norm(found) if found else ()  # one call; that of torch.nn.utils.get_total_norm
    pairs = zip(plain, found, strict=True)
    return [size if holds(size.item(), leaf) else length(leaf, wide=True) for size, leaf in pairs]


def holds(size: float, leaf: Tensor) -> bool:
    """Whether a norm of a leaf, found by summing squares in the leaf's dtype, is right to that dtype's rounding.

    The square of 1e-24 is zero in single precision, and that of 1e20 is infinite.
    """
    least = _LEAST.get(leaf.dtype)
    if least is None:  # half precision, in which a sum is soon infinite
        return size != size
    # Less than rounding is lost to underflow; NaN stays what it is.
    return leaf.numel() * least <= size * size < math.inf or size != size


def least(leaves: Sequence[Tensor]) -> float | None:
    """The number from which on ``holds`` holds of a finite norm of each of these leaves.

    None where such norms have to be looked at one by one, or it would take a wait for the device.
    """
    if not all(leaf.is_cpu and leaf.dtype in _LEAST for leaf in leaves):
        return None
    return math.sqrt(max((leaf.numel() * _LEAST[leaf.dtype] for leaf in leaves), default=0.0))


# The square of a norm, over the number of entries, from which on what underflow takes away is less than rounding.
_LEAST = {dtype: torch.finfo(dtype).tiny / torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
_LEAST |= {torch.complex64: _LEAST[torch.float32], torch.complex128: _LEAST[torch.float64]}


def length(x: Tensor, dim: int | None = None, *, keepdim: bool = False, wide: bool = False) -> Tensor:
    """Euclidean norm, along an axis or over all of them, whose squares neither under- nor overflow.

    Args:
        x: a floating-point or complex tensor.
        dim: the axis; all when None.
        keepdim: keep that axis, with one entry.
        wide: in double precision (which not every device has); else in the precision of ``x``.
    """
    own = x.abs().dtype if x.is_complex() else x.dtype
    if own != torch.float64 and x.device.type != "mps":
        double = torch.complex128 if x.is_complex() else torch.float64
        size: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim, dtype=double)
        return size if wide else size.to(own)
    if x.numel() == 0:
        none: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
        return none
    most = x.detach().abs().amax(() if dim is None else dim, keepdim=True)
    unit = torch.where((most > 0) & most.isfinite(), most, torch.ones_like(most))
    scaled: Tensor = torch.linalg.vector_norm(x / unit, dim=dim, keepdim=keepdim)
    return scaled * unit.reshape(scaled.shape)


def floats(scalars: Sequence[Tensor]) -> list[float]:
    """Numbers of scalar tensors; on a GPU it is waited for once."""
    if not scalars or all(scalar.is_cpu for scalar in scalars):
        return [scalar.item() for scalar in scalars]
    wide = functools.reduce(torch.promote_types, (scalar.dtype for scalar in scalars))
    return [float(number) for number in torch.stack([scalar.detach().to(wide) for scalar in scalars]).tolist()]


def power_of_two(size: Tensor) -> Tensor:
    """The power of two next above each size, by which division is exact; 1 for zero and what is no number."""
    wide = size.to(torch.promote_types(size.dtype, torch.float32))
    mantissa, _ = torch.frexp(wide)
    power: Tensor = (wide / mantissa).to(size.dtype)
    fits = (size > 0) & power.isfinite() & (power > 0)
    return torch.where(fits, power, torch.ones_like(power))


def norm(tree: Tree) -> Tensor:
    """Euclidean norm over every differentiable leaf, right over the whole range of their dtypes: a scalar."""
    found = norms(tree)
    if not found:
        return torch.zeros((), device="cpu")
    if len(found) == 1:
        return found[0]
    wide = functools.reduce(torch.promote_types, (size.dtype for size in found))
    return length(torch.stack([size.to(wide) for size in found]), wide=True)


def ravel(tree: Tree) -> Tensor:
    """All differentiable leaves in one new vector ``[n]``."""
    return torch.cat([leaf.reshape(-1) for leaf in tensors(tree)])


def pieces(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a vector ``[n]``, shaped as the tensors in ``like``: the inverse of ``ravel`` on a list."""
    parts = torch.split(vector, [leaf.numel() for leaf in like])
    return [part.view(leaf.shape) for part, leaf in zip(parts, like, strict=True)]
