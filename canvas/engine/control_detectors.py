"""Turns photos into control images: edges, lines, depth; recognizes images that are such already.

Canny's edges are those of OpenCV. Lines and scribbles follow the detectors "lineart standard" and
"scribble xdog" of the ControlNet extension for AUTOMATIC1111, which need no network. Soft edges are
a smoothed gradient instead of HED. Depth is estimated by Depth Anything V2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from canvas.engine.image_io import center_crop
from canvas.errors import InvalidInput, LazyMessage, ModelUnavailable
from canvas.guidance import AUTO, ControlImage
from canvas.models import addons

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

LINE_KINDS = ("canny", "lineart", "scribble", "soft_edge")
UNDETECTED_KINDS = ("tile", "inpaint")  # the image itself is the control image
LOOKS_SIDE = 768  # pixels; a larger image is judged by a part of it
EXTREME_SHARE = 0.9  # of the pixels of a line drawing are nearly black or nearly white
GREY_SATURATION = 6.0  # of 255; scans and JPEG files of grey images are not quite grey
SMOOTH_GRADIENT = 6.0  # mean difference of neighbours in a depth map, of 255
CANNY_THRESHOLDS = (100, 200)
DEPTH_SIDE, DEPTH_PATCH = 518, 14  # of Depth Anything V2, pixels
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resolve_control(item: ControlImage, image: Image.Image) -> ControlImage:
    """The item with its kind and `detect` decided by the looks of its image; raises InvalidInput.

    A line drawing, a depth map or a pose is used as it is.
    """
    looks = recognize(image)
    kind = item.kind
    if kind == AUTO:
        kind = looks or "canny"
    if kind in UNDETECTED_KINDS:
        return item._replace(kind=kind, detect=False)
    finished = looks == kind or (looks in LINE_KINDS and kind in LINE_KINDS)
    detect = not finished if item.detect is None else item.detect
    if kind == "pose" and item.detect:
        message = "Poses cannot be detected here. Choose an image of a pose, with coloured limbs on black."
        raise InvalidInput("control_images", kind, message=message)
    if kind == "pose":  # perhaps in another style than OpenPose's
        detect = False
    return item._replace(kind=kind, detect=detect)


def recognize(image: Image.Image) -> str:
    """The kind of a control image that the image is already; "" for photos and other images."""
    # At most LOOKS_SIDE pixels around the centre: reducing the image would blur its lines.
    middle = center_crop(image, (min(image.width, LOOKS_SIDE), min(image.height, LOOKS_SIDE)))
    pixels = np.asarray(middle.convert("RGB"), dtype=np.int16)
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    grey = pixels.mean(axis=2)
    black = (pixels.max(axis=2) < 24).mean()
    if saturation.mean() > GREY_SATURATION or np.percentile(saturation, 99) > 60:
        coloured = saturation[pixels.max(axis=2) >= 24]
        return "pose" if black > 0.6 and coloured.size and np.median(coloured) > 100 else ""
    extreme = ((grey < 40) | (grey > 215)).mean()
    if extreme > EXTREME_SHARE:
        lines = grey > 127 if (grey > 127).mean() < 0.5 else grey <= 127
        share = lines.mean()
        if 0 < share < 0.35:
            return _kind_of_lines(lines, grey)
    gradient = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return "depth" if 0 < gradient < SMOOTH_GRADIENT and np.ptp(grey) > 60 else ""


def _kind_of_lines(lines: Array, grey: Array) -> str:
    """canny: white lines one pixel wide; scribble: thick strokes; lineart: anything between."""
    inner = lines[1:-1, 1:-1]
    surrounded = inner & lines[:-2, 1:-1] & lines[2:, 1:-1] & lines[1:-1, :-2] & lines[1:-1, 2:]
    thick = surrounded.sum() / max(1, inner.sum())
    binary = ((grey < 8) | (grey > 247)).mean() > 0.995
    if thick < 0.08 and binary and (grey > 127).mean() < 0.5:
        return "canny"
    return "scribble" if thick > 0.5 else "lineart"


def detect(kind: str, image: Image.Image, depth_model: Path | None = None) -> Image.Image:
    """The control image of that kind for a photo, RGB of the same size.

    `depth_model` is the folder of the depth estimator; raises ModelUnavailable if it is needed and None.
    """
    if kind in UNDETECTED_KINDS:
        return image.convert("RGB")
    if kind == "depth":
        return _depth(image, depth_model)
    detectors = {"canny": _canny, "lineart": _lineart, "scribble": _scribble, "soft_edge": _soft_edge}
    return Image.fromarray(detectors[kind](np.asarray(image.convert("RGB")))).convert("RGB")


def as_control_image(item: ControlImage, image: Image.Image, depth_model: Path | None = None) -> Image.Image:
    """What the ControlNet sees of an image of the work size; the item is resolved."""
    if item.detect:
        return detect(item.kind, image, depth_model)
    grey = np.asarray(image.convert("L"))
    if item.kind in LINE_KINDS and grey.mean() > 127:
        return Image.fromarray(255 - grey).convert("RGB")  # dark lines on white
    return image.convert("RGB")


def needs_depth_model(item: ControlImage) -> bool:
    """Whether the detector for depth has to be on disk."""
    return item.kind == "depth" and bool(item.detect)


def _canny(pixels: Array) -> Array:
    import cv2

    return np.asarray(cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), *CANNY_THRESHOLDS))


def _lineart(pixels: Array) -> Array:
    import cv2

    values = pixels.astype(np.float32)
    intensity = np.min(cv2.GaussianBlur(values, (0, 0), 6.0) - values, axis=2).clip(0, 255)
    strong = intensity[intensity > 8]
    intensity = intensity / max(16.0, float(np.median(strong)) if strong.size else 16.0) * 127
    return intensity.clip(0, 255).astype(np.uint8)


def _scribble(pixels: Array) -> Array:
    import cv2

    values = pixels.astype(np.float32)
    fine, coarse = cv2.GaussianBlur(values, (0, 0), 0.5), cv2.GaussianBlur(values, (0, 0), 5.0)
    difference = (255 - np.min(coarse - fine, axis=2)).clip(0, 255)
    return np.where(2 * (255 - difference) > 32, 255, 0).astype(np.uint8)


def _soft_edge(pixels: Array) -> Array:
    import cv2

    values = cv2.GaussianBlur(pixels, (0, 0), 1.5).astype(np.float32)
    across, down = cv2.Scharr(values, cv2.CV_32F, 1, 0), cv2.Scharr(values, cv2.CV_32F, 0, 1)
    strength = np.hypot(across, down).max(axis=2)
    largest = float(np.percentile(strength, 99)) or 1.0
    return (cv2.GaussianBlur(strength / largest, (0, 0), 1.0) * 255).clip(0, 255).astype(np.uint8)


def _depth(image: Image.Image, folder: Path | None) -> Image.Image:
    """A depth map, white where near. The estimator is small, and not kept in memory."""
    import torch
    from transformers import AutoModelForDepthEstimation

    if folder is None:
        addon = addons.ADDONS[addons.DEPTH]
        text = "Depth is detected by {repo_id} ({size} MB), which is not downloaded. Connect to the internet once."
        raise ModelUnavailable(LazyMessage(text, repo_id=addon.repo_id, size=f"{addon.size / 1e6:.0f}"))
    model = AutoModelForDepthEstimation.from_pretrained(str(folder), local_files_only=True).eval()
    factor = DEPTH_SIDE / min(image.size)
    size = tuple(max(DEPTH_PATCH, round(side * factor / DEPTH_PATCH) * DEPTH_PATCH) for side in image.size)
    resized = np.asarray(image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC), dtype=np.float32)
    values = (resized / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        tensor = torch.from_numpy(values).permute(2, 0, 1)[None].float()
        estimate = Image.fromarray(model(pixel_values=tensor).predicted_depth[0].numpy())
    depth = np.asarray(estimate.resize(image.size, Image.Resampling.BICUBIC))
    low, high = float(depth.min()), float(depth.max())
    scaled = ((depth - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")
