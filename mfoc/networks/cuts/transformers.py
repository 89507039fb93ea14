"""The stacks of torch's transformers as plain loops over their layers, which symbolic tracing can read.

Their own forward passes decide by shapes and values whether a mask is causal and whether padding may be packed: hints
for speed. The masks themselves are handed on, so the values are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]


def _encoder(
    net: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
) -> Any:
    for layer in net.layers:
        src = layer(src, src_mask=mask, is_causal=is_causal is True, src_key_padding_mask=src_key_padding_mask)
    return src if net.norm is None else net.norm(src)


def _decoder(
    net: Any,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Any:
    for layer in net.layers:
        tgt = layer(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal is True,
            memory_is_causal=memory_is_causal,
        )
    return tgt if net.norm is None else net.norm(tgt)


def plain_forward(module: nn.Module) -> Forward | None:
    """The forward pass of a stack of torch's as a loop ``(module, *args)``; None of any other module."""
    found: dict[type[nn.Module], tuple[Any, Forward]] = {
        nn.TransformerEncoder: (nn.TransformerEncoder.forward, _encoder),
        nn.TransformerDecoder: (nn.TransformerDecoder.forward, _decoder),
    }
    for kind, (own, plain) in found.items():
        if isinstance(module, kind) and type(module).forward is own:
            return plain
    return None
