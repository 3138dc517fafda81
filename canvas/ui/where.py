"""Where a picture is made: the choice beside the model, and what it means before it is agreed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from canvas.catalog import get_model
from canvas.ui.controls import Controls
from canvas.ui.events import listen
from canvas.ui.languages import translated
from canvas.ui.owner import owner_of
from canvas.ui.panel import panel, render
from canvas.where import HERE, PLACES

if TYPE_CHECKING:
    from canvas.studio import Studio


class WherePart:
    """Lays out the choice in the form; not seen where there is only this computer."""

    def __init__(self, studio: Studio, controls: Controls) -> None:
        self._studio = studio
        self._controls = controls
        controls.place("where")
        offered = studio.elsewhere.places()
        controls["where"].choices = [(PLACES[place], place) for place in offered]
        controls["where"].visible = len(offered) > 1
        self._terms = panel("elsewhere")

    def wire(self) -> None:
        """Connect what was laid out; call inside the page's context."""
        form = self._controls
        # Not the whole form: a size may come with the bounds of the model that was just picked
        asked = [form["where"], form["model_key"]]
        listen([widget.change for widget in asked], self.show, asked, self._terms)
        listen(self._terms.click, self.agree, asked, self._terms)

    def show(self, where: str, model_key: str, request: gr.Request) -> str:
        """Who would get what, and what it costs."""
        spec, elsewhere = get_model(model_key, self._studio.models), self._studio.elsewhere
        return render(
            "elsewhere.html",
            where=where,
            model=model_key,
            missing=translated(elsewhere.why_not(where, spec) or ""),
            terms="" if where == HERE else translated(elsewhere.terms(where, spec)),
            agreed=elsewhere.has_agreed(owner_of(request), where, spec),
        )

    def agree(self, where: str, model_key: str, event: gr.EventData, request: gr.Request) -> str:
        """The user agrees to what stands above the button, even if the form has moved on."""
        spec = get_model(str(event.model), self._studio.models)
        self._studio.elsewhere.agree(owner_of(request), str(event.where), spec)
        return self.show(where, model_key, request)
