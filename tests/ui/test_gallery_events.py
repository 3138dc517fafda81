"""The events of the gallery without a browser, on pages of three images; test_gallery_tab.py has them in one."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from canvas import Studio
from canvas.errors import NotFound
from canvas.request import LOCAL_OWNER
from canvas.ui import gallery_tab
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.gallery_tab import GalleryState, GalleryTab, detail_rows, render_detail
from tests.app_server import save_image
from tests.history.conftest import make_image

REQUEST = gr.Request()  # without a login


class Gallery:
    """The tab, the ids of eight images from the newest on, and the state that a page keeps."""

    def __init__(self, studio: Studio) -> None:
        with gr.Blocks(analytics_enabled=False), gr.Tabs() as tabs, gr.Tab("Gallery"):
            self.tab = GalleryTab(studio, CreateTab(studio), EditTab(studio), tabs)
        self.studio = studio
        self.ids = [save_image(studio, LOCAL_OWNER).id or 0 for _ in range(8)][::-1]
        self.state = GalleryState()

    @property
    def values(self) -> dict[Any, Any]:
        filters = {widget: "" if widget.label == "Search" else widget.value for widget in self.tab._filters.widgets}
        return filters | {self.tab._state: self.state, self.tab._last_rendered: 0}

    def click(self, action: str, **fields: Any) -> dict[Any, Any]:
        """The updates of a click; the state is kept."""
        event: Any = SimpleNamespace(action=action, **fields)
        updates = self.tab.on_click(self.values, event, REQUEST)
        self.state = updates.get(self.tab._state, self.state)
        return updates

    @property
    def shown(self) -> list[int]:
        html = self.tab.poll(self.values, REQUEST)[self.tab._grid]
        return list(map(int, dict.fromkeys(re.findall(r'class="tile[^>]*data-image="(\d+)"', html))))


@pytest.fixture(scope="module")
def shared(shared_studio: Studio) -> Gallery:
    """One gallery for all tests, which leave its images as they were."""
    return Gallery(shared_studio)


@pytest.fixture
def gallery(shared: Gallery, monkeypatch: pytest.MonkeyPatch) -> Gallery:
    monkeypatch.setattr(gallery_tab, "PAGE_SIZE", 3)
    shared.state = GalleryState()
    return shared


@pytest.mark.parametrize(("page", "start"), [(0, 0), (1, 3), (2, 6), (9, 6), (-4, 0)])
def test_a_page_that_does_not_exist_is_the_nearest(gallery: Gallery, page: int, start: int) -> None:
    gallery.click("page", page=page)
    assert gallery.shown == gallery.ids[start : start + 3]


def test_images_are_selected_one_by_one_and_all_at_once(gallery: Gallery) -> None:
    first, second, *_ = gallery.ids
    gallery.click("toggle", image=first)
    gallery.click("toggle", image=str(second))
    assert gallery.state.selected == (first, second)
    gallery.click("toggle", image=first)
    assert gallery.state.selected == (second,)
    gallery.click("select_all")
    assert sorted(gallery.state.selected) == sorted(gallery.ids)
    gallery.click("unselect")
    assert (gallery.state.selected, gallery.state.selecting) == ((), False)
    gallery.click("select")
    assert (gallery.state.selected, gallery.state.selecting) == ((), True)


@pytest.mark.parametrize(("anchor", "last", "expected"), [(0, 2, [0, 1, 2]), (2, 0, [2, 0, 1]), (1, 1, [1])])
def test_shift_selects_a_range_of_the_page(gallery: Gallery, anchor: int, last: int, expected: list[int]) -> None:
    gallery.click("toggle", image=gallery.ids[anchor])
    gallery.click("open", image=gallery.ids[last], shift=True)
    assert gallery.state.selected == tuple(gallery.ids[index] for index in expected)


def test_a_range_does_not_cross_pages(gallery: Gallery) -> None:
    gallery.click("toggle", image=gallery.ids[1])
    gallery.click("page", page=1)
    gallery.click("toggle", image=gallery.ids[4], shift=True)
    assert gallery.state.selected == (gallery.ids[1], gallery.ids[4])


@pytest.mark.parametrize(("page", "index", "expected"), [(0, 0, 0), (0, 2, 0), (0, 3, 1), (1, 2, 0), (1, 6, 2)])
def test_the_grid_follows_an_image_that_is_opened(gallery: Gallery, page: int, index: int, expected: int) -> None:
    gallery.click("page", page=page)
    detail = gallery.click("open", image=gallery.ids[index])[gallery.tab._detail]
    assert gallery.state.page == expected
    for number, name in ((index - 1, "previous"), (index + 1, "following")):
        neighbour = gallery.ids[number] if number >= 0 else None
        assert neighbour is None or f'"{neighbour}"' in detail, name


def test_what_is_deleted_can_be_brought_back(gallery: Gallery) -> None:
    gallery.click("toggle", image=gallery.ids[0])
    gallery.click("toggle", image=gallery.ids[5])
    gallery.click("page", page=1)
    gallery.click("delete")
    assert (gallery.state.page, gallery.state.deleted, gallery.state.selected) == (1, 2, ())
    with pytest.raises(NotFound):
        gallery.studio.user_gallery(LOCAL_OWNER).image(gallery.ids[5])
    gallery.click("undo")
    assert (gallery.state.page, gallery.state.undo) == (1, "")
    assert gallery.studio.user_gallery(LOCAL_OWNER).image(gallery.ids[5])


@pytest.mark.parametrize(("origin", "opens"), [("tile", False), ("detail", True)])
def test_a_favourite_of_the_detail_view_stays_open(gallery: Gallery, origin: str, opens: bool) -> None:
    updates = gallery.click("favourite", image=gallery.ids[0], favourite="true", **{"from": origin})
    assert (gallery.tab._detail in updates) == opens
    assert gallery.studio.user_gallery(LOCAL_OWNER).image(gallery.ids[0]).favourite
    gallery.click("favourite", image=gallery.ids[0], favourite="false", **{"from": origin})
    assert not gallery.studio.user_gallery(LOCAL_OWNER).image(gallery.ids[0]).favourite


def test_the_details_leave_out_what_is_not_set() -> None:
    plain = make_image(style="none", negative_prompt="", enhanced_prompt="a red fox in the snow")
    rows = dict(detail_rows(plain))
    assert not rows.keys() & {"Sent to the model", "Negative prompt", "Style", "Task", "Strength"}
    assert (rows["Size"], rows["Seed"]) == ("64 × 72", 7)
    full = make_image(style="anime", enhanced_prompt="a red fox, anime", model_revision="0123456789abcdef")
    rows = dict(detail_rows(full))
    assert (rows["Sent to the model"], rows["Style"]) == ("a red fox, anime", "anime")
    assert (rows["Negative prompt"], rows["Revision"]) == ("blurry", "0123456789ab")


@pytest.mark.parametrize(("owner", "is_own"), [("ann", True), ("eve", False)])
def test_the_owner_is_shown_for_the_images_of_others(gallery: Gallery, owner: str, is_own: bool) -> None:
    image = gallery.studio.image(gallery.ids[0], LOCAL_OWNER)
    html = render_detail(replace(image, owner="ann"), owner)
    assert ("Owner" in html) == (not is_own)
    assert ('data-action="delete"' in html) == is_own
