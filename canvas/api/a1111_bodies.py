"""The request bodies of AUTOMATIC1111's API, as requests of this program and notes about the rest."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from canvas.api.a1111_controlnet import RESIZE_MODES, other_scripts
from canvas.errors import CanvasError, InvalidInput
from canvas.history.infotext import DEFAULT_SCHEDULES, read_sampler
from canvas.image_formats import IMAGE_FORMATS
from canvas.prompt_syntax import has_weight_syntax
from canvas.request import SCALES, UPSCALERS, GenerationRequest, rename_old_fields
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

CHECKPOINT = "sd_model_checkpoint"
# Names of samplers beside those of schedulers: A1111's aliases and those of its clients.
SAMPLER_ALIASES = {
    "k_euler": "Euler",
    "k_euler_a": "Euler a",
    "k_euler_ancestral": "Euler a",
    "euler_ancestral": "Euler a",
    "euler ancestral": "Euler a",
    "k_dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2m_ka": "DPM++ 2M Karras",
    "dpm++ 2m automatic": "DPM++ 2M",
    "uni_pc": "UniPC",
}
UPSCALER_ALIASES = {
    "r-esrgan 4x+": "photo",
    "realesrgan_x4plus": "photo",
    "r-esrgan 4x+ anime6b": "illustration",
    "r-esrgan animevideo": "illustration",
    "none": "lanczos",
}
REALESRGAN = ("R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B")
FILE_FORMATS = {"jpg": "jpeg", **{name: name for name in IMAGE_FORMATS}}
# Fields of ours under their own names, at the top or in `override_settings`; A1111's own come first.
OWN_FIELDS = frozenset(item.name for item in fields(GenerationRequest)) - {"image", "mask_image", "task"}
# Fields that change no image here.
WITHOUT_EFFECT = frozenset(
    {
        *("save_images", "send_images", "do_not_save_grid", "do_not_save_samples", "url", "auth", "script_args"),
        *("override_settings_restore_afterwards", "include_init_images", "force_task_id", "batch_count"),
        *("firstphase_width", "firstphase_height", "hr_prompt", "hr_negative_prompt", "sampler_index", "comments"),
        *("initial_noise_multiplier", "inpainting_fill", "inpaint_full_res_padding", "s_churn", "s_min_uncond"),
        *("s_noise", "s_tmax", "s_tmin", "eta", "disable_extra_networks", "latent_mask", "image_cfg_scale"),
    }
)
DEFAULT_SETTINGS = {"CLIP_stop_at_last_layers": (1, 0), "sd_vae": ("Automatic", "None", "")}


class NotImplementedHere(CanvasError):
    """A feature of A1111 that this program lacks."""

    code = "not_implemented"
    http_status = 501


class Unsupported(InvalidInput):
    """A value that would make another image than the client expects."""

    http_status = 422


class TextToImage(BaseModel):
    """The body of `txt2img`. Fields of GenerationRequest are accepted as well, such as `preset` and `loras`.

    `info` names what has no counterpart here.
    """

    model_config = ConfigDict(extra="allow")

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: float | None = 0
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = Field(1, ge=1, le=16)
    n_iter: int | None = Field(1, ge=1, le=16)
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    restore_faces: bool | None = False
    tiling: bool | None = False
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None
    enable_hr: bool | None = False
    hr_scale: float | None = 2
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = 0
    hr_resize_x: int | None = 0
    hr_resize_y: int | None = 0
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True
    _unit_notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def unit_notes(self) -> list[str]:
        """What of the ControlNet units has no effect."""
        return self._unit_notes

    def to_request(self, model_key: str, **fields: Any) -> GenerationRequest:
        if self.script_name and self.script_name.lower() != "none":
            raise Unsupported("script_name", self.script_name, "empty: scripts cannot be run here")
        return GenerationRequest(
            **{
                "prompt": self.prompt or "",
                "negative_prompt": self.negative_prompt or "",
                "style": next((name for name in self.styles or () if name in STYLES), "none"),
                "model_key": model_key,
                "width": self.width,
                "height": self.height,
                "num_inference_steps": self.steps,
                "guidance_scale": self.cfg_scale,
                "scheduler": self._scheduler()[0],
                "seed": -1 if self.seed is None else self.seed,
                "num_images": (self.batch_size or 1) * (self.n_iter or 1),
                "image_format": self._image_format(),
                "scale_to_size": True,
                # Clients of this API expect weights to act.
                "prompt_weighting": any(map(has_weight_syntax, (self.prompt or "", self.negative_prompt or ""))),
            }
            | self._variation()
            | fields
            | self._own_fields()
        )

    def to_hires_request(self, request: GenerationRequest) -> dict[str, Any]:
        """The fields of the second pass of `enable_hr`, which upscales each image with detail."""
        scale = self.hr_scale or 2
        if self.hr_resize_x or self.hr_resize_y:
            raise Unsupported("hr_resize_x", self.hr_resize_x or self.hr_resize_y, "0: use hr_scale")
        if scale not in SCALES:
            raise Unsupported("hr_scale", scale, " or ".join(map(str, SCALES)))
        return {
            "task": "upscale",
            "upscaler": "detail",
            "scale": int(scale),
            "strength": self.denoising_strength,
            "num_inference_steps": self.hr_second_pass_steps or self.steps,
            "num_images": 1,
            "width": None,
            "height": None,
            "scale_to_size": False,
        }

    def notes(self) -> list[str]:
        """What of the body has no effect, by name."""
        notes = [note for note in [self._scheduler()[1], *self._unit_notes] if note]
        unknown = [name for name in self.styles or () if name not in STYLES]
        ignored: dict[str, Any] = {"styles": ", ".join(unknown), "alwayson_scripts": ", ".join(self._scripts())}
        ignored |= {"restore_faces": self.restore_faces, "tiling": self.tiling}
        ignored |= {name: value for name, value in (self.model_extra or {}).items() if name not in WITHOUT_EFFECT}
        ignored |= {
            name: value
            for name, value in (self.override_settings or {}).items()
            if name not in (CHECKPOINT, "samples_format") and value not in DEFAULT_SETTINGS.get(name, ())
        }
        own = self._own_fields()
        for name, value in ignored.items():
            if value and value != -1 and not rename_old_fields({name: value}).keys() & own:
                shown = f" ({value})" if name in ("styles", "alwayson_scripts") else ""
                notes.append(f"{name}{shown} has no effect here.")
        return notes

    def _scripts(self) -> list[str]:
        """The scripts of `alwayson_scripts` that would do something."""
        scripts = self.alwayson_scripts or {}
        return [name for name in other_scripts(scripts) if scripts[name] and scripts[name] != {"args": []}]

    def _own_fields(self) -> dict[str, Any]:
        given = rename_old_fields({**(self.override_settings or {}), **(self.model_extra or {})})
        return {name: value for name, value in given.items() if name in OWN_FIELDS and value is not None}

    def _variation(self) -> dict[str, Any]:
        if not self.subseed_strength:
            return {}
        seed = random.randrange(2**32) if self.subseed in (None, -1) else self.subseed
        return {"variation_seed": seed, "variation_strength": self.subseed_strength}

    def _image_format(self) -> str:
        name = str((self.override_settings or {}).get("samples_format") or "png")
        if name.lower() not in FILE_FORMATS:
            raise InvalidInput("samples_format", name, f"one of {', '.join(FILE_FORMATS)}")
        return FILE_FORMATS[name.lower()]

    def _scheduler(self) -> tuple[str | None, str]:
        """The scheduler, and a note if the schedule is not one of this sampler."""
        name = self.sampler_name or self.sampler_index
        schedule = self.scheduler or ""
        if not name or name.lower() in ("automatic", "none"):
            return (schedule, "") if schedule in SCHEDULERS else (None, "")
        name = SAMPLER_ALIASES.get(name.lower(), name)
        scheduler = read_sampler(name, schedule)
        if scheduler is not None:
            return scheduler, ""
        scheduler = read_sampler(name)
        if scheduler is None:
            raise InvalidInput("sampler_name", name, f"one of {', '.join(SCHEDULERS)}")
        known = schedule.lower() in DEFAULT_SCHEDULES or scheduler.lower().endswith(schedule.lower())
        return scheduler, "" if known else f"The schedule {schedule} is not available for {scheduler}."


class ImageToImage(TextToImage):
    """The body of `img2img`; `init_images` holds one image."""

    init_images: list[str] | None = None
    mask: str | None = None
    mask_blur: int | None = None
    inpainting_mask_invert: int | bool | None = 0
    inpaint_full_res: bool | None = False
    resize_mode: int | Literal["crop", "pad", "stretch"] | None = 0
    denoising_strength: float | None = 0.75

    def image_fields(self) -> dict[str, Any]:
        """The fields of a request for an image, beside the image and its mask."""
        mode = self.resize_mode or 0
        blur = {} if self.mask_blur is None else {"mask_blur": self.mask_blur}
        return {
            **blur,
            "strength": self.denoising_strength,
            "only_masked": bool(self.inpaint_full_res),
            "resize_mode": mode if isinstance(mode, str) else RESIZE_MODES.get(mode, RESIZE_MODES[0]),
            "scale_to_size": False,
        }


class Upscale(BaseModel):
    """What upscaling one image and several have in common."""

    model_config = ConfigDict(extra="allow")

    resize_mode: int | None = 0
    upscaling_resize: float | None = 2
    upscaler_1: str | None = None

    def to_request(self, model_key: str, image: str) -> GenerationRequest:
        if self.resize_mode:
            raise Unsupported("resize_mode", self.resize_mode, "0: upscaling multiplies the size")
        scale = self.upscaling_resize or 2
        if scale not in SCALES:
            raise InvalidInput("upscaling_resize", scale, " or ".join(map(str, SCALES)))
        return GenerationRequest(
            "", task="upscale", image=image, scale=int(scale), upscaler=self._upscaler(), model_key=model_key
        )

    def notes(self) -> str:
        """What of the body has no effect, by name; "" for nothing."""
        defaults: dict[str, tuple[Any, ...]] = {
            "upscaler_2": ("None", ""),
            "upscaling_crop": (True,),
            "show_extras_results": (True,),
        }
        ignored = [
            name
            for name, value in (self.model_extra or {}).items()
            if value and value not in defaults.get(name, ()) and not name.startswith("upscaling_resize_")
        ]
        return f"{', '.join(ignored)} has no effect here." if ignored else ""

    def _upscaler(self) -> str:
        name = (self.upscaler_1 or UPSCALERS[0]).lower()
        name = UPSCALER_ALIASES.get(name, name)
        if name not in UPSCALERS:
            raise Unsupported("upscaler_1", self.upscaler_1, f"one of {', '.join((*UPSCALERS, *REALESRGAN))}")
        return name


class SingleImage(Upscale):
    """The body of `extra-single-image`."""

    image: str


class NamedImage(BaseModel):
    """An image in base64 with its file name."""

    data: str
    name: str = ""


class ImageBatch(Upscale):
    """The body of `extra-batch-images`."""

    imageList: list[NamedImage] = Field(max_length=16)  # noqa: N815 - A1111's name


class PngInfo(BaseModel):
    """The body of `png-info`: an image in base64, with or without a `data:` prefix."""

    image: str
