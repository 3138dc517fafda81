"""The buttons of a generated image, without a browser."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import GenerationRequest, Studio
from canvas.errors import NotFound
from canvas.request import LOCAL_OWNER, MAX_SEED, GeneratedImage
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.result_panel import NUM_VARIATIONS, ImageActions, stored_images, variations_of
from tests.app_server import save_image

LAST_START = MAX_SEED - NUM_VARIATIONS + 1  # the seeds from here on are just enough


@pytest.fixture(scope="module")
def actions(shared_studio: Studio) -> ImageActions:
    with gr.Blocks(analytics_enabled=False), gr.Tabs() as tabs, gr.Tab("Create"):
        return ImageActions(shared_studio, CreateTab(shared_studio), EditTab(shared_studio), tabs)


@pytest.fixture
def image(shared_studio: Studio) -> GeneratedImage:
    return save_image(shared_studio, LOCAL_OWNER)


def click(action: str, **fields: Any) -> Any:
    return SimpleNamespace(action=action, **fields)


@pytest.mark.parametrize(
    ("seed", "expected"), [(5, 6), (LAST_START - 1, LAST_START), (LAST_START, LAST_START), (MAX_SEED, LAST_START)]
)
def test_variations_have_the_next_seeds(image: GeneratedImage, seed: int, expected: int) -> None:
    request = variations_of(replace(image, request=replace(image.request, seed=seed)))
    assert (request.seed, request.num_images) == (expected, NUM_VARIATIONS)


def test_variations_of_a_variation_keep_its_seed(image: GeneratedImage) -> None:
    varied = replace(image.request, seed=5, variation_seed=9, variation_strength=0.3)
    request = variations_of(replace(image, request=varied))
    assert (request.seed, request.variation_seed, request.num_images) == (5, 10, NUM_VARIATIONS)


def test_stored_images_are_those_of_the_owner_that_still_exist(shared_studio: Studio) -> None:
    first, deleted, second = (save_image(shared_studio, LOCAL_OWNER) for _ in range(3))
    foreign = save_image(shared_studio, "eve")
    shared_studio.user_gallery(LOCAL_OWNER).delete([deleted.id or 0])
    shared_studio.user_gallery(LOCAL_OWNER).favourite([second.id or 0], True)
    images = stored_images(shared_studio, [second, deleted, foreign, replace(first, id=None), first], LOCAL_OWNER)
    assert [(image.id, image.favourite) for image in images] == [(second.id, True), (first.id, False)]
    assert stored_images(shared_studio, [], LOCAL_OWNER) == []
    assert stored_images(shared_studio, [replace(first, id=None)], LOCAL_OWNER) == []


@pytest.mark.parametrize(("action", "keeps"), [("use_settings", False), ("reuse_seed", True)])
def test_settings_are_reused_with_or_without_the_seed(
    actions: ImageActions, image: GeneratedImage, action: str, keeps: bool
) -> None:
    updates = actions.open(click(action, image=str(image.id)), LOCAL_OWNER)
    assert updates[actions._tabs].selected == "create"
    assert updates[actions._create.form["prompt"]] == image.request.prompt
    assert updates[actions._create.form["seed"]] == (image.request.seed if keeps else -1)
    assert updates.keys() <= actions.outputs


@pytest.mark.parametrize(("action", "operation"), [("edit", "inpaint"), ("upscale", "upscale")])
def test_an_image_is_edited_in_the_other_tab(
    actions: ImageActions, image: GeneratedImage, action: str, operation: str
) -> None:
    updates = actions.open(click(action, image=str(image.id)), LOCAL_OWNER)
    assert updates[actions._tabs].selected == "edit"
    assert updates[actions._edit._form["operation"]].value == operation
    assert updates.keys() <= actions.outputs


def test_variations_are_queued_and_shown(
    actions: ImageActions, image: GeneratedImage, shared_studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[tuple[list[GenerationRequest], str, str]] = []
    monkeypatch.setattr(Studio, "submit_many", lambda _, *arguments: submitted.append(arguments))
    updates = actions.open(click("variations", image=str(image.id)), LOCAL_OWNER)
    assert submitted == [([variations_of(image)], LOCAL_OWNER, "page")]
    assert updates[actions._create.selected] is None
    assert updates[actions._tabs].selected == "create"


def test_a_foreign_image_is_not_opened(actions: ImageActions, shared_studio: Studio) -> None:
    foreign = save_image(shared_studio, "eve")
    with pytest.raises(NotFound):
        actions.open(click("use_settings", image=str(foreign.id)), "ann")


def test_a_favourite_is_set_and_taken_back(actions: ImageActions, image: GeneratedImage, shared_studio: Studio) -> None:
    for text, expected in (("true", True), ("false", False)):
        assert actions.change(click("favourite", image=str(image.id), favourite=text), LOCAL_OWNER) == ""
        assert shared_studio.image(image.id or 0, LOCAL_OWNER).favourite == expected


def test_a_deletion_offers_to_undo_it(actions: ImageActions, image: GeneratedImage, shared_studio: Studio) -> None:
    line = actions.change(click("delete", image=str(image.id)), LOCAL_OWNER)
    with pytest.raises(NotFound):
        shared_studio.image(image.id or 0, LOCAL_OWNER)
    token = line.partition('data-token="')[2].partition('"')[0]
    assert actions.change(click("undo", token=token), LOCAL_OWNER) == ""
    assert shared_studio.image(image.id or 0, LOCAL_OWNER).id == image.id
