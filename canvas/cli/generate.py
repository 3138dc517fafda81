"""`generate`: prompts go in, picture files come out."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
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
    print_json,
    print_line,
    progress_bar,
    wait,
    with_examples,
)
from canvas.errors import (
    CanvasError,
    InvalidInput,
    MissingApiKey,
    NotFound,
    StorageError,
    error_from_code,
)
from canvas.jobs.job import format_progress
from canvas.request import LOCAL_OWNER, GenerationRequest, ProgressUpdate
from canvas.schedulers import SCHEDULERS
from canvas.server.discovery import RunningServer
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.request import GeneratedImage
    from canvas.server.discovery import RunningServer
    from canvas.settings import Settings

    Kept = tuple[GeneratedImage, Path]

PATIENCE = 60.0  # seconds without a word; the server gives a sign of life every second
HOW = "give it with --key KEY or in CANVAS_KEY"


def generate_via_server(
    server: RunningServer,
    key: str | None,
    wish: GenerationRequest,
    title: str,
    *,
    agree: bool = False,
) -> list[int]:
    """The ids of the pictures; raises why there are none. Ctrl+C stops the work there, too."""
    if server.asks_for_keys and not key:
        raise MissingApiKey(HOW)
    body = {
        "prompt": wish.prompt,
        "negative_prompt": wish.negative_prompt,
        "style": wish.style,
        "model": wish.model_key,
        "width": wish.width,
        "height": wish.height,
        "num_inference_steps": wish.num_inference_steps,
        "guidance_scale": wish.guidance_scale,
        "scheduler": wish.scheduler,
        "seed": wish.seed,
        "n": wish.num_images,
        "output_format": wish.image_format,
        "backend": wish.backend,
        "agree": agree,
        "stream": True,
        "progress": True,
        "client": "cli",
    }
    ids: list[int] = []
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with progress_bar(title) as show:
        for event in _events(f"{server.url}/v1/images/generations", body, headers):
            if "error" in event:
                error = error_from_code(event["error"]["code"], event["error"]["message"])
                raise MissingApiKey(HOW) if isinstance(error, MissingApiKey) else error
            if event["type"] == "progress":
                show(*format_progress(event.pop("status"), _step(event)))
            elif event["type"] == "image_generation.completed":
                ids.append(event["id"])
    return ids


def _events(
    address: str, body: dict[str, Any], headers: dict[str, str]
) -> Iterator[dict[str, Any]]:
    try:
        with httpx.stream("POST", address, json=body, headers=headers, timeout=PATIENCE) as answer:
            if answer.is_error:
                yield json.loads(answer.read())
                return
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))
    except httpx.HTTPError as error:
        raise CanvasError(f"The server at {address} broke off ({error}). Try again.") from error


def _step(event: dict[str, Any]) -> ProgressUpdate | None:
    event.pop("type")
    return ProgressUpdate(**event) if "step" in event else None


FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
STDIN = STDOUT = "-"


def _keys() -> list[str]:
    from canvas.catalog import MODELS

    return list(MODELS)


@with_examples(
    'python -m canvas generate "a fox in the snow" --seed 7 --output fox.png',
    'python -m canvas generate "a red boat" --count 4 --json',
    'python -m canvas generate "a lighthouse" --output - | display',
    "python -m canvas generate --prompts prompts.txt --json > made.jsonl",
    "shuf prompts.txt | python -m canvas generate -",
)
def generate(  # noqa: PLR0913, PLR0917 - one parameter an option, as typer reads them
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to paint; - reads one prompt a line."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Paint each line of a file instead.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="KEY", help="See `models`.", autocompletion=_keys)
    ] = None,
    width: Annotated[int | None, number_option("width", "pixels, a multiple of 8", int)] = None,
    height: Annotated[int | None, number_option("height", "pixels, a multiple of 8", int)] = None,
    steps: Annotated[
        int | None, number_option("steps", "a whole number from 1 to 150", int)
    ] = None,
    guidance: Annotated[
        float | None, number_option("guidance", "a number from 0 to 30", float)
    ] = None,
    seed: Annotated[int, number_option("seed", "a whole number, or -1 to draw one", int)] = -1,
    style: Annotated[
        str, typer.Option(help="Such as photorealistic or anime.", autocompletion=lambda: STYLES)
    ] = "none",
    negative: Annotated[str, typer.Option(help="What must not be seen.")] = "",
    scheduler: Annotated[
        str | None, typer.Option(help="Such as 'Euler a'.", autocompletion=lambda: SCHEDULERS)
    ] = None,
    count: Annotated[int, number_option("count", "a whole number from 1 to 16", int)] = 1,
    where: Annotated[str, typer.Option(help="here, huggingface or remote.")] = "here",
    agree: Annotated[
        bool, typer.Option("--agree", help="You have read what leaves this computer, and agree.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Also write here; - is stdout."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="For a server that asks for one; or CANVAS_KEY."),
    ] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Paint a prompt. Prints where the picture is kept."""
    settings = load_settings(data_dir, key=key)
    texts = _read_prompts(prompt, prompts)
    first = GenerationRequest(
        prompt=texts[0],
        negative_prompt=negative,
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
        backend=where,
    )
    wishes = [replace(first, prompt=text) for text in texts]
    targets = _output_paths(output, len(wishes) * first.num_images)
    from canvas.server.discovery import find_server

    server = find_server(settings.data_dir)
    paint = partial(_generate_via_server, server) if server else _generate_local
    kept = paint(settings, wishes, agree=agree)
    for (picture, path), target in zip(kept, targets, strict=True):
        _write_output(path, picture, target, as_json=json)


def _generate_local(
    settings: Settings, wishes: list[GenerationRequest], *, agree: bool
) -> Iterator[Kept]:
    from canvas.catalog import get_model
    from canvas.studio import Studio

    with Studio(settings) as studio:
        if agree:
            spec = get_model(wishes[0].model_key, studio.models)
            studio.remote_backends.grant_consent(LOCAL_OWNER, wishes[0].backend, spec)
        for title, wish in zip(_titles(wishes), wishes, strict=True):
            job = studio.submit(wish, channel="cli")
            wait(job, title)
            for picture in job.images:
                yield picture, studio.image_path(picture.filename)


def _generate_via_server(
    server: RunningServer, settings: Settings, wishes: list[GenerationRequest], *, agree: bool
) -> Iterator[Kept]:
    pass
    from canvas.history.database import Database
    from canvas.history.image_files import ImageStorage
    from canvas.history.images import ImageRepository

    store = Database(settings.database_path)
    gallery = ImageRepository(store, ImageStorage(settings.outputs_dir))
    try:
        for title, wish in zip(_titles(wishes), wishes, strict=True):
            for image_id in generate_via_server(server, settings.api_key, wish, title, agree=agree):
                picture = store.image(image_id)
                if picture is None:
                    raise NotFound(f"Picture {image_id} was deleted meanwhile.")
                yield picture, gallery.path_of(picture.filename)
    finally:
        store.close()


def _titles(wishes: list[GenerationRequest]) -> list[str]:
    names = [wish.prompt[:40] for wish in wishes]
    if len(names) == 1:
        return names
    return [f"{number} of {len(names)}: {name}" for number, name in enumerate(names, 1)]


def _write_output(
    kept: Path, picture: GeneratedImage, target: str | None, *, as_json: bool
) -> None:
    if target == STDOUT:
        sys.stdout.buffer.write(kept.read_bytes())
        sys.stdout.buffer.flush()
        return
    if target is not None:
        _write(Path(target), kept.read_bytes())
    if as_json:
        answer: dict[str, Any] = {**picture.settings(), "id": picture.id, "filepath": str(kept)}
        print_json(answer if target is None else {**answer, "output": target})
    else:
        print_line(target or str(kept))


def _write(path: Path, content: bytes) -> None:
    # Written beside its place and moved there: no reader ever sees half a picture.
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)
    except OSError as error:
        raise StorageError(
            f"output: {str(path)!r} cannot be written ({error.strerror}); "
            "the picture is kept in the data folder all the same."
        ) from error


def _format_of(output: str | None) -> str:
    if output is None or output == STDOUT:
        return "png"
    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise InvalidInput("output", output, f"a name that ends in {', '.join(FORMATS)}, or -")
    if not Path(output).parent.is_dir():
        raise InvalidInput("output", output, "a name in a folder that exists")
    return FORMATS[suffix]


def _output_paths(output: str | None, count: int) -> list[str | None]:
    """Where each picture goes: fox.png alone, fox-1.png, fox-2.png … when there are several."""
    if output is None:
        return [None] * count
    if count == 1:
        return [output]
    if output == STDOUT:
        raise InvalidInput("output", output, "a file name where there are several pictures")
    path = Path(output)
    return [str(path.with_stem(f"{path.stem}-{number}")) for number in range(1, count + 1)]


def _read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompts: that of the command line, or one a line from a file or standard input."""
    if file is None and prompt is None:
        raise InvalidInput("prompt", None, "a PROMPT, - for standard input, or --prompts FILE")
    if file is None and prompt != STDIN:
        return [prompt or ""]
    if file is not None and prompt is not None:
        raise InvalidInput("prompts", file, "either --prompts FILE or a PROMPT, not both")
    try:
        content = sys.stdin.read() if file in (None, STDIN) else _read(str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("prompts", file or STDIN, f"a text file in UTF-8 ({error})") from error
    texts = [line.strip() for line in content.splitlines() if line.strip()]
    if not texts:
        raise InvalidInput("prompts", file or STDIN, "text with one prompt a line")
    return texts


def _read(file: str) -> str:
    return Path(file).expanduser().read_text(encoding="utf-8-sig")
