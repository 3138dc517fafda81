"""`generate`: text to image, in this process or on the server that runs on the data folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

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
from canvas.formatting import format_progress
from canvas.image_formats import IMAGE_FORMATS
from canvas.request import LOCAL, LOCAL_OWNER, GenerationRequest, ProgressUpdate, with_old_names
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES
from canvas.text_files import decode_text, read_text_file, split_lines

if TYPE_CHECKING:
    from canvas.request import GeneratedImage
    from canvas.server.discovery import RunningServer
    from canvas.settings import Settings

    SavedImage = tuple[GeneratedImage, Path]

TIMEOUT = 60.0  # seconds without an event; the server sends one every second
KEY_HINT = "pass it with --key KEY or set CANVAS_API_KEY"
STDIN = STDOUT = "-"
FORMATS = {suffix: name for name, known in IMAGE_FORMATS.items() for suffix in known.suffixes}


def _complete_model() -> list[str]:
    from canvas.catalog import MODELS

    return list(MODELS)


@with_examples(
    'python -m canvas generate "a fox in the snow" --seed 7 --output fox.png',
    'python -m canvas generate "a red boat" --count 4 --json',
    'python -m canvas generate "a lighthouse" --output - | display',
    "python -m canvas generate --prompts prompts.txt --json > images.jsonl",
    "shuf prompts.txt | python -m canvas generate -",
)
def generate(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer requires
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads one per line from stdin.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE", help="Read one prompt per line from a file.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="KEY", help="A key that `models` lists.", autocompletion=_complete_model)
    ] = None,
    width: Annotated[int | None, number_option("width", "a multiple of 8", int)] = None,
    height: Annotated[int | None, number_option("height", "a multiple of 8", int)] = None,
    steps: Annotated[int | None, number_option("steps", "a whole number from 1 to 150", int)] = None,
    guidance: Annotated[float | None, number_option("guidance", "a number from 0 to 30", float)] = None,
    seed: Annotated[int, number_option("seed", "a whole number, or -1 for random", int)] = -1,
    style: Annotated[
        str, typer.Option(help="Such as photorealistic or anime.", autocompletion=lambda: STYLES)
    ] = "none",
    negative: Annotated[str, typer.Option(help="Negative prompt: what to avoid.")] = "",
    scheduler: Annotated[str | None, typer.Option(help="Such as 'Euler a'.", autocompletion=lambda: SCHEDULERS)] = None,
    count: Annotated[int, number_option("count", "a whole number from 1 to 16", int)] = 1,
    backend: Annotated[str, typer.Option(help="local, hf-inference or remote.")] = LOCAL,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the terms of a remote backend or a model.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PATH", help="Also write here; - is stdout.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="API key for a server that requires one (or CANVAS_API_KEY).")
    ] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Generate images from a prompt and print the paths of their files."""
    settings = load_settings(data_dir, api_key=key)
    pairs = [
        pair for text in _read_prompts(prompt, prompts) for pair in expand_pairs(text, negative, settings.wildcards_dir)
    ]
    first = GenerationRequest(
        prompt=pairs[0][0],
        negative_prompt=pairs[0][1],
        style=style,
        model_key=model or settings.model,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        seed=seed,
        num_images=count,
        image_format=_format_of(output),
        backend=backend,
    )
    requests = [replace(first, prompt=text, negative_prompt=negative) for text, negative in pairs]
    paths = _output_paths(output, len(requests) * first.num_images)
    from canvas.server.discovery import find_server

    server = find_server(settings.data_dir)
    run = partial(_generate_via_server, server) if server else _generate_local
    images = run(settings, requests, accept_terms=accept_terms)
    for (image, stored), path in zip(images, paths, strict=True):
        _write_output(image, stored, path, as_json=json)


def _generate_local(
    settings: Settings, requests: list[GenerationRequest], *, accept_terms: bool
) -> Iterator[SavedImage]:
    from canvas.catalog import get_model
    from canvas.studio import Studio

    with Studio(settings) as studio:
        if accept_terms:
            spec = get_model(requests[0].model_key, studio.models)
            studio.remote_backends.grant_consent(LOCAL_OWNER, requests[0].backend, spec)
            if spec.terms and requests[0].backend == LOCAL:
                studio.accept_licence(spec.key)
        for title, request in _with_titles(requests):
            [job] = studio.submit_many([request], LOCAL_OWNER, "cli")
            wait(job, title)
            for image in job.images:
                yield image, studio.image_path(image.filename)


def _generate_via_server(
    server: RunningServer, settings: Settings, requests: list[GenerationRequest], *, accept_terms: bool
) -> Iterator[SavedImage]:
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage
    from canvas.history.images import ImageRepository

    if server.requires_api_key and not settings.api_key:
        raise MissingApiKey(KEY_HINT)
    with closing(Database(settings.database_path)) as database:
        repository = ImageRepository(database, ImageStorage(settings.outputs_dir))
        for title, request in _with_titles(requests):
            body = _request_body(request, accept_terms=accept_terms)
            for image_id in _stream_image_ids(server.url, settings.api_key, body, title):
                image = database.image(image_id)
                if image is None:
                    raise NotFound(f"Image {image_id} has been deleted.")
                yield image, repository.path_of(image.filename)


def _request_body(request: GenerationRequest, *, accept_terms: bool) -> dict[str, Any]:
    same_names = (
        *("prompt", "negative_prompt", "style", "width", "height", "num_inference_steps"),
        *("guidance_scale", "scheduler", "seed", "backend"),
    )
    return {
        **{name: getattr(request, name) for name in same_names},
        # Expanded already
        "prompt": escape(request.prompt),
        "negative_prompt": escape(request.negative_prompt),
        "model": request.model_key,
        "n": request.num_images,
        "output_format": request.image_format,
        "accept_terms": accept_terms,
        "stream": True,
        "progress": True,
        "client": "cli",
    }


def _stream_image_ids(url: str, api_key: str | None, body: dict[str, Any], title: str) -> list[int]:
    """Send a request and show its progress. Ctrl+C disconnects, which cancels the job."""
    ids: list[int] = []
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with progress_bar(title) as show:
        for event in _stream_events(f"{url}/v1/images/generations", body, headers):
            if "error" in event:
                error = error_from_code(event["error"]["code"], event["error"]["message"])
                raise MissingApiKey(KEY_HINT) if isinstance(error, MissingApiKey) else error
            kind = event.pop("type")
            if kind == "progress":
                status = event.pop("status")
                show(*format_progress(status, ProgressUpdate(**event) if event else None))
            elif kind == "image_generation.completed":
                ids.append(event["id"])
    return ids


def _stream_events(url: str, body: dict[str, Any], headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    try:
        with httpx.stream("POST", url, json=body, headers=headers, timeout=TIMEOUT) as response:
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
