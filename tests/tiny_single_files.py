"""Single-file checkpoints with the key names of the original authors and small random tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from canvas.models import single_file

CLIP = "cond_stage_model.transformer.text_model."
VOCABULARY = 49408
Tensors = dict[str, tuple[int, ...]]


def make_single_file(family: str, path: Path) -> Path:
    """Save a checkpoint of `sd15`, `sd15_inpaint`, `sd21` or `sdxl`, with every key of the real ones."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {**_unet(family), **_vae(), **ENCODERS[family]()}
    tensors = {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if ("norm" in name or ".ln_" in name or "in_layers.0" in name or "out_layers.0" in name) and "weight" in name:
            tensor.fill_(1.0)
    save_file(tensors, path, {"format": "pt"})
    return path


def _linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> Tensors:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _conv(name: str, outputs: int, inputs: int, size: int = 3) -> Tensors:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Tensors:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _residual(name: str, inputs: int, outputs: int, time: int) -> Tensors:
    shapes = {**_norm(f"{name}.in_layers.0", inputs), **_conv(f"{name}.in_layers.2", outputs, inputs)}
    shapes |= _linear(f"{name}.emb_layers.1", outputs, time)
    shapes |= {**_norm(f"{name}.out_layers.0", outputs), **_conv(f"{name}.out_layers.3", outputs, outputs)}
    return shapes | (_conv(f"{name}.skip_connection", outputs, inputs, 1) if inputs != outputs else {})


def _attention(name: str, channels: int, context: int, depth: int, *, linear: bool) -> Tensors:
    shapes = _norm(f"{name}.norm", channels)
    for projection in ("proj_in", "proj_out"):
        part = f"{name}.{projection}"
        shapes |= _linear(part, channels, channels) if linear else _conv(part, channels, channels, 1)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for number, width in ((1, channels), (2, context)):
            attention = f"{block}.attn{number}"
            shapes |= _linear(f"{attention}.to_q", channels, channels, bias=False)
            shapes |= _linear(f"{attention}.to_k", channels, width, bias=False)
            shapes |= _linear(f"{attention}.to_v", channels, width, bias=False)
            shapes |= _linear(f"{attention}.to_out.0", channels, channels)
        shapes |= _linear(f"{block}.ff.net.0.proj", 8 * channels, channels)
        shapes |= _linear(f"{block}.ff.net.2", channels, 4 * channels)
        for number in (1, 2, 3):
            shapes |= _norm(f"{block}.norm{number}", channels)
    return shapes


def _unet(family: str) -> Tensors:
    channels = (32, 64, 64) if family == "sdxl" else (32, 64, 64, 64)
    depths = {"sdxl": (0, 2, 3)}.get(family, (1, 1, 1, 0))
    context = {"sd21": 64, "sdxl": 192}.get(family, 64)
    time, linear = 4 * channels[0], family in ("sd21", "sdxl")
    prefix = single_file.UNET
    shapes = {**_linear(f"{prefix}time_embed.0", time, channels[0]), **_linear(f"{prefix}time_embed.2", time, time)}
    if family == "sdxl":
        shapes |= {
            **_linear(f"{prefix}label_emb.0.0", time, 128 + 6 * 32),
            **_linear(f"{prefix}label_emb.0.2", time, time),
        }
    shapes |= _conv(f"{prefix}input_blocks.0.0", channels[0], 9 if family == "sd15_inpaint" else 4)
    skips, current, number = [channels[0]], channels[0], 1
    for level, width in enumerate(channels):
        for _ in range(2):
            block = f"{prefix}input_blocks.{number}"
            shapes |= _residual(f"{block}.0", current, width, time)
            if depths[level]:
                shapes |= _attention(f"{block}.1", width, context, depths[level], linear=linear)
            current = width
            skips.append(current)
            number += 1
        if level < len(channels) - 1:
            shapes |= _conv(f"{prefix}input_blocks.{number}.0.op", current, current)
            skips.append(current)
            number += 1
    middle = f"{prefix}middle_block"
    shapes |= _residual(f"{middle}.0", current, current, time) | _residual(f"{middle}.2", current, current, time)
    shapes |= _attention(f"{middle}.1", current, context, depths[-1] or 1, linear=linear)
    number = 0
    for level in reversed(range(len(channels))):
        width = channels[level]
        for index in range(3):
            block = f"{prefix}output_blocks.{number}"
            shapes |= _residual(f"{block}.0", current + skips.pop(), width, time)
            current = width
            if depths[level]:
                shapes |= _attention(f"{block}.1", width, context, depths[level], linear=linear)
            if index == 2 and level:
                shapes |= _conv(f"{block}.{2 if depths[level] else 1}.conv", width, width)
            number += 1
    return shapes | _norm(f"{prefix}out.0", channels[0]) | _conv(f"{prefix}out.2", 4, channels[0])


def _vae() -> Tensors:
    channels = (32, 32, 64, 64)
    prefix = "first_stage_model."
    shapes = {**_conv(f"{prefix}quant_conv", 8, 8, 1), **_conv(f"{prefix}post_quant_conv", 4, 4, 1)}
    shapes |= _conv(f"{prefix}encoder.conv_in", 32, 3) | _conv(f"{prefix}decoder.conv_in", 64, 4)
    current = 32
    for level, width in enumerate(channels):
        for index in range(2):
            shapes |= _vae_residual(f"{prefix}encoder.down.{level}.block.{index}", current, width)
            current = width
        if level < 3:
            shapes |= _conv(f"{prefix}encoder.down.{level}.downsample.conv", current, current)
    for level in reversed(range(4)):
        for index in range(3):
            shapes |= _vae_residual(f"{prefix}decoder.up.{level}.block.{index}", current, channels[level])
            current = channels[level]
        if level:
            shapes |= _conv(f"{prefix}decoder.up.{level}.upsample.conv", current, current)
    for part in ("encoder", "decoder"):
        middle = f"{prefix}{part}.mid"
        shapes |= _vae_residual(f"{middle}.block_1", 64, 64) | _vae_residual(f"{middle}.block_2", 64, 64)
        shapes |= _norm(f"{middle}.attn_1.norm", 64)
        for name in ("q", "k", "v", "proj_out"):
            shapes |= _conv(f"{middle}.attn_1.{name}", 64, 64, 1)
    shapes |= _norm(f"{prefix}encoder.norm_out", 64) | _conv(f"{prefix}encoder.conv_out", 8, 64)
    return shapes | _norm(f"{prefix}decoder.norm_out", 32) | _conv(f"{prefix}decoder.conv_out", 3, 32)


def _vae_residual(name: str, inputs: int, outputs: int) -> Tensors:
    shapes = {**_norm(f"{name}.norm1", inputs), **_conv(f"{name}.conv1", outputs, inputs)}
    shapes |= {**_norm(f"{name}.norm2", outputs), **_conv(f"{name}.conv2", outputs, outputs)}
    return shapes | (_conv(f"{name}.nin_shortcut", outputs, inputs, 1) if inputs != outputs else {})


def _clip(prefix: str = CLIP, width: int = 64, layers: int = 12) -> Tensors:
    shapes: Tensors = {
        f"{prefix}embeddings.token_embedding.weight": (VOCABULARY, width),
        f"{prefix}embeddings.position_embedding.weight": (77, width),
        **_norm(f"{prefix}final_layer_norm", width),
    }
    for index in range(layers):
        layer = f"{prefix}encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", 2 * width, width) | _linear(f"{layer}.mlp.fc2", width, 2 * width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return shapes


def _open_clip(prefix: str, width: int, layers: int) -> Tensors:
    shapes: Tensors = {
        f"{prefix}token_embedding.weight": (VOCABULARY, width),
        f"{prefix}positional_embedding": (77, width),
        f"{prefix}text_projection": (width, width),
        f"{prefix}logit_scale": (1,),
        **_norm(f"{prefix}ln_final", width),
    }
    for index in range(layers):
        block = f"{prefix}transformer.resblocks.{index}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= _linear(f"{block}.attn.out_proj", width, width)
        shapes |= _linear(f"{block}.mlp.c_fc", 2 * width, width) | _linear(f"{block}.mlp.c_proj", width, 2 * width)
        shapes |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
    return shapes


def _xl_encoders() -> Tensors:
    prefix = "conditioner.embedders.0.transformer.text_model."
    return {**_clip(prefix), **_open_clip(single_file.XL_ENCODER, 128, 32)}


ENCODERS: dict[str, Callable[[], Any]] = {
    "sd15": _clip,
    "sd15_inpaint": _clip,
    "sd21": lambda: _open_clip(single_file.SD2_ENCODER, 64, 24),
    "sdxl": _xl_encoders,
}
