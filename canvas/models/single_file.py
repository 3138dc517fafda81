"""Single `.safetensors` checkpoints: their family and configuration, read from the keys; no network.

`assets/single_file` has the configurations of Stable Diffusion 1.5, its inpainting model, 2.1 and
SDXL, and the merges of CLIP's tokenizer (from open_clip, MIT licence).
"""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from canvas.catalog import ASSETS
from canvas.errors import LazyMessage, ModelUnsupported
from canvas.models.capabilities import Capabilities, read_capabilities, read_folder
from canvas.models.pipeline_files import MODEL_INDEX, check_single_file, has_index, read_safetensors_header

FOLDER = ASSETS / "single_file"
UNET = "model.diffusion_model."
XL_ENCODER = "conditioner.embedders.1.model."
SD2_ENCODER = "cond_stage_model.model."
CLIP_ENCODERS = ("cond_stage_model.transformer.text_model.", "conditioner.embedders.0.transformer.text_model.")
HEAD_SIZE = 64  # of all attention layers except those of Stable Diffusion 1
# Words in the names of 2.1 models that predict noise: the keys do not tell them from the others.
SD2_EPSILON = ("turbo", "base", "512")
Shapes = Mapping[str, tuple[int, ...]]


def read_local(path: Path, name: str = "") -> Capabilities:
    """The capabilities of a folder or single file; raises ModelCorrupted or ModelUnsupported."""
    if not path.is_file():
        return read_folder(path, name)
    if has_index(path.with_suffix("")):  # the configuration beside it
        return read_folder(path.with_suffix(""), name)
    configs = read_configs(path)
    return read_capabilities(configs["model_index"], configs, name or path.stem)


def read_configs(path: Path) -> dict[str, dict[str, Any]]:
    """The configurations by component, and `model_index`, for the sizes in the file.

    Raises ModelCorrupted or ModelUnsupported.
    """
    check_single_file(path)
    header = read_safetensors_header(path)
    metadata = header.pop("__metadata__", {})
    shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    family = detect_family(shapes, path.name)
    configs: dict[str, dict[str, Any]] = copy.deepcopy(_shipped_configs()[family])
    _fit_unet(configs["unet"], shapes)
    _fit_vae(configs["vae"], shapes)
    for component in ("text_encoder", "text_encoder_2"):
        if component in configs:
            _fit_encoder(configs[component], shapes, _encoder_prefix(component, shapes))
    _fit_scheduler(configs["scheduler"], family, shapes, metadata, path.stem)
    return configs


def detect_family(shapes: Shapes, name: str) -> str:
    """The key in `configs.json`; raises ModelUnsupported for other checkpoints."""
    first_layer = UNET + "input_blocks.0.0.weight"
    if first_layer in shapes and "first_stage_model.decoder.conv_in.weight" in shapes:
        channels = shapes[first_layer][1]
        if XL_ENCODER + "token_embedding.weight" in shapes and channels == 4:
            return "sdxl"
        if SD2_ENCODER + "token_embedding.weight" in shapes and channels == 4:
            return "sd21"
        if CLIP_ENCODERS[0] + "embeddings.token_embedding.weight" in shapes and channels in (4, 9):
            return "sd15" if channels == 4 else "sd15_inpaint"
    text = (
        "{file} is no complete checkpoint of Stable Diffusion 1.5, 2.1 or SDXL. A LoRA belongs into the folder "
        "loras; use other models from the Hub or as diffusers folders."
    )
    raise ModelUnsupported(LazyMessage(text, file=name))


def write_config_folder(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write what `from_single_file` reads as `config`: configurations and tokenizers."""
    for component, config in configs.items():
        if component == "model_index":
            (folder / MODEL_INDEX).write_text(json.dumps(config), encoding="utf-8")
            continue
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        (folder / component).mkdir()
        (folder / component / name).write_text(json.dumps(config), encoding="utf-8")
    for component in configs["model_index"]:
        if component.startswith("tokenizer"):
            # SDXL's second encoder and that of 2.1 were trained with another padding.
            open_clip = component == "tokenizer_2" or configs["text_encoder"]["hidden_act"] == "gelu"
            write_tokenizer(folder / component, "!" if open_clip else "<|endoftext|>")


def write_tokenizer(folder: Path, padding: str = "<|endoftext|>") -> None:
    """Write CLIP's tokenizer as a folder."""
    merges = gzip.decompress((FOLDER / "clip_merges.txt.gz").read_bytes()).decode().splitlines()
    letters = _byte_letters()
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": padding,
    }
    config = {**special, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    folder.mkdir(parents=True)
    for name, value in (
        ("vocab.json", {token: index for index, token in enumerate(vocabulary)}),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


@lru_cache(maxsize=1)
def _shipped_configs() -> dict[str, dict[str, dict[str, Any]]]:
    configs: dict[str, dict[str, dict[str, Any]]] = json.loads((FOLDER / "configs.json").read_text(encoding="utf-8"))
    return configs


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _fit_unet(config: dict[str, Any], shapes: Shapes) -> None:
    per_level = config["layers_per_block"] + 1
    levels = range(len(config["block_out_channels"]))
    channels = [shapes[f"{UNET}input_blocks.{1 + level * per_level}.0.out_layers.3.weight"][0] for level in levels]
    config["block_out_channels"] = channels
    widths = {shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and UNET in name}
    config["cross_attention_dim"] = max(widths)
    if isinstance(config["attention_head_dim"], list):
        config["attention_head_dim"] = [max(1, each // HEAD_SIZE) for each in channels]
    if "addition_embed_type" in config:
        total = shapes[UNET + "label_emb.0.0.weight"][1]
        config["projection_class_embeddings_input_dim"] = total
        config["addition_time_embed_dim"] = (total - shapes[XL_ENCODER + "text_projection"][1]) // 6
        blocks = [rf"{re.escape(UNET)}input_blocks\.{1 + level * per_level}\.1\." for level in levels]
        depths = [_count(rf"{block}transformer_blocks\.(\d+)\.", shapes) for block in blocks]
        config["transformer_layers_per_block"] = [max(1, depth) for depth in depths]


def _fit_vae(config: dict[str, Any], shapes: Shapes) -> None:
    levels = range(len(config["block_out_channels"]))
    name = "first_stage_model.encoder.down.{}.block.0.conv1.weight"
    config["block_out_channels"] = [shapes[name.format(level)][0] for level in levels]


def _encoder_prefix(component: str, shapes: Shapes) -> str:
    if component == "text_encoder_2":
        return XL_ENCODER
    prefixes = (*CLIP_ENCODERS, SD2_ENCODER)
    return next(prefix for prefix in prefixes if any(name.startswith(prefix) for name in shapes))


def _fit_encoder(config: dict[str, Any], shapes: Shapes, prefix: str) -> None:
    is_open_clip = prefix in (XL_ENCODER, SD2_ENCODER)
    embedding = "token_embedding.weight" if is_open_clip else "embeddings.token_embedding.weight"
    layer = "transformer.resblocks" if is_open_clip else "encoder.layers"
    feed_forward = f"{prefix}{layer}.0.mlp.{'c_fc' if is_open_clip else 'fc1'}.weight"
    config["vocab_size"], config["hidden_size"] = shapes[prefix + embedding]
    config["intermediate_size"] = shapes[feed_forward][0]
    config["num_attention_heads"] = max(1, config["hidden_size"] // HEAD_SIZE)
    layers = _count(rf"{re.escape(prefix + layer)}\.(\d+)\.", shapes)
    config["num_hidden_layers"] = layers - 1 if prefix == SD2_ENCODER and layers == 24 else layers
    if prefix + "text_projection" in shapes:
        config["projection_dim"] = shapes[prefix + "text_projection"][1]


def _count(pattern: str, shapes: Shapes) -> int:
    """One more than the highest number in the names that match."""
    numbers = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _fit_scheduler(config: dict[str, Any], family: str, shapes: Shapes, metadata: Mapping[str, str], stem: str) -> None:
    if "v_pred" in shapes or metadata.get("modelspec.prediction_type") == "v":
        config["prediction_type"] = "v_prediction"
    elif family == "sd21" and (
        metadata.get("modelspec.prediction_type") == "epsilon" or any(word in stem.lower() for word in SD2_EPSILON)
    ):
        config["prediction_type"] = "epsilon"
    if "ztsnr" in shapes:  # trained with a zero terminal signal-to-noise ratio
        config["rescale_betas_zero_snr"] = True
        config["timestep_spacing"] = "trailing"
