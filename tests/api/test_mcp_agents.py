"""What agents do with our tools: use the images that they were given, and read schemas and results."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jsonschema
import pytest
from mcp import ClientSession
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES
from tests.app_server import run_in_mcp_session

FAST = {"num_inference_steps": 1, "width": 128, "height": 128}


@pytest.fixture
def in_session(url: str) -> Callable[..., Any]:
    return partial(run_in_mcp_session, url)


def test_schemas_have_enums_and_results(in_session: Callable[..., Any], served: Studio) -> None:
    tools = {tool.name: tool for tool in in_session(lambda session: session.list_tools()).tools}
    properties = tools["generate"].inputSchema["properties"]
    assert properties["model_key"]["enum"] == list(served.models)
    assert properties["style"]["enum"] == list(STYLES)
    assert properties["scheduler"]["enum"] == list(SCHEDULERS)
    assert tools["upscale"].inputSchema["properties"]["upscaler"]["enum"]
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.inputSchema)
        for name, schema in tool.inputSchema.get("properties", {}).items():
            assert isinstance(schema["type"], str), (tool.name, name)
            assert "format" not in schema, "strict validators refuse unknown formats"
        assert tool.outputSchema["type"] == "object"


def test_all_images_of_a_batch_are_inline_with_their_metadata(in_session: Callable[..., Any], served: Studio) -> None:
    arguments = {"prompt": "a fox", "num_images": 3, "seed": 7, "image_format": "webp", "scheduler": None, **FAST}
    result = in_session(lambda session: session.call_tool("generate", arguments))
    assert not result.isError, result.content
    images = result.structuredContent["images"]
    assert [image["seed"] for image in images] == [7, 8, 9]
    inline = [base64.b64decode(content.data) for content in result.content if content.type == "image"]
    stored = [served.image_path(served.image(image["id"]).filename).read_bytes() for image in images]
    assert inline == stored
    assert {content.mimeType for content in result.content if content.type == "image"} == {"image/webp"}
    assert json.loads(result.content[-1].text) == result.structuredContent


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["url", "id", "resource", "image_id", "data URL", "base64"])
def test_images_can_be_named_in_every_way(in_session: Callable[..., Any], served: Studio, kind: str) -> None:
    async def call(session: ClientSession) -> Any:
        first = await session.call_tool("generate", {"prompt": "a fox", "seed": 3, **FAST})
        [image] = first.structuredContent["images"]
        data = first.content[0].data
        arguments = {
            "url": {"image": image["url"]},
            "id": {"image": str(image["id"])},
            "resource": {"image": f"canvas://pictures/{image['id']}"},
            "image_id": {"image_id": image["id"]},
            "data URL": {"image": f"data:image/png;base64,{data}"},
            "base64": {"image": data},
        }[kind]
        upscaled = await session.call_tool("upscale", arguments)
        assert not upscaled.isError, upscaled.content
        return image["id"], upscaled

    first_id, result = in_session(call)
    assert Image.open(io.BytesIO(base64.b64decode(result.content[0].data))).size == (256, 256)
    parent = served.recent(limit=1)[0].parent_id
    assert parent == (None if kind in ("data URL", "base64") else first_id)


@pytest.mark.parametrize(
    ("tool", "arguments", "name"),
    [
        ("generate", {"prompt": "a", "model_key": "nope"}, "model_key"),
        ("generate", {"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ("generate", {"prompt": "a", "width": 513}, "width"),
        ("generate", {}, "prompt"),
        ("edit", {"prompt": "a", "image": "!"}, "image"),
        ("edit", {"prompt": "a"}, "image"),
        ("upscale", {"image_id": 10**9}, "image"),
    ],
)
def test_errors_name_the_parameter(in_session: Callable[..., Any], tool: str, arguments: Any, name: str) -> None:
    result = in_session(lambda session: session.call_tool(tool, arguments))
    assert result.isError
    assert name in result.content[0].text


def test_a_model_that_is_added_later_is_known(in_session: Callable[..., Any], served: Studio) -> None:
    in_session(lambda session: session.list_tools())  # the server keeps what it has listed
    served.models["added"] = served.models["starter"]
    arguments = {"prompt": "a fox", "model_key": "added", "num_inference_steps": 1}
    result = in_session(lambda session: session.call_tool("generate", arguments))
    del served.models["added"]
    assert not result.isError, result.content
    result = in_session(lambda session: session.call_tool("generate", arguments))
    assert "'added' is not one of" in result.content[0].text


def test_lists_are_structured(in_session: Callable[..., Any], served: Studio) -> None:
    async def call(session: ClientSession) -> list[Any]:
        return [await session.call_tool(name, {}) for name in ("models", "history", "status")]

    models, history, status = (result.structuredContent for result in in_session(call))
    assert models["models"][0]["model_key"] == "starter"
    assert [image["id"] for image in history["images"]] == [image.id for image in served.recent(limit=20)]
    assert isinstance(status["jobs"], list)


def test_recent_images_are_listed_as_resources(in_session: Callable[..., Any], served: Studio) -> None:
    [image] = served.generate(GenerationRequest("a listed tree", num_inference_steps=1, image_format="webp"))

    async def read(session: ClientSession) -> tuple[Any, Any]:
        listed = (await session.list_resources()).resources
        [resource] = [item for item in listed if str(item.uri).endswith(f"/{image.id}")]
        return resource, await session.read_resource(resource.uri)

    resource, result = in_session(read)
    assert (resource.name, resource.mimeType) == ("a listed tree", "image/webp")
    assert base64.b64decode(result.contents[0].blob) == served.image_path(image.filename).read_bytes()
