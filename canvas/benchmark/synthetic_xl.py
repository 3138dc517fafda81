"""SDXL at its true size with random weights in bfloat16, in the layout of its repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from canvas.benchmark.synthetic_klein import write_random_weights
from canvas.benchmark.synthetic_models import character_tokenizer

# The configuration of stabilityai/stable-diffusion-xl-base-1.0.
UNET = MappingProxyType(
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
)
VAE = MappingProxyType(
    {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": False,
    }
)
TEXT_ENCODER: Mapping[str, Any] = MappingProxyType(
    {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
)
TEXT_ENCODER_2: Mapping[str, Any] = MappingProxyType(
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    }
)


def write_xl(folder: Path) -> Path:
    """Write the repository in bfloat16, with a token for each character."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder.mkdir(parents=True)
    tokenizer = character_tokenizer()
    with torch.device("meta"):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel(**UNET),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2)),
        }
    pipeline: Any = StableDiffusionXLPipeline(
        **dict.fromkeys(modules), tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=EulerDiscreteScheduler()
    )
    pipeline.register_modules(**modules)
    for name, module in modules.items():
        (folder / name).mkdir()
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        write_random_weights(module, folder / name, stem)
        save = module.config.save_pretrained if name.startswith("text") else module.save_config
        save(folder / name)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    pipeline.save_config(folder)
    return folder
