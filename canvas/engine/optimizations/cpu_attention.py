"""Chunked self-attention for CPUs whose fused attention kernel is slow in bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Attention scores of a chunk of queries stay in the CPU caches; best of 64 to 1024 as measured.
QUERY_CHUNK = 256
MIN_TOKENS = 512


class ChunkedAttnProcessor:
    """A diffusers attention processor that computes each head in chunks of queries.

    On CPUs without AMX torch's fused attention is far slower than the oneDNN matrix products
    used here. Cross-attention, attention masks and short sequences use the original processor.
    """

    def __init__(self, original: Any) -> None:
        self._original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        unsupported = (encoder_hidden_states, attention_mask, options.get("temb"))
        if any(value is not None for value in unsupported) or not _fits(attn, hidden_states):
            return self._original(attn, hidden_states, encoder_hidden_states, attention_mask, **options)
        return attn.to_out[0](_self_attention(attn, hidden_states))


def enable_chunked_attention(pipeline: Any) -> bool:
    """Use chunked attention in the UNet if it is faster there; return whether it is."""
    import torch

    unet = getattr(pipeline, "unet", None)
    if unet is None or unet.dtype != torch.bfloat16 or unet.device.type != "cpu":
        return False
    if torch.cpu._is_amx_tile_supported() or not hasattr(unet, "set_attn_processor"):
        return False
    unet.set_attn_processor({name: ChunkedAttnProcessor(original) for name, original in unet.attn_processors.items()})
    return True


def _fits(attn: Any, hidden_states: torch.Tensor) -> bool:
    plain = attn.group_norm is None and attn.spatial_norm is None and attn.norm_q is None
    plain = plain and not attn.residual_connection and attn.rescale_output_factor == 1
    return plain and hidden_states.ndim == 3 and hidden_states.shape[1] >= MIN_TOKENS


def _self_attention(attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    import torch

    queries, keys, values = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
    queries = queries * attn.scale
    result = torch.empty_like(queries)
    head_dim = queries.shape[-1] // attn.heads
    for index in range(len(hidden_states)):
        for head in range(attn.heads):
            channels = slice(head * head_dim, (head + 1) * head_dim)
            key = keys[index, :, channels].t().contiguous()
            value = values[index, :, channels].contiguous()
            for first in range(0, hidden_states.shape[1], QUERY_CHUNK):
                rows = slice(first, first + QUERY_CHUNK)
                scores = torch.mm(queries[index, rows, channels], key)
                result[index, rows, channels] = torch.mm(scores.softmax(-1), value)
    return result
