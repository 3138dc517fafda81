"""What Create shows of an owner's work: the picture or its making, the queue, the strip."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from canvas.errors import NotFound
from canvas.formatting import format_bytes, format_duration
from canvas.jobs.job import Job
from canvas.presets import PRESETS, distilled_lora_missing
from canvas.request import BACKENDS, LOCAL, GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.ui.events import error_title
from canvas.ui.html_panel import render
from canvas.ui.i18n import error_text, gettext, ngettext

if TYPE_CHECKING:
    from PIL.Image import Image

    from canvas.studio import Studio

STRIP_LENGTH = 24
SHORTEST = 0.1  # seconds; what is shorter is not told apart
PREVIEW_SIDE = 256  # pixels; a preview travels in the page's own messages
EXAMPLES = (
    "a fox in the snow, 3d",
    "a red rocket at night, flat",
    "an octopus under the sea, sticker",
    "a lighthouse at sunset, flat",
    "a robot on the moon, 3d",
    "two owls in the forest at night",
)


def render_current(studio: Studio, owner: str, selected: int | None) -> str:
    """The large place: a picked picture, else what is being made, else the latest outcome."""
    if selected is not None:
        try:
            return render_images([studio.image(selected, owner)])
        except NotFound:
            pass  # it was deleted meanwhile: show what is there
    jobs = [job for job in studio.jobs(owner) if job.kind == "generate"]
    active = [job for job in jobs if not job.finished]
    if active:
        return render_progress(
            studio, next((job for job in active if job.status != "queued"), active[0])
        )
    outcomes = [job for job in jobs if job.images or job.status == "failed"]
    if outcomes:
        latest = outcomes[-1]
        return _failure(latest) if latest.status == "failed" else render_images(latest.images)
    recent = studio.recent(owner, 1, 0)
    return render_images(recent) if recent else render("empty.html", examples=EXAMPLES)


def render_progress(studio: Studio, job: Job) -> str:
    """A job that is not done: what there is of its pictures, and how far it is."""
    assert job.request is not None  # noqa: S101 - only generate jobs are shown here
    step = job.progress if isinstance(job.progress, ProgressUpdate) else None
    return render(
        "making.html",
        job=job,
        prompt=job.request.prompt,
        ratio=_ratio(job.request),
        columns=_columns(job.request.num_images),
        preview=data_url(job.preview) if job.preview else "",
        finished=job.images,
        missing=max(0, job.request.num_images - len(job.images) - 1),
        fraction=_fraction(job),
        soft=round(8 * (1 - step.step / step.num_steps), 1) if step else 8,
        words=progress_words(studio, job),
    )


def _fraction(job: Job) -> float | None:
    progress = job.progress
    if job.status == "running" and isinstance(progress, ProgressUpdate):
        return progress.fraction
    if job.status == "downloading" and progress is not None and progress.bytes_total:
        return progress.bytes_done / progress.bytes_total
    return None


def progress_words(studio: Studio, job: Job) -> str:
    """How far a job is, in one line."""
    if job.status == "queued":
        before = studio.queue_position(job)
        seconds = studio.queue_wait(job)
        words = gettext("Waiting: next")
        if before:
            words = gettext("Waiting: {number} before it", number=before)
        return words + (gettext(", about {time}", time=format_duration(seconds)) if seconds else "")
    if job.status == "downloading":
        return download_words(job)
    if job.status == "loading":
        return gettext("Loading {model} into memory…", model=job.model_key)
    if not isinstance(job.progress, ProgressUpdate):
        where = job.request.backend if job.request else LOCAL
        if where == LOCAL:
            return gettext("Starting…")
        return gettext("Asked {place}; waiting…", place=gettext(BACKENDS[where]))
    return _step_words(job.progress)


def download_words(job: Job) -> str:
    """Bytes, rate and time left of a download."""
    progress = job.progress
    if progress is None:
        return gettext("Asking where {model} is…", model=job.model_key)
    words = gettext(
        "{done} of {total}",
        done=format_bytes(progress.bytes_done),
        total=format_bytes(progress.bytes_total),
    )
    if progress.bytes_per_second:
        words += f" · {format_bytes(int(progress.bytes_per_second))}/s"
    if progress.seconds_left is not None:
        words += " · " + gettext("{time} left", time=format_duration(progress.seconds_left))
    return gettext(
        "Downloading {model}: {words}", model=progress.what or job.model_key, words=words
    )


def _step_words(step: ProgressUpdate) -> str:
    words = gettext("Step {step} of {total}", step=step.step, total=step.num_steps)
    if step.num_images > 1:
        number, total = step.image_index + 1, step.num_images
        words = gettext("Picture {number} of {total}", number=number, total=total) + f" · {words}"
    if step.seconds_left is not None:
        words += " · " + gettext("{time} left", time=format_duration(step.seconds_left))
    return words


def _failure(job: Job) -> str:
    error = job.error
    title = error_title(error) if error else gettext("This did not work")
    prompt = job.request.prompt if job.request else ""
    return render(
        "failure.html", title=title, sentence=error_text(error) if error else "", prompt=prompt
    )


def render_images(images: Sequence[GeneratedImage], *, in_editor: bool = False) -> str:
    """What came of a job, and what can be done with it where it is shown."""
    image = images[0]
    return render(
        "picture.html",
        images=images,
        image=image,
        ratio=_ratio(image.request),
        columns=_columns(len(images)),
        image_summary=image_summary(image),
        in_editor=in_editor,
    )


def image_summary(image: GeneratedImage) -> list[str]:
    """The settings of a picture that matter at a glance."""
    request = image.request
    words = [request.model_key, f"{request.width} × {request.height}"]
    words.append(gettext("seed {number}", number=request.seed))
    words.append(ngettext("{number} step", "{number} steps", request.num_inference_steps or 0))
    if request.backend != LOCAL:
        words.append(image.device)
    if request.preset != "quality":
        words.append(gettext(request.preset))
    if request.style != "none":
        words.insert(1, gettext(request.style))
    return [*words, format_duration(image.generation_time)]


def _ratio(request: GenerationRequest) -> float:
    return (request.width or 1) / (request.height or 1)


def _columns(number: int) -> int:
    """Columns in which so many pictures take no more room than one."""
    return math.ceil(math.sqrt(number))


def render_queue(studio: Studio, owner: str) -> str:
    """The jobs that wait, each with its place and its time, and those that a restart ended."""
    waiting = [
        (job, progress_words(studio, job))
        for job in studio.jobs(owner)
        if job.status == "queued" and job.kind == "generate"
    ]
    return render("queue.html", waiting=waiting, interrupted=studio.interrupted_jobs(owner))


def render_recent(studio: Studio, owner: str, selected: int | None) -> str:
    """The latest pictures, small."""
    return render(
        "strip.html", images=studio.recent(owner, STRIP_LENGTH, 0), selected=selected or 0
    )


def data_url(preview: Image) -> str:
    """A preview as a small JPEG that fits into a message."""
    small = preview.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def render_enhanced_prompt(studio: Studio, request: GenerationRequest) -> str:
    """What the model will get, where it differs from what was written, and what it cannot read."""
    text = studio.enhanced_prompt(request)
    fit = studio.token_budget(request)
    if text == request.prompt and not fit.truncated:
        return ""
    written = len(request.prompt) if text.startswith(request.prompt) else len(text)
    return render(
        "sent.html",
        own=fit.kept[:written],
        added=fit.kept[written:],
        fit=fit,
        model=request.model_key,
    )


def request_summary(request: GenerationRequest, prompts: int = 1) -> str:
    """The settings at a glance: model, size, style, number of pictures of so many prompts."""
    words = [request.model_key, f"{request.width} × {request.height}"]
    if request.backend != LOCAL:
        words.append(gettext(BACKENDS[request.backend]))
    if request.style != "none":
        words.append(gettext(request.style))
    if (number := request.num_images * prompts) > 1:
        words.append(ngettext("{number} picture", "{number} pictures", number))
    return " · ".join(words)


def preset_choices(studio: Studio, request: GenerationRequest) -> list[tuple[str, str]]:
    """The modes, each with the seconds that it will take in a second line."""
    choices = []
    for preset in PRESETS:
        asked = request if preset == request.preset else _with_preset(preset, request)
        seconds = studio.estimate(asked)
        words = "" if seconds is None else f"\n{format_duration(seconds)}"
        if seconds is not None and seconds < SHORTEST:
            words = "\n" + gettext("under {time}", time=format_duration(SHORTEST))
        choices.append((gettext(preset.capitalize()) + words, preset))
    return choices


def preset_note(studio: Studio, request: GenerationRequest) -> str:
    """What the mode fetches once, and what it cannot do with the model; nothing if neither."""
    if request.backend != LOCAL:
        return ""
    notes = []
    if size := studio.addons_download_size(request):
        told = gettext("{size} to download with the first picture", size=format_bytes(size))
        notes.append(told)
    if distilled_lora_missing(request.preset, studio.models[request.model_key]):
        why = gettext(
            "no weights for few steps fit {model}, so it takes some more", model=request.model_key
        )
        notes.append(why)
    return f"{gettext(request.preset.capitalize())}: {' · '.join(notes)}" if notes else ""


def _with_preset(preset: str, request: GenerationRequest) -> GenerationRequest:
    return replace(
        request, preset=preset, num_inference_steps=None, guidance_scale=None, scheduler=None
    )
