"""LoRA files and tags, and LoRAs applied to a pipeline."""

from __future__ import annotations

import json
import pickle
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from canvas.engine.lora_adapters import applied_loras
from canvas.errors import InvalidInput, NotFound
from canvas.models.hub_client import Hub
from canvas.models.loras import (
    DEFAULT_FILE_NAME,
    find,
    find_local,
    get_lora,
    is_cross_attention,
    is_hub_name,
    is_lora,
    kind_of,
    list_loras,
    lora_family,
    read_lora,
    unet_tensors,
)
from canvas.prompt_syntax import LoraWeight
from tests.tiny_xl import CROSS_ATTENTION, make_tiny_xl

RANK = 2
CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_{}.lora_down.weight"
OLD = "down_blocks.0.attentions.0.attn2.processor.to_k_lora.down.weight"


def make_lora(path: Path, unet: Any, style: str = "diffusers", seed: int = 0, **metadata: str) -> Path:
    """A random LoRA for the attention of a UNet, with the tensor names of diffusers or kohya."""
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


def generate(pipeline: Any) -> torch.Tensor:
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


@pytest.mark.slow
@pytest.mark.parametrize("style", ["diffusers", "kohya"])
def test_lora_changes_the_image_at_weight_1_but_not_at_0(pipeline: Any, style: str, tmp_path: Path) -> None:
    lora = read_lora(make_lora(tmp_path / "a.safetensors", pipeline.unet, style))
    plain = generate(pipeline)
    with applied_loras(pipeline, [(lora, 0)]):
        assert torch.equal(generate(pipeline), plain)
    with applied_loras(pipeline, [(lora, 1)]):
        strong = (generate(pipeline) - plain).abs().mean()
    with applied_loras(pipeline, [(lora, 0.3)]):
        weak = (generate(pipeline) - plain).abs().mean()
    assert strong > weak > 1e-4
    assert torch.equal(generate(pipeline), plain), "the pipeline is unchanged"


@pytest.mark.slow
def test_order_of_two_loras_does_not_matter(pipeline: Any, tmp_path: Path) -> None:
    pair = [
        (read_lora(make_lora(tmp_path / f"{name}.safetensors", pipeline.unet, seed=seed)), weight)
        for name, seed, weight in (("a", 1, 0.8), ("b", 2, 0.5))
    ]
    images = []
    for order in (pair, pair[::-1], pair[:1]):
        with applied_loras(pipeline, order):
            images.append(generate(pipeline))
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2], atol=1e-4)


def test_pipeline_is_unchanged_after_an_error(tiny: Any, tmp_path: Path) -> None:
    lora = read_lora(make_lora(tmp_path / "a.safetensors", tiny.unet))
    plain = generate(tiny)
    with pytest.raises(ZeroDivisionError), applied_loras(tiny, [(lora, 1)]):
        raise ZeroDivisionError
    assert torch.equal(generate(tiny), plain)


def test_active_adapter_stays(tiny: Any, tmp_path: Path) -> None:
    adapter = make_lora(tmp_path / "fast.safetensors", tiny.unet, seed=5)
    lora = read_lora(make_lora(tmp_path / "a.safetensors", tiny.unet))
    tiny.load_lora_weights(str(tmp_path), weight_name=adapter.name, adapter_name="fast", local_files_only=True)
    try:
        before = generate(tiny)
        with applied_loras(tiny, [(lora, 1)]):
            assert not torch.allclose(generate(tiny), before, atol=1e-4)
        assert torch.equal(generate(tiny), before)
    finally:
        tiny.unload_lora_weights()


def test_sdxl_lora_on_sd15_names_tensors_and_base_model(tiny: Any, xl: Any, tmp_path: Path) -> None:
    path = make_lora(tmp_path / "big.safetensors", xl.unet, "kohya", ss_base_model_version="sdxl_base_v1-0")
    with pytest.raises(InvalidInput) as caught, applied_loras(tiny, [(read_lora(path), 1)]):
        pass
    message = str(caught.value)
    assert "made for sdxl_base_v1-0" in message
    assert "attn2_to_k.lora_down.weight" in message or "transformer_blocks" in message
    assert "more" in message
    assert str(CROSS_ATTENTION) in message or "lora_unet" in message


@pytest.mark.parametrize(
    ("width", "base_model"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL")]
)
def test_base_model_by_width_of_text_embeddings(tiny: Any, width: int, base_model: str, tmp_path: Path) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
    save_file({name: torch.zeros(4, width)}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.base_model == base_model
    message = rf"made for {base_model}.*input_blocks_4_1.*\[4, {width}\]"
    with pytest.raises(InvalidInput, match=message), applied_loras(tiny, [(lora, 1)]):
        pass


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_pickles_are_rejected_with_any_suffix(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps({"lora_A.weight": [1, 2, 3]}))
    with pytest.raises(InvalidInput, match=r"evil.*\.safetensors"):
        get_lora("evil", tmp_path)


def test_file_without_lora_weights_is_rejected(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "vae.safetensors")
    with pytest.raises(InvalidInput, match="is not a LoRA but a file with other weights"):
        read_lora(tmp_path / "vae.safetensors")


def test_folder_lists_valid_loras(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    make_lora(tmp_path / "more" / "snow.safetensors", tiny.unet)
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    assert list(list_loras(tmp_path)) == ["snow"]
    assert get_lora("snow", tmp_path).path.parent.name == "more"
    with pytest.raises(NotFound, match=r"LoRA rain not found.*it has: snow"):
        get_lora("rain", tmp_path)


def test_loras_are_found_by_path_or_name(tiny: Any, tmp_path: Path) -> None:
    for name in (unicodedata.normalize("NFD", "fée"), "more/snow", "more/deep/snow", "Rain v1.2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_lora(tmp_path / f"{name}.safetensors", tiny.unet)
    for name, path in (
        (unicodedata.normalize("NFC", "fée"), unicodedata.normalize("NFD", "fée.safetensors")),
        ("more/snow", "more/snow.safetensors"),
        ("more/deep/snow.safetensors", "more/deep/snow.safetensors"),
        ("more\\deep\\SNOW", "more/deep/snow.safetensors"),
        ("rain V1.2", "Rain v1.2.safetensors"),
    ):
        found = find_local(name, tmp_path)
        assert found == tmp_path / path
        assert not is_hub_name(name, tmp_path)
    assert is_hub_name("more/fog", tmp_path)
    assert set(list_loras(tmp_path)) >= {"snow", "more/snow"}, "both files of one name are listed"
    for name in list_loras(tmp_path):
        assert get_lora(name, tmp_path).path == list_loras(tmp_path)[name].path


def test_weights_of_a_lora_that_is_named_twice_add_up(tiny: Any, tmp_path: Path) -> None:
    lora = read_lora(make_lora(tmp_path / "a.safetensors", tiny.unet))
    images = []
    for loras in ([(lora, 1)], [(lora, 0.5), (lora, 0.25), (replace(lora, name="again"), 0.25)]):
        with applied_loras(tiny, loras):
            images.append(generate(tiny))
    assert torch.equal(*images)


def test_text_encoder_and_model_have_weights_of_their_own(tiny: Any, tmp_path: Path) -> None:
    tensors = load_file(make_lora(tmp_path / "unet.safetensors", tiny.unet))
    numbers = torch.Generator().manual_seed(1)
    text_encoder = {}
    for name, module in tiny.text_encoder.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            rows, columns = module.weight.shape
            text_encoder[f"text_encoder.{name}.lora_A.weight"] = torch.randn((RANK, columns), generator=numbers)
            text_encoder[f"text_encoder.{name}.lora_B.weight"] = torch.randn((rows, RANK), generator=numbers)
    save_file(tensors | text_encoder, tmp_path / "both.safetensors")
    both, unet = read_lora(tmp_path / "both.safetensors"), read_lora(tmp_path / "unet.safetensors")
    images = {}
    for name, loras in {
        "unet": [(unet, 1)],
        "only the model": [(both, LoraWeight(1, 0))],
        "both": [(both, LoraWeight(1, 1))],
        "float": [(both, 1)],
    }.items():
        with applied_loras(tiny, loras):
            images[name] = generate(tiny)
    assert torch.allclose(images["unet"], images["only the model"], atol=1e-5)
    assert torch.equal(images["both"], images["float"])
    assert not torch.allclose(images["both"], images["unet"], atol=1e-4)


def test_nan_in_the_weights_names_the_tensor(tiny: Any, tmp_path: Path) -> None:
    tensors = load_file(make_lora(tmp_path / "a.safetensors", tiny.unet))
    plain = generate(tiny)
    tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors")
    with (
        pytest.raises(InvalidInput, match=rf"LoRA a is damaged: its weights {re.escape(min(tensors))} contain NaN"),
        applied_loras(tiny, [(read_lora(tmp_path / "a.safetensors"), 1)]),
    ):
        pass
    assert torch.equal(generate(tiny), plain)


def test_trigger_words_come_from_the_metadata(tiny: Any, tmp_path: Path) -> None:
    frequencies = {"10_fox": {"sks fox": 40, " snow": 25, "rare": 1}, "5_more": {"snow": 5}}
    for metadata, expected in (
        ({"ss_tag_frequency": json.dumps(frequencies)}, ("sks fox", "snow")),
        (
            {"ss_tag_frequency": json.dumps({"a": {"half": 10, "all": 15}, "b": {"all": 5, "less": 9, " ": 20}})},
            ("all", "half"),
        ),
        ({"ss_tag_frequency": json.dumps({"a": {letter: 1 for letter in "jihgfedcba"}})}, tuple("abcdefgh")),
        ({"modelspec.trigger_phrase": "a sks fox, winter"}, ("a sks fox", "winter")),
        ({"modelspec.trigger_phrase": ", ".join("abcdefghij")}, tuple("abcdefgh")),
        ({"ss_tag_frequency": "no json"}, ()),
        ({"ss_tag_frequency": "[1]"}, ()),
        ({}, ()),
    ):
        path = make_lora(tmp_path / "a.safetensors", tiny.unet, **metadata)
        assert read_lora(path).trigger_words == expected


@pytest.mark.parametrize(
    ("metadata", "base_model"),
    [
        ({"modelspec.architecture": "own", "ss_base_model_version": "other"}, "own"),
        ({"ss_base_model_version": "x" * 99}, "x" * 60),
        ({}, ""),
    ],
)
def test_the_base_model_comes_from_the_metadata(
    tiny: Any, tmp_path: Path, metadata: dict[str, str], base_model: str
) -> None:
    assert read_lora(make_lora(tmp_path / "a.safetensors", tiny.unet, **metadata)).base_model == base_model


def test_exact_names_come_first(tmp_path: Path) -> None:
    for name in ("Fox.safetensors", "fox.pt", "a/fox.safetensors", "fox.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    expected = {
        **{
            "Fox": "Fox.safetensors",
            "fox": "a/fox.safetensors",
            "FOX": "Fox.safetensors",
            "A/FOX": "a/fox.safetensors",
        },
        **{"fox.pt": "fox.pt", "FOX.PT": "fox.pt", "fox.txt": None, "folder": None},
    }
    assert {name: find_local(name, tmp_path) for name in expected} == {
        name: path and tmp_path / path for name, path in expected.items()
    }


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["a.safetensors"], "ann/fox", "a.safetensors"),
        (["a.safetensors", DEFAULT_FILE_NAME], "ann/fox", DEFAULT_FILE_NAME),
        (["a.safetensors", "b/c.safetensors"], "ann/fox:b/c.safetensors", "b/c.safetensors"),
        (["a.safetensors"], "ann/fox:d.safetensors", None),
        (["a.bin"], "ann/fox", None),
    ],
)
def test_cached_loras_of_the_hub_are_found(tmp_path: Path, files: list[str], name: str, expected: str | None) -> None:
    hub = Hub(cache_dir=tmp_path)
    folder = hub.repo_folder("ann/fox") / "snapshots" / "abc"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    assert find(name, hub=hub) == (folder / expected if expected else None)


def test_a_repository_of_several_loras_needs_the_file(tmp_path: Path) -> None:
    hub = Hub(cache_dir=tmp_path)
    folder = hub.repo_folder("ann/fox") / "snapshots" / "abc"
    folder.mkdir(parents=True)
    for letter in "jihgfedcba":
        (folder / f"{letter}.safetensors").write_bytes(b"")
    listed = ", ".join(f"{letter}.safetensors" for letter in "abcdefgh")
    with pytest.raises(InvalidInput, match=rf"The LoRA ann/fox has several files\. .* {re.escape(listed)}\.$"):
        find("ann/fox", hub=hub)
    with pytest.raises(InvalidInput, match="owner/name or owner/name:file"):
        find("fox", hub=hub)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet.x.lora_A.weight", True),
        ("unet.x.lora_A.default.weight", True),
        ("lora_unet_x.hada_w1_a", True),
        ("lora_unet_x.lokr_w2", True),
        (OLD, True),
        ("unet.x.weight", False),
    ],
)
def test_a_lora_has_down_projections_or_products(name: str, expected: bool) -> None:
    assert is_lora({"alpha": (), name: (2, 8)}) is expected


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({CROSS.format("k"): (4, 768), CROSS.format("v"): (4, 768)}, "sd1"),
        ({CROSS.format("v"): (4, 2048)}, "stable_diffusion_xl"),
        ({OLD: (4, 1024)}, "sd2"),
        ({CROSS.format("k"): (4, 768), CROSS.format("v"): (4, 1024)}, ""),
        ({CROSS.format("k"): (4, 99)}, ""),
        ({CROSS.format("q"): (4, 768)}, ""),
        ({"lora_unet_down_blocks_0_double_blocks_0.lora_down.weight": (4, 768)}, ""),
        ({"layers.0.attention.to_q.lora_A.weight": (16, 100)}, ""),
        ({"layers.0.attention.to_q.lora_B.weight": (100, 3840)}, ""),
        ({"layers.0.attention.to_q.lora_A.weight": (16, 3840, 1)}, ""),
        ({"text_encoder.layers.0.mlp.lora_A.weight": (16, 3840)}, ""),
        ({"down_blocks_0.double_blocks.0.lora_A.weight": (16, 3840)}, "flux"),
        ({}, ""),
    ],
)
def test_the_family_is_read_from_names_and_widths(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    assert lora_family({"alpha": (), **shapes}) == family


def test_down_projections_of_the_unet() -> None:
    shapes = {
        CROSS.format("k"): (4, 768),
        OLD: (4, 768),
        CROSS.format("k").replace("lora_down", "lora_up"): (320, 4),
        "lora_unet_bias.lora_down.weight": (4,),
        "lora_te_text_model.lora_down.weight": (4, 768),
    }
    assert set(unet_tensors(shapes)) == {CROSS.format("k"), OLD}
    assert [is_cross_attention(CROSS.format(layer)) for layer in "kvq"] == [True, True, False]
    assert not is_cross_attention(CROSS.format("k").replace("attn2", "attn1"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unet.conv_in.weight", "a whole model"),
        ("first_stage_model.decoder.conv_in.weight", "a VAE"),
        ("lora_controlnet", "a ControlNet"),
        ("string_to_param", "a textual inversion"),
    ],
)
def test_other_files_are_named_by_any_tensor(name: str, kind: str) -> None:
    assert kind_of({"alpha": (), name: (1, 8), "z": ()}) == kind
