"""LoRAs of every family that diffusers supports, in the layouts of trainers; LoHa, LoKr and old files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from canvas.engine.lora_adapters import applied_loras, pipeline_family, to_lora
from canvas.errors import InvalidInput
from canvas.models.loras import LABELS, OTHER_KIND, kind_of, lora_family, read_lora
from tests.tiny_families import make_tiny

RANK = 2
FAMILIES = {
    "sd15": "",  # of a width that no real model has
    "sdxl": "stable_diffusion_xl",
    "sd3": "stable_diffusion_3",
    "flux-dev": "flux",
    "flux2-klein": "flux2_klein",
    "z-image-turbo": "z_image",
    "qwen-image": "qwen_image",
    "sana": "sana",
    "lumina2": "lumina2",
    "chroma": "chroma",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipeline(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny(family, tmp_path_factory.mktemp(family))
    return diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)


def denoiser(pipeline: Any) -> tuple[str, Any]:
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    return name, getattr(pipeline, name)


def attention_layers(model: Any) -> dict[str, torch.Tensor]:
    return {name: layer.weight for name, layer in model.named_modules() if name.endswith(("to_q", "to_k", "to_v"))}


def make_lora(path: Path, pipeline: Any, widen: int = 0) -> Path:
    """A random LoRA in diffusers' layout for the attention; `widen` makes it unfit."""
    numbers = torch.Generator().manual_seed(0)
    name, model = denoiser(pipeline)
    tensors = {}
    for layer, weight in attention_layers(model).items():
        rows, columns = weight.shape
        down = torch.randn((RANK, columns + widen), generator=numbers)
        tensors[f"{name}.{layer}.lora_A.weight"] = down
        tensors[f"{name}.{layer}.lora_B.weight"] = torch.randn((rows, RANK), generator=numbers)
    save_file(tensors, path)
    return path


def change_of(pipeline: Any, layer: str, path: Path, weight: float = 1.0) -> torch.Tensor:
    """How the output of a layer changes for the identity matrix: the change of its weights, transposed."""
    _, model = denoiser(pipeline)
    columns = model.get_submodule(layer).in_features
    before = model.get_submodule(layer)(torch.eye(columns))
    with torch.no_grad(), applied_loras(pipeline, [(read_lora(path), weight)]):
        after = model.get_submodule(layer)(torch.eye(columns))
    assert torch.equal(model.get_submodule(layer)(torch.eye(columns)), before), "the pipeline is unchanged"
    return (after - before).detach()


@pytest.mark.slow
def test_a_lora_of_the_family_changes_the_layers(family: str, pipeline: Any, tmp_path: Path) -> None:
    path = make_lora(tmp_path / "a.safetensors", pipeline)
    layer, weight = next(iter(attention_layers(denoiser(pipeline)[1]).items()))
    assert weight.shape[1] > 0
    strong = change_of(pipeline, layer, path)
    assert strong.abs().max() > 1e-3
    assert torch.allclose(change_of(pipeline, layer, path, 0.5), strong / 2, atol=1e-5)
    assert pipeline_family(pipeline) == FAMILIES[family]


def test_a_lora_of_other_sizes_names_its_layers(family: str, pipeline: Any, tmp_path: Path) -> None:
    path = make_lora(tmp_path / "wide.safetensors", pipeline, widen=8)
    with pytest.raises(InvalidInput) as caught, applied_loras(pipeline, [(read_lora(path), 1)]):
        pass
    assert re.search(r"LoRA wide, made for .*, does not fit this model \(.*to_[qkv].*\[2, \d+\]", str(caught.value))
    assert not re.search("peft|state_dict|size mismatch|Target modules", str(caught.value), re.IGNORECASE)


# Names and shapes as the trainers of each family write them.
REAL = {
    "sd1": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)},
    "sd2": {"unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight": (4, 1024)},
    "stable_diffusion_xl": {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)},
    "stable_diffusion_3": {"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": (4, 1536)},
    "flux": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (16, 3072)},
    "flux2_klein": {"transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight": (16, 3072)},
    "z_image": {"diffusion_model.layers.0.attention.to_q.lora_A.weight": (16, 3840)},
    "lumina2": {"diffusion_model.layers.0.attention.qkv.lora_A.weight": (16, 2304)},
    "qwen_image": {"transformer.transformer_blocks.59.attn.to_q.lora_A.weight": (16, 3072)},
    "video": {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (16, 5120)},
}


@pytest.mark.parametrize("key", REAL)
def test_families_are_recognized_by_the_keys(key: str) -> None:
    assert lora_family(REAL[key]) == key
    assert key in LABELS


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["emb_params"], "a textual inversion"),
        (["<cat-toy>"], "a textual inversion"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a whole model"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["x"], "a file with other weights"),
    ],
)
def test_other_weights_are_named(tmp_path: Path, names: list[str], kind: str) -> None:
    save_file({name: torch.zeros(1, 8) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(InvalidInput, match=rf"x\.safetensors is not a LoRA but {kind}\."):
        read_lora(tmp_path / "x.safetensors")
    assert kind_of({name: (1, 8) for name in names}) in (kind, OTHER_KIND)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(make_tiny("flux-dev", tmp_path_factory.mktemp("flux")))


@pytest.mark.parametrize("key", ["sd1", "z_image", "qwen_image", "video"])
def test_a_lora_of_another_family_names_both(flux: Any, tmp_path: Path, key: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in REAL[key].items()}, tmp_path / "a.safetensors")
    message = rf"The LoRA a, made for {re.escape(LABELS[key])}, does not fit this model .*Choose a LoRA for FLUX\.1\."
    with pytest.raises(InvalidInput, match=message), applied_loras(flux, [(read_lora(tmp_path / "a.safetensors"), 1)]):
        pass


def test_models_without_loras_say_so(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = make_tiny("pixart-sigma", tmp_path_factory.mktemp("pixart"))
    pixart = diffusers.DiffusionPipeline.from_pretrained(folder)
    path = make_lora(tmp_path / "a.safetensors", pixart)
    with pytest.raises(InvalidInput, match="takes no LoRAs"), applied_loras(pixart, [(read_lora(path), 1)]):
        pass


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny("sd15", tmp_path_factory.mktemp("sd15"))
    return diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)


LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("rank", [2, 8])
def test_loha(sd15: Any, tmp_path: Path, rank: int) -> None:
    rows, columns = sd15.unet.get_submodule(LINEAR).weight.shape
    key = f"lora_unet_{LINEAR.replace('.', '_')}"
    parts = {
        "hada_w1_a": random(rows, rank),
        "hada_w1_b": random(rank, columns, seed=1),
        "hada_w2_a": random(rows, rank, seed=2),
        "hada_w2_b": random(rank, columns, seed=3),
        "alpha": torch.tensor(rank / 2),
    }
    save_file({f"{key}.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a.safetensors")
    expected = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) / 2
    assert torch.allclose(change_of(sd15, LINEAR, tmp_path / "a.safetensors"), expected.T, atol=1e-3)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lycoris_"])
@pytest.mark.parametrize("decomposed", ["w1", "w2", "both", "none"])
def test_lokr(sd15: Any, tmp_path: Path, prefix: str, decomposed: str) -> None:
    rows, columns = sd15.unet.get_submodule(LINEAR).weight.shape
    sizes = {"w1": (4, 2), "w2": (rows // 4, columns // 2)}
    parts, factors = {}, []
    for number, (name, (high, wide)) in enumerate(sizes.items()):
        if decomposed in (name, "both"):
            parts[f"lokr_{name}_a"], parts[f"lokr_{name}_b"] = random(high, 2), random(2, wide, seed=number)
            factors.append(parts[f"lokr_{name}_a"] @ parts[f"lokr_{name}_b"])
        else:
            parts[f"lokr_{name}"] = random(high, wide, seed=number)
            factors.append(parts[f"lokr_{name}"])
    parts["alpha"] = torch.tensor(1.0)
    key = f"{prefix}{LINEAR.replace('.', '_')}"
    save_file({f"{key}.{name}": tensor for name, tensor in parts.items()}, tmp_path / "a.safetensors")
    expected = torch.kron(*factors) * (1.0 if decomposed == "none" else 0.5)
    assert torch.allclose(change_of(sd15, LINEAR, tmp_path / "a.safetensors"), expected.T, atol=1e-3)


def test_loha_of_a_convolution(sd15: Any, tmp_path: Path) -> None:
    layer = "down_blocks.0.resnets.0.conv1"
    module = sd15.unet.get_submodule(layer)
    rows, columns, *kernel = module.weight.shape
    key = f"lora_unet_{layer.replace('.', '_')}"
    width = columns * kernel[0] * kernel[1]
    a1, b1, a2, b2 = random(rows, 2), random(2, width, seed=1), random(rows, 2, seed=2), random(2, width, seed=3)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {f"{key}.{name}": tensor for name, tensor in zip(names, (a1, b1, a2, b2), strict=True)}
    save_file(tensors, tmp_path / "a.safetensors")
    image = random(1, columns, 8, 8)
    delta = ((a1 @ b1) * (a2 @ b2)).reshape(module.weight.shape)
    before = module(image)
    expected = before + torch.nn.functional.conv2d(image, delta, stride=module.stride, padding=module.padding)
    with torch.no_grad(), applied_loras(sd15, [(read_lora(tmp_path / "a.safetensors"), 1)]):
        assert torch.allclose(sd15.unet.get_submodule(layer)(image), expected, atol=1e-2)


def test_old_attention_processors(sd15: Any, tmp_path: Path) -> None:
    rows, columns = sd15.unet.get_submodule(LINEAR).weight.shape
    down, up = random(RANK, columns), random(rows, RANK)
    key = LINEAR.replace(".to_q", ".processor.to_q_lora")
    save_file({f"{key}.down.weight": down, f"{key}.up.weight": up}, tmp_path / "a.safetensors")
    assert torch.allclose(change_of(sd15, LINEAR, tmp_path / "a.safetensors"), (up @ down).T, atol=1e-4)


@pytest.mark.parametrize("part", ["hada_t1", "diff", "dora_scale", "lokr_t2"])
def test_other_lycoris_weights_are_named(part: str) -> None:
    tensors = {"lora_unet_x.hada_w1_a": torch.zeros(2, 2), f"lora_unet_x.{part}": torch.zeros(2, 2)}
    with pytest.raises(InvalidInput, match=rf"The LoRA mine contains lora_unet_x\.{part}"):
        to_lora(tensors, "mine", {})
