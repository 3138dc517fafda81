"""What may be asked for and shown here: a filter of words, and the checker of finished pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.engine.loader import FROM_PRETRAINED_LOCK
from canvas.errors import ContentBlocked, LazyMessage, ModelCorrupted
from canvas.models import download, hub_cache
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub

if TYPE_CHECKING:
    from PIL.Image import Image

    from canvas.engine.device import Device

LEVELS = ("off", "prompt", "full")
CHECKER = "CompVis/stable-diffusion-safety-checker"  # that of Stable Diffusion 1, 1.2 GB
CHECKER_FILES = ("config.json", "preprocessor_config.json")
CHECKER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that there is
# What the package's list, made for chats, leaves out and pictures show.
EXTRA_BLOCKED_WORDS = ("naked", "nsfw", "topless", "undressed", "gore", "beheading")


def check_prompt(prompt: str) -> None:
    """Raise Blocked, naming the words; whole words count, so "skilled" is not "kill".

    The negative prompt is not asked: it says what shall not be seen.
    """
    found = _filter().check_profanity(prompt)
    if found["contains_profanity"]:
        words = ", ".join(f"“{word}”" for word in dict.fromkeys(found["profane_words"]))
        raise ContentBlocked(
            LazyMessage(
                "This prompt was stopped by the word filter because of {words}, and nothing was "
                "made. Say it in other words; on a machine of your own, CANVAS_SAFETY=off lifts "
                "it.",
                words=words,
            )
        )


def find_checker(*, hub: Hub | None = None) -> Path | None:
    """The folder of the picture checker on this disk; asks no network."""
    for folder in hub_cache.snapshots(hub or Hub(), CHECKER):
        names = {path.name for path in folder.iterdir()}
        if names >= set(CHECKER_FILES) and names & set(CHECKER_WEIGHTS):
            return folder
    return None


def fetch_checker(
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> Path:
    """Download the picture checker; raises a kind of ModelUnavailable."""
    hub = hub or Hub()

    def choose(names: Iterable[str]) -> list[str]:
        present = set(names)
        weights = [name for name in CHECKER_WEIGHTS if name in present]
        return [*CHECKER_FILES, *(weights or CHECKER_WEIGHTS)[:1]]

    wanted = download.resolve_files(hub, CHECKER, choose, cancelled)
    return download.fetch(hub, wanted, on_progress, cancelled)


class ImageSafetyChecker:
    """The checker of Stable Diffusion, from a folder; it is loaded when it is first needed."""

    def __init__(self, device: Device, folder: Path | None) -> None:
        if folder is None:
            raise ModelCorrupted(f"The safety checker {CHECKER} is gone from this disk; try again.")
        self._device = device
        self._source = folder
        self._parts: tuple[Any, Any] | None = None

    def check(self, picture: Image) -> None:
        """Raise Blocked when the picture shows what is not allowed here."""
        import numpy as np

        model, extractor = self._loaded()
        pixels = extractor(picture, return_tensors="pt").pixel_values.to(self._device.name)
        # Its second result is only those pictures blacked out, which nobody needs.
        _, flagged = model(images=[np.asarray(picture)], clip_input=pixels)
        if flagged[0]:
            raise ContentBlocked(
                LazyMessage(
                    "The picture was made and stopped by the safety checker; it was not stored. "
                    "Another prompt or seed may help; on a machine of your own, CANVAS_SAFETY=off "
                    "lifts it."
                )
            )

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
            from transformers import CLIPImageProcessor

            try:
                with FROM_PRETRAINED_LOCK:
                    model: Any = StableDiffusionSafetyChecker.from_pretrained(
                        self._source, local_files_only=True
                    )
                extractor = CLIPImageProcessor.from_pretrained(self._source, local_files_only=True)
            except (OSError, ValueError) as error:
                raise ModelCorrupted(
                    f"The safety checker {CHECKER} cannot be read, so no picture can be shown. "
                    "Delete its folder in the cache of the Hub, or set CANVAS_SAFETY=prompt."
                ) from error
            self._parts = model.to(self._device.name).eval(), extractor
        return self._parts


@lru_cache(maxsize=1)
def _filter() -> Any:
    from glin_profanity import Filter

    return Filter({"languages": ["english"], "custom_words": list(EXTRA_BLOCKED_WORDS)})
