"""The line under a prompt: what a model with a vocabulary understands of it, or what any other model gets."""

from __future__ import annotations

from canvas.prompt_reading import message_for_nothing
from canvas.request import GenerationRequest
from canvas.studio import Studio
from canvas.ui import result_panel
from canvas.ui.html_panel import render
from canvas.ui.i18n import translate_message


def render_hints(studio: Studio, request: GenerationRequest) -> str:
    """What is understood and what is not, and a model that would draw the rest."""
    reading = studio.understanding(request)
    if reading is None:
        return result_panel.render_enhanced_prompt(studio, request)
    status = studio.general_model() if reading.unknown else None
    nothing = ""
    if reading.nothing_known:
        nothing = translate_message(message_for_nothing(""))
    return render("prompt_hints.html", reading=reading, nothing=nothing, status=status)
