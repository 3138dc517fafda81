"""The hyperparameters of the two presets: two CPU cores, or one GPU."""

from dataclasses import dataclass, replace

WORD_TOKENS = 29  # positions of a prompt for words, begin and end tokens included


@dataclass(frozen=True)
class TokenGrid:
    """The last tokens of a prompt, one for each block of a square grid over the image.

    The blocks of the upper and lower eighth have no token.
    """

    columns: int

    @property
    def first_row(self) -> int:
        """The first row with tokens."""
        return self.columns // 8

    @property
    def rows(self) -> int:
        """Number of rows with tokens."""
        return self.columns - 2 * self.first_row

    @property
    def num_tokens(self) -> int:
        """Length of a prompt: word tokens and grid tokens."""
        return WORD_TOKENS + self.rows * self.columns


@dataclass(frozen=True)
class TrainingConfig:
    """Hyperparameters; images are square, sizes are in pixels."""

    workers: int = 2  # data-parallel processes
    image_size: int = 128  # at which the denoiser is trained
    sprite_size: int = 192
    concepts_file: str | None = "concepts.txt"
    styles: tuple[str, ...] = ("cartoon", "flat", "3d")
    precomputed_scenes: int = 0  # per caption mode; 0: scenes are generated during training
    precomputed_backgrounds: int = 0  # per place
    synonym_ratio: float = 0.4  # of the concept words in the text stage
    vae_channels: int = 32
    latent_channels: int = 16
    vae_batch_size: int = 16
    vae_learning_rate: float = 4.5e-3
    vocabulary_size: int = 6000
    token_columns: int = 8
    text_hidden_size: int = 256
    text_layers: int = 4
    text_mlp_ratio: int = 6
    text_batch_size: int = 32
    text_learning_rate: float = 1.2e-3
    unet_channels: tuple[int, ...] = (64, 128, 192)
    unet_layers: int = 1
    unet_heads: int = 4
    unet_batch_size: int = 24
    unet_learning_rate: float = 1e-3
    attention_loss_every: int = 1  # computed for one of so many samples of a batch
    decoder_upscale: int = 2  # output size by image size
    decoder_channels: int = 48
    discriminator_width: int = 32
    decoder_batch_size: int = 8
    decoder_learning_rate: float = 5e-4
    cache_warmup: int = 384  # samples encoded before training starts
    cache_size: int = 24000
    new_samples_per_step: int = 4
    classifier_size: int = 64  # input size
    classifier_width: int = 24
    classifier_batch_size: int = 64
    cuda_graphs: bool = False

    @property
    def latent_size(self) -> int:
        """Width of the latents; the autoencoder downsamples by 8."""
        return self.image_size // 8

    @property
    def output_size(self) -> int:
        """Width of the images of the exported model."""
        return self.image_size * self.decoder_upscale

    @property
    def token_grid(self) -> TokenGrid:
        """The blocks of an image that have tokens."""
        return TokenGrid(self.token_columns)


CPU = TrainingConfig()
GPU = replace(
    CPU,
    workers=1,
    image_size=256,
    sprite_size=192,
    styles=("cartoon", "flat", "sticker", "3d"),
    precomputed_scenes=600_000,
    precomputed_backgrounds=512,
    synonym_ratio=0.5,
    vae_batch_size=128,
    vae_learning_rate=3e-3,
    token_columns=16,
    text_hidden_size=384,
    text_layers=6,
    text_mlp_ratio=6,
    text_batch_size=256,
    text_learning_rate=1e-3,
    unet_batch_size=128,
    decoder_upscale=1,
    decoder_batch_size=64,
    attention_loss_every=4,
    cache_warmup=8192,
    cache_size=60000,
    new_samples_per_step=20,
    classifier_size=128,
    classifier_width=32,
    classifier_batch_size=256,
    cuda_graphs=True,
)
PRESETS = {"cpu": CPU, "gpu": GPU}
