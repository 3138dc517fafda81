"""The inputs that requests name: uploads, gallery images and LoRA files; and the files of Gradio's temporary folder."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageChops

from canvas.catalog import ModelSpec
from canvas.engine import img2img, masks, upscale
from canvas.engine.control_detectors import resolve_control
from canvas.engine.controlnet import ControlInput, check_control_task
from canvas.engine.generate import GenerationInputs
from canvas.engine.image_io import decode_image, flatten_alpha, resize_to_fit
from canvas.engine.references import ReferenceInput
from canvas.engine.textual_inversion import requested_embeddings
from canvas.errors import InvalidInput, LazyMessage, NotFound
from canvas.history.images import ImageRepository
from canvas.history.uploads import Uploads, is_upload_of, referenced_uploads
from canvas.models import addons, controlnets, ip_adapters, loras
from canvas.models.capabilities import Capabilities
from canvas.models.hub_client import Hub
from canvas.models.loras import Lora
from canvas.prompt_syntax import LORA_TAG, LoraTags, LoraWeight, parse_lora_tags
from canvas.request import LOCAL, MAX_EDIT_SIDE, GeneratedImage, GenerationRequest
from canvas.settings import Settings

CLEANUP_INTERVAL = 600.0  # seconds
NOT_UPLOADED = "This file was not uploaded by you, or it was deleted meanwhile. Upload it again."


@dataclass(frozen=True)
class Upload:
    """A stored upload; `name` is the value for a request's `image` or `mask_image`."""

    name: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def requested_loras(request: GenerationRequest) -> LoraTags:
    """Names and weights of the LoRAs in the field and in the prompt; raises InvalidInput."""
    if tag := LORA_TAG.search(request.negative_prompt):
        text = "The tag {tag} acts in the prompt only. Move it from the negative prompt to the prompt."
        raise InvalidInput("negative_prompt", tag[0], message=LazyMessage(text, tag=tag[0]))
    fields = [(name, LoraWeight(weight, weight)) for name, weight in request.loras]
    return (*fields, *parse_lora_tags(request.prompt)[1])


class InputResolver:
    """Stores uploads, and loads the inputs of requests if their owner may use them."""

    def __init__(self, settings: Settings, repository: ImageRepository, hub: Hub | None = None) -> None:
        self._settings = settings
        self._uploads = Uploads(settings.uploads_dir)
        self._allow_downloads = not settings.is_public
        self._repository = repository
        self._last_cleanup = -math.inf
        self._hub = hub

    def upload(self, source: bytes | Path | Image.Image, field: str = "image") -> Upload:
        """Store an image, at most MAX_EDIT_SIDE pixels wide and high; raises InvalidInput."""
        decoded = decode_image(source, field)
        return self._store(decoded.image, decoded.notes)

    def upload_mask(
        self,
        source: bytes | Path | Image.Image,
        field: str = "mask_image",
        *,
        invert: bool = False,
        transparent: bool = False,
    ) -> Upload:
        """Store what a mask file marks, as an image that is white where pixels may change.

        With `transparent` the mask follows OpenAI's rule, otherwise that of `masks.to_mask`;
        `invert` applies to either. Raises InvalidInput.
        """
        decoded = decode_image(source, field)
        mask = (masks.transparency_mask if transparent else masks.to_mask)(decoded.image)
        return self._store(ImageChops.invert(mask) if invert else mask, decoded.notes)

    def _store(self, image: Image.Image, notes: tuple[str, ...]) -> Upload:
        if max(image.size) > MAX_EDIT_SIDE:
            notes = (*notes, f"The image was reduced to {MAX_EDIT_SIDE} pixels.")
            image.thumbnail((MAX_EDIT_SIDE, MAX_EDIT_SIDE), Image.Resampling.LANCZOS)
        return Upload(self._uploads.add(image), image.width, image.height, notes)

    def open_image(self, name: str, owner: str | None) -> Image.Image:
        """The pixels of an upload or of the owner's gallery image; raises NotFound."""
        image = self.find_image(name, owner)
        if image is None:
            return self._uploads.open(name)
        path = self._repository.storage.path_of(image)
        if not path.is_file():
            raise NotFound(f"The file of the image {name} is missing.")
        return decode_image(path).image

    def find_image(self, name: str, owner: str | None) -> GeneratedImage | None:
        """The gallery image with that file name, if the owner (None: anyone) may see it."""
        image = self._repository.database.image_by_filename(name)
        return image if image is not None and owner in (None, image.owner) else None

    def is_stored_for(self, name: str, owner: str) -> bool:
        """Whether the owner may see that image: a gallery image of theirs, or an upload from which they made one."""
        if self.find_image(name, owner) is not None:
            return True
        return name in self._uploads and is_upload_of(name, owner, self._repository.database)

    def parent_id(self, request: GenerationRequest, owner: str) -> int | None:
        """The id of the gallery image that a request starts from."""
        parent = self.find_image(request.image, owner) if request.image else None
        return parent.id if parent else None

    def list_loras(self) -> dict[str, Lora]:
        return loras.list_loras(self._settings.loras_dir)

    def get_lora(self, name: str) -> Lora | None:
        """A LoRA in the folder or the Hub cache; None if it can be downloaded.

        Raises NotFound, or InvalidInput for an invalid file.
        """
        if not loras.is_hub_name(name, self._settings.loras_dir):
            return loras.get_lora(name, self._settings.loras_dir)
        path = loras.find(name, hub=self._hub)
        if path is None and not self._allow_downloads:
            message = LazyMessage(
                "The LoRA {name} is not installed on this server, and visitors cannot download it.", name=name
            )
            raise NotFound(message)
        # With its full name, as many files on the Hub have the same one.
        return replace(loras.read_lora(path), name=name) if path else None

    def lora_download_size(self, name: str) -> int:
        """The bytes of a LoRA on the Hub; asks the Hub."""
        return loras.plan_download(name, hub=self._hub).total_bytes

    def load_inputs(self, request: GenerationRequest, owner: str) -> GenerationInputs:
        """The images and the present LoRAs of a request; raises NotFound or InvalidInput."""
        names = {"image": request.image, "mask_image": request.mask_image}
        if request.task == "text_to_image":
            names = {}
        if request.backend != LOCAL:  # sent with the request, under their own names
            names |= {item.image: item.image for item in request.control_images}
            names |= {item.image: item.image for item in request.reference_images}
        images = {field: self.open_image(name, owner) for field, name in names.items() if name}
        found = [(self.get_lora(name), weight) for name, weight in requested_loras(request)]
        texts = (request.prompt, request.negative_prompt)
        embeddings = requested_embeddings(texts, self._settings.embeddings_dir)
        present = tuple((lora, weight) for lora, weight in found if lora)
        controls, references = self._load_controls(request, owner), self._load_references(request, owner)
        source_prompt = ""
        if request.image and "image" in images:
            source_prompt = self._source_prompt(request.image, request.model_key, owner)
        return GenerationInputs(images, present, embeddings, controls, references, source_prompt)

    def _source_prompt(self, name: str, model_key: str, owner: str) -> str:
        """What a model got for an image of the owner, or for the one that was upscaled to it; "" if it made neither."""
        source = self.find_image(name, owner)
        if source is not None and source.request.task == "upscale" and source.parent_id is not None:
            parent = self._repository.database.image(source.parent_id)
            source = parent if parent is not None and parent.owner == source.owner else None
        return source.enhanced_prompt if source is not None and source.request.model_key == model_key else ""

    def _load_controls(self, request: GenerationRequest, owner: str) -> tuple[ControlInput, ...]:
        """The control images whose ControlNets are on disk."""
        detector = addons.find(addons.DEPTH, hub=self._hub) if request.control_images else None
        found = []
        for item in request.control_images:
            folder = self.find_controlnet(item.model) if item.model and request.backend == LOCAL else None
            if folder is not None:
                found.append(ControlInput(item, self.open_image(item.image, owner), folder, detector))
        return tuple(found)

    def _load_references(self, request: GenerationRequest, owner: str) -> tuple[ReferenceInput, ...]:
        """The reference images; those with an adapter only if it is on disk."""
        if request.backend != LOCAL:
            return ()
        encoder = ip_adapters.find_encoder(self._hub) if request.reference_images else None
        found = []
        for item in request.reference_images:
            file = ip_adapters.find(item.model, self._settings.ip_adapters_dir, hub=self._hub) if item.model else None
            if not item.model or (file and encoder):
                found.append(ReferenceInput(item, self.open_image(item.image, owner), file, encoder))
        return tuple(found)

    def find_controlnet(self, name: str) -> Path | None:
        """The folder of a ControlNet, None if it can be downloaded; raises InvalidInput or NotFound."""
        folder = controlnets.find(name, self._settings.controlnets_dir, hub=self._hub)
        if folder is None and not self._allow_downloads:
            text = "The ControlNet {name} is not installed on this server, and visitors cannot download it."
            raise NotFound(LazyMessage(text, name=name))
        return folder

    def resolve_guidance(
        self, request: GenerationRequest, spec: ModelSpec, capabilities: Capabilities | None, owner: str
    ) -> GenerationRequest:
        """The request with what its control and reference images need; raises NotFound or InvalidInput."""
        request = self._resolve_controls(request, spec, capabilities, owner)
        return self._resolve_references(request, spec, capabilities, owner)

    def _resolve_references(
        self, request: GenerationRequest, spec: ModelSpec, capabilities: Capabilities | None, owner: str
    ) -> GenerationRequest:
        """The request with the IP-Adapter of each reference image."""
        if request.reference_images and not request.needs_model:
            message = "Reference images act with the upscaler detail only. Choose it, or remove them."
            raise InvalidInput("reference_images", len(request.reference_images), message=message)
        family, items = controlnets.family_of(spec, capabilities), []
        for item in request.reference_images:
            self.open_image(item.image, owner)
            model = item.model
            if request.backend == LOCAL:
                model = model or ip_adapters.usual_adapter(item.kind, family, spec, capabilities)
                if model and not self._allow_downloads and self._lacks_adapter(model):
                    text = "The IP-Adapter {name} is not installed on this server, and visitors cannot download it."
                    raise NotFound(LazyMessage(text, name=model))
            items.append(item._replace(model=model))
        return replace(request, reference_images=tuple(items))

    def _lacks_adapter(self, name: str) -> bool:
        found = ip_adapters.find(name, self._settings.ip_adapters_dir, hub=self._hub)
        return found is None or ip_adapters.find_encoder(self._hub) is None

    def _resolve_controls(
        self, request: GenerationRequest, spec: ModelSpec, capabilities: Capabilities | None, owner: str
    ) -> GenerationRequest:
        """The request with the kind, the detection and the ControlNet of each control image.

        Raises NotFound or InvalidInput.
        """
        if not request.control_images:
            return request
        check_control_task(request)
        family = controlnets.family_of(spec, capabilities)
        items = []
        for item in request.control_images:
            resolved = resolve_control(item, self.open_image(item.image, owner))
            if request.backend != LOCAL:
                items.append(resolved)
                continue
            controlnets.check_family(family, spec)
            model = resolved.model or controlnets.usual_model(resolved.kind, family, spec, capabilities)
            self.find_controlnet(model)
            items.append(resolved._replace(model=model))
        return replace(request, control_images=tuple(items))

    def names_embedding(self, request: GenerationRequest) -> bool:
        """Whether the prompt has the name of a textual inversion in the folder."""
        try:
            return bool(requested_embeddings((request.prompt,), self._settings.embeddings_dir))
        except NotFound:
            return False  # generating the image raises it

    def resolve_request(self, request: GenerationRequest, spec: ModelSpec, owner: str) -> GenerationRequest:
        """`request.with_defaults` with the size of its image; raises what `load_inputs` raises."""
        self._cleanup()
        images = self.load_inputs(request, owner).images
        if "image" not in images:
            return request.with_defaults(spec)
        size = images["image"].size
        width, height = self.result_size(request, size)
        resolved = replace(request, width=width, height=height).with_defaults(spec)
        if request.task == "upscale":
            return resolved
        img2img.prepare_inputs(resolved, images, spec)  # reports a wrong mask before queueing
        return resolved

    def result_size(self, request: GenerationRequest, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the result for an input image of that size; raises InvalidInput."""
        if request.task == "upscale":  # the size follows from the scale alone
            upscale.check_size(size, request.scale)
            return img2img.result_size(request, size)
        if request.width and request.height:
            return request.width, request.height
        width, height = img2img.result_size(request, size)
        return request.width or width, request.height or height

    def preview_fit(self, image: Image.Image, request: GenerationRequest) -> Image.Image:
        return resize_to_fit(
            flatten_alpha(image, request.fill_color),
            (request.width or image.width, request.height or image.height),
            request.resize_mode,
            request.fill_color,
        )

    def _cleanup(self) -> None:
        """Delete unused uploads, at most every CLEANUP_INTERVAL."""
        if time.monotonic() - self._last_cleanup > CLEANUP_INTERVAL:
            self._last_cleanup = time.monotonic()
            self._uploads.cleanup(referenced_uploads(self._repository.database))


class TempFiles:
    """The uploads of all owners, and the files that the server made for one of them.

    A path that a client sends is used only if it was registered for the owner of that request.
    """

    def __init__(self) -> None:
        self._owners: dict[Path, set[str]] = {}
        self._lock = threading.Lock()

    def register(self, path: Path, owner: str) -> None:
        """Let an owner use a file: one that the owner uploaded, or that was made for the owner."""
        with self._lock:
            self._owners.setdefault(_absolute(path), set()).add(owner)

    def find(self, path: object, owner: str, field: str = "file") -> Path:
        """The path, if it is a file of that owner; raises InvalidInput otherwise."""
        if isinstance(path, str) and path and "\0" not in path:
            found = _absolute(Path(path))
            # A link could be replaced after the check.
            if owner in self._owners.get(found, ()) and found.is_file() and not found.is_symlink():
                return found
        raise InvalidInput(field, None, message=LazyMessage(NOT_UPLOADED))

    @contextmanager
    def take(self, path: object, owner: str, field: str = "file") -> Iterator[Path]:
        """`find`, and the file is deleted afterwards, unless another owner uploaded it as well."""
        found = self.find(path, owner, field)
        try:
            yield found
        finally:
            with self._lock:
                owners = self._owners.get(found, set())
                owners.discard(owner)
                if not owners:
                    self._owners.pop(found, None)
                    with suppress(OSError):
                        found.unlink()

    def forget_deleted(self) -> None:
        """Drop the entries of files that no longer exist."""
        with self._lock:
            for path in [path for path in self._owners if not path.exists()]:
                del self._owners[path]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
