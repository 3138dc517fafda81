"""A Stable Diffusion 1.5 of a few hundred kilobytes with random weights, laid out as on the Hub."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

WORDS = ("a", "fox", "in", "the", "snow", "house", "red", "picture", "of", "style", "portrait")
UNUSED_CONTENT = b"not weights" * 50_000
FEATURE_EXTRACTOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}

# Shared with the tiny SDXL
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
}
UNET: dict[str, Any] = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def make_tiny_pipeline(folder: Path) -> Path:
    """Save the pipeline as a diffusers folder of safetensors; its native size is 64 x 64."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "tokenizer")
    vae = AutoencoderKL(**VAE)
    unet = UNet2DConditionModel(
        **UNET,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        # The values of the SD1.5 repositories.
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # Repositories of 2022 lack this file; the tokenizer is built from vocab and merges.
    (folder / "tokenizer" / "tokenizer.json").unlink()
    return folder


def make_bin_layout(source: Path, folder: Path) -> Path:
    """The same weights as `.bin` files, with a safety checker, as in small-stable-diffusion."""
    _copy_without_weights(source, folder)
    for weights in _weights(source):
        _save_bin(_load(weights), folder / _bin_name(weights.relative_to(source)))
    _add_checker(folder, ("pytorch_model.bin",))
    return folder


def make_full_layout(source: Path, folder: Path) -> Path:
    """All files of Stable Diffusion 1.5: both formats, fp16, non_ema, checker, single files."""
    from safetensors.torch import save_file

    shutil.copytree(source, folder)
    for weights in _weights(source):
        name = weights.relative_to(source)
        tensors = _load(weights)
        halves = {key: tensor.half() for key, tensor in tensors.items()}
        _save_bin(tensors, folder / _bin_name(name))
        _save_bin(halves, folder / _bin_name(name).with_suffix(".fp16.bin"))
        save_file(halves, folder / name.with_suffix(".fp16.safetensors"), {"format": "pt"})
    for name in ("unet/diffusion_pytorch_model.non_ema", "v1-5-pruned", "v1-5-pruned-emaonly"):
        for suffix in (".safetensors", ".bin" if "/" in name else ".ckpt"):
            Path(f"{folder / name}{suffix}").write_bytes(UNUSED_CONTENT)
    _add_checker(folder, ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"))
    (folder / "README.md").write_text("# A tiny model\n", encoding="utf-8")
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n", encoding="utf-8")
    return folder


def write_announced_terabyte(path: Path) -> None:
    """Write a file of safetensors with the header of a terabyte of weights, and nothing else."""
    numbers = 2**38
    tensor = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    header = json.dumps({"conv_in.weight": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def _load(weights: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(weights)
    return tensors


def _bin_name(name: Path) -> Path:
    stem = "pytorch_model" if name.stem == "model" else name.stem
    return name.with_name(f"{stem}.bin")


def _save_bin(tensors: dict[str, Any], path: Path) -> None:
    import torch

    torch.save(tensors, path)


def _copy_without_weights(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))


def _add_checker(folder: Path, weights: tuple[str, ...]) -> None:
    """Add a safety checker that cannot be loaded, as it must not be downloaded."""
    index = folder / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    parts["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    parts["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index.write_text(json.dumps(parts, indent=2), encoding="utf-8")
    for name, text in (
        ("safety_checker/config.json", {"model_type": "clip"}),
        ("feature_extractor/preprocessor_config.json", FEATURE_EXTRACTOR),
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(text), encoding="utf-8")
    for name in weights:
        (folder / "safety_checker" / name).write_bytes(UNUSED_CONTENT)


def _text_encoder(vocab_size: int) -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(text_config(vocab_size))


def text_config(vocab_size: int, **options: Any) -> Any:
    """The configuration of a text encoder for `make_tokenizer`."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
        **options,
    )


def make_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer for all bytes, with one token for each of WORDS."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocab = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[0]} {pieces[1]}"
            pieces[:2] = ["".join(pieces[:2])]
            if merge not in merges:
                merges.append(merge)
                vocab.append(pieces[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(vocab)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    text = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    config = {**special, "model_max_length": 77, "do_lower_case": True, "add_prefix_space": False}
    config["tokenizer_class"] = "CLIPTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)
