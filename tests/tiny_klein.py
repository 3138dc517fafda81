"""A FLUX.2-klein of a few kilobytes with random weights."""

from __future__ import annotations

from pathlib import Path

from canvas.benchmark.synthetic_models import write_klein

TRANSFORMER = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 96,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 4, 4, 4),
    "timestep_guidance_channels": 16,
}
TEXT_ENCODER = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 36,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}


def write_tiny_klein(folder: Path) -> Path:
    return write_klein(folder, TRANSFORMER, TEXT_ENCODER, VAE)
