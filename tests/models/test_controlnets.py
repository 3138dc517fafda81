"""Which ControlNet a model gets, and where it is on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from canvas.errors import InvalidInput
from canvas.models import controlnets
from canvas.models.capabilities import Capabilities, read_capabilities
from canvas.models.hub_client import Hub
from canvas.request import GenerationRequest
from tests.conftest import make_spec

SPEC = make_spec("o/x")
AUTO = replace(SPEC, type="auto")
SD15 = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768}


def read(class_name: str, **unet: object) -> Capabilities:
    return read_capabilities({"_class_name": class_name, "unet": ["diffusers", "X"]}, {"unet": unet})


def make_controlnet(folder: Path, *weights: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    for name in weights:
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A cache in which `tiny/control` is complete and `tiny/part` is not."""
    hub = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache")
    make_controlnet(hub.repo_folder("tiny/control") / "snapshots" / "abc", *controlnets.WEIGHTS)
    make_controlnet(hub.repo_folder("tiny/part") / "snapshots" / "abc")
    return hub


def test_the_family_is_that_of_the_model_or_of_its_type() -> None:
    assert controlnets.family_of(AUTO, None) == ""
    assert controlnets.family_of(SPEC, None) == "stable_diffusion"
    assert controlnets.family_of(SPEC, read("FluxPipeline")) == "flux"
    for family in ("", "flux", "stable_diffusion"):
        controlnets.check_family(family, SPEC)
    with pytest.raises(InvalidInput, match="tiny-test takes no control images"):
        controlnets.check_family("sana", SPEC)


@pytest.mark.parametrize(
    ("kind", "family", "gflops", "capabilities", "expected"),
    [
        ("canny", "stable_diffusion", 0, None, "lllyasviel/control_v11p_sd15_canny"),
        ("canny", "stable_diffusion", controlnets.STANDARD_GFLOPS, None, "lllyasviel/control_v11p_sd15_canny"),
        ("canny", "stable_diffusion", 400, None, ""),
        (
            "canny",
            "stable_diffusion",
            400,
            read("StableDiffusionPipeline", **SD15),
            "lllyasviel/control_v11p_sd15_canny",
        ),
        ("canny", "stable_diffusion", 0, read("StableDiffusionPipeline"), ""),
        ("inpaint", "stable_diffusion_xl", 0, None, ""),
        ("pose", "flux", 400, None, "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0"),
        ("canny", "", 0, read("FluxPipeline"), ""),
    ],
)
def test_the_usual_controlnet_fits_standard_layers(
    kind: str, family: str, gflops: float, capabilities: Capabilities | None, expected: str
) -> None:
    spec = replace(SPEC, gflops_per_step=gflops)
    if expected:
        assert controlnets.usual_model(kind, family, spec, capabilities) == expected
    else:
        with pytest.raises(InvalidInput, match=f"no usual ControlNet of the kind {kind} for the model tiny-test"):
            controlnets.usual_model(kind, family, spec, capabilities)


def test_a_folder_of_that_name_comes_before_the_hub(tmp_path: Path, hub: Hub) -> None:
    assert controlnets.is_hub_id("tiny/control", tmp_path)
    assert not controlnets.is_hub_id("control", tmp_path)
    folder = make_controlnet(tmp_path / "nets" / "tiny" / "control", controlnets.WEIGHTS[1])
    assert not controlnets.is_hub_id("tiny/control", tmp_path / "nets")
    assert controlnets.find("tiny/control", tmp_path / "nets", hub=hub) == folder
    assert controlnets.list_names(tmp_path / "nets") == ["tiny/control"]


def test_controlnets_of_the_hub_are_found_when_complete(tmp_path: Path, hub: Hub) -> None:
    folder = hub.repo_folder("tiny/control") / "snapshots" / "abc"
    assert controlnets.find("tiny/control", tmp_path, hub=hub) == folder
    assert controlnets.weights_of(folder) == folder / controlnets.WEIGHTS[0]
    assert controlnets.class_of(folder) == "ControlNetModel"
    assert controlnets.find("tiny/part", tmp_path, hub=hub) is None
    (folder / "config.json").unlink()
    assert controlnets.weights_of(folder) is None
    assert controlnets.class_of(folder) == ""


def test_folders_are_found_by_name(tmp_path: Path, hub: Hub) -> None:
    nets = tmp_path / "nets"
    with pytest.raises(InvalidInput, match=r"ControlNet mine not found.* folder nets \(it has: none\)"):
        controlnets.find("mine", nets, hub=hub)
    folder = make_controlnet(nets / "mine", controlnets.WEIGHTS[0])
    make_controlnet(nets / "part")
    assert controlnets.find("mine", nets, hub=hub) == folder
    for name in ("part", "mine/../mine", ".", "../nets/mine"):
        with pytest.raises(InvalidInput, match=r"not found.* \(it has: mine, part\)"):
            controlnets.find(name, nets, hub=hub)


def test_only_controlnets_of_the_hub_that_are_not_cached_are_missing(tmp_path: Path, hub: Hub) -> None:
    make_controlnet(tmp_path / "mine", controlnets.WEIGHTS[1])
    names = ("tiny/control", "tiny/part", "tiny/part", "mine", "tiny/new")
    request = GenerationRequest("a fox", control_images=tuple({"image": "a.png", "model": name} for name in names[:4]))
    assert controlnets.missing(request, tmp_path, hub=hub) == ["tiny/part"]
    assert controlnets.missing(GenerationRequest("a fox"), tmp_path, hub=hub) == []


def test_download_sizes_of_usual_controlnets_are_known() -> None:
    assert (controlnets.download_size("lllyasviel/control_v11p_sd15_canny") or 0) > 700_000_000
    assert controlnets.download_size("xinsir/controlnet-tile-sdxl-1.0") is not None
    assert controlnets.download_size("tiny/control") is None
