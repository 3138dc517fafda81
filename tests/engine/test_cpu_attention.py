"""Chunked attention gives the same result as the original processor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from canvas.engine.optimizations.cpu_attention import (
    MIN_TOKENS,
    QUERY_CHUNK,
    ChunkedAttnProcessor,
    enable_chunked_attention,
)


class CountingProcessor(AttnProcessor2_0):
    """The original processor, counting its calls."""

    calls = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return super().__call__(*args, **options)


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=32, heads=4, dim_head=8).eval()


@pytest.mark.parametrize("tokens", [512, 2 * QUERY_CHUNK + 88])
@torch.no_grad()
def test_chunks_give_the_original_result(attention: Attention, tokens: int) -> None:
    hidden = torch.randn(2, tokens, 32)
    expected = attention(hidden)
    original = CountingProcessor()
    attention.set_processor(ChunkedAttnProcessor(original))
    torch.testing.assert_close(attention(hidden), expected, atol=1e-5, rtol=1e-4)
    assert original.calls == 0


@torch.no_grad()
def test_cross_attention_and_short_sequences_use_the_original_processor(attention: Attention) -> None:
    original = CountingProcessor()
    attention.set_processor(ChunkedAttnProcessor(original))
    attention(torch.randn(1, 600, 32), encoder_hidden_states=torch.randn(1, 7, 32))
    attention(torch.randn(1, MIN_TOKENS - 1, 32))
    attention(torch.randn(1, 600, 32), attention_mask=torch.zeros(1, 1, 600))
    attention(torch.randn(1, 32, 30, 20))  # a map of features
    assert original.calls == 4


@pytest.mark.parametrize(
    "options",
    [{"residual_connection": True}, {"rescale_output_factor": 2.0}, {"norm_num_groups": 4}, {"qk_norm": "layer_norm"}],
    ids=lambda options: next(iter(options)),
)
@torch.no_grad()
def test_other_kinds_of_attention_use_the_original_processor(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=32, heads=4, dim_head=8, **options).eval()
    hidden = torch.randn(1, 600, 32)
    expected = attention(hidden)
    attention.set_processor(ChunkedAttnProcessor(original := CountingProcessor()))
    assert torch.equal(attention(hidden), expected)
    assert original.calls == 1


def test_enabled_only_in_bfloat16_without_amx(tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    assert not enable_chunked_attention(pipeline), "float32 uses the original"
    assert not enable_chunked_attention(object())
    pipeline.to(dtype=torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert not enable_chunked_attention(pipeline)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert enable_chunked_attention(pipeline)
    assert all(isinstance(each, ChunkedAttnProcessor) for each in pipeline.unet.attn_processors.values())
    pipeline.unet.set_attn_processor(AttnProcessor2_0())
    assert not enable_chunked_attention(SimpleNamespace(unet=pipeline.unet.to("meta"))), "another device"
    assert not enable_chunked_attention(SimpleNamespace(unet=pipeline.text_encoder)), "no processors of attention"
