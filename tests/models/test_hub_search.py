"""Searching the Hub with the real huggingface_hub, and inspecting ids, links and paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from canvas.errors import HubOffline, InvalidInput, ModelCorrupted, ModelNotFound
from canvas.models import hub_search
from canvas.models.hub_client import Hub
from canvas.models.hub_search import FoundModel, search, unique_key
from tests.hub_server import Fault, LocalHub


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=hub.url, cache_dir=tmp_path / "cache", token="none")  # noqa: S106


def make_repository(folder: Path, class_name: str = "", files: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    if class_name:
        (folder / "model_index.json").write_text(f'{{"_class_name": "{class_name}"}}')
    for name in files:
        (folder / name).write_bytes(b"x" * 10)
    return folder


@pytest.fixture
def filled_hub(hub: LocalHub, tiny_full_folder: Path, tmp_path: Path) -> LocalHub:
    """A Hub with models of several kinds."""
    hub.add("ann/fox-artist", tiny_full_folder)
    hub.cards["ann/fox-artist"] = {"likes": 5, "downloads": 100, "cardData": {"license": "openrail"}}
    hub.add("bob/fox-video", make_repository(tmp_path / "video", "CogVideoXPipeline"))
    hub.cards["bob/fox-video"] = {"likes": 9, "downloads": 50}
    hub.add("cid/fox-lora", make_repository(tmp_path / "lora", files=("fox.safetensors",)))
    hub.cards["cid/fox-lora"] = {"downloads": 40, "tags": ["lora"]}
    hub.add("dan/fox-xl", make_repository(tmp_path / "xl", "StableDiffusionXLPipeline"))
    card = {"license": "other", "license_name": "fox-licence", "license_link": "LICENSE.md"}
    hub.cards["dan/fox-xl"] = {"likes": 7, "downloads": 30, "gated": "auto", "cardData": card}
    hub.add("eve/fox-gguf", make_repository(tmp_path / "gguf", files=("fox-Q4.gguf",)))
    return hub


def names(found: list[FoundModel]) -> list[str]:
    return [model.source.partition("/")[2] for model in found]


def test_search_says_what_each_model_is(filled_hub: LocalHub, client: Hub, tiny_full_folder: Path) -> None:
    found = {model.source: model for model in search("fox", hub=client)}
    assert list(found) == ["ann/fox-artist", "bob/fox-video", "cid/fox-lora", "dan/fox-xl", "eve/fox-gguf"]
    artist = found["ann/fox-artist"]
    assert (artist.family, artist.likes, artist.downloads) == ("Stable Diffusion 1 and 2", 5, 100)
    assert (artist.license, artist.terms, artist.gated, artist.unsupported) == ("openrail", "", False, None)
    assert "CogVideoXPipeline" in str(found["bob/fox-video"].unsupported)
    assert "LoRA" in str(found["cid/fox-lora"].unsupported)
    large = found["dan/fox-xl"]
    assert (large.gated, large.license) == (True, "fox-licence")
    assert large.terms == "https://huggingface.co/dan/fox-xl/blob/main/LICENSE.md"
    assert "eve/fox-gguf:fox-Q4.gguf" in str(found["eve/fox-gguf"].unsupported)


def test_the_size_is_that_of_the_download(filled_hub: LocalHub, client: Hub, tiny_full_folder: Path) -> None:
    from canvas.models.download import plan_download
    from tests.conftest import make_spec

    [found] = search("fox-artist", hub=client)
    assert found.size == plan_download(make_spec("ann/fox-artist"), hub=client).total_bytes


@pytest.mark.slow
def test_filters_and_order_are_those_of_the_hub(filled_hub: LocalHub, client: Hub) -> None:
    assert names(search("fox", sort="most likes", hub=client))[:2] == ["fox-video", "fox-xl"]
    xl = search("", family="stable_diffusion_xl", hub=client)
    assert names(xl) == ["fox-xl"]
    assert "fox-xl" not in names(search("fox", open_only=True, hub=client))
    assert search("nothing like it", hub=client) == []


@pytest.mark.parametrize("text", ["ann/fox-artist", "https://huggingface.co/ann/fox-artist/tree/main"])
def test_an_id_or_link_finds_that_model(filled_hub: LocalHub, client: Hub, text: str) -> None:
    [found] = search(text, hub=client)
    assert (found.source, found.downloads) == ("ann/fox-artist", 100)
    assert filled_hub.asked("GET") == ["/api/models/ann/fox-artist", "/api/models/ann/fox-artist/tree/main"]


def test_paths_are_inspected_without_the_hub(hub: LocalHub, client: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    [found] = search(str(tiny_folder), hub=client)
    assert (found.source, found.family, found.is_local) == (str(tiny_folder), "Stable Diffusion 1 and 2", True)
    with pytest.raises(ModelNotFound, match=r"nowhere\.safetensors"):
        search(str(tmp_path / "nowhere.safetensors"), hub=client)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no header")
    with pytest.raises(ModelCorrupted, match=r"broken\.safetensors"):
        search(str(broken), hub=client)
    assert not hub.requests


def test_errors_say_what_is_wrong(filled_hub: LocalHub, client: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="zoe/nothing"):
        search("zoe/nothing", hub=client)
    with pytest.raises(InvalidInput, match="Only GGUF files"):
        search("ann/fox-artist:v1.safetensors", hub=client)
    filled_hub.faults["/api/models"] = Fault.too_many(1)
    with pytest.raises(Exception, match="rate limit"):
        search("fox", hub=client)
    offline = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache", token="none")  # noqa: S106
    with pytest.raises(HubOffline):
        search("fox", hub=offline)


@pytest.mark.parametrize(
    ("title", "key"),
    [
        ("dreamshaper-8", "dreamshaper-8"),
        ("Realistic Vision V5.1.safetensors", "realistic-vision-v5.1"),
        ("tiny", "tiny-2"),
        ("…", "model"),
        ("many", "many-4"),
        ("x" * 99, "x" * 56),
        ("-.a.gguf", "a"),
    ],
)
def test_keys_are_readable_and_new(title: str, key: str) -> None:
    assert unique_key(title, ["tiny", "starter", "many", "many-2", "many-3"]) == key


def found_as(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> FoundModel:
    """What a search makes of one repository that the Hub lists."""
    model = {
        **{"id": "ann/fox", "likes": 0, "downloads": 0, "gated": False, "tags": [], "files": {}},
        **{"class_name": "StableDiffusionPipeline", "license": {}},
    }
    changes["license"] = {"license": "", "license_name": "", "license_link": "", **changes.get("license", {})}
    monkeypatch.setattr(hub_search, "call", lambda *_: {"models": [{**model, **changes}]})
    [found] = search("fox")
    return found


PAGE = "https://huggingface.co/ann/fox"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"license": "mit", "license_link": "https://x.org"}, ("mit", "")),
        ({"license": "other", "license_name": "fox", "license_link": "https://x.org"}, ("fox", "https://x.org")),
        ({"license": "other"}, ("other", PAGE)),
        (
            {"license": "cc-by-nc-4.0", "license_name": "x", "license_link": "L"},
            ("cc-by-nc-4.0", f"{PAGE}/blob/main/L"),
        ),
    ],
)
def test_licences_with_conditions_have_an_address(
    monkeypatch: pytest.MonkeyPatch, card: dict[str, str], expected: tuple[str, str]
) -> None:
    found = found_as(monkeypatch, license=card)
    assert (found.license, found.terms) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class_name": "", "tags": ["x", "controlnet"]}, "This is a ControlNet"),
        ({"class_name": "", "files": {"b.gguf": 1, "a.gguf": 1}}, "such as ann/fox:a.gguf"),
        ({"class_name": "", "files": None}, "There is no model_index.json"),
        ({"class_name": "IFPipeline"}, "It draws 64x64 pixels"),
        ({"class_name": "WanPipeline", "tags": []}, "does not run WanPipeline"),
    ],
)
def test_what_does_not_run_has_a_reason(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str) -> None:
    found = found_as(monkeypatch, **changes)
    assert reason in str(found.unsupported)
    assert (found.family, found.size) == ("", None)


@pytest.mark.parametrize(
    ("files", "size"),
    [
        (None, None),
        ({"unet/config.json": 1}, None),
        (
            {
                **{"model_index.json": 1, "unet/config.json": 10, "unet/diffusion_pytorch_model.safetensors": 100},
                **{"unet/diffusion_pytorch_model.fp16.safetensors": 50, "vae_onnx/config.json": 1000},
            },
            61,
        ),
        ({"unet/config.json": 10, "unet/diffusion_pytorch_model.safetensors": 100, "a.bin": 5}, 110),
    ],
)
def test_the_size_is_that_of_the_selected_files(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, int] | None, size: int | None
) -> None:
    assert found_as(monkeypatch, files=files).size == size


def test_gguf_files_on_this_computer_are_inspected(hub: LocalHub, client: Hub, tmp_path: Path) -> None:
    path = tmp_path / "flux1-schnell-Q4.gguf"
    with pytest.raises(InvalidInput, match=r"There is no file flux1-schnell-Q4\.gguf"):
        search(str(path), hub=client)
    path.write_bytes(b"x" * 7)
    [found] = search(str(path), hub=client)
    assert (found.source, found.size, found.is_local, found.title) == (str(path), 7, True, path.name)
    assert not hub.requests


@pytest.mark.parametrize(("options", "field"), [({"sort": "size"}, "sort"), ({"family": "sd9"}, "family")])
def test_unknown_orders_and_families_are_refused(client: Hub, options: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        search("fox", hub=client, **options)
    assert caught.value.field == field
