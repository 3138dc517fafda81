from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from canvas.engine.lora_adapters import applied_loras
from canvas.errors import InvalidInput, NotFound
from canvas.models.loras import find_loras, get_lora, parse_lora_tags, read_lora
from tests.tiny_xl import CROSS_ATTENTION, make_tiny_xl

RANK = 2


def make_lora(
    path: Path, unet: Any, style: str = "diffusers", seed: int = 0, **metadata: str
) -> Path:
    """A random LoRA for the attention of a UNet, in the names of diffusers or of kohya."""
    numbers = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in unet.named_modules():
        if not name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            continue
        rows, columns = module.weight.shape
        down = torch.randn((RANK, columns), generator=numbers) / 2
        up = torch.randn((rows, RANK), generator=numbers) / 2
        if style == "diffusers":
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        else:
            flat = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
            tensors[f"{flat}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, path, metadata)
    return path


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(make_tiny_xl(tmp_path_factory.mktemp("xl")))


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)


@pytest.fixture(params=["tiny", "xl"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def draw(pipeline: Any) -> torch.Tensor:
    return torch.from_numpy(
        pipeline(
            "a fox in the snow",
            width=64,
            height=64,
            num_inference_steps=2,
            output_type="np",
            generator=torch.Generator().manual_seed(3),
        ).images[0]
    )


@pytest.mark.parametrize("style", ["diffusers", "kohya"])
def test_changes_the_picture_at_weight_1_and_not_at_0(
    pipeline: Any, style: str, tmp_path: Path
) -> None:
    lora = read_lora(make_lora(tmp_path / "a.safetensors", pipeline.unet, style))
    plain = draw(pipeline)
    with applied_loras(pipeline, [(lora, 0)]):
        assert torch.equal(draw(pipeline), plain)
    with applied_loras(pipeline, [(lora, 1)]):
        strong = (draw(pipeline) - plain).abs().mean()
    with applied_loras(pipeline, [(lora, 0.3)]):
        weak = (draw(pipeline) - plain).abs().mean()
    assert strong > weak > 1e-4
    assert torch.equal(draw(pipeline), plain), "nothing stays on the pipeline"


def test_two_give_the_same_in_either_order(pipeline: Any, tmp_path: Path) -> None:
    pair = [
        (read_lora(make_lora(tmp_path / f"{name}.safetensors", pipeline.unet, seed=seed)), weight)
        for name, seed, weight in (("a", 1, 0.8), ("b", 2, 0.5))
    ]
    found = []
    for order in (pair, pair[::-1], pair[:1]):
        with applied_loras(pipeline, order):
            found.append(draw(pipeline))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_pipeline_is_clean_after_an_error(tiny: Any, tmp_path: Path) -> None:
    lora = read_lora(make_lora(tmp_path / "a.safetensors", tiny.unet))
    plain = draw(tiny)
    with pytest.raises(ZeroDivisionError), applied_loras(tiny, [(lora, 1)]):
        raise ZeroDivisionError
    assert torch.equal(draw(tiny), plain)


def test_what_is_worn_already_stays(tiny: Any, tmp_path: Path) -> None:
    worn_before = make_lora(tmp_path / "fast.safetensors", tiny.unet, seed=5)
    lora = read_lora(make_lora(tmp_path / "a.safetensors", tiny.unet))
    tiny.load_lora_weights(
        str(tmp_path), weight_name=worn_before.name, adapter_name="fast", local_files_only=True
    )
    try:
        before = draw(tiny)
        with applied_loras(tiny, [(lora, 1)]):
            assert not torch.allclose(draw(tiny), before, atol=1e-4)
        assert torch.equal(draw(tiny), before)
    finally:
        tiny.unload_lora_weights()


def test_xl_file_on_sd15_names_tensors_and_family(tiny: Any, xl: Any, tmp_path: Path) -> None:
    path = make_lora(
        tmp_path / "big.safetensors", xl.unet, "kohya", ss_base_model_version="sdxl_base_v1-0"
    )
    with pytest.raises(InvalidInput) as caught, applied_loras(tiny, [(read_lora(path), 1)]):
        pass
    sentence = str(caught.value)
    assert "made for sdxl_base_v1-0" in sentence
    assert "attn2_to_k.lora_down.weight" in sentence or "transformer_blocks" in sentence
    assert "more" in sentence
    assert str(CROSS_ATTENTION) in sentence or "lora_unet" in sentence


@pytest.mark.parametrize(
    ("width", "family"),
    [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL")],
)
def test_family_is_told_by_the_width_of_the_words(
    tiny: Any, width: int, family: str, tmp_path: Path
) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
    save_file({name: torch.zeros(4, width)}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.base_model == family
    sentence = rf"made for {family}.*input_blocks_4_1.*\[4, {width}\]"
    with pytest.raises(InvalidInput, match=sentence), applied_loras(tiny, [(lora, 1)]):
        pass


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_pickles_are_refused_whatever_their_name(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps({"lora_A.weight": [1, 2, 3]}))
    with pytest.raises(InvalidInput, match=r"evil.*\.safetensors"):
        get_lora("evil", tmp_path)


def test_other_weights_are_no_lora(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "vae.safetensors")
    with pytest.raises(InvalidInput, match="holds other weights"):
        read_lora(tmp_path / "vae.safetensors")


def test_folder_lists_what_can_be_worn(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    make_lora(tmp_path / "more" / "snow.safetensors", tiny.unet)
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    assert list(find_loras(tmp_path)) == ["snow"]
    assert get_lora("snow", tmp_path).path.parent.name == "more"
    with pytest.raises(NotFound, match=r"no LoRA 'rain'.*there are: snow"):
        get_lora("rain", tmp_path)


def test_trigger_words_come_from_the_metadata(tiny: Any, tmp_path: Path) -> None:
    frequencies = {"10_fox": {"sks fox": 40, " snow": 25, "rare": 1}, "5_more": {"snow": 5}}
    for metadata, expected in (
        ({"ss_tag_frequency": json.dumps(frequencies)}, ("sks fox", "snow")),
        ({"modelspec.trigger_phrase": "a sks fox, winter"}, ("a sks fox", "winter")),
        ({"ss_tag_frequency": "no json"}, ()),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({}, ()),
    ):
        path = make_lora(tmp_path / "a.safetensors", tiny.unet, **metadata)
        assert read_lora(path).trigger_words == expected


@pytest.mark.parametrize(
    ("prompt", "words", "found"),
    [
        ("a fox", "a fox", ()),
        ("a fox <lora:snow:0.8>", "a fox", (("snow", 0.8),)),
        ("a fox, <lora:snow>, red", "a fox, red", (("snow", 1.0),)),
        ("<lora:a:-.5> a <lora:my file v1.2:1> fox", "a fox", (("a", -0.5), ("my file v1.2", 1.0))),
        ("a fox <lora:snow:much>", "a fox <lora:snow:much>", ()),
    ],
)
def test_tags_are_taken_out_of_the_prompt(
    prompt: str, words: str, found: tuple[tuple[str, float], ...]
) -> None:
    assert parse_lora_tags(prompt) == (words, found)
