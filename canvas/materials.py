"""What a request is made from beside its words: pictures handed in or kept, and LoRA files."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine import editing, upscaling
from canvas.engine.inputs import decode
from canvas.engine.loras import Lora, find_loras, get_lora, split_tags
from canvas.errors import NotFound
from canvas.history.gallery import Gallery
from canvas.history.uploads import Uploads, wanted_uploads
from canvas.request import GeneratedImage, GenerationRequest

SWEEP_EVERY = 600.0  # seconds
MAX_SIDE = 4096  # pixels; no model draws more
FIELDS = ("image", "mask_image")


@dataclass(frozen=True)
class HandedIn:
    """A picture that was handed in: `name` is what a request's `image` or `mask_image` takes."""

    name: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Materials:
    """The pictures of a request by its field, and its LoRAs with their weights."""

    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    loras: tuple[tuple[Lora, float], ...] = ()


class Shelf:
    """Finds what requests name, for the owner who may see it."""

    def __init__(self, inputs: Path, loras: Path, gallery: Gallery) -> None:
        self._uploads = Uploads(inputs)
        self._loras = loras
        self._gallery = gallery
        self._swept = -math.inf

    def hand_in(self, source: bytes | Path | Image.Image, field: str = "image") -> HandedIn:
        """Keep a picture for requests; raises InvalidInput for what is none, or too large."""
        picture = decode(source, field)
        image, notes = picture.image, picture.notes
        if max(image.size) > MAX_SIDE:
            notes = (*notes, f"The picture was made smaller, to {MAX_SIDE} pixels.")
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return HandedIn(self._uploads.add(image), image.width, image.height, notes)

    def picture(self, name: str, owner: str | None) -> Image.Image:
        """The pixels of what was handed in, or of an own picture; raises NotFound."""
        kept = self._kept(name, owner)
        if kept is None:
            return self._uploads.open(name)
        path = self._gallery.folder.path_of(kept)
        if not path.is_file():
            raise NotFound(f"The file of the picture {name} is missing.")
        return decode(path).image

    def sweep(self) -> None:
        """Now and then let go of handed in pictures that nothing was or will be made from."""
        if time.monotonic() - self._swept > SWEEP_EVERY:
            self._swept = time.monotonic()
            self._uploads.sweep(wanted_uploads(self._gallery.store))

    def _kept(self, name: str, owner: str | None) -> GeneratedImage | None:
        image = self._gallery.store.image_by_filename(name)
        return image if image is not None and owner in (None, image.owner) else None

    def parent_of(self, request: GenerationRequest, owner: str) -> int | None:
        """The id of the kept picture that a request starts from, if it starts from one."""
        parent = self._kept(request.image, owner) if request.image else None
        return parent.id if parent else None

    def loras(self) -> dict[str, Lora]:
        """The LoRA files that there are, by name."""
        return find_loras(self._loras)

    def gather(self, request: GenerationRequest, owner: str) -> Materials:
        """What the request names; raises NotFound or InvalidInput for what cannot be had."""
        names = {name: getattr(request, name) for name in FIELDS if request.task != "text_to_image"}
        pictures = {name: self.picture(value, owner) for name, value in names.items() if value}
        wanted = (*request.loras, *split_tags(request.prompt)[1])
        loras = tuple((get_lora(name, self._loras), weight) for name, weight in wanted)
        return Materials(pictures, loras)

    def resolve(self, request: GenerationRequest, spec: ModelSpec, owner: str) -> GenerationRequest:
        """`request.resolve`, with the size of its picture, after a look at all that it names."""
        self.sweep()
        materials = self.gather(request, owner)
        picture = materials.pictures.get("image")
        if picture is None:
            return request.resolve(spec)
        width, height = editing.final_size(request, picture.size, spec)
        if request.task == "upscale":  # its size follows from the scale alone
            upscaling.check_size(picture.size, request.scale)
            return replace(request, width=width, height=height).resolve(spec)
        sized = replace(request, width=request.width or width, height=request.height or height)
        resolved = sized.resolve(spec)
        editing.prepare(resolved, materials.pictures, spec)  # what is wrong is said at once
        return resolved
