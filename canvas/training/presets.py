"""The two sizes of the recipe: two CPU cores, or one GPU."""

from dataclasses import dataclass, replace

from canvas.training.packages import STYLES


@dataclass(frozen=True)
class Preset:
    """Every size that differs between the machines; pictures are square."""

    workers: int = 2
    image_size: int = 128
    sprite_size: int = 112
    things_file: str | None = "things.txt"
    styles: tuple[str, ...] = ("cartoon", "flat", "3d")
    vae_channels: int = 32
    latent_channels: int = 16
    vae_batch: int = 16
    vae_learning_rate: float = 4.5e-3
    vocabulary_size: int = 6000
    text_hidden: int = 256
    text_layers: int = 4
    text_widening: int = 6  # of the layers' inner width, where drawings are kept
    text_batch: int = 32
    text_learning_rate: float = 1.2e-3
    unet_channels: tuple[int, ...] = (64, 128, 192)
    unet_layers: int = 1
    unet_heads: int = 4
    unet_batch: int = 24
    unet_learning_rate: float = 1e-3
    first_scenes: int = 384
    cache_size: int = 24000
    fresh_per_step: int = 4

    @property
    def latent_size(self) -> int:
        """Width of the latents; the autoencoder halves three times."""
        return self.image_size // 8


CPU = Preset()
GPU = replace(
    CPU,
    workers=1,
    image_size=256,
    sprite_size=160,
    things_file=None,
    styles=STYLES,
    vae_channels=48,
    vae_batch=64,
    vae_learning_rate=3e-3,
    vocabulary_size=8000,
    text_hidden=320,
    text_layers=5,
    text_batch=256,
    text_learning_rate=1e-3,
    unet_channels=(96, 160, 256, 256),
    unet_batch=256,
    unet_learning_rate=8e-4,
    first_scenes=8192,
    cache_size=60000,
    fresh_per_step=64,
)
PRESETS = {"cpu": CPU, "gpu": GPU}
