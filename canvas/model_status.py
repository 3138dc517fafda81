"""What picking a model means, in one line: where it is, what to fetch, how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from canvas.catalog import ModelSpec
from canvas.formatting import format_bytes, format_duration

TYPICAL_BANDWIDTH = 100e6 / 8  # bytes a second of a usual connection
ModelLocation = Literal["memory", "disk", "hub"]


def format_text(text: str, **values: object) -> str:
    """The text with its `{names}` filled in; the page puts its own translation in this place."""
    return text.format(**values)


@dataclass(frozen=True)
class ModelStatus:
    """Where a model is. Bytes are None when nobody asked, seconds when nothing is known."""

    key: str
    location: ModelLocation
    missing_bytes: int | None
    free_bytes: int
    spec: ModelSpec
    seconds: float | None

    @property
    def download_size(self) -> str:
        """How much is to be downloaded where nothing is there, in words."""
        return self.spec.size if self.missing_bytes is None else format_bytes(self.missing_bytes)

    @property
    def text(self) -> str:
        """What picking the model means, for a user."""
        return " · ".join(self.parts())

    def parts(self, gettext: Callable[..., str] = format_text) -> list[str]:
        """The parts of the sentence, the place first."""
        free, resolution = format_bytes(self.free_bytes), self.spec.resolution
        to_fetch = gettext("{size} to download", size=self.download_size)
        if self.missing_bytes is not None:
            time = format_duration(self.missing_bytes / TYPICAL_BANDWIDTH)
            to_fetch = gettext("{to_fetch}, {time} at 100 Mbit/s", to_fetch=to_fetch, time=time)
        place = {
            "memory": gettext("in memory"),
            "disk": gettext("on disk"),
            "hub": gettext("{to_fetch}, {free} free", to_fetch=to_fetch, free=free),
        }[self.location]
        parts = [place, gettext("native {size}", size=f"{resolution} × {resolution}")]
        if self.location == "hub" and self.spec.license:
            parts.insert(1, gettext("licence {name}", name=self.spec.license))
        if self.seconds is not None:
            parts.append(gettext("about {time} a picture here", time=format_duration(self.seconds)))
        return parts


def describe_model(
    spec: ModelSpec,
    where: ModelLocation,
    *,
    missing_bytes: int | None,
    free_bytes: int,
    seconds: float | None,
) -> ModelStatus:
    """The state of a model."""
    return ModelStatus(spec.key, where, missing_bytes, free_bytes, spec, seconds)
