"""Pictures from the server that is running over the same data folder: one model in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from canvas.api.presence import Server
from canvas.cli.terminal import bar, told
from canvas.errors import CanvasError, NotAllowed, in_words
from canvas.request import GenerationRequest, Step

PATIENCE = 60.0  # seconds without a word; the server gives a sign of life every second
HOW = "give it with --key KEY or in CANVAS_KEY"


def paint(
    server: Server, key: str | None, wish: GenerationRequest, title: str, *, agree: bool = False
) -> list[int]:
    """The ids of the pictures; raises why there are none. Ctrl+C stops the work there, too."""
    if server.asks_for_keys and not key:
        raise NotAllowed(HOW)
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
        "where": wish.where,
        "agree": agree,
        "stream": True,
        "progress": True,
        "channel": "cli",
    }
    ids: list[int] = []
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with bar(title) as show:
        for event in _events(f"{server.url}/v1/images/generations", body, headers):
            if "error" in event:
                error = in_words(event["error"]["code"], event["error"]["message"])
                raise NotAllowed(HOW) if isinstance(error, NotAllowed) else error
            if event["type"] == "progress":
                show(*told(event.pop("status"), _step(event)))
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


def _step(event: dict[str, Any]) -> Step | None:
    event.pop("type")
    return Step(**event) if "step" in event else None
