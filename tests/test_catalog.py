from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from canvas.catalog import ASSETS, MODELS, Catalog, get_model
from canvas.errors import InvalidInput, UnknownModel

ENTRY = {
    "name": "organization/model-name",
    "size": "3GB",
    "speed": "Medium",
    "quality": "Very Good",
    "resolution": 512,
    "type": "stable_diffusion",
}


def test_the_built_in_models() -> None:
    first = ("starter", "sdxs", "sd-turbo", "tiny", "small", "dreamshaper", "openjourney", "mini-sd", "portrait")
    assert list(MODELS) == [*first, "realistic", "anime", "sdxl", "flux-klein", "z-image"]
    assert list(dict.fromkeys(spec.group for spec in MODELS.values())) == [
        *("Any computer", "Stable Diffusion 1.5", "16 GB or a GPU")
    ]
    for spec in MODELS.values():
        assert spec.license and spec.description and spec.size, spec.key
    assert MODELS["sd-turbo"].terms == "https://stability.ai/license"
    assert MODELS["tiny"].name == MODELS["mini-sd"].name
    assert MODELS["portrait"].trigger_words == "portrait+ style"
    assert "runwayml/stable-diffusion-v1-5" in MODELS["small"].mirrors
    assert Path(MODELS["starter"].name).parent == ASSETS


def test_a_model_is_added_by_assignment() -> None:
    models = Catalog(MODELS)
    models["my-model"] = ENTRY
    assert get_model("my-model", models).resolution == 512
    assert "my-model" not in MODELS
    assert list(models)[-1] == "my-model"
    assert len(models) == len(MODELS) + 1


def test_a_catalog_has_models_added_to_its_base_later() -> None:
    base = Catalog()
    catalog = Catalog(base)
    base["late"] = ENTRY
    assert catalog["late"].key == "late"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 5),
        ("resolution", "512"),
        ("resolution", 500),
        ("resolution", 10**9),
        ("type", "dall-e"),
        ("scheduler", "Magic"),
        ("guidance_scale", "high"),
        ("num_inference_steps", 0),
        ("mirrors", "one/text"),
        ("colour", "red"),
        ("components", ["vae"]),
        ("components", {"../vae": "owner/name"}),
        ("half_precision", "yes"),
        ("quantization", "int3"),
        ("offload", "everything"),
    ],
)
def test_an_invalid_field_is_named(field: str, value: Any) -> None:
    models = Catalog()
    with pytest.raises(InvalidInput, match=rf"models\.my-model\.{field}"):
        models["my-model"] = {**ENTRY, field: value}
    assert "my-model" not in models


def test_a_missing_name_is_reported() -> None:
    entry = {name: value for name, value in ENTRY.items() if name != "name"}
    with pytest.raises(InvalidInput, match=r"models\.my-model\.name is required"):
        Catalog()["my-model"] = entry


def test_a_name_is_enough() -> None:
    models = Catalog()
    models["mine"] = {"name": "owner/model"}
    assert models["mine"].type == "auto"
    assert models["mine"].unset == ("resolution", "num_inference_steps", "guidance_scale", "scheduler")
    models["given"] = {"name": "owner/model", "num_inference_steps": 7}
    assert "num_inference_steps" not in models["given"].unset
    models["old"] = ENTRY
    assert models["old"].unset == ()


@pytest.mark.parametrize("name", ["unsloth/FLUX.2-klein-4B-GGUF:flux-2-klein-4b-Q4_K_M.gguf", "/models/my-klein.gguf"])
def test_a_gguf_transformer_brings_its_pipeline(name: str) -> None:
    models = Catalog()
    models["mine"] = {"name": name}
    assert models["mine"].name == models["mine"].base == "black-forest-labs/FLUX.2-klein-4B"
    assert models["mine"].components == (("transformer", name),)
    assert models["mine"].pipeline_key != MODELS["flux-klein"].pipeline_key


def test_an_unknown_gguf_file_needs_a_base() -> None:
    with pytest.raises(InvalidInput, match=r"models\.mine\.base is required for other\.gguf"):
        Catalog()["mine"] = {"name": "owner/name:other.gguf"}
    models = Catalog()
    models["mine"] = {"name": "owner/name:other.gguf", "base": "owner/pipeline"}
    assert models["mine"].name == "owner/pipeline"


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="stable_diffusion, stable_diffusion_xl, auto"):
        Catalog()["my-model"] = {**ENTRY, "type": "gan"}


def test_an_unknown_model_lists_what_exists() -> None:
    with pytest.raises(UnknownModel, match="starter, sdxs, sd-turbo"):
        get_model("nothing")


def test_models_file(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(
        '[mine]\nname = "a/b"\nsize = "1 GB"\nspeed = "Fast"\nquality = "Good"\n'
        'resolution = 512\ntype = "auto"\ntrigger_words = "mine style"\n'
    )
    models = Catalog(MODELS)
    models.load(path)
    assert models["mine"].trigger_words == "mine style"


@pytest.mark.parametrize("text", ["[mine", '[mine]\nsize = "a/b"', 'mine = "a/b"', "\N{BOM}\x00", "[a]\nsteps = 3"])
def test_an_invalid_models_file_adds_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    models = Catalog(MODELS)
    with pytest.raises(InvalidInput):
        models.load(path)
    assert list(models) == list(MODELS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_models_file_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes('["forêt"]\r\nname = "owner/model"\r\n'.encode(encoding))
    models = Catalog()
    models.load(path)
    assert models["forêt"].name == "owner/model"


def test_the_home_folder_is_expanded_in_names() -> None:
    models = Catalog()
    models["mine"] = {"name": "~/models/x.safetensors", "components": {"vae": "~/vae"}}
    assert models["mine"].name == str(Path.home() / "models/x.safetensors")
    assert models["mine"].components == (("vae", str(Path.home() / "vae")),)
    models["other"] = {"name": "owner/~model"}
    assert models["other"].name == "owner/~model"


def test_keys_are_found_without_regard_to_case_and_composition() -> None:
    models = Catalog()
    models[unicodedata.normalize("NFD", "Forêt")] = ENTRY
    models["mine"] = models["MINE"] = ENTRY
    assert get_model(unicodedata.normalize("NFC", "forêt"), models) is models[unicodedata.normalize("NFD", "Forêt")]
    assert get_model("MINE", models).key == "MINE"
    with pytest.raises(UnknownModel):
        get_model("for", models)
