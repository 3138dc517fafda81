"""What may be asked for and shown here: a filter of words, and the checker of finished pictures."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from canvas.engine.loading import ONE_AT_A_TIME
from canvas.errors import Blocked, HubOffline

if TYPE_CHECKING:
    from PIL.Image import Image

    from canvas.engine.device import Device

LEVELS = ("off", "prompt", "full")
CHECKER = "CompVis/stable-diffusion-safety-checker"  # that of Stable Diffusion 1, 1.2 GB
# What the package's list, made for chats, leaves out and pictures show.
WORDS_OF_PICTURES = ("naked", "nsfw", "topless", "undressed", "gore", "beheading")


def check_prompt(prompt: str) -> None:
    """Raise Blocked, naming the words; whole words count, so "skilled" is not "kill".

    The negative prompt is not asked: it says what shall not be seen.
    """
    found = _filter().check_profanity(prompt)
    if found["contains_profanity"]:
        words = ", ".join(f"“{word}”" for word in dict.fromkeys(found["profane_words"]))
        raise Blocked(
            f"This prompt was stopped by the word filter because of {words}, and nothing was "
            "made. Say it in other words; on a machine of your own, CANVAS_SAFETY=off lifts it."
        )


class PictureChecker:
    """The checker of Stable Diffusion; its files are fetched when it is first needed."""

    def __init__(self, device: Device, source: str = CHECKER) -> None:
        self._device = device
        self._source = source
        self._parts: tuple[Any, Any] | None = None

    def check(self, picture: Image) -> None:
        """Raise Blocked when the picture shows what is not allowed here."""
        import numpy as np

        model, extractor = self._loaded()
        pixels = extractor(picture, return_tensors="pt").pixel_values.to(self._device.name)
        # Its second result is only those pictures blacked out, which nobody needs.
        _, flagged = model(images=[np.asarray(picture)], clip_input=pixels)
        if flagged[0]:
            raise Blocked(
                "The picture was made and stopped by the safety checker; it was not stored. "
                "Another prompt or seed may help; on a machine of your own, CANVAS_SAFETY=off "
                "lifts it."
            )

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
            from transformers import CLIPImageProcessor

            try:
                with ONE_AT_A_TIME:
                    model: Any = StableDiffusionSafetyChecker.from_pretrained(self._source)
                extractor = CLIPImageProcessor.from_pretrained(self._source)
            except OSError as error:
                raise HubOffline(
                    f"The safety checker {self._source} could not be fetched, so no picture can be "
                    "shown. Connect to the internet once, or set CANVAS_SAFETY=prompt."
                ) from error
            self._parts = model.to(self._device.name).eval(), extractor
        return self._parts


@lru_cache(maxsize=1)
def _filter() -> Any:
    from glin_profanity import Filter

    return Filter({"languages": ["english"], "custom_words": list(WORDS_OF_PICTURES)})
