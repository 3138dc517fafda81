"""Whose page this is: the owner that every call of the studio is made for."""

from __future__ import annotations

import gradio as gr

from canvas.errors import NotFound, Said
from canvas.identity import LOCAL


def owner_of(request: gr.Request) -> str:
    """The owner that the identity middleware wrote on the request; `local` without one.

    Raises NotFound for a request that has not logged in: to the studio, no owner means all.
    """
    owner = getattr(getattr(request, "state", None), "owner", LOCAL)
    if owner is None:
        raise NotFound(Said("Log in to see your pictures."))
    return owner
