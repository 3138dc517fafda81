from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from mcp import types

from canvas.api.mcp import (
    image_reference,
    input_property,
    output_schema,
    resource_of,
    result_content,
    structured_result,
)
from canvas.catalog import default_catalog
from canvas.request import GeneratedImage, GenerationRequest

IMAGE: dict[str, Any] = {"id": 3, "filename": "a.png", "prompt": "a fox"}
URL = "http://127.0.0.1:7860/pictures/a.png"


def schema_of(name: str, **described: Any) -> dict[str, Any]:
    return input_property(name, described, default_catalog())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prompt", "string"),
        ("seed", "integer"),
        ("width", "integer"),
        ("guidance_scale", "number"),
        ("prompt_weighting", "boolean"),
        *((name, "integer") for name in ("image_id", "limit", "offset")),
        *((name, "string") for name in ("where", "job_id", "image", "mask_image", "preset")),
        *((name, "array") for name in ("loras", "outpaint", "control_images", "reference_images")),
    ],
)
def test_a_parameter_has_its_type(name: str, kind: str) -> None:
    assert schema_of(name)["type"] == kind


def test_an_unknown_parameter_takes_anything() -> None:
    assert schema_of("fields", description="The fields.") == {"description": "The fields."}


def test_a_parameter_has_its_default_and_its_choices() -> None:
    assert schema_of("seed", default=-1)["default"] == -1
    assert "default" not in schema_of("seed", default=None)
    assert "enum" not in schema_of("seed")
    assert schema_of("scale")["enum"] == [2, 4]
    assert "starter" in schema_of("model_key")["enum"]


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("outpaint", [0, 0, 8, 0], True),
        ("outpaint", [0, 0, 8], False),
        ("outpaint", [0, 0, 8, 0, 0], False),
        ("outpaint", [0, 0, -1, 0], False),
        ("loras", [["a", 0.5]], True),
        ("loras", [["a"]], False),
        ("loras", [["a", 0.5, 1]], False),
        ("control_images", [{"image": "1", "start": 0, "end": 1, "weight": 0}], True),
        ("control_images", [{"kind": "canny"}], False),
        ("control_images", [{"image": "1", "of_tomorrow": 1}], False),
        ("control_images", [{"image": "1", "start": -0.1}], False),
        ("control_images", [{"image": "1", "end": 1.1}], False),
        ("reference_images", [{"image": "1", "weight": -0.1}], False),
    ],
)
def test_lists_have_their_limits(name: str, value: Any, valid: bool) -> None:
    assert Draft202012Validator(schema_of(name)).is_valid(value) is valid


@pytest.mark.parametrize(
    ("tool", "outputs"),
    [
        ("generate", [{"path": "a.png"}, {"images": [IMAGE], "seed": 1}]),
        ("image", [{"path": "a.png"}, {"images": [IMAGE]}]),
        ("history", [[IMAGE]]),
    ],
)
def test_images_have_their_addresses(tool: str, outputs: list[Any]) -> None:
    result = structured_result(tool, outputs, lambda name: f"http://127.0.0.1:7860/pictures/{name}")
    assert result == {"images": [{**IMAGE, "url": URL}]}
    assert Draft202012Validator(output_schema(tool)).is_valid(result)
    assert not Draft202012Validator(output_schema(tool)).is_valid({"images": [IMAGE]})


@pytest.mark.parametrize(
    ("tool", "key", "value"), [("models", "models", [{}]), ("cancel", "job", {}), ("status", "jobs", [{}])]
)
def test_other_results_are_objects(tool: str, key: str, value: Any) -> None:
    result = structured_result(tool, [value, "more"], str)
    assert result == {key: value}
    assert Draft202012Validator(output_schema(tool)).is_valid(result)
    assert not Draft202012Validator(output_schema(tool)).is_valid({})


def test_other_tools_have_no_schema() -> None:
    assert output_schema("of_tomorrow") is None


def test_a_result_has_images_and_texts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a file")
    files = [{"path": str(tmp_path / "a.png"), "mime_type": "image/png"}] * 2
    image, address, text = result_content({"images": [{"url": URL, "prompt": "ein Füchslein"}]}, files, types)
    assert (base64.b64decode(image.data), image.mimeType) == (b"a file", "image/png")
    assert address.text == f"Image URL: {URL}"
    assert json.loads(text.text)["images"][0]["url"] == URL
    assert "Füchslein" in text.text
    [text] = result_content({"models": []}, files, types)
    assert json.loads(text.text) == {"models": []}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canvas://pictures/7", ("id", "7")),
        ("7", ("id", "7")),
        ("9" * 15, ("id", "9" * 15)),
        ("9" * 16, None),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", None),
        ("x7", None),
        ("http://[", None),
        (URL, ("filename", "a.png")),
        ("https://canvas.example/studio/thumbnails/a%20b.png?expires=1", ("filename", "a b.png")),
        ("/downloads/a.png", ("filename", "a.png")),
        ("pictures/a.png", None),
        ("ftp://127.0.0.1/pictures/a.png", None),
        ("file:///pictures/a.png", None),
        ("https://example.com/a.png", None),
        ("http://127.0.0.1/other/a.png", None),
        ("http://127.0.0.1:7860/gradio_api/file=/data/a.png", ("filename", "a.png")),
    ],
)
def test_an_image_is_named_by_its_address_or_id(text: str, expected: tuple[str, str] | None) -> None:
    assert image_reference(text) == expected


def test_an_image_is_a_resource() -> None:
    request = GenerationRequest("a fox " * 30, width=256, height=128, seed=7, image_format="webp")
    image = GeneratedImage(request, "", 1.0, "cpu", "float32", id=3, filename="a.webp", file_size=900)
    resource = resource_of(image, types)
    assert str(resource.uri) == "canvas://pictures/3"
    assert (resource.mimeType, resource.size) == ("image/webp", 900)
    assert resource.description == "256x128, seed 7"
    assert resource.name == ("a fox " * 30)[:80]
