"""The options that the commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from canvas.cli.generate import edit, generate, upscale
from canvas.request import GenerationRequest


@pytest.mark.parametrize("command", [generate, edit, upscale])
def test_no_terms_are_accepted_and_no_field_is_set_by_default(command: Callable[..., Any]) -> None:
    defaults = {name: item.default for name, item in inspect.signature(command).parameters.items()}
    assert defaults["accept_terms"] is False
    assert defaults["json"] is False
    assert (defaults["output"], defaults["key"]) == (None, None)
    request = GenerationRequest("a fox")
    assert defaults["backend"] == request.backend
