"""The status of a model: where it is, what to download, and how long an image takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from canvas.catalog import ModelSpec
from canvas.errors import LazyMessage
from canvas.formatting import format_bytes, format_duration

TYPICAL_BANDWIDTH = 100e6 / 8  # bytes per second
ModelLocation = Literal["memory", "disk", "hub"]


def format_text(text: str, **values: object) -> str:
    """Fill in the `{names}` of a text; the page passes its own `gettext` instead."""
    return text.format(**values)


@dataclass(frozen=True)
class ModelStatus:
    """Where a model is.

    `missing_bytes` is None if the Hub was not asked; `seconds` are those of one image, None if
    unknown. `memory` says how it is loaded: "int8, 9.0 GB of 16.0 GB".
    """

    key: str
    location: ModelLocation
    missing_bytes: int | None
    free_bytes: int
    spec: ModelSpec
    seconds: float | None
    memory: LazyMessage | None = None

    def download_text(self, gettext: Callable[..., str] = format_text) -> str:
        """What there is to download: "2.1 GB download"; without `missing_bytes` the size of the catalog."""
        size = self.spec.size if self.missing_bytes is None else format_bytes(self.missing_bytes)
        return gettext("{size} download", size=size) if size else gettext("Download")

    @property
    def text(self) -> str:
        """The status in one line of English."""
        return " · ".join(self.parts())

    def parts(
        self,
        gettext: Callable[..., str] = format_text,
        translate: Callable[[LazyMessage], str] = str,
        *,
        brief: bool = False,
    ) -> list[str]:
        """The parts of `text` in the language of `gettext` and `translate`, the location first.

        `brief` leaves out the native size and the seconds of an image.
        """
        resolution = self.spec.resolution
        if self.location == "hub":
            parts = [self.download_text(gettext)]
            if self.missing_bytes is not None:
                duration = format_duration(self.missing_bytes / TYPICAL_BANDWIDTH)
                parts.append(gettext("{time} at 100 Mbit/s", time=duration))
            free = format_bytes(self.free_bytes)
            parts = [f"{', '.join(parts)} ({gettext('{size} disk space free', size=free)})"]
            if self.spec.license:
                parts.append(gettext("licence {name}", name=self.spec.license))
        else:
            parts = [gettext("in memory") if self.location == "memory" else gettext("on disk")]
        if not brief:
            parts.append(gettext("native {size}", size=f"{resolution} × {resolution}"))
        if self.memory is not None:
            parts.append(gettext("memory: {plan}", plan=translate(self.memory)))
        if self.seconds is not None and not brief:
            duration = format_duration(self.seconds)
            parts.append(gettext("about {time} per image on this computer", time=duration))
        return parts
