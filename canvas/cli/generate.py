"""`generate`, `edit` and `upscale` with their options, in this process or on the server of the data folder."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import httpx
import typer

from canvas.catalog import MODELS, get_model
from canvas.cli.console import (
    AsJson,
    DataDir,
    load_settings,
    number_option,
    print_result,
    progress_bar,
    wait,
    with_examples,
    write_file,
)
from canvas.dynamic_prompts import escape, expand_pairs
from canvas.errors import CanvasError, InvalidInput, MissingApiKey, NotFound, error_from_code
from canvas.files import decode_text, read_text_file, split_lines
from canvas.formatting import format_progress
from canvas.guidance import CONTROL_KINDS, GUIDANCE_FIELDS, ControlImage, ReferenceImage
from canvas.image_formats import IMAGE_FORMATS, encode_base64
from canvas.presets import PRESETS
from canvas.request import (
    LOCAL,
    LOCAL_OWNER,
    RESIZE_MODES,
    UPSCALERS,
    GenerationRequest,
    ProgressUpdate,
    with_old_names,
)
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.request import GeneratedImage
    from canvas.server.discovery import RunningServer
    from canvas.settings import Settings

    SavedImage = tuple[GeneratedImage, Path]

TIMEOUT = 60.0  # seconds without an event; the server sends one every second
KEY_HINT = "pass it with --key KEY or set CANVAS_API_KEY"
STDIN = STDOUT = "-"
FORMATS = {suffix: name for name, known in IMAGE_FORMATS.items() for suffix in known.suffixes}
Files = dict[str, tuple[str, bytes]]
Command = TypeVar("Command", bound=Callable[..., Any])


class RequestOption(NamedTuple):
    """The name of an option, its type with its help, and its default; None is that of the request, if it has one."""

    name: str
    annotation: Any
    default: Any = None


def _text(name: str, help_text: str, choices: Iterable[str] = (), default: str | None = None) -> RequestOption:
    option = typer.Option(help=help_text, autocompletion=(lambda: list(choices)) if choices else None)
    return RequestOption(name, Annotated[str | None, option], default)


def _number(name: str, field: str, allowed: str, kind: Callable[[str], Any], default: Any = None) -> RequestOption:
    return RequestOption(name, Annotated[kind | None, number_option(field, allowed, kind)], default)  # type: ignore[operator]


def _flag(name: str, help_text: str) -> RequestOption:
    option = typer.Option(f"--{name.replace('_', '-')}", help=help_text)
    return RequestOption(name, Annotated[bool, option], False)


def _parse_lora(value: str) -> tuple[str, float]:
    name, separator, weight = value.rpartition(":")
    try:
        return (name, float(weight)) if separator and name else (value, 1.0)
    except ValueError:
        return value, 1.0  # the colon is part of the name


def _parse_outpaint(value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise InvalidInput("outpaint", value, "left,top,right,bottom in pixels, such as 0,0,128,0") from error


def _parse_item(value: str, field: str, names: tuple[str, ...]) -> dict[str, Any]:
    """`FILE,kind=canny,weight=0.8` as the fields of a control or reference image."""
    path, *settings = value.split(",")
    item: dict[str, Any] = {"image": path}
    for setting in settings:
        name, separator, text = setting.strip().partition("=")
        if not separator or name not in names:
            raise InvalidInput(field, value, f"FILE,name=value,… with the names {', '.join(names[1:])}")
        item[name] = _parse_value(text)
    return item


def _parse_value(text: str) -> Any:
    if text.lower() in ("true", "yes", "false", "no"):
        return text.lower() in ("true", "yes")
    try:
        return float(text)
    except ValueError:
        return text


CONTROL = typer.Option(
    "--control",
    metavar="FILE[,kind=…]",
    help=f"An image whose structure is followed, such as house.png,kind=canny,weight=0.8,start=0,end=0.5. Kinds: "
    f"{', '.join(CONTROL_KINDS)}. May be repeated.",
)
REFERENCE = typer.Option(
    "--reference",
    metavar="FILE[,weight=…]",
    help="An image whose subject, style or face is taken on, such as face.png,weight=0.6,kind=face. May be repeated.",
)
LORA = typer.Option("--lora", metavar="NAME[:WEIGHT]", help="A LoRA; may be repeated.")
OUTPAINT = typer.Option(metavar="L,T,R,B", help="Pixels to add on the left, top, right and bottom.")
MODEL = typer.Option(metavar="KEY", help="A key that `models` lists.", autocompletion=lambda: list(MODELS))
OPTIONS: Mapping[str, RequestOption] = MappingProxyType(
    {
        "model_key": RequestOption("model", Annotated[str | None, MODEL]),
        "width": _number("width", "width", "a multiple of 8", int),
        "height": _number("height", "height", "a multiple of 8", int),
        "scale_to_size": _flag("scale_to_size", "Scale to a size that the model cannot draw."),
        "num_inference_steps": _number("steps", "steps", "a whole number from 1 to 150", int),
        "guidance_scale": _number("guidance", "guidance", "a number from 0 to 30", float),
        "seed": _number("seed", "seed", "a whole number, or -1 for random", int, -1),
        "style": _text("style", "A name that `styles` lists.", STYLES, "none"),
        "negative_prompt": _text("negative", "Negative prompt: what to avoid.", default=""),
        "scheduler": _text("scheduler", "A name that `schedulers` lists, such as 'Euler a'.", SCHEDULERS),
        "preset": _text("preset", "Speed: quality, balanced or turbo.", PRESETS),
        "loras": RequestOption("lora", Annotated[list[str] | None, LORA]),
        "prompt_weighting": _flag("prompt_weighting", "Read (word:1.3) in the prompt as a weight."),
        "variation_seed": _number("variation_seed", "variation_seed", "a seed to vary the image towards", int),
        "variation_strength": _number("variation_strength", "variation_strength", "a number from 0 to 1", float),
        "num_images": _number("count", "count", "a whole number from 1 to 16", int, 1),
        "strength": _number("strength", "strength", "a number from 0.01 to 1", float),
        "resize_mode": _text("resize_mode", "Fit an image of another shape: crop, pad or stretch.", RESIZE_MODES),
        "fill_color": _text("fill_color", "Behind transparent parts and beside a padded image, such as #ffffff."),
        "mask_blur": _number("mask_blur", "mask_blur", "a whole number of pixels from 0 to 256", int),
        "only_masked": _flag("only_masked", "Draw the masked area alone, at the model's full resolution."),
        "outpaint": RequestOption("outpaint", Annotated[str | None, OUTPAINT]),
        "scale": _number("scale", "scale", "2 or 4", int, 2),
        "upscaler": _text("upscaler", f"One of {', '.join(UPSCALERS)}.", UPSCALERS, "lanczos"),
        "image_format": _text("format", "png, jpeg or webp; by default that of --output.", IMAGE_FORMATS),
        "quality": _number("quality", "quality", "a whole number from 1 to 100, of JPEG and WebP", int),
        "watermark": _text("watermark", "A line of text on the image."),
        "control_images": RequestOption("control", Annotated[list[str] | None, CONTROL]),
        "reference_images": RequestOption("reference", Annotated[list[str] | None, REFERENCE]),
        "backend": _text("backend", "local, hf-inference or remote.", default=LOCAL),
    }
)
IMAGE_FIELDS = ("strength", "resize_mode", "fill_color")
TEXT_TO_IMAGE = tuple(
    name for name in OPTIONS if name not in (*IMAGE_FIELDS, "mask_blur", "only_masked", "outpaint", "scale", "upscaler")
)
EDIT = tuple(name for name in OPTIONS if name not in ("scale", "upscaler", "scale_to_size"))
UPSCALE = tuple(
    name
    for name in (*TEXT_TO_IMAGE, *IMAGE_FIELDS, "scale", "upscaler")
    if name not in ("width", "height", "scale_to_size", "num_images", "variation_seed", "variation_strength")
)
OUTPUT = typer.Option("--output", "-o", metavar="PATH", help="Also write here; - is stdout.")
KEY = typer.Option(metavar="KEY", help="API key for a server that requires one.")
OTHERS = (
    _flag("accept_terms", "Accept the terms of a remote backend or a model."),
    RequestOption("output", Annotated[str | None, OUTPUT]),
    RequestOption("key", Annotated[str | None, KEY]),
    RequestOption("json", AsJson, False),
    RequestOption("data_dir", DataDir),
)


def with_options(*names: str) -> Callable[[Command], Command]:
    """Give a command the options of these fields and those of all such commands, in place of `**options`."""

    def add(command: Command) -> Command:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "options"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, annotation, default in (*(OPTIONS[field] for field in names), *OTHERS)
        ]
        signature = inspect.Signature([*own, *added])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()}
        return command

    return add


def request_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that the options set."""
    names = {option.name: field for field, option in OPTIONS.items()}
    fields = {names[name]: value for name, value in options.items() if name in names and value is not None}
    if "loras" in fields:
        fields["loras"] = tuple(map(_parse_lora, fields["loras"]))
    if "outpaint" in fields:
        fields["outpaint"] = _parse_outpaint(fields["outpaint"])
    for field, kind in (("control_images", ControlImage), ("reference_images", ReferenceImage)):
        if field in fields:
            fields[field] = [_parse_item(value, field, kind._fields) for value in fields[field]]
    return fields


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
