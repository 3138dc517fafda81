"""Images that are not finite are errors, and empty ones in 16 bits are decoded in float32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from canvas.engine.vae_decoding import FLOAT32_NOTE, guarded_decoding
from canvas.errors import GenerationFailed

BLACK, GREY = torch.full((1, 3, 2, 2), -1.0), torch.zeros(1, 3, 2, 2)
NAN = torch.tensor([[0.0, float("nan")]])
NEARLY_BLACK = torch.cat([BLACK, torch.full((1, 3, 2, 2), -0.99)])
BLACK_IN_8_BITS = torch.full((1, 3, 2, 2), -254 / 255)


class Vae:
    """Gives one image in 16 bits and another in float32."""

    def __init__(self, dtype: torch.dtype, in_16_bits: torch.Tensor, in_float32: torch.Tensor) -> None:
        self.dtype = dtype
        self._results = {dtype: in_16_bits, torch.float32: in_float32}
        self.dtypes: list[torch.dtype] = []

    def to(self, *, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def decode(self, latents: torch.Tensor, *, return_dict: bool = True) -> Any:
        assert self.dtype == latents.dtype
        self.dtypes.append(self.dtype)
        pixels = self._results[self.dtype]
        return SimpleNamespace(sample=pixels) if return_dict else (pixels,)


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize(
    ("dtype", "pixels", "again"),
    [
        (torch.float16, GREY, False),
        (torch.float16, NEARLY_BLACK, False),
        (torch.float16, BLACK, True),
        (torch.float16, BLACK_IN_8_BITS, True),
        (torch.float16, NAN, True),
        (torch.float32, BLACK, False),
    ],
    ids=["grey", "nearly black", "black", "black in 8 bits", "nan", "black in float32"],
)
def test_an_empty_image_in_16_bits_is_decoded_again(
    dtype: torch.dtype, pixels: torch.Tensor, again: bool, return_dict: bool
) -> None:
    vae = Vae(dtype, pixels, GREY if dtype != torch.float32 else pixels)
    with guarded_decoding(vae) as notes:
        decoded = vae.decode(torch.ones(1, dtype=dtype), return_dict=return_dict)
    found = decoded.sample if return_dict else decoded[0]
    assert torch.equal(found, GREY if again else pixels)
    assert notes == [FLOAT32_NOTE] * again
    assert vae.dtypes == [dtype, torch.float32][: 1 + again]
    assert vae.dtype == dtype
    assert vars(vae).get("decode") is None


def test_latents_and_pixels_that_are_not_finite_are_errors() -> None:
    vae = Vae(torch.float16, NAN, NAN)
    with guarded_decoding(vae):
        with pytest.raises(GenerationFailed, match="latents"):
            vae.decode(torch.tensor([1.0, float("inf")], dtype=torch.float16))
        assert vae.dtypes == []
        with pytest.raises(GenerationFailed, match="pixels"):
            vae.decode(torch.ones(1, dtype=torch.float16))
    assert vae.dtype == torch.float16
