"""Orthogonal weights: for dense layers (Saxe et al. 2014) and, at the centre tap, for convolutions (Xiao et al. 2018).

A layer whose Jacobian has all singular values equal passes every direction on alike, so that chi = 1 holds for each
perturbation and not on average alone ("dynamical isometry"). Of an ``[out, in]`` matrix ``min(out, in)`` singular
values are ``gain`` here. Lengths are then multiplied by ``gain`` exactly: in the forward pass where ``out >= in``, in
the backward pass where ``out <= in``. Per unit, as variances are counted, the mean-square gain ||W||_F^2 / out is
``gain^2 min(1, in/out)``: ``gain = sqrt(sw2 max(1, out/in))`` gives that of weights with variance ``sw2/in``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfoc.checks import check_instance, check_integer, check_non_negative, check_plain
from mfoc.errors import InvalidType, InvalidValue


def orthogonal_(weight: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Fills a matrix in place with a random (semi-)orthogonal one, uniform under Haar's measure, times ``gain``.

    As ``torch.nn.init.orthogonal_``, but for every floating dtype (the decomposition is of doubles), with a generator
    of any device, and for matrices alone: to flatten a convolution's kernel makes no isometry of the convolution.

    Args:
        weight: ``[out, in]``.
        gain: what all of the ``min(out, in)`` singular values are.
        generator: of the random numbers; torch's global one when None, as everywhere in ``torch.nn.init``.

    Returns:
        The weight.

    Raises:
        InvalidType: no tensor of floating dtype, no number, no generator.
        InvalidValue: no matrix; a negative gain.

    Source: Saxe, McClelland & Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks", section 3; the signs after Mezzadri 2007, eq. 5.1.
    """
    _check(weight, gain, generator)
    if weight.dim() != 2:
        cure = "; for the kernel of a convolution use delta_orthogonal_" if weight.dim() in (3, 4, 5) else ""
        raise InvalidValue(f"weight has shape {list(weight.shape)}; expected a matrix [out, in]{cure}")
    with torch.no_grad():
        weight.copy_(gain * _haar(weight.shape[0], weight.shape[1], weight, generator))
    return weight


def delta_orthogonal_(
    weight: Tensor, gain: float = 1.0, generator: torch.Generator | None = None, *, groups: int = 1
) -> Tensor:
    """Fills a convolution's kernel in place: zero but at the centre tap, which is a random (semi-)orthogonal matrix.

    With stride 1 and "same" padding the layer then multiplies the length of every image by ``gain`` where the layer
    has at least as many channels out as in. Where it has fewer (Algorithm 1 leaves that out: no layer that loses
    channels can keep all lengths), the backward pass keeps lengths, and the forward pass those of what it keeps.

    Args:
        weight: ``[out, in/groups, *kernel]``, with one to three odd kernel sizes.
        gain: what all singular values of the centre tap are.
        generator: of the random numbers; torch's global one when None, as everywhere in ``torch.nn.init``.
        groups: of the layer. Each group has an orthogonal matrix of its own, so that the whole is orthogonal.

    Returns:
        The weight.

    Raises:
        InvalidType: no tensor of floating dtype, no number, no generator.
        InvalidValue: no kernel, an even one, channels that ``groups`` does not divide, a negative gain.

    Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz & Pennington 2018, "Dynamical isometry and a mean field theory of
    CNNs", Algorithm 1.
    """
    _check(weight, gain, generator)
    check_integer(1, groups=groups)
    kernel = list(weight.shape[2:])
    if weight.dim() not in (3, 4, 5):
        cure = "; for the weight of a dense layer use orthogonal_" if weight.dim() == 2 else ""
        raise InvalidValue(f"weight has shape {list(weight.shape)}; expected a kernel [out, in, *kernel]{cure}")
    if not all(size % 2 for size in kernel):
        raise InvalidValue(f"the kernel is {kernel}; an even size has no centre tap: expected odd ones")
    out, own = weight.shape[:2]
    if out % groups:
        raise InvalidValue(f"weight has {out} output channels; {groups} groups do not divide them")
    with torch.no_grad():
        blocks = [_haar(out // groups, own, weight, generator) for _ in range(groups)]
        centre = weight.zero_()
        for size in reversed(kernel):  # a view of the tap, the last axis first
            centre = centre.select(-1, size // 2)
        centre.copy_(gain * torch.cat(blocks))
    return weight


def _haar(rows: int, columns: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random matrix ``[rows, columns]`` in double precision whose columns, or rows if fewer, are orthonormal."""
    device = like.device if generator is None else generator.device
    precise = torch.float32 if device.type == "mps" else torch.float64  # there are no doubles there
    tall = torch.randn(max(rows, columns), min(rows, columns), dtype=precise, device=device, generator=generator)
    q, r = torch.linalg.qr(tall)
    # QR leaves the signs to the library; those of R's diagonal made positive, Q is uniform.
    q = torch.where(r.diagonal() < 0, -q, q)
    return (q if rows >= columns else q.T).to(like.device)


def _check(weight: Tensor, gain: float, generator: torch.Generator | None) -> None:
    check_instance(Tensor, "a tensor of weights", weight=weight)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InvalidValue("weight is lazy, it has no shape yet; run the network once on a batch")
    check_plain("a tensor of weights", weight=weight)
    if not weight.is_floating_point():
        raise InvalidType(f"weight is {weight.dtype}; expected a floating dtype")
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        raise InvalidValue("weight was made in torch.inference_mode(), and cannot be filled outside of it; clone it")
    check_non_negative(gain=gain)
    if gain > torch.finfo(weight.dtype).max:
        raise InvalidValue(f"gain is {gain!r}; expected a number that {weight.dtype} holds")
    if generator is not None:
        check_instance(torch.Generator, "a torch.Generator or None", generator=generator)


def orthogonal_gain(weight_variance: float, outputs: int, inputs: int) -> float:
    """The gain with which ``[outputs, inputs]`` orthogonal weights act per unit as such of variance ``sw2/inputs``.

    Args:
        weight_variance: sw2.
        outputs: rows of the matrix, of one group.
        inputs: its columns.

    Raises:
        InvalidType, InvalidValue: a negative variance; no sizes.
    """
    check_non_negative(weight_variance=weight_variance)
    check_integer(1, outputs=outputs, inputs=inputs)
    return math.sqrt(weight_variance * max(1.0, outputs / inputs))
