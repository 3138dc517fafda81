"""`generate`: prompts go in, picture files come out."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from canvas.cli.terminal import AsJson, DataDir, number, say, say_json, settings_of, wait
from canvas.errors import InvalidInput, StorageError
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.request import GeneratedImage
    from canvas.settings import Settings

    Kept = tuple[GeneratedImage, Path]

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
STDOUT = "-"
EXAMPLES = """
Examples:

  python -m canvas generate "a fox in the snow" --seed 7 --output fox.png

  python -m canvas generate "a red boat" --count 4 --json

  python -m canvas generate "a lighthouse" --output - | display

  python -m canvas generate - < prompts.txt
"""


def generate(  # noqa: PLR0913, PLR0917 - one parameter an option, as typer reads them
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to paint; - reads one prompt a line.")
    ],
    model: Annotated[str | None, typer.Option(metavar="KEY", help="See `models`.")] = None,
    width: Annotated[int | None, number("width", "pixels, a multiple of 8", int)] = None,
    height: Annotated[int | None, number("height", "pixels, a multiple of 8", int)] = None,
    steps: Annotated[int | None, number("steps", "a whole number from 1 to 150", int)] = None,
    guidance: Annotated[float | None, number("guidance", "a number from 0 to 30", float)] = None,
    seed: Annotated[int, number("seed", "a whole number, or -1 to draw one", int)] = -1,
    style: Annotated[str, typer.Option(help="Such as photorealistic or anime.")] = "none",
    negative: Annotated[str, typer.Option(help="What must not be seen.")] = "",
    scheduler: Annotated[str | None, typer.Option(help="Such as 'Euler a'.")] = None,
    count: Annotated[int, number("count", "a whole number from 1 to 16", int)] = 1,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Also write here; - is stdout."),
    ] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Paint a prompt. Prints where the picture is kept."""
    settings = settings_of(data_dir)
    first = GenerationRequest(
        prompt="-" if prompt == STDOUT else prompt,
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
    )
    texts = _lines_of_stdin() if prompt == STDOUT else [prompt]
    wishes = [replace(first, prompt=text) for text in texts]
    targets = _targets(output, len(wishes) * first.num_images)
    from canvas.api.presence import server_of

    url = server_of(settings.data_dir)
    kept = _paint_there(url, settings, wishes) if url else _paint_here(settings, wishes)
    for (picture, path), target in zip(kept, targets, strict=True):
        _hand_over(path, picture, target, as_json=json)


generate.__doc__ = f"{generate.__doc__}\n{EXAMPLES}"


def _paint_here(settings: Settings, wishes: list[GenerationRequest]) -> list[Kept]:
    from canvas.studio import Studio

    with Studio(settings) as studio:
        jobs = [studio.submit(wish, channel="cli") for wish in wishes]
        for wish, job in zip(wishes, jobs, strict=True):
            wait(job, wish.prompt[:40])
        pictures = [picture for job in jobs for picture in job.images]
        return [(picture, studio.picture_path(picture.filename)) for picture in pictures]


def _paint_there(url: str, settings: Settings, wishes: list[GenerationRequest]) -> list[Kept]:
    from canvas.cli.remote import paint
    from canvas.history.images import ImageFolder
    from canvas.history.store import Store

    ids = [image_id for wish in wishes for image_id in paint(url, wish)]
    store, folder = Store(settings.database), ImageFolder(settings.outputs)
    try:
        pictures = [store.image(image_id) for image_id in ids]
        return [(picture, folder.path_of(picture)) for picture in pictures if picture]
    finally:
        store.close()


def _hand_over(kept: Path, picture: GeneratedImage, target: str | None, *, as_json: bool) -> None:
    if target == STDOUT:
        sys.stdout.buffer.write(kept.read_bytes())
        sys.stdout.buffer.flush()
        return
    if target is not None:
        _write(Path(target), kept.read_bytes())
    if as_json:
        answer: dict[str, Any] = {**picture.settings(), "id": picture.id, "filepath": str(kept)}
        say_json(answer if target is None else {**answer, "output": target})
    else:
        say(target or str(kept))


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


def _targets(output: str | None, count: int) -> list[str | None]:
    """Where each picture goes: fox.png alone, fox-1.png, fox-2.png … when there are several."""
    if output is None:
        return [None] * count
    if count == 1:
        return [output]
    if output == STDOUT:
        raise InvalidInput("output", output, "a file name where there are several pictures")
    path = Path(output)
    return [str(path.with_stem(f"{path.stem}-{number}")) for number in range(1, count + 1)]


def _lines_of_stdin() -> list[str]:
    lines = [line.strip() for line in sys.stdin]
    prompts = [line for line in lines if line]
    if not prompts:
        raise InvalidInput("prompt", "", "one prompt a line on standard input")
    return prompts
