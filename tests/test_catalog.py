from __future__ import annotations

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
    assert list(MODELS) == [*("starter", "tiny", "small", "dreamshaper", "openjourney", "mini-sd", "portrait")]
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
    ],
)
def test_an_invalid_field_is_named(field: str, value: Any) -> None:
    models = Catalog()
    with pytest.raises(InvalidInput, match=rf"models\.my-model\.{field}"):
        models["my-model"] = {**ENTRY, field: value}
    assert "my-model" not in models


@pytest.mark.parametrize("field", sorted(ENTRY))
def test_a_missing_field_is_named(field: str) -> None:
    entry = {name: value for name, value in ENTRY.items() if name != field}
    with pytest.raises(InvalidInput, match=rf"models\.my-model\.{field} is required"):
        Catalog()["my-model"] = entry


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="stable_diffusion, stable_diffusion_xl, auto"):
        Catalog()["my-model"] = {**ENTRY, "type": "gan"}


def test_an_unknown_model_lists_what_exists() -> None:
    with pytest.raises(UnknownModel, match="starter, tiny, small"):
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


@pytest.mark.parametrize("text", ["[mine", '[mine]\nname = "a/b"', 'mine = "a/b"', "\N{BOM}\x00", "[a]\nsteps = 3"])
def test_an_invalid_models_file_adds_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    models = Catalog(MODELS)
    with pytest.raises(InvalidInput):
        models.load(path)
    assert list(models) == list(MODELS)
