"""`generate`, `edit` and `upscale`, in this process or on the server that runs on the data folder."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from canvas.cli.console import load_settings, print_result, progress_bar, wait, with_examples, write_file
from canvas.cli.options import EDIT, TEXT_TO_IMAGE, UPSCALE, request_fields, with_options
from canvas.dynamic_prompts import escape, expand_pairs
from canvas.errors import CanvasError, InvalidInput, MissingApiKey, NotFound, error_from_code
from canvas.files import decode_text, read_text_file, split_lines
from canvas.formatting import format_progress
from canvas.guidance import GUIDANCE_FIELDS
from canvas.image_formats import IMAGE_FORMATS, encode_base64
from canvas.request import LOCAL, LOCAL_OWNER, GenerationRequest, ProgressUpdate, with_old_names

if TYPE_CHECKING:
    from canvas.request import GeneratedImage
    from canvas.server.discovery import RunningServer
    from canvas.settings import Settings

    SavedImage = tuple[GeneratedImage, Path]

TIMEOUT = 60.0  # seconds without an event; the server sends one every second
KEY_HINT = "pass it with --key KEY or set CANVAS_API_KEY"
STDIN = STDOUT = "-"
Files = dict[str, tuple[str, bytes]]
FORMATS = {suffix: name for name, known in IMAGE_FORMATS.items() for suffix in known.suffixes}


@with_examples(
    'python -m canvas generate "a fox in the snow" --seed 7 --output fox.png',
    'python -m canvas generate "a red boat" --count 4 --json',
    'python -m canvas generate "a lighthouse" --output - | display',
    "python -m canvas generate --prompts prompts.txt --json > images.jsonl",
    "shuf prompts.txt | python -m canvas generate -",
)
@with_options(*TEXT_TO_IMAGE)
def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads one per line from stdin.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="Read one prompt per line from a file.")] = None,
    **options: Any,
) -> None:
    """Generate images from a prompt and print the paths of their files."""
    _run(_read_prompts(prompt, prompts), options, InputFiles())


@with_examples(
    'python -m canvas edit photo.png "a snowy street" --strength 0.5',
    'python -m canvas edit photo.png "a red door" --mask door.png --output out.png',
    'python -m canvas edit photo.png "a wide beach" --outpaint 128,0,128,0 --json',
)
@with_options(*EDIT)
def edit(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the new image shows, all of it.")],
    mask: Annotated[
        str | None, typer.Option(metavar="FILE", help="An image that is white where the image is redrawn.")
    ] = None,
    **options: Any,
) -> None:
    """Redraw an image from a prompt: all of it, the part that a mask marks, or more on its sides."""
    _run([prompt], options, InputFiles(_read_image(image, "image"), _read_image(mask, "mask") if mask else None))


@with_examples(
    "python -m canvas upscale photo.png --output large.png",
    "python -m canvas upscale photo.png --scale 4 --upscaler photo --json",
    'python -m canvas upscale fox.png --upscaler detail --prompt "a fox in the snow"',
)
@with_options(*UPSCALE)
def upscale(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or WebP file.")],
    prompt: Annotated[str, typer.Option(metavar="PROMPT", help="What the image shows, for detail.")] = "",
    **options: Any,
) -> None:
    """Upscale an image by 2 or 4."""
    _run([prompt], options, InputFiles(_read_image(image, "image"), upscales=True))


@dataclass(frozen=True)
class InputFiles:
    """The contents of the files that a request starts from."""

    image: bytes | None = None
    mask: bytes | None = None
    upscales: bool = False
    guiding: tuple[tuple[str, bytes], ...] = ()  # control and reference images by the hash in the request

    def task(self, fields: dict[str, Any]) -> str:
        if self.image is None:
            return "text_to_image"
        if self.upscales:
            return "upscale"
        return "inpaint" if self.mask is not None or any(fields.get("outpaint", ())) else "image_to_image"

    def as_form(self) -> dict[str, tuple[str, bytes]]:
        """The files of `/v1/images/edits`, where the transparent part of a mask is redrawn."""
        from PIL import ImageChops

        from canvas.engine import masks
        from canvas.engine.image_io import decode_image

        assert self.image is not None  # noqa: S101 - called for a request with an image
        files = {"image": ("image", self.image)}
        if self.mask is not None:
            mask = masks.to_mask(decode_image(self.mask, "mask").image)
            transparent, content = mask.convert("RGBA"), io.BytesIO()
            transparent.putalpha(ImageChops.invert(mask))
            transparent.save(content, "PNG")
            files["mask"] = ("mask.png", content.getvalue())
        return files


def _run(texts: list[str], options: dict[str, Any], files: InputFiles) -> None:
    settings = load_settings(options["data_dir"], api_key=options["key"])
    fields = request_fields(options)
    output = options["output"]
    fields = {"model_key": settings.model, "image_format": _format_of(output)} | fields
    files = replace(files, guiding=_read_guiding(fields))
    fields["task"] = files.task(fields)
    negative = fields.pop("negative_prompt", "")
    pairs = [pair for text in texts for pair in expand_pairs(text, negative, settings.wildcards_dir)]
    requests = [GenerationRequest(prompt=text, negative_prompt=negative, **fields) for text, negative in pairs]
    paths = _output_paths(output, len(requests) * requests[0].num_images)
    from canvas.server.discovery import find_server

    server = find_server(settings.data_dir)
    run = partial(_generate_via_server, server) if server else _generate_local
    images = run(settings, requests, files, accept_terms=options["accept_terms"])
    for (image, stored), path in zip(images, paths, strict=True):
        _write_output(image, stored, path, as_json=options["json"])


def _generate_local(
    settings: Settings, requests: list[GenerationRequest], files: InputFiles, *, accept_terms: bool
) -> Iterator[SavedImage]:
    from canvas.catalog import get_model
    from canvas.studio import Studio

    with Studio(settings) as studio:
        if accept_terms:
            spec = get_model(requests[0].model_key, studio.models)
            studio.remote_backends.grant_consent(LOCAL_OWNER, requests[0].backend, spec)
            if spec.terms and requests[0].backend == LOCAL:
                studio.accept_licence(spec.key)
        names: dict[str, Any] = {"image": studio.inputs.upload(files.image).name} if files.image else {}
        if files.mask:
            names["mask_image"] = studio.inputs.upload_mask(files.mask, "mask").name
        stored = {name: studio.inputs.upload(content, "control_images").name for name, content in files.guiding}
        requests = [replace(request, **names, **_with_files(request, stored)) for request in requests]
        for title, request in _with_titles(requests):
            [job] = studio.submit_many([request], LOCAL_OWNER, "cli")
            wait(job, title)
            for image in job.images:
                yield image, studio.image_path(image.filename)


def _generate_via_server(
    server: RunningServer,
    settings: Settings,
    requests: list[GenerationRequest],
    files: InputFiles,
    *,
    accept_terms: bool,
) -> Iterator[SavedImage]:
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage
    from canvas.history.images import ImageRepository

    if server.requires_api_key and not settings.api_key:
        raise MissingApiKey(KEY_HINT)
    with closing(Database(settings.database_path)) as database:
        repository = ImageRepository(database, ImageStorage(settings.outputs_dir))
        for title, request in _with_titles(requests):
            encoded = {name: encode_base64(content) for name, content in files.guiding}
            body = _request_body(request, accept_terms=accept_terms) | _as_base64(request, encoded)
            form = files.as_form() if files.image else None
            for image_id in _stream_image_ids(server.url, settings.api_key, body, title, form):
                image = database.image(image_id)
                if image is None:
                    raise NotFound(f"Image {image_id} has been deleted.")
                yield image, repository.path_of(image.filename)


def _read_guiding(fields: dict[str, Any]) -> tuple[tuple[str, bytes], ...]:
    """The files of control and reference images; a name takes the place of each path in the fields."""
    files: dict[str, bytes] = {}
    for field in GUIDANCE_FIELDS:
        for item in fields.get(field, ()):
            content = _read_image(item["image"], "image")
            item["image"] = hashlib.sha256(content).hexdigest()
            files[item["image"]] = content
    return tuple(files.items())


def _with_files(request: GenerationRequest, names: dict[str, str]) -> dict[str, Any]:
    """The lists of guiding images with other names."""
    return {
        field: tuple(item._replace(image=names[item.image]) for item in getattr(request, field))
        for field in GUIDANCE_FIELDS
    }


def _as_base64(request: GenerationRequest, contents: dict[str, str]) -> dict[str, Any]:
    """The lists of guiding images for a request body."""
    lists = {name: items for name, items in request.to_dict().items() if name in GUIDANCE_FIELDS}
    return {name: [{**item, "image": contents[item["image"]]} for item in items] for name, items in lists.items()}


def _request_body(request: GenerationRequest, *, accept_terms: bool) -> dict[str, Any]:
    renamed = ("model_key", "num_images", "image_format", "quality", "image", "mask_image")
    return {
        **{name: value for name, value in request.to_dict().items() if name not in renamed},
        # Expanded already
        "prompt": escape(request.prompt),
        "negative_prompt": escape(request.negative_prompt),
        "model": request.model_key,
        "n": request.num_images,
        "output_format": request.image_format,
        "output_compression": request.quality,
        "accept_terms": accept_terms,
        "stream": True,
        "progress": True,
        "client": "cli",
    }


def _stream_image_ids(
    url: str, api_key: str | None, body: dict[str, Any], title: str, files: Files | None
) -> list[int]:
    """Send a request, as a form if it has `files`, and show its progress. Ctrl+C disconnects, which cancels the job."""
    ids: list[int] = []
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with progress_bar(title) as show:
        for event in _stream_events(url, body, headers, files):
            if "error" in event:
                error = error_from_code(event["error"]["code"], event["error"]["message"])
                raise MissingApiKey(KEY_HINT) if isinstance(error, MissingApiKey) else error
            kind = event.pop("type")
            if kind == "progress":
                status = event.pop("status")
                show(*format_progress(status, ProgressUpdate(**event) if event else None))
            elif kind.endswith(".completed"):
                ids.append(event["id"])
    return ids


def _stream_events(
    url: str, body: dict[str, Any], headers: dict[str, str], files: Files | None
) -> Iterator[dict[str, Any]]:
    content: dict[str, Any] = {"json": body}
    if files is not None:
        form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
        content = {"data": {name: value for name, value in form.items() if value != "null"}, "files": files}
    address = f"{url}/v1/images/{'generations' if files is None else 'edits'}"
    try:
        with httpx.stream("POST", address, headers=headers, timeout=TIMEOUT, **content) as response:
            if response.is_error:
                yield json.loads(response.read())
                return
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))
    except httpx.HTTPError as error:
        raise CanvasError(f"The connection to {url} was lost ({error}). Try again.") from error


def _with_titles(requests: list[GenerationRequest]) -> Iterator[tuple[str, GenerationRequest]]:
    for number, request in enumerate(requests, 1):
        title = request.prompt[:40]
        yield (f"{number} of {len(requests)}: {title}" if len(requests) > 1 else title), request


def _write_output(image: GeneratedImage, stored: Path, output: str | None, *, as_json: bool) -> None:
    if output == STDOUT:
        sys.stdout.buffer.write(stored.read_bytes())
        sys.stdout.buffer.flush()
        return
    result = {**with_old_names(image.settings()), "id": image.id, "filepath": str(stored)}
    if output is not None:
        write_file(Path(output), [stored.read_bytes()])
        result["output"] = output
    print_result(output or str(stored), result, as_json=as_json)


def _read_image(path: str, field: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        reason = error.strerror or error
        message = f"{field.capitalize()} {path!r} cannot be read ({reason}). Pass a PNG, JPEG or WebP file."
        raise InvalidInput(field, path, message=message) from error


def _format_of(output: str | None) -> str:
    if output is None or output == STDOUT:
        return "png"
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise InvalidInput("output", output, f"a file name ending in {', '.join(FORMATS)}, or -")
    if not Path(output).parent.is_dir():
        raise InvalidInput("output", output, "a path in a folder that exists")
    return FORMATS[suffix]


def _output_paths(output: str | None, count: int) -> list[str | None]:
    """A path per image: fox.png for one; fox-1.png, fox-2.png and so on for several."""
    if output is None:
        return [None] * count
    if count == 1:
        return [output]
    if output == STDOUT:
        raise InvalidInput("output", output, "a file name when there are several images")
    path = Path(output)
    return [str(path.with_stem(f"{path.stem}-{number}")) for number in range(1, count + 1)]


def _read_prompts(prompt: str | None, file: str | None) -> list[str]:
    if file is None and prompt is None:
        raise InvalidInput("prompt", None, message="Pass a PROMPT, - to read prompts from stdin, or --prompts FILE.")
    if file is None and prompt != STDIN:
        return [prompt or ""]
    if file is not None and prompt is not None:
        raise InvalidInput("prompts", file, message="Pass a PROMPT or --prompts FILE, not both.")
    try:
        if file in (None, STDIN):
            content = decode_text(sys.stdin.buffer.read())
        else:
            content = read_text_file(Path(str(file)).expanduser())
    except (OSError, UnicodeDecodeError) as error:
        message = f"Prompts cannot be read from {file or STDIN!r} ({error}); pass a text in UTF-8 or UTF-16."
        raise InvalidInput("prompts", file, message=message) from error
    texts = [line.strip() for line in split_lines(content) if line.strip()]
    if not texts:
        raise InvalidInput("prompts", file or STDIN, "a text with one prompt per line")
    return texts
