"""Denoises an image larger than the model's resolution in overlapping tiles (MultiDiffusion)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from canvas.engine.optimizations.deepcache import CONTROLLED
from canvas.engine.step_callback import replaced_method

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]


def tile_spans(length: int, side: int, overlap: int) -> list[Span]:
    """Evenly spaced spans of `side` that cover `length` and overlap by at least `overlap`."""
    if length <= side:
        return [(0, length)]
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    return [(start, start + side) for start in starts]


def tile_count(size: tuple[int, int], side: int, scale: int) -> int:
    """The number of tiles of `side` pixels in an image; `scale` is the VAE scale factor."""
    side //= scale
    columns, rows = (len(tile_spans(length // scale, side, side // 4)) for length in size)
    return columns * rows


def blend_tiles(
    compute: Callable[[torch.Tensor, Span, Span], torch.Tensor],
    sample: torch.Tensor,
    side: int,
    scales: tuple[int, int] = (1, 1),
) -> torch.Tensor:
    """Apply `compute` to each tile of `side` latents, with its rows and columns, and blend the outputs.

    `scales` are the sizes of a latent in the input and in the output, 1 or 8 for example.
    """
    scale_in, scale_out = scales
    height, width = (length // scale_in for length in sample.shape[-2:])
    result = total = None
    for rows, columns in product(tile_spans(height, side, side // 4), tile_spans(width, side, side // 4)):
        tile = compute(sample[_slices(rows, columns, scale_in)], rows, columns).float()
        if result is None or total is None:
            result = tile.new_zeros((*tile.shape[:2], height * scale_out, width * scale_out))
            total = tile.new_zeros(result.shape[-2:])
        weight = _blend_weight(tile.shape[-2])[:, None] * _blend_weight(tile.shape[-1])
        weight = weight.to(tile.device)
        result[_slices(rows, columns, scale_out)] += tile * weight
        total[_slices(rows, columns, scale_out)] += weight
    assert result is not None and total is not None  # noqa: S101 - there is at least one tile
    return result / total


def _slices(rows: Span, columns: Span, scale: int) -> tuple[Any, ...]:
    return (..., slice(*(scale * row for row in rows)), slice(*(scale * x for x in columns)))


def _blend_weight(length: int) -> torch.Tensor:
    """Weights of a tile's rows or columns: largest in the middle, smallest at the ends."""
    import torch

    return torch.sin((torch.arange(length) + 0.5) * (torch.pi / length)) ** 2


class TiledUNetForward:
    """Replaces the forward method of a UNet with one that predicts tile by tile.

    The predictions of overlapping tiles are blended in each denoising step ("MultiDiffusion",
    arXiv 2302.08113), so there are no seams. Each tile has its own forward method, because
    DeepCache keeps features between steps. `on_tile` is called with the number of tiles done.
    `controlled`: the forward method with ControlNets that those of the tiles call, if there is one.
    """

    def __init__(
        self, forwards: Sequence[Any], side: int, scale: int, on_tile: Callable[[int], None], controlled: Any = None
    ) -> None:
        self._controlled = controlled
        self._forwards = forwards
        self._side = side  # pixels
        self._scale = scale
        self._on_tile = on_tile
        self._done = 0

    def __call__(
        self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: Any, **options: Any
    ) -> tuple[torch.Tensor]:
        options = self._clamp_time_ids(options)

        def predict(tile: torch.Tensor, rows: Span, columns: Span) -> torch.Tensor:
            if self._controlled is not None:
                self._controlled.use_tile(rows, columns, self._scale)
            forward = self._forwards[self._done % len(self._forwards)]
            prediction = forward(tile, timestep, encoder_hidden_states, **options)[0]
            self._done += 1
            self._on_tile(self._done)
            return prediction

        return (blend_tiles(predict, sample, self._side // self._scale),)

    def _clamp_time_ids(self, options: dict[str, Any]) -> dict[str, Any]:
        """SDXL is conditioned on the image size: limit it to that of a tile."""
        added = dict(options.get("added_cond_kwargs") or {})
        if "time_ids" in added:
            added["time_ids"] = added["time_ids"].clamp(max=self._side)
        return {**options, "added_cond_kwargs": added} if added else options


@contextmanager
def tiled_pipeline(pipeline: Any, side: int, forwards: Sequence[Any], on_tile: Callable[[int], None]) -> Iterator[None]:
    """Let the pipeline process tiles of `side` pixels inside the block.

    `forwards` holds the UNet's forward method for each tile.
    """
    unet, vae, scale = pipeline.unet, pipeline.vae, pipeline.vae_scale_factor
    tiled_unet = TiledUNetForward(forwards, side, scale, on_tile, vars(unet).get(CONTROLLED))
    # Not vae.enable_tiling(): AutoencoderTiny's supports four latent channels only.
    encode = partial(_tiled_vae, vae.encoder.forward, side // scale, (scale, 1))
    decode = partial(_tiled_vae, vae.decoder.forward, side // scale, (1, scale))
    with (
        replaced_method(unet, "forward", tiled_unet),
        replaced_method(vae.encoder, "forward", encode),
        replaced_method(vae.decoder, "forward", decode),
    ):
        yield


def _tiled_vae(forward: Any, side: int, scales: tuple[int, int], sample: torch.Tensor, *args: Any) -> torch.Tensor:
    return blend_tiles(lambda tile, *_: forward(tile, *args), sample, side, scales).to(sample.dtype)


def is_tiled(pipeline: Any) -> bool:
    """Whether the pipeline is inside `tiled_pipeline`."""
    unet = getattr(pipeline, "unet", None)
    return isinstance(getattr(unet, "forward", None), TiledUNetForward)
