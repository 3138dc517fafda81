"""Extends Gradio's MCP server: authentication, descriptions of the tools, complete answers, progress, cancellation.

The only module that uses private names of `gradio.mcp`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import unquote, urlsplit

import anyio
from anyio.to_thread import run_sync
from gradio.mcp import DEFAULT_TEMP_DIR
from gradio.processing_utils import save_bytes_to_cache
from gradio_client import Client

from canvas import validation
from canvas.api.gradio_signatures import CLIENT_HEADER, MCP_CLIENT
from canvas.catalog import Catalog
from canvas.guidance import (
    CONTROL_KINDS,
    CONTROL_RESIZE_MODES,
    GUIDANCE_FIELDS,
    MAX_CONTROL_IMAGES,
    MAX_REFERENCE_IMAGES,
    MAX_WEIGHT,
    REFERENCE_KINDS,
)
from canvas.image_formats import IMAGE_FORMATS, decode_base64, encode_base64
from canvas.presets import PRESETS
from canvas.request import BACKENDS, RESIZE_MODES, SCALES, UPSCALERS, GeneratedImage, GenerationRequest
from canvas.schedulers import SCHEDULERS
from canvas.studio import Studio
from canvas.styles import STYLES

if TYPE_CHECKING:
    from gradio import Blocks

IMAGE_ADDRESSES = ("/pictures/", "/thumbnails/", "/downloads/")
RESOURCE_PREFIX = "canvas://pictures/"
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
LORAS: dict[str, Any] = {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}}
OUTPAINT: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 4, "maxItems": 4}
FILE: dict[str, Any] = {"type": "string"}
FRACTION: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
WEIGHT: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT}
GUIDING_FILE: dict[str, Any] = {**FILE, "description": "A URL, a data URL, or the address or id of one of your images."}
IMAGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "description": "The image_id of later calls."},
        "url": {"type": "string", "description": "The file; also accepted as image."},
        "prompt": {"type": "string"},
        "seed": {"type": "integer"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["id", "url"],
}
OBJECTS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
# The key under which each tool's result is; structured content is always an object.
RESULT_KEYS = {
    **dict.fromkeys(("generate", "edit", "upscale", "image", "history"), "images"),
    "models": "models",
    "status": "jobs",
    "cancel": "job",
    "download_model": "job",
}
ImageUrl = Callable[[str], str]  # of the image with that file name
MAX_MESSAGE = 300  # characters
CREDENTIAL_HEADERS = ("authorization", "cookie")


def _list_of(number: int, **properties: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "object", "properties": {"image": GUIDING_FILE, **properties}, "required": ["image"]}
    return {"type": "array", "maxItems": number, "items": {**item, "additionalProperties": False}}


KNOWN_SCHEMAS: dict[str, dict[str, Any]] = {
    "loras": LORAS,
    "outpaint": OUTPAINT,
    "image": FILE,
    "mask_image": FILE,
    "control_images": _list_of(
        MAX_CONTROL_IMAGES,
        kind={"enum": list(CONTROL_KINDS)},
        weight=WEIGHT,
        start=FRACTION,
        end=FRACTION,
        detect={"type": "boolean"},
        resize_mode={"enum": list(CONTROL_RESIZE_MODES)},
        model={"type": "string"},
    ),
    "reference_images": _list_of(
        MAX_REFERENCE_IMAGES, weight=WEIGHT, kind={"enum": list(REFERENCE_KINDS)}, model={"type": "string"}
    ),
}


@cache
def _field_types() -> dict[str, Any]:
    return get_type_hints(GenerationRequest)


def input_property(name: str, described: Mapping[str, Any], models: Catalog) -> dict[str, Any]:
    """The schema of a parameter; `described` is Gradio's."""
    enums: dict[str, list[Any]] = {
        "model_key": list(models),
        "style": list(STYLES),
        "scheduler": list(SCHEDULERS),
        "upscaler": list(UPSCALERS),
        "preset": list(PRESETS),
        "backend": list(BACKENDS),
        "image_format": list(IMAGE_FORMATS),
        "resize_mode": list(RESIZE_MODES),
        "scale": list(SCALES),
    }
    known = dict(KNOWN_SCHEMAS.get(name, {}))
    if not known and name in _field_types():
        hint = _field_types()[name]
        kind = next((kind for kind in JSON_TYPES if kind is hint or kind in getattr(hint, "__args__", ())), str)
        known = {"type": JSON_TYPES[kind]}
    elif name in ("image_id", "limit", "offset"):
        known = {"type": "integer"}
    elif name in ("where", "job_id"):
        known = {"type": "string"}
    result = {**known, "description": described.get("description", "")}
    if described.get("default") is not None:
        result["default"] = described["default"]
    return result | ({"enum": enums[name]} if name in enums else {})


def output_schema(tool: str) -> dict[str, Any] | None:
    """The schema of a tool's structured content."""
    key = RESULT_KEYS.get(tool)
    if key is None:
        return None
    images = {"type": "array", "items": IMAGE_SCHEMA}
    kinds: dict[str, Any] = {"images": images, "models": OBJECTS, "jobs": OBJECTS, "job": {"type": "object"}}
    return {"type": "object", "properties": {key: kinds[key]}, "required": [key]}


def structured_result(tool: str, outputs: list[Any], image_url: ImageUrl) -> dict[str, Any]:
    """The structured content of a tool's outputs."""
    if RESULT_KEYS[tool] != "images":
        return {RESULT_KEYS[tool]: outputs[0]}
    images = outputs[-1] if tool == "history" else outputs[-1]["images"]
    return {"images": [{"url": image_url(image["filename"]), **image} for image in images]}


def result_content(result: Mapping[str, Any], files: list[Mapping[str, Any]], types: Any) -> list[Any]:
    """All images with their addresses, and the structured content as JSON for agents that read only text."""
    content: list[Any] = []
    for image, file in zip(result.get("images", ()), files, strict=False):
        data = encode_base64(Path(file["path"]).read_bytes())
        content.append(types.ImageContent(type="image", data=data, mimeType=file["mime_type"]))
        content.append(types.TextContent(type="text", text=f"Image URL: {image['url']}"))
    return [*content, types.TextContent(type="text", text=json.dumps(result, ensure_ascii=False))]


def image_reference(text: str) -> tuple[str, str] | None:
    """The file name or the id of one of our images in an address: ("filename", NAME), ("id", NUMBER)."""
    if text.startswith(RESOURCE_PREFIX):
        return "id", text.removeprefix(RESOURCE_PREFIX)
    if text.isascii() and text.isdecimal() and len(text) < 16:
        return "id", text
    try:
        path = unquote(urlsplit(text).path)
    except ValueError:
        return None
    is_own = text.startswith(("http://", "https://", "/")) and any(prefix in path for prefix in IMAGE_ADDRESSES)
    if is_own or "/gradio_api/file=" in path:
        return "filename", path.rpartition("/")[2]
    return None


def resource_of(image: GeneratedImage, types: Any) -> Any:
    """An image in the list of resources."""
    return types.Resource(
        uri=f"{RESOURCE_PREFIX}{image.id}",
        name=image.request.prompt[:80] or image.filename,
        description=f"{image.request.width}x{image.request.height}, seed {image.request.seed}",
        mimeType=IMAGE_FORMATS[image.request.image_format].mime_type,
        size=image.file_size,
    )


def patch_mcp_server(page: Blocks, internal_token: str, studio: Studio) -> None:
    """Replace how the MCP server of a launched page calls the app.

    The server calls the app over HTTP. It passes the headers of tool calls on, but not those
    of resources; its own client cannot log in; without a progress token it answers all
    outputs as one text (Gradio 6.31).
    """
    server: Any = page.mcp_server_obj
    if server is None:
        return
    server.convert_strings_to_filedata = McpFiles(server, studio).convert
    server._execute_tool_without_progress = run_tool
    server._execute_tool_with_progress = partial(run_tool_with_progress, server)
    # With a login, the token only lets the client read the app's configuration. Each call is
    # authenticated by the temporary session that its API key was given (server/auth.py).
    headers = {CLIENT_HEADER: MCP_CLIENT}
    if page.auth is not None:
        headers["authorization"] = f"Bearer {internal_token}"
    server._get_or_create_client = McpClient(server, page.local_url or "", headers).connect
    McpHandlers(server, studio).install()


class McpHandlers:
    """The handlers of the protocol: Gradio's, with our schemas, structured results and images."""

    def __init__(self, server: Any, studio: Studio) -> None:
        self._server = server
        self._studio = studio
        self._postprocess = server.postprocess_output_data
        self._called: ContextVar[dict[str, Any]] = ContextVar("called")  # tool, and its structured result

    def install(self) -> None:
        types = self._server.types
        self._types = types
        handlers = self._server.mcp_server.request_handlers
        self._list_tools = handlers[types.ListToolsRequest]
        self._call_tool = handlers[types.CallToolRequest]
        self._list_resources = handlers[types.ListResourcesRequest]
        handlers[types.ListToolsRequest] = self.list_tools
        handlers[types.CallToolRequest] = self.call_tool
        handlers[types.ListResourcesRequest] = self.list_resources
        self._server.postprocess_output_data = self.postprocess

    async def list_tools(self, message: Any) -> Any:
        """The tools; the server validates calls with the same objects."""
        result = await self._list_tools(message)
        for tool in result.root.tools:
            self._update_input_schema(tool)
            tool.outputSchema = output_schema(self._name(tool.name))
        return result

    def _update_input_schema(self, tool: Any) -> None:
        properties = tool.inputSchema.get("properties", {})
        for name, described in properties.items():
            properties[name] = input_property(name, described, self._studio.models)

    async def call_tool(self, message: Any) -> Any:
        """Call a tool; an argument that is null is as one that is missing."""
        name, arguments = message.params.name, message.params.arguments or {}
        message.params.arguments = arguments = {key: value for key, value in arguments.items() if value is not None}
        if error := await self._invalid_argument(name, arguments):
            content: list[Any] = [self._types.TextContent(type="text", text=error)]
            return self._types.ServerResult(self._types.CallToolResult(content=content, isError=True))
        called: dict[str, Any] = {"tool": self._name(name)}
        self._called.set(called)
        result = await self._call_tool(message)
        if not result.root.isError:
            result.root.structuredContent = called.get("result")
        return result

    async def list_resources(self, message: Any) -> Any:
        """Gradio's resources and the caller's latest images."""
        result = await self._list_resources(message)
        images = await run_sync(self._studio.recent, _owner(self._server))
        result.root.resources += [resource_of(image, self._types) for image in images]
        return result

    def postprocess(self, data: Any, root_url: str) -> list[Any]:
        """The content of a result: images, then JSON."""
        called = self._called.get({})
        if called.get("tool") not in RESULT_KEYS:
            content: list[Any] = self._postprocess(data, root_url)
            return content
        sign = getattr(self._server.mcp_server.request_context.request.state, "sign_link", None)

        def image_url(filename: str) -> str:
            return f"{root_url.rstrip('/')}/pictures/{filename}" + (f"?{sign(filename)}" if sign else "")

        outputs = list(data)
        result = structured_result(called["tool"], outputs, image_url)
        files = outputs[-1].get("pictures", ()) if isinstance(outputs[-1], dict) else ()
        called["result"] = result
        return result_content(result, list(files), self._types)

    def _name(self, tool: str) -> str:
        return tool.removeprefix(self._server.tool_prefix)

    async def _invalid_argument(self, name: str, arguments: dict[str, Any]) -> str:
        """The name of the first argument that does not fit the schema, and why; "" if all do."""
        from jsonschema import Draft202012Validator

        tool = await self._server.mcp_server._get_cached_tool_definition(name)
        if tool:  # it may have been listed before a model was added
            self._update_input_schema(tool)
        errors = Draft202012Validator(tool.inputSchema).iter_errors(arguments) if tool else ()
        for error in errors:
            path = ".".join(map(str, error.absolute_path))
            text = error.message if len(error.message) < MAX_MESSAGE else f"{error.message[:MAX_MESSAGE]}…"
            return f"{path}: {text}" if path else text
        return ""


def _owner(server: Any) -> str:
    return getattr(server.mcp_server.request_context.request.state, "owner", None) or ""


class McpClient:
    """The MCP server's client of the app, which forwards the agent's credentials."""

    def __init__(self, server: Any, url: str, headers: dict[str, str]) -> None:
        self._server = server
        self._url = url
        self._headers = headers
        self._client: Client | None = None
        self._connecting = threading.Lock()

    def connect(self) -> McpClient:
        """Itself, connected. Call it in a thread: it sends requests to this very server."""
        with self._connecting:
            if self._client is None:
                self._client = Client(
                    self._url,
                    headers=self._headers,  # these override the headers of a call
                    download_files=False,
                    verbose=False,
                    analytics_enabled=False,
                    ssl_verify=False,
                    _skip_components=False,
                )
        return self

    def submit(self, *values: Any, api_name: str, headers: dict[str, str] | None = None) -> Any:
        """Call a function of the app; without `headers` the call is that of a resource."""
        assert self._client is not None  # noqa: S101 - `connect` returns this object
        if headers is not None:
            return self._client.submit(*values, api_name=api_name, headers=headers)
        request = self._server.mcp_server.request_context.request
        headers = {name: request.headers[name] for name in CREDENTIAL_HEADERS if name in request.headers}
        return _read_resource(self._client.submit(*values, api_name=api_name, headers=headers))


async def _read_resource(call: Any) -> AsyncIterator[Any]:
    async for update in call:
        if update.type == "output" and not update.success:
            raise ValueError(update.outputs.get("error") or "The resource could not be read.")
        yield update


class McpFiles:
    """The files in the arguments of a tool call: own images, other URLs, data URLs or base64."""

    def __init__(self, server: Any, studio: Studio) -> None:
        self._server = server
        self._convert = server.convert_strings_to_filedata
        self._studio = studio

    def convert(self, arguments: Any, positions: list[list[str | int]]) -> Any:
        """The arguments with their files, which belong to the agent's owner."""
        if _has_file(arguments):  # the client would upload that file of this computer
            raise ValueError("Send files as URLs, or in base64 as data URLs.")
        converted = dict(arguments)
        for name in [str(position[0]) for position in positions if len(position) == 1]:
            if not isinstance(value := converted.get(name), str):
                continue
            image = self._own_image(value)
            if image is not None and name == "image":
                converted["image_id"] = image.id
                del converted["image"]
            else:
                converted[name] = self._file(value, name)
        for name in GUIDANCE_FIELDS:
            converted |= {name: [self._guiding(item, name) for item in arguments[name]]} if arguments.get(name) else {}
        return converted

    def _guiding(self, item: Any, name: str) -> Any:
        """A control or reference image with its file; the schema says that `image` is a text."""
        image = self._own_image(item["image"])
        return {**item, "image": image.filename if image is not None else self._file(item["image"], name)}

    def _file(self, value: str, name: str) -> dict[str, Any]:
        """The file of an own image, another URL, a data URL or base64."""
        image = self._own_image(value)
        if image is not None:
            return self._save(self._studio.image_path(image.filename).read_bytes())
        if value.startswith(("http://", "https://")):
            converted: dict[str, Any] = self._convert(value, [[]])
            return converted
        return self._save(decode_base64(value, name))

    def _own_image(self, text: str) -> GeneratedImage | None:
        """The agent's image that an address or an id denotes."""
        reference = image_reference(text)
        if reference is None:
            return None
        kind, value = reference
        if kind == "filename":
            return self._studio.inputs.find_image(value, _owner(self._server))
        number = validation.integer_from_text("image_id", value, 1, 2**53)
        return self._studio.image(number, _owner(self._server))

    def _save(self, content: bytes) -> dict[str, Any]:
        path = save_bytes_to_cache(content, "image", DEFAULT_TEMP_DIR)
        self._studio.temp_files.register(Path(path), _owner(self._server))
        # Without "meta" the client does not upload it again, which would lack the agent's credentials.
        return {"path": path}


def _has_file(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_file, value))
    return isinstance(value, dict) and ("path" in value or any(map(_has_file, value.values())))


async def run_tool(call: Any) -> list[Any]:
    """Wait for a tool call; an agent that disconnects cancels it."""
    async with _cancel_on_exit(call):
        return await _outputs(call)


async def run_tool_with_progress(server: Any, call: Any, token: str | int) -> list[Any]:
    """The same, with progress notifications to the agent."""
    context = server.mcp_server.request_context
    async with _cancel_on_exit(call):
        async for update in call:
            if update.type != "output":
                continue
            if update.final:
                break
            if progress := parse_progress(update.outputs):
                fraction, message = progress
                await context.session.send_progress_notification(
                    progress_token=token,
                    progress=fraction,
                    total=1.0,
                    message=message,
                    related_request_id=str(context.request_id),
                )
        return await _outputs(call)


def parse_progress(outputs: Any) -> tuple[float, str] | None:
    """Fraction and message of an update that one of our functions yielded."""
    values = outputs.get("data") if isinstance(outputs, dict) else outputs
    if not values or not isinstance(values[-1], dict) or "status" not in values[-1]:
        return None
    update = values[-1]
    status = update["status"]
    if "num_steps" in update:
        return update["fraction"], f"{status}, step {update['step']} of {update['num_steps']}"
    total = update.get("bytes_total")
    return (update["bytes_done"] / total if total else 0.0), status


async def _outputs(call: Any) -> list[Any]:
    result = await run_sync(call.result, abandon_on_cancel=True)
    return list(result) if isinstance(result, tuple) else [result]


@asynccontextmanager
async def _cancel_on_exit(call: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if not call.done():
            with anyio.CancelScope(shield=True):
                await run_sync(call.cancel)  # an HTTP request to this very server
