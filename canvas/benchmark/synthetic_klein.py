"""A FLUX.2-klein of any size with random weights, in the layout of its repository."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# FLUX.2-klein-4B: 3.88 billion parameters, and 4.02 in its text encoder, Qwen3-4B.
TRANSFORMER = MappingProxyType(
    {
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    }
)
TEXT_ENCODER = MappingProxyType(
    {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
)
TINY_TRANSFORMER = MappingProxyType(
    {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 96,
        "guidance_embeds": False,
        "axes_dims_rope": (4, 4, 4, 4),
        "timestep_guidance_channels": 16,
    }
)
TINY_TEXT_ENCODER = MappingProxyType(
    {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 36,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }
)
TINY_VAE = MappingProxyType({"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4})
MAX_SHARD_BYTES = 2_000_000_000
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_klein(
    folder: Path,
    transformer: Mapping[str, Any] = TRANSFORMER,
    text_encoder: Mapping[str, Any] = TEXT_ENCODER,
    vae: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write the repository in bfloat16, a tensor at a time: the memory stays small."""
    import torch
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with torch.device("meta"):
        modules: dict[str, Any] = {
            "transformer": Flux2Transformer2DModel(**transformer),
            "text_encoder": Qwen3ForCausalLM(Qwen3Config(**text_encoder)),
            "vae": AutoencoderKLFlux2(**vae),
        }
    for name, module in modules.items():
        (folder / name).mkdir(parents=True)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_random_weights(module, folder / name, stem)
    modules["text_encoder"].config.save_pretrained(folder / "text_encoder")
    for name in ("transformer", "vae"):
        modules[name].save_config(folder / name)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.save_pretrained(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer", text_encoder["vocab_size"])
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


def write_random_weights(module: Any, folder: Path, stem: str) -> None:
    """Save random weights of a module on the meta device in bfloat16, in one file or several."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    names: list[str] = []
    size = 0
    index: dict[str, str] = {}
    for name, tensor in _random_tensors(module):
        if size + tensor.nbytes > MAX_SHARD_BYTES and shards[-1]:
            names.append(_save_shard(shards.pop(), folder, stem, len(names)))
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        index[name] = str(len(names))
        size += tensor.nbytes
    names.append(_save_shard(shards.pop(), folder, stem, len(names)))
    if len(names) == 1:
        (folder / names[0]).rename(folder / f"{stem}.safetensors")
        return
    final = [f"{stem}-{number + 1:05}-of-{len(names):05}.safetensors" for number in range(len(names))]
    for old, new in zip(names, final, strict=True):
        (folder / old).rename(folder / new)
    weight_map = {name: final[int(number)] for name, number in index.items()}
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")


def _save_shard(tensors: dict[str, torch.Tensor], folder: Path, stem: str, number: int) -> str:
    from safetensors.torch import save_file

    name = f"{stem}-part-{number}.safetensors"
    save_file(tensors, folder / name, {"format": "pt"})
    return name


def _random_tensors(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a state dict, each once; norms are 1 and biases 0."""
    import torch

    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    torch.manual_seed(0)
    for name, empty in module.state_dict().items():
        if name in tied:
            continue
        tensor = torch.empty(empty.shape, dtype=torch.bfloat16 if empty.is_floating_point() else empty.dtype)
        if not empty.is_floating_point():
            tensor.zero_()
        elif empty.ndim > 1:
            bound = empty[0].numel() ** -0.5
            tensor.uniform_(-bound, bound)
        else:
            tensor.fill_(0.0 if name.endswith("bias") or name.endswith("running_mean") else 1.0)
        yield name, tensor


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
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
