"""The families of text-to-image pipelines that run here, by diffusers class: what no file says.

`tests/models/test_families.py` compares each line with the signature of the class in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from canvas.errors import LazyMessage

CLIP_TOKENS = 75  # without the start and end tokens


@dataclass(frozen=True)
class Family:
    """One architecture with its pipeline classes by task.

    `dtypes`: the dtypes that give images, the best first. `guidance`: "cfg" (two passes above 1,
    which the negative prompt needs), "embedded" (one pass) or "none". `schedulers`: "any" if
    others can replace the model's, "lcm" if only LCM can, "own". `tokens`: tokens of the prompt
    that the model reads, 0 for the tokenizer's limit. `tokenizer`: the one that limits the prompt.
    `size_step` applies where the configuration does not give it. `lora`: whether LoRAs
    act. `tiny_decoder`: the Hub id of the small VAE. `steps`, `guidance_scale`: the defaults of
    the class's authors, and those of its `distilled` models.
    """

    key: str
    label: str
    text_to_image: str
    image_to_image: str = ""
    inpaint: str = ""
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    guidance: str = "cfg"
    guidance_argument: str = "guidance_scale"
    schedulers: str = "own"
    negative_prompt: bool = True
    resolution: int = 1024
    size_step: int = 16
    tokens: int = 0
    tokenizer: str = "tokenizer"
    lora: bool = True
    tiny_decoder: str = ""
    steps: int = 28
    guidance_scale: float = 4.0
    distilled: tuple[int, float] = (4, 1.0)
    # False where image to image gives the image as a reference and has no strength
    strength: bool = True

    @property
    def tasks(self) -> Mapping[str, str]:
        """The pipeline class of each task that the family has."""
        classes = {"text_to_image": self.text_to_image, "image_to_image": self.image_to_image, "inpaint": self.inpaint}
        return {task: name for task, name in classes.items() if name}


UNET_DTYPES = ("float16", "bfloat16", "float32")
_SD = {"dtypes": UNET_DTYPES, "schedulers": "any", "tokens": CLIP_TOKENS, "size_step": 8}

FAMILIES = (
    Family(
        "stable_diffusion",
        "Stable Diffusion 1 and 2",
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        resolution=512,
        tiny_decoder="madebyollin/taesd",
        steps=20,
        guidance_scale=7.5,
        distilled=(1, 0.0),
        **_SD,  # type: ignore[arg-type]
    ),
    Family(
        "stable_diffusion_xl",
        "SDXL",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        tiny_decoder="madebyollin/taesdxl",
        steps=25,
        guidance_scale=6.0,
        distilled=(1, 0.0),
        **_SD,  # type: ignore[arg-type]
    ),
    Family(
        "lcm",
        "Latent Consistency Model",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        dtypes=UNET_DTYPES,
        guidance="embedded",
        schedulers="lcm",
        negative_prompt=False,
        resolution=512,
        size_step=8,
        tokens=CLIP_TOKENS,
        tiny_decoder="madebyollin/taesd",
        steps=4,
        guidance_scale=8.0,
    ),
    Family(
        "kolors",
        "Kolors",
        "KolorsPipeline",
        "KolorsImg2ImgPipeline",
        dtypes=UNET_DTYPES,
        schedulers="any",
        size_step=8,
        tokens=254,
        lora=False,
        tiny_decoder="madebyollin/taesdxl",
        steps=25,
        guidance_scale=5.0,
    ),
    Family(
        "stable_diffusion_3",
        "Stable Diffusion 3",
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        dtypes=("bfloat16", "float16", "float32"),
        tokens=255,
        tokenizer="tokenizer_3",
        tiny_decoder="madebyollin/taesd3",
        guidance_scale=4.5,
    ),
    Family(
        "flux",
        "FLUX.1",
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        guidance="embedded",
        negative_prompt=False,
        tokens=511,
        tokenizer="tokenizer_2",
        tiny_decoder="madebyollin/taef1",
        guidance_scale=3.5,
        distilled=(4, 0.0),
    ),
    Family(
        "flux2_klein",
        "FLUX.2 klein",
        "Flux2KleinPipeline",
        "Flux2KleinPipeline",
        "Flux2KleinInpaintPipeline",
        negative_prompt=False,
        tokens=500,  # of 512; the rest is the chat template
        steps=50,
        strength=False,
    ),
    Family(
        "z_image",
        "Z-Image",
        "ZImagePipeline",
        "ZImageImg2ImgPipeline",
        "ZImageInpaintPipeline",
        tokens=504,  # of 512; the rest is the chat template
        tiny_decoder="madebyollin/taef1",
        steps=28,
        distilled=(8, 0.0),
    ),
    Family(
        "qwen_image",
        "Qwen-Image",
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        guidance_argument="true_cfg_scale",
        tokens=512,
        steps=40,
    ),
    Family(
        "sana",
        "Sana",
        "SanaPipeline",
        dtypes=("bfloat16", "float16", "float32"),
        size_step=32,
        tokens=299,
        steps=20,
        guidance_scale=4.5,
    ),
    Family(
        "sana_sprint",
        "Sana-Sprint",
        "SanaSprintPipeline",
        "SanaSprintImg2ImgPipeline",
        guidance="embedded",
        negative_prompt=False,
        size_step=32,
        tokens=299,
        steps=2,
        guidance_scale=4.5,
    ),
    Family(
        "pixart_alpha",
        "PixArt-alpha",
        "PixArtAlphaPipeline",
        dtypes=UNET_DTYPES,
        schedulers="any",
        tokens=119,
        lora=False,
        tiny_decoder="madebyollin/taesd",
        steps=20,
        guidance_scale=4.5,
    ),
    Family(
        "pixart_sigma",
        "PixArt-Sigma",
        "PixArtSigmaPipeline",
        dtypes=UNET_DTYPES,
        schedulers="any",
        tokens=299,
        lora=False,
        tiny_decoder="madebyollin/taesdxl",
        steps=20,
        guidance_scale=4.5,
    ),
    Family("lumina2", "Lumina-Image 2.0", "Lumina2Pipeline", tokens=256, tiny_decoder="madebyollin/taef1", steps=30),
    Family(
        "chroma",
        "Chroma",
        "ChromaPipeline",
        "ChromaImg2ImgPipeline",  # ChromaInpaintPipeline of diffusers 0.42 reads a value that Chroma lacks
        tokens=511,
        tiny_decoder="madebyollin/taef1",
        steps=35,
        guidance_scale=5.0,
    ),
    Family(
        "auraflow",
        "AuraFlow",
        "AuraFlowPipeline",
        dtypes=UNET_DTYPES,
        tokens=255,
        lora=False,
        tiny_decoder="madebyollin/taesdxl",
        steps=50,
        guidance_scale=3.5,
    ),
    Family("cogview4", "CogView4", "CogView4Pipeline", tokens=1024, lora=False, steps=50, guidance_scale=5.0),
    Family("ernie_image", "ERNIE-Image", "ErnieImagePipeline", lora=False, steps=50, distilled=(8, 1.0)),
    Family("ovis_image", "Ovis-Image", "OvisImagePipeline", tokens=256, lora=False, steps=50, guidance_scale=5.0),
    Family("krea2", "Krea 2", "Krea2Pipeline", tokens=512, lora=False, guidance_scale=4.5, distilled=(8, 0.0)),
)
BY_KEY: Mapping[str, Family] = MappingProxyType({family.key: family for family in FAMILIES})
BY_CLASS: Mapping[str, Family] = MappingProxyType(
    {name: family for family in FAMILIES for name in family.tasks.values()}
)
# Families by the text that their distilled models have in their Hub id or folder name, where
# neither `model_index.json` nor a configuration says so.
DISTILLED_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "stable_diffusion": ("sd-turbo", "sdxs"),
        "stable_diffusion_xl": ("turbo",),
        "z_image": ("turbo",),
        "flux": ("schnell",),
        "ernie_image": ("turbo",),
        "krea2": ("turbo",),
    }
)
# Pipelines that people may try, and why they do not run.
UNSUPPORTED: Mapping[str, LazyMessage] = MappingProxyType(
    {
        "KandinskyV22Pipeline": LazyMessage(
            "It is one half of Kandinsky 2.2, and the other one is in another repository."
        ),
        "KandinskyPipeline": LazyMessage(
            "It is one half of Kandinsky 2.1, and the other one is in another repository."
        ),
        "IFPipeline": LazyMessage("It draws 64x64 pixels, and needs two more models to enlarge them."),
        "StableDiffusionXLRefinerPipeline": LazyMessage("It refines images of SDXL and draws none by itself."),
        "StableDiffusionUpscalePipeline": LazyMessage("It enlarges images and draws none by itself."),
    }
)
