"""What a request is made from beside its words: pictures handed in or kept, and LoRA files."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from canvas.catalog import ModelSpec
from canvas.engine import img2img, super_resolution
from canvas.engine.generate import GenerationInputs
from canvas.engine.image_io import decode_image, flatten_alpha, resize_to_fit
from canvas.errors import NotFound
from canvas.history.images import ImageRepository
from canvas.history.uploads import Uploads, referenced_uploads
from canvas.models import loras
from canvas.models.hub_client import Hub
from canvas.models.loras import Lora, find_loras, get_lora, parse_lora_tags, read_lora
from canvas.request import GeneratedImage, GenerationRequest
from canvas.settings import Settings

CLEANUP_INTERVAL = 600.0  # seconds
MAX_SIDE = 4096  # pixels; no model draws more
IMAGE_FIELDS = ("image", "mask_image")


@dataclass(frozen=True)
class Upload:
    """A picture that was handed in: `name` is what a request's `image` or `mask_image` takes."""

    name: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def lora_names(request: GenerationRequest) -> list[str]:
    """The LoRAs of its field and of its prompt."""
    return [name for name, _ in (*request.loras, *parse_lora_tags(request.prompt)[1])]


class InputResolver:
    """Finds what requests name, for the owner who may see it."""

    def __init__(
        self, settings: Settings, gallery: ImageRepository, hub: Hub | None = None
    ) -> None:
        self._uploads = Uploads(settings.uploads_dir)
        self._loras = settings.loras_dir
        self._fetches = not settings.is_public
        self._gallery = gallery
        self._swept = -math.inf
        self._hub = hub

    def upload(self, source: bytes | Path | Image.Image, field: str = "image") -> Upload:
        """Keep a picture for requests; raises InvalidInput for what is none, or too large."""
        picture = decode_image(source, field)
        image, notes = picture.image, picture.notes
        if max(image.size) > MAX_SIDE:
            notes = (*notes, f"The picture was made smaller, to {MAX_SIDE} pixels.")
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return Upload(self._uploads.add(image), image.width, image.height, notes)

    def open_image(self, name: str, owner: str | None) -> Image.Image:
        """The pixels of what was handed in, or of an own picture; raises NotFound."""
        kept = self.find_image(name, owner)
        if kept is None:
            return self._uploads.open(name)
        path = self._gallery.folder.path_of(kept)
        if not path.is_file():
            raise NotFound(f"The file of the picture {name} is missing.")
        return decode_image(path).image

    def cleanup(self) -> None:
        """Now and then let go of handed in pictures that nothing was or will be made from."""
        if time.monotonic() - self._swept > CLEANUP_INTERVAL:
            self._swept = time.monotonic()
            self._uploads.cleanup(referenced_uploads(self._gallery.store))

    def find_image(self, name: str, owner: str | None) -> GeneratedImage | None:
        """The picture of the gallery of that file name, where this owner may see it."""
        image = self._gallery.store.image_by_filename(name)
        return image if image is not None and owner in (None, image.owner) else None

    def parent_id(self, request: GenerationRequest, owner: str) -> int | None:
        """The id of the kept picture that a request starts from, if it starts from one."""
        parent = self.find_image(request.image, owner) if request.image else None
        return parent.id if parent else None

    def list_loras(self) -> dict[str, Lora]:
        """The LoRA files that there are, by name."""
        return find_loras(self._loras)

    def resolve_inputs(self, request: GenerationRequest, owner: str) -> GenerationInputs:
        """What the request names; raises NotFound or InvalidInput for what cannot be had."""
        names = {
            name: getattr(request, name) for name in IMAGE_FIELDS if request.task != "text_to_image"
        }
        pictures = {name: self.open_image(value, owner) for name, value in names.items() if value}
        wanted = (*request.loras, *parse_lora_tags(request.prompt)[1])
        found = ((self.get_lora(name), weight) for name, weight in wanted)
        return GenerationInputs(pictures, tuple((lora, weight) for lora, weight in found if lora))

    def preview_fit(self, picture: Image.Image, request: GenerationRequest) -> Image.Image:
        """A picture as the model will get it, for a look before."""
        size = (request.width or picture.width, request.height or picture.height)
        return resize_to_fit(
            flatten_alpha(picture, request.fill_color),
            size,
            request.resize_mode,
            request.fill_color,
        )

    def get_lora(self, name: str) -> Lora | None:
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

    def lora_download_size(self, name: str) -> int:
        """Bytes that fetching a LoRA of the Hub takes; asks the Hub."""
        return loras.resolve_files(name, hub=self._hub).size

    def resolve_request(
        self, request: GenerationRequest, spec: ModelSpec, owner: str
    ) -> GenerationRequest:
        """`request.resolve`, with the size of its picture, after a look at all that it names."""
        self.cleanup()
        materials = self.resolve_inputs(request, owner)
        picture = materials.images.get("image")
        if picture is None:
            return request.with_defaults(spec)
        width, height = img2img.output_size(request, picture.size, spec)
        if request.task == "upscale":  # its size follows from the scale alone
            super_resolution.check_size(picture.size, request.scale)
            return replace(request, width=width, height=height).with_defaults(spec)
        sized = replace(request, width=request.width or width, height=request.height or height)
        resolved = sized.with_defaults(spec)
        img2img.prepare_inputs(resolved, materials.images, spec)  # what is wrong is said at once
        return resolved
