from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops

from canvas.engine.image_io import add_watermark


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (128, 768)])
@pytest.mark.parametrize(
    "text", ["Magic Canvas", "made by a machine on an ordinary Sunday evening"]
)
@pytest.mark.parametrize("ground", ["black", "white"])
def test_mark_is_seen_in_its_corner_only(size: tuple[int, int], text: str, ground: str) -> None:
    picture = Image.new("RGB", size, ground)
    box = ImageChops.difference(picture, add_watermark(picture, text)).getbbox()
    assert box is not None
    assert box[1] > size[1] * 0.7
    assert box[0] >= 0
    assert box[2] <= size[0]
    assert np.asarray(add_watermark(picture, text)).std() > 1


def test_mode_stays() -> None:
    assert add_watermark(Image.new("RGB", (64, 64)), "x").mode == "RGB"
