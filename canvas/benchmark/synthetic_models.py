"""Stable Diffusion 1.5 with random weights, for benchmarks without a download."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from canvas.catalog import ASSETS, ModelSpec, parse_model

if TYPE_CHECKING:
    import torch

UNET = {
    "sample_size": 64,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def synthetic_spec() -> ModelSpec:
    """The model's catalog entry, with the number of steps of diffusers' tutorials."""
    entry = {
        "name": str(ASSETS / "synthetic-sd15"),
        "size": "none",
        "speed": "Medium",
        "quality": "None",
        "resolution": 512,
        "type": "stable_diffusion",
        "num_inference_steps": 25,
        "accelerations": ["few_step_lora", "taesd"],
    }
    return parse_model("synthetic-sd15", entry)


def character_tokenizer() -> Any:
    """A CLIPTokenizer of 77 tokens without merges: every character is a token."""
    from transformers import CLIPTokenizer

    # How byte-level tokenizers write the 256 bytes: printable ones as they are, the others from 256 on
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(code) for code in (*printable, *range(256, 512 - len(printable)))]
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: row for row, token in enumerate(tokens)}, merges=[], model_max_length=77)


def build_synthetic(dtype: torch.dtype, device: str, unet: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The pipeline, with a token for each character; `unet` changes the UNet's configuration."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    pipeline: Any = StableDiffusionPipeline(
        vae=_random(lambda: AutoencoderKL(**VAE), dtype, device),
        text_encoder=_random(lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)), dtype, device),
        tokenizer=character_tokenizer(),
        unet=build_unet(dtype, device, unet),
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_unet(dtype: torch.dtype, device: str = "cpu", changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The UNet alone."""
    from diffusers import UNet2DConditionModel

    return _random(lambda: UNet2DConditionModel(**{**UNET, **changes}), dtype, device)


def build_tiny_vae(dtype: torch.dtype, device: str) -> Any:
    """The architecture of TAESD, with random weights."""
    from diffusers import AutoencoderTiny

    return _random(AutoencoderTiny, dtype, device)


def _random(make: Any, dtype: torch.dtype, device: str) -> Any:
    """Build a module on the meta device and fill it in its dtype, to keep peak memory low."""
    import torch

    with torch.device("meta"):
        module = make().to(dtype)
    module = module.to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                bound = parameter[0].numel() ** -0.5
                parameter.uniform_(-bound, bound)
            else:
                parameter.fill_(float(name.endswith("weight")))
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
            else:
                buffer.zero_()
    return module
