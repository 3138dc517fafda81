"""Self-attention on processors whose fused kernel is slow in bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Scores of so many queries at a time stay in the caches; found by measuring 64 to 1024.
QUERY_CHUNK = 256
MIN_TOKENS = 512


class ChunkedAttnProcessor:
    """An attention processor of diffusers that multiplies tile by tile, head by head.

    Torch's fused attention on a CPU without matrix units (AMX) does its products at a
    fraction of the speed of oneDNN's, which this one uses. Cross-attention, masks and
    few tokens go the usual way.
    """

    def __init__(self, usual: Any) -> None:
        self._usual = usual

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """What diffusers calls in place of its own processor."""
        others = (encoder_hidden_states, attention_mask, options.get("temb"))
        if any(other is not None for other in others) or not _fits(attn, hidden_states):
            usual: torch.Tensor = self._usual(
                attn, hidden_states, encoder_hidden_states, attention_mask, **options
            )
            return usual
        found: torch.Tensor = attn.to_out[0](_self_attention(attn, hidden_states))
        return found


def enable_chunked_attention(pipeline: Any) -> bool:
    """Give the UNet tiled attention where that is faster; says whether it was done."""
    import torch

    unet = getattr(pipeline, "unet", None)
    if unet is None or unet.dtype != torch.bfloat16 or unet.device.type != "cpu":
        return False
    if torch.cpu._is_amx_tile_supported() or not hasattr(unet, "set_attn_processor"):
        return False
    unet.set_attn_processor(
        {name: ChunkedAttnProcessor(usual) for name, usual in unet.attn_processors.items()}
    )
    return True


def _fits(attn: Any, hidden: torch.Tensor) -> bool:
    plain = attn.group_norm is None and attn.spatial_norm is None and attn.norm_q is None
    plain = plain and not attn.residual_connection and attn.rescale_output_factor == 1
    return plain and hidden.ndim == 3 and hidden.shape[1] >= MIN_TOKENS


def _self_attention(attn: Any, hidden: torch.Tensor) -> torch.Tensor:
    import torch

    queries, keys, values = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
    queries = queries * attn.scale
    result = torch.empty_like(queries)
    width = queries.shape[-1] // attn.heads
    for picture in range(len(hidden)):
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            key = keys[picture, :, part].t().contiguous()
            value = values[picture, :, part].contiguous()
            for first in range(0, hidden.shape[1], QUERY_CHUNK):
                rows = slice(first, first + QUERY_CHUNK)
                scores = torch.mm(queries[picture, rows, part], key)
                result[picture, rows, part] = torch.mm(scores.softmax(-1), value)
    return result
