"""Pictures from the server that is running over the same data folder: one model in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from canvas.cli.terminal import bar, told
from canvas.errors import CanvasError, in_words
from canvas.request import GenerationRequest, Step

PATIENCE = 60.0  # seconds without a word; the server gives a sign of life every second


def paint(url: str, wish: GenerationRequest) -> list[int]:
    """The ids of the pictures; raises why there are none. Ctrl+C stops the work there, too."""
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
        "stream": True,
        "progress": True,
        "channel": "cli",
    }
    ids: list[int] = []
    with bar(wish.prompt[:40]) as show:
        for event in _events(f"{url}/v1/images/generations", body):
            if "error" in event:
                raise in_words(event["error"]["code"], event["error"]["message"])
            if event["type"] == "progress":
                show(*told(event.pop("status"), _step(event)))
            elif event["type"] == "image_generation.completed":
                ids.append(event["id"])
    return ids


def _events(address: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        with httpx.stream("POST", address, json=body, timeout=PATIENCE) as answer:
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
