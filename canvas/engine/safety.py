"""The word filter for prompts and the safety checker for generated images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL.Image import Image

from canvas.engine.device import Device
from canvas.engine.quantization import FROM_PRETRAINED_LOCK
from canvas.errors import ContentBlocked, LazyMessage, ModelCorrupted
from canvas.models import download, hub_cache
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub

CHECKER = "CompVis/stable-diffusion-safety-checker"  # of Stable Diffusion 1, 1.2 GB
CHECKER_FILES = ("config.json", "preprocessor_config.json")
CHECKER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
# Missing in the package's list, which was made for chats.
EXTRA_BLOCKED_WORDS = ("naked", "nsfw", "topless", "undressed", "gore", "beheading")


def check_prompt(prompt: str) -> None:
    """Raise ContentBlocked with the blocked words; whole words count, so "skilled" passes.

    Do not call it with the negative prompt, which describes what must not appear.
    """
    result = _word_filter().check_profanity(prompt)
    if result["contains_profanity"]:
        message = LazyMessage(
            "The word filter blocked this prompt because of {words}. Use other words. On your own "
            "computer you can turn the filter off with CANVAS_SAFETY=off.",
            words=", ".join(f"“{word}”" for word in dict.fromkeys(result["profane_words"])),
        )
        raise ContentBlocked(message)


@lru_cache(maxsize=1)
def _word_filter() -> Any:
    from glin_profanity import Filter

    return Filter({"languages": ["english"], "custom_words": list(EXTRA_BLOCKED_WORDS)})


def find_checker(*, hub: Hub | None = None) -> Path | None:
    """The folder of the safety checker in the Hub cache; does not access the network."""
    for folder in hub_cache.snapshots(hub or Hub(), CHECKER):
        names = {path.name for path in folder.iterdir()}
        if names >= set(CHECKER_FILES) and names & set(CHECKER_WEIGHTS):
            return folder
    return None


def fetch_checker(
    on_progress: Callable[[DownloadProgress], None], cancelled: threading.Event, *, hub: Hub | None = None
) -> Path:
    """Download the safety checker; raises a subclass of ModelUnavailable."""
    hub = hub or Hub()

    def select(names: Iterable[str]) -> list[str]:
        present = set(names)
        weights = [name for name in CHECKER_WEIGHTS if name in present]
        return [*CHECKER_FILES, *(weights or CHECKER_WEIGHTS)[:1]]

    plan = download.plan_files(hub, CHECKER, select, cancelled)
    return download.download_files(hub, plan, on_progress, cancelled)


class ImageSafetyChecker:
    """The safety checker of Stable Diffusion; loaded from `folder` at the first use.

    Raises ModelCorrupted if `folder` is None.
    """

    def __init__(self, device: Device, folder: Path | None) -> None:
        if folder is None:
            raise ModelCorrupted(LazyMessage("The safety checker {name} was deleted. Try again.", name=CHECKER))
        self._device = device
        self._folder = folder
        self._loaded: tuple[Any, Any] | None = None

    def check(self, image: Image) -> None:
        """Raise ContentBlocked if the image is flagged."""
        import numpy as np

        model, feature_extractor = self._load()
        pixels = feature_extractor(image, return_tensors="pt").pixel_values.to(self._device.name)
        _, has_nsfw_concepts = model(images=[np.asarray(image)], clip_input=pixels)
        if has_nsfw_concepts[0]:
            message = LazyMessage(
                "The safety checker blocked the generated image; it was not stored. Try another "
                "prompt or seed. On your own computer you can turn the checker off with "
                "CANVAS_SAFETY=off."
            )
            raise ContentBlocked(message)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
            from transformers import CLIPImageProcessor

            try:
                with FROM_PRETRAINED_LOCK:
                    model: Any = StableDiffusionSafetyChecker.from_pretrained(self._folder, local_files_only=True)
                extractor = CLIPImageProcessor.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError) as error:
                message = LazyMessage(
                    "The safety checker {name} cannot be loaded, so no image can be shown. Delete "
                    "its folder in the Hub cache, or set CANVAS_SAFETY=prompt.",
                    name=CHECKER,
                )
                raise ModelCorrupted(message) from error
            self._loaded = model.to(self._device.name).eval(), extractor
        return self._loaded
