from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from canvas.engine.image_io import average_color, decode_image, flatten_alpha, resize_to_fit
from canvas.errors import InvalidInput

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def corners(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """A picture whose four quarters can be told apart."""
    picture = Image.new("RGB", size, RED)
    middle = (size[0] // 2, size[1] // 2)
    picture.paste(GREEN, (middle[0], 0, size[0], middle[1]))
    picture.paste(BLUE, (0, middle[1], middle[0], size[1]))
    picture.paste(YELLOW, (*middle, *size))
    return picture


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, kind, **options)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_formats_without_loss_keep_every_pixel(kind: str) -> None:
    assert decode_image(encoded(corners(), kind)).image.tobytes() == corners().tobytes()


def test_a_file_is_read_like_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(corners(), "png"))
    assert decode_image(tmp_path / "a.png").image.tobytes() == corners().tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(orientation: int) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = corners() if turn is None else corners().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded(stored, "png", exif=exif.tobytes())).image
    assert upright.size == corners().size
    assert upright.tobytes() == corners().tobytes()


def test_transparency_is_kept_until_it_is_flattened_on_a_colour() -> None:
    picture = corners().convert("RGBA")
    picture.putalpha(Image.new("L", picture.size, 0))
    found = decode_image(encoded(picture, "png")).image
    assert found.mode == "RGBA"
    assert flatten_alpha(found, "#102030").getcolors() == [(40 * 24, (16, 32, 48))]


def test_transparent_colour_of_a_palette_is_transparency() -> None:
    picture = corners().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    index = picture.getpixel((0, 0))
    found = decode_image(encoded(picture, "png", transparency=index)).image
    assert found.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert flatten_alpha(found, "white").getpixel((39, 23)) == YELLOW


def test_cmyk_becomes_rgb_and_is_noted() -> None:
    picture = decode_image(encoded(corners().convert("CMYK"), "tiff"))
    assert picture.image.tobytes() == corners().tobytes()
    assert "CMYK" in picture.notes[0]


def test_16_bits_keep_their_brightness() -> None:
    ramp = np.linspace(0, 65535, 64 * 16).reshape(16, 64).astype(np.uint16)
    picture = decode_image(encoded(Image.fromarray(ramp), "png"))
    found = np.asarray(picture.image)[..., 0].astype(float)
    assert np.abs(found - ramp / 257.0).max() <= 1
    assert "8 bits" in picture.notes[0]


def test_first_frame_of_an_animation_is_taken_and_noted() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, BLUE)]
    moving = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    picture = decode_image(moving)
    assert picture.image.convert("RGB").getpixel((8, 8)) == RED
    assert picture.notes == ("The first of 3 frames was taken.",)


def test_colour_profile_is_applied() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode_image(encoded(corners(), "png", icc_profile=srgb))
    assert np.abs(np.asarray(same.image, float) - np.asarray(corners(), float)).max() <= 1
    for unusable in (profile, b"no profile"):
        kept = decode_image(encoded(corners(), "png", icc_profile=unusable))
        assert kept.image.tobytes() == corners().tobytes()
        assert "profile" in kept.notes[0]


def test_text_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("These are notes.")
    with pytest.raises(InvalidInput, match=r"image: 'notes\.png' .*PNG.* something else"):
        decode_image(tmp_path / "notes.png")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [40_000, 11_000])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(InvalidInput, match="at most 100 million pixels"):
        decode_image(bomb(side, side))


def test_a_picture_in_memory_is_checked_too() -> None:
    with pytest.raises(InvalidInput, match="at least 8 pixels"):
        decode_image(Image.new("RGB", (1, 1)))


def test_one_pixel_is_refused_with_its_size() -> None:
    with pytest.raises(InvalidInput, match=r"1x1 pixels.*at least 8 pixels a side"):
        decode_image(encoded(Image.new("RGB", (1, 1)), "png"))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_half_a_file_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = encoded(noise, kind)
    with pytest.raises(InvalidInput, match="damaged"):
        decode_image(whole[: len(whole) // 2], "mask_image")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"gone\.png"):
        decode_image(tmp_path / "gone.png")


def test_fit_crops_the_middle() -> None:
    fitted = resize_to_fit(corners((80, 24)), (24, 24), "crop", "white")
    assert fitted.size == (24, 24)
    assert fitted.getpixel((0, 0)) == RED
    assert fitted.getpixel((23, 23)) == YELLOW


def test_fit_pads_with_the_colour() -> None:
    fitted = resize_to_fit(corners((40, 20)), (80, 80), "pad", "#0a0b0c")
    assert fitted.getpixel((0, 0)) == fitted.getpixel((79, 79)) == (10, 11, 12)
    assert fitted.getpixel((5, 25)) == RED


def test_fit_stretches_to_the_corners() -> None:
    fitted = resize_to_fit(corners((40, 20)), (80, 80), "stretch", "white")
    found = [fitted.getpixel(place) for place in ((0, 0), (79, 0), (0, 79), (79, 79))]
    assert found == [RED, GREEN, BLUE, YELLOW]


def test_rounding_a_size_changes_no_pixel() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (67, 101, 3), np.uint8))
    assert np.array_equal(
        np.asarray(resize_to_fit(noise, (96, 64), "crop", "white")), np.asarray(noise)[1:65, 2:98]
    )


def test_wrong_colour_is_named() -> None:
    with pytest.raises(InvalidInput, match="background: 'reddish'"):
        average_color("reddish")
