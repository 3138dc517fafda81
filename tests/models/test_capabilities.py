"""What is read from the configurations of a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvas.errors import ModelUnsupported
from canvas.models.capabilities import Capabilities, adapt_spec, read_capabilities, read_config
from canvas.models.families import BY_KEY
from canvas.models.pipeline_files import component_names
from canvas.schedulers import MODEL_DEFAULT, SCHEDULERS
from tests.conftest import make_spec

PARTS = {name: ["diffusers", "X"] for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")}
VAE = {"block_out_channels": [1, 2, 3, 4]}
SD_UNET = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768}
XL_UNET = {"block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048}


def read(family: str, name: str = "", index: dict[str, Any] | None = None, **configs: Any) -> Capabilities:
    parts = {"_class_name": BY_KEY[family].text_to_image, **PARTS, **(index or {})}
    return read_capabilities(parts, configs, name)


@pytest.mark.parametrize(
    ("family", "name", "index", "denoiser", "steps", "guidance"),
    [
        ("stable_diffusion", "o/model", {}, {}, 20, True),
        ("stable_diffusion", "o/SD-Turbo", {}, {}, 1, True),
        ("stable_diffusion_xl", "o/xl-turbo", {}, {}, 1, True),
        ("flux", "o/FLUX.1-schnell", {}, {}, 4, False),
        ("flux", "o/FLUX.1-dev", {}, {}, 28, True),
        ("flux", "o/schnell", {}, {"guidance_embeds": True}, 28, True),
        ("flux", "o/dev", {}, {"guidance_embeds": False}, 4, False),
        ("flux2_klein", "o/x", {}, {}, 50, True),
        ("flux2_klein", "o/x", {"is_distilled": True}, {}, 4, False),
        ("krea2", "o/turbo", {"is_distilled": False}, {}, 28, True),
        ("krea2", "o/turbo", {}, {}, 8, False),
        ("sana", "o/x", {"is_distilled": True}, {"guidance_embeds": False}, 20, True),
        ("lcm", "o/turbo", {}, {}, 4, True),
    ],
)
def test_distilled_models_take_few_steps(
    family: str, name: str, index: dict[str, Any], denoiser: dict[str, Any], steps: int, guidance: bool
) -> None:
    found = read(family, name, index, transformer=denoiser)
    assert (found.steps, found.guidance) == (steps, guidance)
    assert found.negative_prompt == (guidance and BY_KEY[family].negative_prompt)


@pytest.mark.parametrize(
    ("family", "configs", "size", "step"),
    [
        ("stable_diffusion", {}, 512, 8),
        ("stable_diffusion", {"unet": {"sample_size": 96}, "vae": VAE}, 768, 8),
        ("stable_diffusion", {"unet": {"sample_size": 96}}, 768, 8),
        ("stable_diffusion", {"unet": {"sample_size": [96, 96]}, "vae": VAE}, 512, 8),
        ("stable_diffusion", {"unet": {"x": 1}, "vae": {"encoder_block_out_channels": [1] * 5}}, 512, 16),
        ("stable_diffusion", {"unet": {"x": 1}, "vae": {"block_out_channels": [1, 2]}}, 512, 8),
        ("stable_diffusion_3", {"transformer": {"sample_size": 128, "patch_size": 2}, "vae": VAE}, 1024, 16),
        ("sana", {"transformer": {"patch_size": 1}}, 1024, 32),
        ("sana", {"vae": VAE}, 1024, 32),
        ("lumina2", {"transformer": {"all_patch_size": [2, 4]}, "vae": VAE}, 1024, 32),
        ("flux", {"transformer": {"patch_size": 1}, "vae": VAE}, 1024, 16),
        ("qwen_image", {"transformer": {"patch_size": 2}, "vae": {"temperal_downsample": [0, 1, 1, 1]}}, 1024, 32),
    ],
)
def test_sizes_are_those_of_the_configurations(family: str, configs: dict[str, Any], size: int, step: int) -> None:
    found = read(family, **configs)
    assert (found.resolution, found.size_step) == (size, step)


def test_an_inpainting_unet_only_inpaints() -> None:
    assert set(read("stable_diffusion", unet={"in_channels": 9}).pipelines) == {"inpaint"}
    assert set(read("stable_diffusion", unet={"in_channels": 4}).pipelines) >= {"text_to_image", "inpaint"}


@pytest.mark.parametrize(
    ("family", "scheduler", "expected"),
    [
        ("stable_diffusion", {}, tuple(SCHEDULERS)),
        ("stable_diffusion", {"use_flow_sigmas": True}, (MODEL_DEFAULT,)),
        ("stable_diffusion", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, (MODEL_DEFAULT,)),
        ("flux", {}, (MODEL_DEFAULT,)),
        ("lcm", {"use_flow_sigmas": True}, ("LCM",)),
    ],
)
def test_schedulers_that_can_replace_the_models_own(
    family: str, scheduler: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert read(family, scheduler=scheduler).schedulers == expected


@pytest.mark.parametrize(
    ("family", "unet", "lora_family", "standard"),
    [
        ("stable_diffusion", SD_UNET, "sd1", True),
        ("stable_diffusion", {**SD_UNET, "cross_attention_dim": 1024}, "sd2", False),
        ("stable_diffusion", {**SD_UNET, "layers_per_block": 1}, "sd1", False),
        ("stable_diffusion_xl", XL_UNET, "stable_diffusion_xl", True),
        ("stable_diffusion_xl", {}, "stable_diffusion_xl", False),
        ("lcm", SD_UNET, "sd1", False),
        ("kolors", XL_UNET, "", False),
    ],
)
def test_loras_and_controlnets_fit_by_the_unet(
    family: str, unet: dict[str, Any], lora_family: str, standard: bool
) -> None:
    found = read(family, unet=unet)
    assert (found.lora_family, found.standard_unet) == (lora_family, standard)


def test_parts_of_the_pipeline_decide_what_it_can() -> None:
    found = read("stable_diffusion")
    assert found.variation_seed
    assert found.has_unet
    assert found.prompt_weighting
    assert found.tiny_decoder == "madebyollin/taesd"
    tiny = read("stable_diffusion", index={"vae": ["diffusers", "AutoencoderTiny"]})
    assert tiny.tiny_decoder == ""
    without = read_capabilities({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, {})
    assert not (without.variation_seed or without.has_unet or without.prompt_weighting)
    assert without.tokenizer == "tokenizer"
    assert read("flux", index={"tokenizer_2": ["transformers", "T5"]}).tokenizer == "tokenizer_2"
    assert read("flux").strength
    assert not read("flux2_klein").strength
    assert not read("sana").strength
    assert not read("sana").edits_by_instruction


def test_components_are_folders_of_the_pipeline() -> None:
    index = {
        **{"unet": ["a", "B"], "vae": ("a", "B"), "_class_name": "X", "safety_checker": ["a", "B"]},
        **{"../x": ["a", "B"], "none": [None, None], "short": ["a"], "long": ["a", "B", "C"]},
    }
    assert component_names(index) == ["unet", "vae"]


def test_a_configuration_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    (tmp_path / "config.json").write_text("[1]")
    assert read_config(tmp_path) == {}
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"a": 1}))
    assert read_config(tmp_path) == {"a": 1}


def test_the_entry_gets_what_it_lacks_and_a_scheduler_that_acts() -> None:
    spec = replace(make_spec("o/x"), scheduler="LCM", unset=("resolution", "guidance_scale"))
    adapted = adapt_spec(spec, read("flux"))
    assert (adapted.resolution, adapted.guidance_scale, adapted.num_inference_steps) == (1024, 3.5, 2)
    assert (adapted.scheduler, adapted.unset) == (MODEL_DEFAULT, ())
    assert adapt_spec(spec, read("stable_diffusion")).scheduler == "LCM"


@pytest.mark.parametrize(
    ("preferred", "has_bfloat16", "expected"),
    [("float32", True, "float32"), ("float16", True, "bfloat16"), ("float16", False, "float32")],
)
def test_the_dtype_is_the_preferred_or_the_nearest(preferred: str, has_bfloat16: bool, expected: str) -> None:
    assert read("flux").choose_dtype(preferred, has_bfloat16=has_bfloat16) == expected


def test_other_classes_are_named() -> None:
    with pytest.raises(ModelUnsupported, match=r"^The model is a \?, which this program does not run"):
        read_capabilities({}, {})
    with pytest.raises(ModelUnsupported, match=r"^IFPipeline is no text-to-image model of its own"):
        read_capabilities({"_class_name": "IFPipeline"}, {})
    with pytest.raises(ModelUnsupported, match=r"^o/x is a WanPipeline, .* It runs Stable Diffusion 1 and 2, SDXL"):
        read_capabilities({"_class_name": "WanPipeline"}, {}, "o/x")
