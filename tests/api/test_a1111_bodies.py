from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from canvas.api.a1111_bodies import ImageToImage, TextToImage, Unsupported, Upscale
from canvas.errors import InvalidInput
from canvas.request import GenerationRequest


def request_of(**values: Any) -> GenerationRequest:
    return TextToImage(**{"prompt": "a fox", **values}).to_request("starter")


def test_a_body_with_a_prompt_alone_is_a_plain_request() -> None:
    expected = GenerationRequest("a fox", scale_to_size=True)
    assert request_of() == expected
    assert TextToImage(prompt="a fox").notes() == []
    none = dict.fromkeys(set(TextToImage.model_fields) - {"prompt"})
    assert request_of(**none) == expected
    assert TextToImage(**none).notes() == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch_size": 3, "n_iter": 2}, {"num_images": 6}),
        ({"batch_size": 16, "n_iter": 1}, {"num_images": 16}),
        ({"batch_size": 1, "n_iter": 16}, {"num_images": 16}),
        ({"seed": 0}, {"seed": 0}),
        ({"styles": ["unknown", "anime", "fantasy"]}, {"style": "anime"}),
        ({"script_name": "None"}, {}),
        ({"subseed": 7, "subseed_strength": 0.5}, {"variation_seed": 7, "variation_strength": 0.5}),
        ({"subseed": 7, "subseed_strength": 0}, {"variation_seed": None}),
        ({"prompt": "a (red:1.3) fox"}, {"prompt_weighting": True}),
        ({"negative_prompt": "(fog:1.3)"}, {"prompt_weighting": True}),
        ({"override_settings": {"samples_format": "JPG"}}, {"image_format": "jpeg"}),
        ({"override_settings": {"preset": "turbo"}}, {"preset": "turbo"}),
        ({"preset": "turbo", "watermark": None}, {"preset": "turbo", "watermark": ""}),
        ({"preset": "turbo", "override_settings": {"preset": "quality"}}, {"preset": "turbo"}),
        ({"mode": "turbo"}, {"preset": "turbo"}),
        ({"sampler_name": "k_euler_a"}, {"scheduler": "Euler a"}),
        ({"sampler_index": "UniPC"}, {"scheduler": "UniPC"}),
        ({"sampler_name": "Euler", "sampler_index": "UniPC"}, {"scheduler": "Euler"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "karras"}, {"scheduler": "DPM++ 2M Karras"}),
        ({"sampler_name": "Automatic", "scheduler": "karras"}, {"scheduler": None}),
        ({"sampler_name": "None", "scheduler": "UniPC"}, {"scheduler": "UniPC"}),
        ({"scheduler": "UniPC"}, {"scheduler": "UniPC"}),
        ({"sampler_name": "Euler a", "scheduler": "karras"}, {"scheduler": "Euler a"}),
    ],
)
def test_fields_have_their_counterparts(values: dict[str, Any], expected: dict[str, Any]) -> None:
    request = request_of(**values)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize("subseed", [None, -1])
def test_a_variation_without_a_seed_has_a_random_one(subseed: int | None) -> None:
    seeds = {request_of(subseed=subseed, subseed_strength=0.5).variation_seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds if seed is not None)


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"batch_size": 17}, {"n_iter": 0}, {"n_iter": 17}])
def test_numbers_of_images_are_limited(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        TextToImage(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"script_name": "X/Y/Z plot"}, "scripts cannot be run"),
        ({"override_settings": {"samples_format": "bmp"}}, "one of jpg, png"),
        ({"sampler_name": "magic"}, "one of DPM"),
    ],
)
def test_what_cannot_be_done_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        request_of(**values)


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({"styles": ["anime", "unknown", "other"]}, ["styles (unknown, other) has no effect here."]),
        ({"restore_faces": True, "tiling": True}, ["restore_faces has no effect here.", "tiling has no effect here."]),
        ({"refiner_checkpoint": "x"}, ["refiner_checkpoint has no effect here."]),
        ({"refiner_switch_at": -1, "refiner_checkpoint": ""}, []),
        ({"save_images": True, "s_churn": 3}, []),
        ({"preset": "turbo", "mode": "turbo"}, []),
        ({"mode": "turbo"}, []),
        ({"override_settings": {"eta_noise": 3, "samples_format": "png"}}, ["eta_noise has no effect here."]),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}}, []),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, ["CLIP_stop_at_last_layers has no effect here."]),
        ({"override_settings": {"sd_model_checkpoint": "starter"}}, []),
        ({"alwayson_scripts": {"ADetailer": {"args": []}, "Seed": {}, "ControlNet": {"args": [{}]}}}, []),
        (
            {"alwayson_scripts": {"ADetailer": {"args": [True]}, "Other": [1]}},
            ["alwayson_scripts (ADetailer, Other) has no effect here."],
        ),
        (
            {"sampler_name": "Euler a", "scheduler": "exponential"},
            ["The schedule exponential is not available for Euler a."],
        ),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"}, []),
        ({"sampler_name": "Euler", "scheduler": "Simple"}, []),
    ],
)
def test_what_has_no_effect_is_named(values: dict[str, Any], notes: list[str]) -> None:
    assert TextToImage(**values).notes() == notes


def hires_of(**values: Any) -> dict[str, Any]:
    return TextToImage(prompt="a fox", enable_hr=True, **values).to_hires_request(GenerationRequest("a fox"))


def test_the_second_pass_of_hires_fix_adds_detail_to_one_image() -> None:
    fields = hires_of(steps=20, denoising_strength=0.4)
    assert GenerationRequest("a fox", **fields) == GenerationRequest(
        "a fox", **{"task": "upscale", "upscaler": "detail", "scale": 2, "strength": 0.4, "num_inference_steps": 20}
    )
    assert fields["width"] is fields["height"] is None
    assert hires_of(steps=20, hr_second_pass_steps=7)["num_inference_steps"] == 7
    assert hires_of(steps=20, hr_second_pass_steps=None, hr_scale=4)["num_inference_steps"] == 20


@pytest.mark.parametrize("values", [{"hr_resize_x": 512}, {"hr_resize_y": 512}, {"hr_scale": 3}])
def test_a_second_pass_to_another_size_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=str(next(iter(values.values())))):
        hires_of(**values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"strength": 0.75, "only_masked": False, "resize_mode": "stretch", "scale_to_size": False}),
        ({"resize_mode": None, "mask_blur": 0}, {"resize_mode": "stretch", "mask_blur": 0}),
        ({"resize_mode": 1}, {"resize_mode": "crop"}),
        ({"resize_mode": 2}, {"resize_mode": "pad"}),
        ({"resize_mode": 3}, {"resize_mode": "stretch"}),
        ({"resize_mode": "pad", "inpaint_full_res": True}, {"resize_mode": "pad", "only_masked": True}),
    ],
)
def test_fields_of_an_image_have_their_counterparts(values: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = ImageToImage(**values).image_fields()
    assert expected.items() <= fields.items()
    assert ("mask_blur" in fields) is ("mask_blur" in values)
    assert not ImageToImage(**values).inpainting_mask_invert


@pytest.mark.parametrize(
    ("name", "upscaler"),
    [(None, "lanczos"), ("None", "lanczos"), ("R-ESRGAN 4x+", "photo"), ("Detail", "detail"), ("photo", "photo")],
)
def test_upscalers_have_names_of_both_programs(name: str | None, upscaler: str) -> None:
    request = Upscale(upscaler_1=name).to_request("starter", "fox.png")
    assert (request.task, request.upscaler, request.scale, request.image) == ("upscale", upscaler, 2, "fox.png")


@pytest.mark.parametrize(
    "values", [{"resize_mode": 1}, {"upscaling_resize": 3}, {"upscaler_1": "SwinIR"}, {"upscaling_resize": 1}]
)
def test_another_upscaling_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Upscale(**values).to_request("starter", "fox.png")


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ({}, ""),
        ({"upscaler_2": "None", "upscaling_crop": True, "show_extras_results": True, "gfpgan_visibility": 0}, ""),
        ({"upscaling_resize_w": 512}, ""),
        ({"upscaler_2": "photo", "gfpgan_visibility": 1}, "upscaler_2, gfpgan_visibility has no effect here."),
    ],
)
def test_what_has_no_effect_on_upscaling_is_named(values: dict[str, Any], notes: str) -> None:
    assert Upscale(**values).notes() == notes
