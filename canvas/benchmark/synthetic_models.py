"""Stable Diffusion 1.5, SDXL and FLUX.2-klein with random weights, for benchmarks without a download."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
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
# The configuration of stabilityai/stable-diffusion-xl-base-1.0; the first text encoder is the one above.
XL_UNET = {
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
XL_VAE = {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": False}
XL_TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
# FLUX.2-klein-4B: 3.88 billion parameters, and 4.02 in its text encoder, Qwen3-4B.
KLEIN_TRANSFORMER = {
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
KLEIN_TEXT_ENCODER = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
MAX_SHARD_BYTES = 2_000_000_000
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = list(bytes_to_unicode().values())
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
            _fill(name, parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
            else:
                buffer.zero_()
    return module


def write_xl(folder: Path) -> Path:
    """Write SDXL's repository at its true size in bfloat16, with a token for each character."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = character_tokenizer()
    with torch.device("meta"):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel(**XL_UNET),
            "vae": AutoencoderKL(**XL_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**XL_TEXT_ENCODER)),
        }
    pipeline: Any = StableDiffusionXLPipeline(
        **dict.fromkeys(modules), tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=EulerDiscreteScheduler()
    )
    pipeline.register_modules(**modules)
    _write_modules(modules, folder)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    pipeline.save_config(folder)
    return folder


def write_klein(
    folder: Path,
    transformer: Mapping[str, Any] = KLEIN_TRANSFORMER,
    text_encoder: Mapping[str, Any] = KLEIN_TEXT_ENCODER,
    vae: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write the repository of a FLUX.2-klein of any size in bfloat16."""
    import torch
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        modules: dict[str, Any] = {
            "transformer": Flux2Transformer2DModel(**transformer),
            "text_encoder": Qwen3ForCausalLM(Qwen3Config(**text_encoder)),
            "vae": AutoencoderKLFlux2(**vae),
        }
    _write_modules(modules, folder)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.save_pretrained(folder / "scheduler")
    _write_qwen_tokenizer(folder / "tokenizer", text_encoder["vocab_size"])
    index = {
        "_class_name": "Flux2KleinPipeline",
        "is_distilled": True,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def _write_modules(modules: Mapping[str, Any], folder: Path) -> None:
    """Write modules on the meta device with random weights, a file at a time: the memory stays small."""
    for name, module in modules.items():
        (folder / name).mkdir(parents=True)
        is_text_encoder = name.startswith("text")
        _write_random_weights(module, folder / name, "model" if is_text_encoder else "diffusion_pytorch_model")
        save_config = module.config.save_pretrained if is_text_encoder else module.save_config
        save_config(folder / name)


def _write_random_weights(module: Any, folder: Path, stem: str) -> None:
    """Save random weights in bfloat16, each tensor once, in one file or several."""
    import torch
    from safetensors.torch import save_file

    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    tensors = {name: each for name, each in module.to(torch.bfloat16).state_dict().items() if name not in tied}
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > MAX_SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    files = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [f"{stem}.safetensors"]
    else:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    for file, names in zip(files, shards, strict=True):
        filled = {name: _fill(name, torch.empty(tensors[name].shape, dtype=tensors[name].dtype)) for name in names}
        save_file(filled, folder / file, {"format": "pt"})


def _fill(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Random weights in place; norms are 1 and biases 0."""
    if not tensor.is_floating_point():
        return tensor.zero_()
    if tensor.ndim > 1:
        bound = tensor[0].numel() ** -0.5
        return tensor.uniform_(-bound, bound)
    return tensor.fill_(0.0 if name.endswith(("bias", "running_mean")) else 1.0)


def _write_qwen_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of bytes, with the special tokens and the chat template of Qwen."""
    import transformers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir()
    letters = list(bytes_to_unicode().values())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate([*letters, *special])}
    assert len(vocab) <= vocab_size  # noqa: S101 - the embedding has that many rows
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer_class: Any = transformers.Qwen2TokenizerFast  # type: ignore[attr-defined]  # loaded on first use
    tokenizer = tokenizer_class(
        vocab=vocab, merges=[], additional_special_tokens=special[1:], pad_token=special[0], eos_token=special[2]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
