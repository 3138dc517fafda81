"""Renders an owner's jobs and images: the result with its buttons, progress, the queue, recent images."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL.Image import Image

from canvas.errors import CanvasError, NotFound
from canvas.history.queries import Query
from canvas.image_formats import data_url
from canvas.jobs.job import Job
from canvas.presets import PRESETS, distilled_lora_missing
from canvas.prompt_reading import message_for_nothing
from canvas.request import BACKENDS, LOCAL, MAX_SEED, RANDOM_SEED, GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.studio import Studio
from canvas.ui.events import EVERY_CLICK
from canvas.ui.html_panel import render
from canvas.ui.i18n import error_text, format_bytes, format_duration, gettext, ngettext, translate_message
from canvas.vocabulary import vocabulary_of

if TYPE_CHECKING:
    from canvas.ui.create_tab import CreateTab
    from canvas.ui.edit_tab import EditTab

NUM_VARIATIONS = 4
EDIT_OPERATIONS = MappingProxyType({"edit": "inpaint", "upscale": "upscale"})  # of the Edit tab, by action
OPENING_ACTIONS = (*EDIT_OPERATIONS, "use_settings", "reuse_seed", "variations")
CHANGING_ACTIONS = ("favourite", "delete", "undo")
MAX_RECENT = 24  # images below the result
MIN_SHOWN_SECONDS = 0.1
PREVIEW_SIZE = 256  # pixels; previews are embedded in the HTML as data URLs
MAX_PREVIEW_BLUR = 8  # CSS pixels, before the first step
EXAMPLES = (  # of the built-in model, each good with eight seeds
    "a fox in the snow",
    "a rocket in space, flat",
    "a wizard in a library",
    "a sailboat at sunset, flat",
    "a lion in the desert, sticker",
    "an astronaut in space",
)
GENERAL_EXAMPLES = (  # of all other models
    "a red fox in autumn leaves, wildlife photograph",
    "a lighthouse on a cliff at sunset, oil painting",
    "portrait of an old fisherman, soft window light",
    "a cosy cabin in a snowy forest at night",
    "a bowl of ramen on a wooden table, food photograph",
    "an astronaut riding a horse, watercolour",
)


def variations_of(image: GeneratedImage) -> GenerationRequest:
    """The request for more images like this one, with the next seeds."""
    request = image.request
    if request.variation_seed is not None:
        return replace(request, variation_seed=request.variation_seed + 1, num_images=NUM_VARIATIONS)
    return replace(request, seed=min(request.seed, MAX_SEED - NUM_VARIATIONS) + 1, num_images=NUM_VARIATIONS)


def stored_images(studio: Studio, images: Iterable[GeneratedImage], owner: str) -> list[GeneratedImage]:
    """These images as they are stored now, without those deleted meanwhile."""
    ids = tuple(image.id for image in images if image.id is not None)
    found = studio.user_gallery(owner).search(Query(ids=ids, limit=min(len(ids), 1000))) if ids else []
    by_id = {image.id: image for image in found}
    return [by_id[image_id] for image_id in ids if image_id in by_id]


class ImageActions:
    """Runs the actions that `image_actions.html` offers; used by each tab that shows results."""

    def __init__(self, studio: Studio, create: CreateTab, edit: EditTab, tabs: gr.Tabs) -> None:
        self._studio = studio
        self._create = create
        self._edit = edit
        self._tabs = tabs

    @property
    def outputs(self) -> set[Any]:
        """The components that `open` updates."""
        form = self._create.form.widgets | self._create.guidance.outputs | {self._create.selected}
        return form | self._edit.load_image_outputs | {self._tabs}

    @property
    def options(self) -> dict[str, Any]:
        """Options of events with these outputs.

        Every click counts: Gradio would drop one on another button while the first is being answered.
        """
        return {**self._edit.load_image_options, **EVERY_CLICK}

    def open(self, event: gr.EventData, owner: str) -> dict[Any, Any]:
        """Run one of OPENING_ACTIONS and select the tab that shows its effect."""
        image = self._studio.image(int(event.image), owner)
        if event.action in EDIT_OPERATIONS:
            loaded = self._edit.load_image(int(event.image), owner, EDIT_OPERATIONS[event.action])
            return {**loaded, self._tabs: gr.Tabs(selected="edit")}
        create = {self._tabs: gr.Tabs(selected="create")}
        if event.action in ("use_settings", "reuse_seed"):
            seed = image.request.seed if event.action == "reuse_seed" else RANDOM_SEED
            form = self._create.form.update_from_request(replace(image.request, seed=seed))
            return create | form | self._create.guidance.restore(image.request, owner)
        self._studio.submit_many([variations_of(image)], owner, "page")
        return {**create, self._create.selected: None}

    def change(self, event: gr.EventData, owner: str) -> str:
        """Run one of CHANGING_ACTIONS; returns the line that offers to undo a deletion, or ""."""
        gallery = self._studio.user_gallery(owner)
        if event.action == "favourite":
            gallery.favourite([int(event.image)], event.favourite == "true")
        elif event.action == "undo":
            gallery.undo(str(event.token))
        else:
            token, number = gallery.delete([int(event.image)])
            return render("undo.html", token=token, number=number)
        return ""


def render_current(studio: Studio, owner: str, selected: int | None, model_key: str) -> str:
    """The selected image, else the running job, else the latest result, else examples for the model."""
    if selected is not None:
        try:
            return render_images([studio.image(selected, owner)])
        except NotFound:
            pass  # deleted meanwhile
    jobs = [job for job in studio.jobs(owner) if job.kind == "generate"]
    active = [job for job in jobs if not job.finished]
    if active:
        running = (job for job in active if job.status != "queued")
        return render_progress(studio, next(running, active[0]))
    for job in reversed(jobs):
        if job.status == "failed":
            return render_failure(job)
        if images := stored_images(studio, job.images, owner):
            return render_images(images, job)
    recent = studio.recent(owner, 1, 0)
    return render_images(recent) if recent else render("empty.html", examples=examples_of(studio, model_key))


def examples_of(studio: Studio, model_key: str) -> Sequence[str]:
    """Prompts that suit a model; it may have been removed from the list meanwhile."""
    spec = studio.models.get(model_key)
    return EXAMPLES if spec is None or vocabulary_of(spec) is not None else GENERAL_EXAMPLES


def render_progress(studio: Studio, job: Job) -> str:
    """An unfinished job: its finished images, the latest preview and the progress."""
    assert job.request is not None  # noqa: S101 - only generate jobs are shown here
    step = job.progress if isinstance(job.progress, ProgressUpdate) else None
    return render(
        "progress.html",
        job=job,
        prompt=job.request.prompt,
        ratio=_aspect_ratio(job.request),
        columns=_columns(job.num_images),
        rows=math.ceil(job.num_images / _columns(job.num_images)),
        preview=preview_url(job.preview) if job.preview else "",
        finished=job.images,
        missing=max(0, job.num_images - len(job.images) - 1),
        fraction=_fraction(job),
        blur=round(MAX_PREVIEW_BLUR * (1 - step.step / step.num_steps if step else 1), 1),
        text=progress_text(studio, job),
    )


def render_failure(job: Job) -> str:
    """The error of a failed job."""
    error = job.error or CanvasError("")
    return render(
        "failure.html",
        title=gettext(error.title),
        message=error_text(error),
        prompt=job.request.prompt if job.request else "",
    )


def render_images(
    images: Sequence[GeneratedImage], job: Job | None = None, *, in_editor: bool = False, before: str = ""
) -> str:
    """Images, those of a job if it is given, with their settings and actions.

    `before`: the URL of the image that they were made from, to compare each with.
    """
    image = images[0]
    dynamic = job.dynamic_request if job and len(images) > 1 else None
    columns = _columns(len(images))
    return render(
        "result.html",
        images=images,
        image=image,
        prompt=dynamic.prompt if dynamic else image.request.prompt,
        ratio=_aspect_ratio(image.request),
        columns=columns,
        rows=math.ceil(len(images) / columns),
        summary=image_summary(image, sum(each.generation_time for each in images)),
        in_editor=in_editor,
        before=before,
    )


def render_queue(studio: Studio, owner: str) -> str:
    """The queued jobs, each with its wait and its own time, and those that a restart interrupted."""
    jobs = [job for job in studio.jobs(owner) if job.status == "queued" and job.kind == "generate" and job.request]
    # Hundreds may wait, most of them alike
    seconds = {job.request.cost_key: studio.estimate(job.request) for job in jobs if job.request}
    queued = [(job, _queued_text(studio, job, seconds[job.request.cost_key])) for job in jobs if job.request]
    return render("queue.html", queued=queued, interrupted=studio.interrupted_jobs(owner))


def _queued_text(studio: Studio, job: Job, seconds: float | None) -> str:
    parts = [progress_text(studio, job)]
    if seconds is not None:
        parts.append(gettext("takes about {time}", time=format_duration(seconds * len(job.requests))))
    return " · ".join(parts)


def render_recent(studio: Studio, owner: str, selected: int | None) -> str:
    """Thumbnails of the latest images."""
    return render("recent.html", images=studio.recent(owner, MAX_RECENT, 0), selected=selected)


def render_prompt_hints(studio: Studio, request: GenerationRequest) -> str:
    """What a model with a vocabulary understands of a prompt, and a model for the rest; or what other models get."""
    reading = studio.understanding(request)
    if reading is None:
        return _render_enhanced_prompt(studio, request)
    status = studio.general_model() if reading.unknown else None
    nothing = translate_message(message_for_nothing("")) if reading.nothing_known else ""
    return render("prompt_hints.html", reading=reading, nothing=nothing, status=status)


def _render_enhanced_prompt(studio: Studio, request: GenerationRequest) -> str:
    """The prompt as the model gets it, with the truncated part; empty if it is unchanged."""
    prompt = studio.enhanced_prompt(request)
    budget = studio.token_budget(request)
    if prompt == request.prompt and not budget.truncated:
        return ""
    length = len(request.prompt) if prompt.startswith(request.prompt) else len(prompt)
    return render(
        "enhanced_prompt.html",
        own=budget.kept[:length],
        added=budget.kept[length:],
        budget=budget,
        model=request.model_key,
    )


def preview_url(image: Image, side: int = PREVIEW_SIZE) -> str:
    """An image as a JPEG in a data URL, at most `side` pixels wide and high."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=70)
    return data_url(buffer.getvalue(), "jpeg")


def progress_text(studio: Studio, job: Job) -> str:
    """The progress of a job in one line."""
    if job.status == "queued":
        ahead, seconds = studio.queue_position(job), studio.queue_wait(job)
        text = gettext("{number} ahead", number=ahead) if ahead else gettext("Next in the queue")
        return text + (gettext(", about {time}", time=format_duration(seconds)) if seconds else "")
    if job.status == "downloading":
        return download_text(job)
    if job.cancelled.is_set():
        return gettext("Stopping…")
    if job.status == "loading":
        return gettext("Loading {model} into memory…", model=job.model_key)
    return _step_text(job.progress) if isinstance(job.progress, ProgressUpdate) else _start_text(job)


def _start_text(job: Job) -> str:
    backend = job.request.backend if job.request else LOCAL
    if backend == LOCAL:
        return gettext("Starting…")
    return gettext("Waiting for {backend}…", backend=gettext(BACKENDS[backend]))


def download_text(job: Job) -> str:
    """Bytes, rate and remaining time of a download."""
    progress = job.progress
    if progress is None:
        return gettext("Looking up {model}…", model=job.model_key)
    done, total = format_bytes(progress.bytes_done), format_bytes(progress.bytes_total)
    parts = [gettext("{done} of {total}", done=done, total=total)]
    if progress.bytes_per_second:
        parts.append(f"{format_bytes(int(progress.bytes_per_second))}/s")
    parts += _time_left(progress.seconds_left)
    model = progress.label or job.model_key
    return gettext("Downloading {model}: {progress}", model=model, progress=" · ".join(parts))


def download_percent(job: Job) -> float:
    """How much of the bytes of a download is there; 0 until their number is known."""
    progress = job.progress
    if progress is None or not progress.bytes_total:
        return 0.0
    return round(100 * progress.bytes_done / progress.bytes_total, 1)


def _step_text(step: ProgressUpdate) -> str:
    parts = [gettext("Step {step} of {total}", step=step.step, total=step.num_steps)]
    if step.num_images > 1:
        parts.insert(0, gettext("Image {number} of {total}", number=step.image_index + 1, total=step.num_images))
    return " · ".join(parts + _time_left(step.seconds_left))


def _time_left(seconds: float | None) -> list[str]:
    return [] if seconds is None else [gettext("{time} left", time=format_duration(seconds))]


def _fraction(job: Job) -> float | None:
    progress = job.progress
    if job.cancelled.is_set():
        return None
    if job.status == "running" and isinstance(progress, ProgressUpdate):
        return progress.fraction
    if job.status == "downloading" and progress is not None and progress.bytes_total:
        return progress.bytes_done / progress.bytes_total
    return None


def _aspect_ratio(request: GenerationRequest) -> float:
    return (request.width or 1) / (request.height or 1)


def _columns(num_images: int) -> int:
    """Columns of a grid that takes no more room than one image."""
    return math.ceil(math.sqrt(num_images))


def image_summary(image: GeneratedImage, seconds: float) -> list[str]:
    """The most important settings of an image, and the time that it and the others of its job took."""
    request = image.request
    parts = [request.model_key]
    if request.style != "none":
        parts.append(gettext(request.style))
    parts += [
        f"{request.width} × {request.height}",
        gettext("seed {number}", number=request.seed),
        ngettext("{number} step", "{number} steps", request.num_inference_steps or 0),
    ]
    if request.backend != LOCAL:
        parts.append(image.device)
    if request.preset != "quality":
        parts.append(gettext(request.preset))
    return [*parts, format_duration(seconds)]


def request_summary(request: GenerationRequest, num_prompts: int = 1) -> str:
    """Model, size, backend, style and total number of images in one line."""
    parts = [request.model_key, f"{request.width} × {request.height}"]
    if request.backend != LOCAL:
        parts.append(gettext(BACKENDS[request.backend]))
    if request.style != "none":
        parts.append(gettext(request.style))
    if number := len(request.control_images) + len(request.reference_images):
        parts.append(ngettext("guided by {number} image", "guided by {number} images", number))
    if (number := request.num_images * num_prompts) > 1:
        parts.append(ngettext("{number} image", "{number} images", number))
    return " · ".join(parts)


def preset_choices(studio: Studio, request: GenerationRequest) -> list[tuple[str, str]]:
    """The presets with their estimated time on a second line."""
    choices = []
    for preset in PRESETS:
        seconds = studio.estimate(request if preset == request.preset else _with_preset(request, preset))
        time = "" if seconds is None else f"\n{format_duration(seconds)}"
        if seconds is not None and seconds < MIN_SHOWN_SECONDS:
            time = "\n" + gettext("under {time}", time=format_duration(MIN_SHOWN_SECONDS))
        choices.append((gettext(preset.capitalize()) + time, preset))
    return choices


def _with_preset(request: GenerationRequest, preset: str) -> GenerationRequest:
    return replace(request, preset=preset, num_inference_steps=None, guidance_scale=None, scheduler=None)


def preset_note(studio: Studio, request: GenerationRequest) -> str:
    """What the preset downloads, and what it lacks for the model; empty if neither."""
    if request.backend != LOCAL:
        return ""
    notes = []
    if size := studio.addons_download_size(request):
        notes.append(gettext("{size} download with the first image", size=format_bytes(size)))
    if distilled_lora_missing(request.preset, studio.models[request.model_key]):
        notes.append(gettext("no distilled LoRA for {model}, so it takes more steps", model=request.model_key))
    return f"{gettext(request.preset.capitalize())}: {' · '.join(notes)}" if notes else ""
