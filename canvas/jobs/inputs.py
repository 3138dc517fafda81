"""What a request is made from beside its words: pictures handed in or kept, and LoRA files."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine import img2img, super_resolution
from canvas.engine.generate import Materials
from canvas.engine.image_io import decode, fit, flatten
from canvas.errors import NotFound
from canvas.history.images import Gallery
from canvas.history.uploads import Uploads, wanted_uploads
from canvas.models import loras
from canvas.models.hub_client import Hub
from canvas.models.loras import Lora, find_loras, get_lora, read_lora, split_tags
from canvas.request import GeneratedImage, GenerationRequest
from canvas.settings import Settings

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


def lora_names(request: GenerationRequest) -> list[str]:
    """The LoRAs of its field and of its prompt."""
    return [name for name, _ in (*request.loras, *split_tags(request.prompt)[1])]


class Shelf:
    """Finds what requests name, for the owner who may see it."""

    def __init__(self, settings: Settings, gallery: Gallery, hub: Hub | None = None) -> None:
        self._uploads = Uploads(settings.inputs)
        self._loras = settings.loras
        self._fetches = not settings.is_public
        self._gallery = gallery
        self._swept = -math.inf
        self._hub = hub

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
        kept = self.kept(name, owner)
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

    def kept(self, name: str, owner: str | None) -> GeneratedImage | None:
        """The picture of the gallery of that file name, where this owner may see it."""
        image = self._gallery.store.image_by_filename(name)
        return image if image is not None and owner in (None, image.owner) else None

    def parent_of(self, request: GenerationRequest, owner: str) -> int | None:
        """The id of the kept picture that a request starts from, if it starts from one."""
        parent = self.kept(request.image, owner) if request.image else None
        return parent.id if parent else None

    def loras(self) -> dict[str, Lora]:
        """The LoRA files that there are, by name."""
        return find_loras(self._loras)

    def gather(self, request: GenerationRequest, owner: str) -> Materials:
        """What the request names; raises NotFound or InvalidInput for what cannot be had."""
        names = {name: getattr(request, name) for name in FIELDS if request.task != "text_to_image"}
        pictures = {name: self.picture(value, owner) for name, value in names.items() if value}
        wanted = (*request.loras, *split_tags(request.prompt)[1])
        found = ((self.lora(name), weight) for name, weight in wanted)
        return Materials(pictures, tuple((lora, weight) for lora, weight in found if lora))

    def fitted(self, picture: Image.Image, request: GenerationRequest) -> Image.Image:
        """A picture as the model will get it, for a look before."""
        size = (request.width or picture.width, request.height or picture.height)
        return fit(flatten(picture, request.background), size, request.fit, request.background)

    def lora(self, name: str) -> Lora | None:
        """The LoRA of the folder, or of the Hub; None where it has to be fetched first.

        Raises NotFound for none of the folder, InvalidInput for a bad file.
        """
        if not loras.is_hub_name(name):
            return get_lora(name, self._loras)
        path = loras.find(name, hub=self._hub)
        if path is None and not self._fetches:
            raise NotFound(f"The LoRA {name} is not on this server, and visitors cannot fetch it.")
        # By its whole name: most files of the Hub have the same
        return replace(read_lora(path), name=name) if path else None

    def lora_download(self, name: str) -> int:
        """Bytes that fetching a LoRA of the Hub takes; asks the Hub."""
        return loras.look_up(name, hub=self._hub).size

    def resolve(self, request: GenerationRequest, spec: ModelSpec, owner: str) -> GenerationRequest:
        """`request.resolve`, with the size of its picture, after a look at all that it names."""
        self.sweep()
        materials = self.gather(request, owner)
        picture = materials.pictures.get("image")
        if picture is None:
            return request.resolve(spec)
        width, height = img2img.final_size(request, picture.size, spec)
        if request.task == "upscale":  # its size follows from the scale alone
            super_resolution.check_size(picture.size, request.scale)
            return replace(request, width=width, height=height).resolve(spec)
        sized = replace(request, width=request.width or width, height=request.height or height)
        resolved = sized.resolve(spec)
        img2img.prepare(resolved, materials.pictures, spec)  # what is wrong is said at once
        return resolved
