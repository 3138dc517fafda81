"""A picture larger than the model draws: denoised as one, the model looking at parts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]


def tile_spans(length: int, side: int, overlap: int) -> list[Span]:
    """Stretches of `side` that cover `length`, evenly, overlapping by `overlap` or more."""
    if length <= side:
        return [(0, length)]
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    return [(start, start + side) for start in starts]


def blend_tiles(
    compute: Callable[[torch.Tensor], torch.Tensor],
    sample: torch.Tensor,
    side: int,
    scales: tuple[int, int] = (1, 1),
) -> torch.Tensor:
    """What `compute` makes of all the windows of `side` latents, each counting less to its border.

    `scales`: how many pixels a latent has in what comes in and in what comes out.
    """
    before, after = scales
    height, width = (length // before for length in sample.shape[-2:])
    result = total = None
    for rows, columns in product(
        tile_spans(height, side, side // 4), tile_spans(width, side, side // 4)
    ):
        found = compute(sample[_cut(rows, columns, before)]).float()
        if result is None or total is None:
            result = found.new_zeros((*found.shape[:2], height * after, width * after))
            total = found.new_zeros(result.shape[-2:])
        weight = _blend_weight(found.shape[-2])[:, None] * _blend_weight(found.shape[-1])
        weight = weight.to(found.device)
        result[_cut(rows, columns, after)] += found * weight
        total[_cut(rows, columns, after)] += weight
    assert result is not None and total is not None  # noqa: S101 - there is a window
    return result / total


class TiledUNetForward:
    """A stand-in for the forward of a UNet that predicts a large canvas window by window.

    In every step the predictions of overlapping windows become one ("MultiDiffusion",
    arXiv 2302.08113): each goes on from what its neighbours drew, so there is nothing to
    join in the end. There is a forward for each window, since one with shortcuts keeps
    features from step to step. `on_window` is called after each with how many are done.
    """

    def __init__(
        self, forwards: Sequence[Any], side: int, scale: int, on_window: Callable[[int], None]
    ) -> None:
        self._forwards = forwards
        self._side = side  # pixels
        self._scale = scale
        self._on_window = on_window
        self._done = 0

    def __call__(
        self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: Any, **options: Any
    ) -> tuple[torch.Tensor]:
        """One prediction for all of the latents."""
        options = self._told_the_size(options)

        def predict(window: torch.Tensor) -> torch.Tensor:
            forward = self._forwards[self._done % len(self._forwards)]
            found = forward(window, timestep, encoder_hidden_states, **options)[0]
            self._done += 1
            self._on_window(self._done)
            return found

        return (blend_tiles(predict, sample, self._side // self._scale),)

    def _told_the_size(self, options: dict[str, Any]) -> dict[str, Any]:
        """SDXL is told how large its picture is: for a window, no larger than the window."""
        added = dict(options.get("added_cond_kwargs") or {})
        if "time_ids" in added:
            added["time_ids"] = added["time_ids"].clamp(max=self._side)
        return {**options, "added_cond_kwargs": added} if added else options


@contextmanager
def tiled_pipeline(
    pipeline: Any, side: int, forwards: Sequence[Any], on_window: Callable[[int], None]
) -> Iterator[None]:
    """Let the pipeline work on a large picture, `side` pixels at a time, for the block.

    `forwards`: that of the UNet for each window.
    """
    unet, vae, scale = pipeline.unet, pipeline.vae, pipeline.vae_scale_factor
    unet.forward = TiledUNetForward(forwards, side, scale, on_window)
    # Not diffusers' own tiling: it knows AutoencoderTiny with four channels only.
    vae.encoder.forward = partial(_tiled_vae, vae.encoder.forward, side // scale, (scale, 1))
    vae.decoder.forward = partial(_tiled_vae, vae.decoder.forward, side // scale, (1, scale))
    try:
        yield
    finally:
        for part in (unet, vae.encoder, vae.decoder):
            del part.forward


def is_tiled(pipeline: Any) -> bool:
    """Whether the pipeline works on a part of its pictures at a time."""
    unet = getattr(pipeline, "unet", None)
    return isinstance(getattr(unet, "forward", None), TiledUNetForward)


def tile_count(size: tuple[int, int], side: int, scale: int) -> int:
    """How many windows of `side` pixels a picture has."""
    side //= scale
    across, down = (len(tile_spans(length // scale, side, side // 4)) for length in size)
    return across * down


def _tiled_vae(
    forward: Any, side: int, scales: tuple[int, int], sample: torch.Tensor, *others: Any
) -> torch.Tensor:
    found = blend_tiles(lambda window: forward(window, *others), sample, side, scales)
    return found.to(sample.dtype)


def _cut(rows: Span, columns: Span, scale: int) -> tuple[Any, ...]:
    return (..., slice(*(scale * row for row in rows)), slice(*(scale * x for x in columns)))


def _blend_weight(length: int) -> torch.Tensor:
    """Weights of a window's rows or columns: most in the middle, least at its ends."""
    import torch

    return torch.sin((torch.arange(length) + 0.5) * (torch.pi / length)) ** 2
