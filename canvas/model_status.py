"""The status of a model: where it is, what to download, and how long an image takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from canvas.catalog import ModelSpec
from canvas.errors import LazyMessage
from canvas.formatting import format_bytes, format_duration

TYPICAL_BANDWIDTH = 100e6 / 8  # bytes per second
ModelLocation = Literal["memory", "disk", "hub"]
# Models for photos and art, the best images first. None has a licence to agree to.
SUGGESTED = ("z-image", "sdxl", "dreamshaper", "sdxs")
MAX_SECONDS = 15.0  # that an image of a suggested model may take, except of the last one
SPARE_BYTES = 2_000_000_000  # that stay free on the disk
UNITS = {"GB": 10**9, "MB": 10**6}


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

    def download_text(self, gettext: Callable[..., str] = str.format) -> str:
        """What there is to download: "2.1 GB download"; without `missing_bytes` the size of the catalog."""
        size = self.spec.size if self.missing_bytes is None else format_bytes(self.missing_bytes)
        return gettext("{size} download", size=size) if size else gettext("Download")

    @property
    def catalog_bytes(self) -> int:
        """The size in the catalog, such as "1.8 GB", in bytes; 0 without one."""
        match = re.fullmatch(r"([\d.]+) (GB|MB)", self.spec.size)
        return int(float(match[1]) * UNITS[match[2]]) if match else 0

    @property
    def text(self) -> str:
        """The status in one line of English."""
        return " · ".join(self.parts())

    def parts(
        self,
        gettext: Callable[..., str] = str.format,
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


def best_suggestion(candidates: Iterable[ModelStatus], memory: int) -> ModelStatus | None:
    """The first that fits into so many bytes of memory and on the disk, and is quick; else the last that fits."""
    fits = [
        status
        for status in candidates
        if status.catalog_bytes < memory and status.catalog_bytes + SPARE_BYTES < status.free_bytes
    ]
    quick = (status for status in fits if status.seconds is not None and status.seconds <= MAX_SECONDS)
    return next(quick, fits[-1] if fits else None)
