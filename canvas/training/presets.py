"""The two sizes of the recipe: two CPU cores, or one GPU."""

from dataclasses import dataclass, replace

from canvas.training.grid import Grid


@dataclass(frozen=True)
class Preset:
    """Every size that differs between the machines; pictures are square."""

    workers: int = 2
    image_size: int = 128
    sprite_size: int = 192
    things_file: str | None = "things.txt"
    styles: tuple[str, ...] = ("cartoon", "flat", "3d")
    table_rows: int = 0  # scenes told beforehand, of each kind; none: drawn while it trains
    backgrounds: int = 0  # of each place, painted beforehand
    near_share: float = 0.4  # of a thing's words in the text stage
    vae_channels: int = 32
    latent_channels: int = 16
    vae_batch: int = 16
    vae_learning_rate: float = 4.5e-3
    vocabulary_size: int = 6000
    layer_columns: int = 8
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
    guide_every: int = 1  # of how many scenes one is asked where its attention looks
    enlarging: int = 2  # by the finished decoder
    decoder_channels: int = 48
    critic_width: int = 32
    decoder_batch: int = 8
    decoder_learning_rate: float = 5e-4
    first_scenes: int = 384
    cache_size: int = 24000
    fresh_per_step: int = 4
    judge_side: int = 64  # pixels at which it looks
    judge_width: int = 24
    judge_batch: int = 64
    graphs: bool = False  # steps as CUDA graphs

    @property
    def latent_size(self) -> int:
        """Width of the latents; the first autoencoder halves three times."""
        return self.image_size // 8

    @property
    def picture_size(self) -> int:
        """Width of what the finished model draws."""
        return self.image_size * self.enlarging

    @property
    def grid(self) -> Grid:
        """The blocks of a picture that have tokens."""
        return Grid(self.layer_columns)


CPU = Preset()
GPU = replace(
    CPU,
    workers=1,
    image_size=256,
    sprite_size=192,
    things_file="things-gpu.txt",
    styles=("cartoon", "flat", "sticker", "3d"),
    table_rows=600_000,
    backgrounds=512,
    near_share=0.5,
    vae_batch=128,
    vae_learning_rate=3e-3,
    layer_columns=16,
    text_hidden=384,
    text_layers=6,
    text_widening=6,
    text_batch=256,
    text_learning_rate=1e-3,
    unet_batch=128,
    enlarging=1,
    decoder_batch=64,
    guide_every=4,
    first_scenes=8192,
    cache_size=60000,
    fresh_per_step=20,
    judge_side=128,
    judge_width=32,
    judge_batch=256,
    graphs=True,
)
PRESETS = {"cpu": CPU, "gpu": GPU}
