"""One picture with everything that is known of it."""

from __future__ import annotations

from canvas.models import duration, gigabytes
from canvas.request import IMAGE_FORMATS, GeneratedImage
from canvas.ui.languages import gettext
from canvas.ui.panel import render

DOORS = {
    "page": "this page",
    "gradio": "a script (Gradio)",
    "mcp": "an agent (MCP)",
    "openai": "an OpenAI client",
    "sdapi": "an AUTOMATIC1111 client",
    "python": "Python",
    "cli": "the command line",
}


def opened(image: GeneratedImage, owner: str) -> str:
    """The picture, its settings and what this owner can do with it."""
    mine = image.owner == owner
    rows = settings_of(image) if mine else [("Whose", image.owner), *settings_of(image)]
    return render("opened.html", image=image, rows=rows, formats=IMAGE_FORMATS, mine=mine)


def settings_of(image: GeneratedImage) -> list[tuple[str, object]]:
    """Every setting of a picture with its name; what says nothing is left out."""
    request = image.request
    sent = image.enhanced_prompt
    task = "" if request.task == "text_to_image" else gettext(request.task.replace("_", " "))
    rows: list[tuple[str, object]] = [
        ("Sent to the model", "" if sent == request.prompt else sent),
        ("Negative prompt", request.negative_prompt),
        ("Model", request.model_key),
        ("Revision", image.model_revision[:12]),
        ("Style", "" if request.style == "none" else gettext(request.style)),
        ("Size", f"{request.width} × {request.height}"),
        ("Task", task),
        ("Strength", request.strength),
        ("Seed", request.seed),
        ("Mode", gettext(request.mode)),
        ("Steps", request.num_inference_steps),
        ("Guidance", request.guidance_scale),
        ("Scheduler", request.scheduler),
        ("Time", _time(image)),
        ("File", f"{request.image_format.upper()}, {gigabytes(image.file_size)}"),
        ("Asked for by", gettext(DOORS.get(image.channel, ""))),
        ("Made", image.created_at.astimezone().strftime("%Y-%m-%d %H:%M")),
    ]
    return [(gettext(name), value) for name, value in rows if value not in ("", None)]


def _time(image: GeneratedImage) -> str:
    return gettext(
        "{time} on {device}, {dtype}",
        time=duration(image.generation_time),
        device=image.device,
        dtype=image.dtype,
    )
