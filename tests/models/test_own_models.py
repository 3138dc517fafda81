"""Adding, changing and removing models while the program runs."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvas import Studio
from canvas.catalog import MODELS
from canvas.errors import ContentBlocked, InvalidInput, LazyMessage, ModelGated, ModelUnsupported, StorageError
from canvas.models.hub_client import Hub
from canvas.models.hub_search import FoundModel
from canvas.models.own_models import ModelsFile
from canvas.settings import Settings
from tests.hub_server import Fault, LocalHub

OWN = """# My models
[mine]  # the best one
name = "ann/mine"
resolution = 512

[small]
half_precision = true
"""


@pytest.fixture
def studio(settings: Settings, hub: LocalHub, tmp_path: Path) -> Iterator[Studio]:
    client = Hub(endpoint=hub.url, cache_dir=tmp_path / "cache", token="none")  # noqa: S106
    with Studio(settings, hub=client) as studio:
        yield studio


def tables(studio: Studio) -> dict[str, dict[str, object]]:
    return tomllib.loads(studio.settings.models_file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_model_is_added_and_still_there_after_a_restart(studio: Studio, tiny_repo: str, settings: Settings) -> None:
    found = FoundModel(tiny_repo, license="mit", size=1_234_567)
    spec = studio.own_models.add(found)
    assert (spec.key, spec.group, spec.resolution, spec.unset) == ("diffusion", "Own models", 512, ())
    assert tables(studio) == {
        "diffusion": {"name": tiny_repo, "title": "diffusion", "size": "1.2 MB", "license": "mit"}
    }
    job = studio.download_model(spec.key)
    job.wait()
    with Studio(settings) as again:
        assert again.models["diffusion"].name == tiny_repo
    with pytest.raises(InvalidInput, match="diffusion is in the list already"):
        studio.own_models.add(found)


def test_what_does_not_run_is_not_added(studio: Studio, hub: LocalHub, tiny_repo: str, tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    hub.add("bob/video", tmp_path / "video")
    with pytest.raises(ModelUnsupported, match="CogVideoXPipeline"):
        studio.own_models.add(FoundModel("bob/video"))
    hub.faults[tiny_repo] = Fault.gated()
    with pytest.raises(ModelGated):
        studio.own_models.add(FoundModel(tiny_repo))
    assert not studio.settings.models_file.exists()
    assert set(studio.models) == set(MODELS)


def test_a_local_model_is_added_and_removed_without_its_files(studio: Studio, tiny_folder: Path) -> None:
    spec = studio.own_models.add(FoundModel(str(tiny_folder)))
    assert spec.resolution == 64
    assert studio.model_status(spec.key).location == "disk"
    studio.own_models.remove(spec.key)
    assert spec.key not in studio.models
    assert tables(studio) == {}
    assert (tiny_folder / "model_index.json").is_file()


@pytest.mark.slow
def test_removing_deletes_the_download_unless_another_model_needs_it(studio: Studio, tiny_repo: str) -> None:
    first = studio.own_models.add(FoundModel(tiny_repo))
    studio.download_model(first.key).wait()
    studio.models["same"] = {"name": tiny_repo}
    studio.own_models.remove(first.key)
    assert studio.is_on_disk("same")
    del studio.models["same"]
    again = studio.own_models.add(FoundModel(tiny_repo))
    studio.own_models.remove(again.key)
    studio.models["same"] = {"name": tiny_repo}
    assert not studio.is_on_disk("same")


def test_defaults_are_changed_and_restored(studio: Studio, settings: Settings) -> None:
    before = studio.models["small"]
    changed = studio.own_models.edit("small", {"num_inference_steps": 9, "guidance_scale": 3.5, "resolution": 448})
    assert (changed.num_inference_steps, changed.guidance_scale, changed.resolution) == (9, 3.5, 448)
    assert changed.name == before.name
    assert tables(studio) == {"small": {"num_inference_steps": 9, "guidance_scale": 3.5, "resolution": 448}}
    with Studio(settings) as again:
        assert again.models["small"] == changed
    with pytest.raises(InvalidInput, match=r"resolution must be a multiple of 8"):
        studio.own_models.edit("small", {"resolution": 450})
    assert studio.models["small"] == changed
    studio.own_models.reset("small")
    assert studio.models["small"] == before
    assert tables(studio) == {}


def test_other_content_of_the_file_stays(settings: Settings, hub: LocalHub, tmp_path: Path) -> None:
    settings.make_data_dir()
    settings.models_file.write_text(OWN)
    with Studio(settings) as studio:
        assert studio.models["small"].half_precision
        assert studio.models["small"].name == MODELS["small"].name
        studio.own_models.edit("mine", {"num_inference_steps": 7})
        studio.own_models.edit("small", {"num_inference_steps": 8})
        studio.own_models.reset("mine")
        assert studio.models["mine"].name == "ann/mine"
        text = settings.models_file.read_text()
        assert "# My models\n[mine]  # the best one\n" in text
        assert "resolution = 512" not in text, "a default of the dialog"
        assert tables(studio)["small"] == {"half_precision": True, "num_inference_steps": 8}


def test_a_model_is_added_once_with_what_is_known(studio: Studio, tiny_folder: Path) -> None:
    found = FoundModel(str(tiny_folder), license="mit", size=0)
    spec = studio.own_models.add(found)
    assert studio.own_models.is_own(spec.key)
    assert not studio.own_models.is_own("small")
    assert set(tables(studio)[spec.key]) == {"name", "title", "size", "license"}
    with pytest.raises(InvalidInput, match=f"{spec.key} is in the list already"):
        studio.own_models.add(found)
    with pytest.raises(InvalidInput, match="a reason"):
        studio.own_models.add(FoundModel("o/x", unsupported=LazyMessage("a reason")))


def test_reset_without_changes_changes_nothing(studio: Studio) -> None:
    before = studio.models["small"]
    studio.own_models.reset("small")
    assert studio.models["small"] == before
    assert tables(studio) == {}


def test_what_belongs_to_the_program_stays(studio: Studio) -> None:
    with pytest.raises(InvalidInput, match="small belongs to the program"):
        studio.own_models.remove("small")


def test_the_default_model_stays(settings: Settings, tiny_folder: Path) -> None:
    settings.make_data_dir()
    ModelsFile(settings.models_file).update("mine", {"name": str(tiny_folder)})
    expected = pytest.raises(InvalidInput, match="mine is the default model")
    with Studio(settings.model_copy(update={"model": "mine"})) as studio, expected:
        studio.own_models.remove("mine")


def test_visitors_of_a_public_server_change_nothing(settings: Settings, tiny_folder: Path) -> None:
    with Studio(settings.model_copy(update={"public": True})) as studio:
        found = FoundModel(str(tiny_folder))
        for change in (
            lambda: studio.own_models.search("fox", family="", sort="trending", open_only=False),
            lambda: studio.own_models.add(found),
            lambda: studio.own_models.edit("small", {"num_inference_steps": 1}),
            lambda: studio.own_models.reset("small"),
            lambda: studio.own_models.remove("small"),
        ):
            with pytest.raises(ContentBlocked):
                change()
        assert not studio.settings.models_file.exists()


def test_concurrent_changes_are_all_kept(tmp_path: Path) -> None:
    file = ModelsFile(tmp_path / "models.toml")
    threads = [threading.Thread(target=file.update, args=(f"a.{n}", {"name": f"o/{n}"})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.tables() == {f"a.{n}": {"name": f"o/{n}"} for n in range(20)}
    assert [path.name for path in tmp_path.iterdir()] == ["models.toml"]


def test_a_damaged_file_is_reported_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text("[mine\n")
    with pytest.raises(InvalidInput, match="is not valid TOML"):
        ModelsFile(path).update("other", {"name": "o/x"})
    assert path.read_text() == "[mine\n"


def test_tables_are_changed_one_by_one(tmp_path: Path) -> None:
    file = ModelsFile(tmp_path / "models.toml")
    assert file.tables() == {}
    file.update("a", {"name": "o/a", "resolution": 512})
    file.update("b", {"name": "o/b"})
    file.unset("a", ["resolution", "size"])
    assert file.tables() == {"a": {"name": "o/a"}, "b": {"name": "o/b"}}
    file.unset("a", ["name"])
    file.unset("c", ["name"])
    assert file.tables() == {"b": {"name": "o/b"}}
    assert not file.remove("a")
    assert file.remove("b")
    assert file.tables() == {}


def test_a_file_that_cannot_be_read_or_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "models.toml").mkdir()
    with pytest.raises(StorageError, match=r"models\.toml cannot be read"):
        ModelsFile(tmp_path / "models.toml").tables()
    with pytest.raises(StorageError, match=r"models\.toml cannot be written"):
        ModelsFile(tmp_path / "none" / "models.toml").update("a", {"name": "o/a"})
