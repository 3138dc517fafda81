"""An SDXL of a few hundred kilobytes with random weights, laid out as on the Hub."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_pipeline import NOISE, UNET, VAE, make_tokenizer, text_config

CROSS_ATTENTION = 64


def make_tiny_xl(folder: Path) -> Path:
    """Save the pipeline as a diffusers folder of safetensors; its native size is 64 x 64."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "tokenizer")
    config = text_config(len(tokenizer), projection_dim=32, hidden_act="gelu")
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=make_tokenizer(folder / "tokenizer_2"),
        unet=UNet2DConditionModel(
            **UNET,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=CROSS_ATTENTION,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
