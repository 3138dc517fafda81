from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms

from canvas.engine.image_io import add_watermark, decode_image, flatten_alpha, parse_color, resize_to_fit
from canvas.errors import InvalidInput

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def corners(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """An image of four colours, one in each corner."""
    image = Image.new("RGB", size, RED)
    middle = (size[0] // 2, size[1] // 2)
    image.paste(GREEN, (middle[0], 0, size[0], middle[1]))
    image.paste(BLUE, (0, middle[1], middle[0], size[1]))
    image.paste(YELLOW, (*middle, *size))
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert decode_image(encode(corners(), kind)).image.tobytes() == corners().tobytes()


def test_path_is_decoded_like_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(corners(), "png"))
    assert decode_image(tmp_path / "a.png").image.tobytes() == corners().tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    transpose = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = corners() if transpose is None else corners().transpose(transpose)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encode(stored, "png", exif=exif.tobytes())).image
    assert upright.size == corners().size
    assert upright.tobytes() == corners().tobytes()


def test_alpha_is_kept_until_it_is_flattened() -> None:
    image = corners().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    decoded = decode_image(encode(image, "png")).image
    assert decoded.mode == "RGBA"
    assert flatten_alpha(decoded, "#102030").getcolors() == [(40 * 24, (16, 32, 48))]


def test_transparent_palette_colour_becomes_alpha() -> None:
    image = corners().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    index = image.getpixel((0, 0))
    decoded = decode_image(encode(image, "png", transparency=index)).image
    assert decoded.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert flatten_alpha(decoded, "white").getpixel((39, 23)) == YELLOW


def test_cmyk_is_converted_with_a_note() -> None:
    image = decode_image(encode(corners().convert("CMYK"), "tiff"))
    assert image.image.tobytes() == corners().tobytes()
    assert "CMYK" in image.notes[0]


def test_16_bits_keep_their_brightness() -> None:
    ramp = np.linspace(0, 65535, 64 * 16).reshape(16, 64).astype(np.uint16)
    image = decode_image(encode(Image.fromarray(ramp), "png"))
    decoded = np.asarray(image.image)[..., 0].astype(float)
    assert np.abs(decoded - ramp / 257.0).max() <= 1
    assert "8 bits" in image.notes[0]


def png_file(color_type: int, depth: int, rows: bytes, transparent: bytes, side: int = 8) -> bytes:
    """A PNG in exactly that format, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + rows for _ in range(side)))
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize(
    ("color_type", "depth", "rows", "transparent"),
    [
        (0, 1, b"\xf0", struct.pack(">H", 1)),
        (0, 2, b"\xff\x00", struct.pack(">H", 3)),
        (0, 4, b"\x77\x77\x00\x00", struct.pack(">H", 7)),
        (0, 8, bytes([5] * 4 + [200] * 4), struct.pack(">H", 5)),
        (0, 16, struct.pack(">8H", *[200] * 4, *[60000] * 4), struct.pack(">H", 200)),
        (2, 8, bytes([9, 8, 7] * 4 + [0, 0, 0] * 4), struct.pack(">HHH", 9, 8, 7)),
        (2, 16, struct.pack(">24H", *[2000, 0, 0] * 4, *[60000, 1, 1] * 4), struct.pack(">HHH", 2000, 0, 0)),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_alpha(
    color_type: int, depth: int, rows: bytes, transparent: bytes
) -> None:
    alpha = decode_image(png_file(color_type, depth, rows, transparent)).image.getchannel("A")
    assert np.asarray(alpha).tolist() == [[0] * 4 + [255] * 4] * 8


@pytest.mark.parametrize("mode", ["P", "P with alphas", "RGB", "L", "LA", "RGBA"])
@pytest.mark.parametrize("profile", [None, "sRGB", "broken"])
def test_transparency_is_kept_beside_a_colour_profile(mode: str, profile: str | None) -> None:
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    palette.paste(0, (0, 0, 16, 16))
    image, options = palette.convert("RGB"), {}
    if mode.startswith("P"):
        image, options = palette, {"transparency": 0 if mode == "P" else bytes([0, 255])}
    elif mode == "RGB":
        options = {"transparency": (255, 0, 0)}
    elif mode == "L":
        image = palette.point(lambda index: index * 100).convert("L")
        image = Image.fromarray(np.where(np.asarray(palette) == 0, 0, 100).astype(np.uint8))
        options = {"transparency": 0}
    else:
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.where(np.asarray(palette) == 0, 0, 255).astype(np.uint8)))
    if profile:
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options["icc_profile"] = srgb if profile == "sRGB" else b"no profile"
    decoded = decode_image(encode(image, "png", **options)).image
    assert decoded.mode == "RGBA"
    assert decoded.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert decoded.getpixel((31, 31))[3] == 255  # type: ignore[index]
    if mode.startswith("P") or mode in {"RGB", "RGBA"}:
        assert np.abs(np.asarray(decoded)[31, 31, :3].astype(int) - (0, 255, 0)).max() <= 1


@pytest.mark.parametrize("level", [0, 200, 255, 256, 4000, 65535])
@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_16_bits_take_their_scale_from_the_format(kind: str, level: int) -> None:
    dark = Image.new("I;16", (32, 32), level)
    decoded = decode_image(encode(dark, kind)).image
    assert decoded.getextrema() == ((round(level / 257),) * 2,) * 3


def test_first_frame_of_an_animation_is_used_with_a_note() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, GREEN, BLUE)]
    animation = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    image = decode_image(animation)
    assert image.image.convert("RGB").getpixel((8, 8)) == RED
    assert image.notes == ("Only the first of 3 frames is used.",)


def test_colour_profile_is_applied() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode_image(encode(corners(), "png", icc_profile=srgb))
    assert np.abs(np.asarray(decoded.image, float) - np.asarray(corners(), float)).max() <= 1
    for unusable in (profile, b"no profile"):
        kept = decode_image(encode(corners(), "png", icc_profile=unusable))
        assert kept.image.tobytes() == corners().tobytes()
        assert "profile" in kept.notes[0]


def test_text_file_named_png_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("These are notes.")
    with pytest.raises(InvalidInput, match=r"Cannot read notes\.png: it is not an image\..*PNG"):
        decode_image(tmp_path / "notes.png")


def bomb(width: int, height: int) -> bytes:
    """A PNG with a size in its header that its few bytes do not contain."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [40_000, 11_000])
def test_decompression_bomb_is_rejected(side: int) -> None:
    with pytest.raises(InvalidInput, match="at most 100 million pixels"):
        decode_image(bomb(side, side))


def test_size_of_a_pil_image_is_checked() -> None:
    with pytest.raises(InvalidInput, match="at least 8 pixels"):
        decode_image(Image.new("RGB", (1, 1)))


def test_size_of_a_file_is_checked() -> None:
    with pytest.raises(InvalidInput, match=r"at least 8 pixels.*1x1"):
        decode_image(encode(Image.new("RGB", (1, 1)), "png"))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_truncated_file_is_rejected(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    content = encode(noise, kind)
    with pytest.raises(InvalidInput, match="damaged"):
        decode_image(content[: len(content) // 2], "mask_image")


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"gone\.png"):
        decode_image(tmp_path / "gone.png")


def test_crop_keeps_the_center() -> None:
    fitted = resize_to_fit(corners((80, 24)), (24, 24), "crop", "white")
    assert fitted.size == (24, 24)
    assert fitted.getpixel((0, 0)) == RED
    assert fitted.getpixel((23, 23)) == YELLOW


def test_pad_uses_the_fill_colour() -> None:
    fitted = resize_to_fit(corners((40, 20)), (80, 80), "pad", "#0a0b0c")
    assert fitted.getpixel((0, 0)) == fitted.getpixel((79, 79)) == (10, 11, 12)
    assert fitted.getpixel((5, 25)) == RED


def test_stretch_keeps_the_corners() -> None:
    fitted = resize_to_fit(corners((40, 20)), (80, 80), "stretch", "white")
    colors = [fitted.getpixel(corner) for corner in ((0, 0), (79, 0), (0, 79), (79, 79))]
    assert colors == [RED, GREEN, BLUE, YELLOW]


def test_crop_of_less_than_8_pixels_changes_no_pixel() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (67, 101, 3), np.uint8))
    assert np.array_equal(np.asarray(resize_to_fit(noise, (96, 64), "crop", "white")), np.asarray(noise)[1:65, 2:98])


def test_invalid_colour_is_rejected() -> None:
    with pytest.raises(InvalidInput, match=r"Fill colou?r must be a colour .*'reddish'"):
        parse_color("reddish")


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (128, 768)])
@pytest.mark.parametrize("text", ["Magic Canvas", "generated by a model on an ordinary Sunday"])
@pytest.mark.parametrize("color", ["black", "white"])
def test_watermark_is_visible_in_the_corner_only(size: tuple[int, int], text: str, color: str) -> None:
    image = Image.new("RGB", size, color)
    marked = add_watermark(image, text)
    box = ImageChops.difference(image, marked).getbbox()
    assert box is not None
    assert box[1] > size[1] * 0.7
    assert box[0] >= 0
    assert box[2] <= size[0]
    assert np.asarray(marked).std() > 1
    assert marked.mode == "RGB"
