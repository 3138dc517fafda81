"""The sizes and hyperparameters of the recipe, for two CPU cores or one GPU."""

from dataclasses import dataclass, replace

IMAGE_SIZE = 256  # pixels
PATCH_SIZE = 16  # pixels of an image for one cell of the latents
LATENT_SIZE = IMAGE_SIZE // PATCH_SIZE
NUM_INFERENCE_STEPS = 2
GRAY = 128  # on which the cells of drawings are computed


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters; see `README.md` for what they were chosen by."""

    sprite_size: int = 208  # pixels
    styles: tuple[str, ...] = ("cartoon", "glossy", "flat", "sticker", "3d")
    backgrounds_per_place: int = 100  # rendered once
    latent_channels: int = 48  # principal components of a patch that are kept
    code_size: int = 558  # numbers that describe a quadrant of a drawing at all sizes
    vae_channels: int = 48
    decoder_blocks: tuple[int, ...] = (10, 8, 3, 1, 0)  # from latents to pixels
    generated_scenes: int = 6000  # for the decoder
    decoder_batch_size: int = 16  # crops
    decoder_learning_rate: float = 1.5e-3
    unet_channels: tuple[int, ...] = (128, 160, 192)
    unet_batch_size: int = 24
    unet_learning_rate: float = 1e-3
    cache_size: int = 24_000  # scenes
    new_scenes_per_step: int = 5


CPU = TrainingConfig()
GPU = replace(CPU, decoder_batch_size=128, unet_batch_size=192, new_scenes_per_step=40)
PRESETS = {"cpu": CPU, "gpu": GPU}
