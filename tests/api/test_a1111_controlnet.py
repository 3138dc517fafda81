from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from canvas.api.a1111_controlnet import Unit, other_scripts, read_units
from canvas.errors import InvalidInput
from canvas.settings import Settings

DEPTH = "control_v11f1p_sd15_depth"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a data folder with an own ControlNet and an own IP-Adapter."""
    settings = Settings(data_dir=tmp_path)
    folder = settings.controlnets_dir / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    settings.ip_adapters_dir.mkdir()
    (settings.ip_adapters_dir / "own.safetensors").write_bytes(b"x")
    return settings


def fields_of(settings: Settings, values: dict[str, Any], image: str | None = None) -> dict[str, Any]:
    return Unit({"image": "a.png", **values}, settings).fields(image)


def test_a_unit_without_values_guides_through_the_whole_generation(settings: Settings) -> None:
    assert fields_of(settings, {}) == {
        **{"image": "a.png", "kind": "auto", "weight": 1.0, "start": 0.0, "end": 1.0},
        **{"detect": False, "resize_mode": "crop", "model": ""},
    }
    values = {"weight": 0.5, "guidance_start": 0.1, "guidance_end": 0.9}
    assert {"weight": 0.5, "start": 0.1, "end": 0.9}.items() <= fields_of(settings, values).items()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"module": "canny"}, {"kind": "canny", "detect": True, "model": ""}),
        ({"module": "invert (from white bg & black line)"}, {"kind": "auto", "detect": False}),
        ({"module": ""}, {"detect": False}),
        ({"module": None, "model": None}, {"detect": False, "kind": "auto", "model": ""}),
        ({"model": f"{DEPTH} [cfd03158]"}, {"kind": "depth", "model": f"lllyasviel/{DEPTH}"}),
        ({"model": "somebody/controlnet"}, {"kind": "auto", "model": "somebody/controlnet"}),
        ({"model": "mine [12ab]"}, {"kind": "auto", "model": "mine"}),
        ({"model": "an older canny model"}, {"kind": "canny", "model": ""}),
        ({"module": "depth_midas", "model": "an older canny model"}, {"kind": "depth", "model": ""}),
        ({"module": "openpose_full", "model": "None"}, {"kind": "pose", "model": ""}),
        ({"resize_mode": 0}, {"resize_mode": "stretch"}),
        ({"resize_mode": 2}, {"resize_mode": "pad"}),
        ({"resize_mode": "Just Resize"}, {"resize_mode": "stretch"}),
        ({"resize_mode": "Resize and Fill"}, {"resize_mode": "pad"}),
        ({"resize_mode": 9}, {"resize_mode": "crop"}),
        ({"image": None, "input_image": "b.png"}, {"image": "b.png"}),
        ({"image": {"image": "c.png", "mask": "d.png"}}, {"image": "c.png"}),
        ({"image": None}, {"image": "start.png"}),
        ({"module": "ip-adapter"}, {"kind": "subject", "weight": 1.0, "model": ""}),
        ({"module": "ip-adapter_face_id"}, {"kind": "face"}),
        ({"model": "ip-adapter-plus-face", "weight": 0.5}, {"kind": "face", "weight": 0.5, "model": ""}),
        ({"module": "ip-adapter", "model": "own"}, {"model": "own.safetensors"}),
    ],
)  # fmt: skip
def test_values_have_their_counterparts(settings: Settings, values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= fields_of(settings, values, "start.png").items()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": None}, "needs an image"),
        ({"image": {"mask": "d.png"}}, "needs an image"),
        ({"model": "unknown"}, "one of control_v11p_sd15_canny.*, mine"),
        ({"module": "ip-adapter", "model": "unknown"}, "one of own"),
    ],
)
def test_a_wrong_unit_is_refused(settings: Settings, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        fields_of(settings, values)


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({"threshold_a": 100, "pixel_perfect": False, "weight": 0.3, "model": "x"}, []),
        ({"control_mode": 0, "mask": None, "new": False, "other": ""}, []),
        ({"control_mode": "Balanced", "guidance_start": 0, "guidance_end": 1}, []),
        ({"control_mode": 2}, ["controlnet control_mode has no effect here."]),
        ({"new": 1}, ["controlnet new has no effect here."]),
        ({"guidance_start": 0.2, "guidance_end": 0.8}, []),
        ({"module": "reference_only", "guidance_start": 0.2}, ["controlnet guidance_start has no effect here."]),
        ({"module": "reference_only", "guidance_start": 0, "guidance_end": 1}, []),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_named(settings: Settings, values: dict[str, Any], notes: list[str]) -> None:
    assert Unit(values, settings).notes() == notes


@pytest.mark.parametrize(
    ("scripts", "number"),
    [
        (None, 0),
        ({"ControlNet": {"args": [{"module": "canny"}, {}]}}, 2),
        ({"controlnet": [{}, "no unit", {"enabled": False}, {"enabled": True}]}, 2),
        ({"controlnet": {}}, 0),
        ({"ADetailer": {"args": [{}]}}, 0),
        ({"ADetailer": {"args": True}, "controlnet": [{}]}, 1),
    ],
)
def test_the_enabled_units_are_read(settings: Settings, scripts: dict[str, Any] | None, number: int) -> None:
    units = read_units(scripts, settings)
    assert len(units) == number
    assert other_scripts(scripts or ()) == [name for name in scripts or () if name == "ADetailer"]


@pytest.mark.parametrize("script", [{"args": {}}, {"args": "x"}, "x", 7])
def test_scripts_without_a_list_are_refused(settings: Settings, script: Any) -> None:
    with pytest.raises(InvalidInput, match="a list args"):
        read_units({"controlnet": script}, settings)
