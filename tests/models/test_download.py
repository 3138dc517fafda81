"""Plans, downloads and every fault of a server, with the real huggingface_hub."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from canvas.errors import (
    CanvasError,
    DiskFull,
    DownloadCancelled,
    DownloadFailed,
    HubOffline,
    ModelCorrupted,
    ModelGated,
    ModelNotFound,
    ModelUnavailable,
)
from canvas.models import download
from canvas.models.download import DownloadPlan, DownloadProgress, LocalModel
from canvas.models.hub_client import Hub
from tests.conftest import make_spec
from tests.engine.test_tiny_pipeline import draw
from tests.hub import Fault, LocalHub

UNET = "unet/diffusion_pytorch_model.safetensors"
WRONG_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
SMALL = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
}


@pytest.fixture
def here(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=hub.url, cache_dir=tmp_path / "cache", token="none")  # noqa: S106


def impatient(here: Hub) -> Hub:
    return Hub(here.endpoint, here.cache_dir, here.token, timeout=2)


def plan(repo_id: str, here: Hub, *, half_precision: bool = False) -> DownloadPlan:
    return download.plan_download(make_spec(repo_id), half_precision=half_precision, hub=here)


def fetch(repo_id: str, here: Hub, *, half_precision: bool = False) -> download.Download:
    return download.download(
        make_spec(repo_id),
        plan(repo_id, here, half_precision=half_precision),
        lambda _: None,
        threading.Event(),
        hub=here,
    )


def weights(suffix: str) -> set[str]:
    model = "pytorch_model" if suffix.endswith("bin") else "model"
    return {f"text_encoder/{model}.{suffix}"} | {
        f"{part}/diffusion_pytorch_model.{suffix}" for part in ("unet", "vae")
    }


@pytest.mark.parametrize(
    ("edition", "half_precision", "suffix", "also"),
    [
        ("tiny_folder", False, "safetensors", set()),
        ("tiny_folder", True, "safetensors", set()),
        ("tiny_bin_folder", True, "bin", {"feature_extractor/preprocessor_config.json"}),
        ("tiny_full_folder", False, "safetensors", {"feature_extractor/preprocessor_config.json"}),
        (
            "tiny_full_folder",
            True,
            "fp16.safetensors",
            {"feature_extractor/preprocessor_config.json"},
        ),
    ],
)
def test_plans_and_fetches_exactly_what_is_needed(
    hub: LocalHub,
    here: Hub,
    request: pytest.FixtureRequest,
    edition: str,
    half_precision: bool,
    suffix: str,
    also: set[str],
) -> None:
    hub.add("org/model", request.getfixturevalue(edition))
    planned = plan("org/model", here, half_precision=half_precision)
    expected = SMALL | weights(suffix) | also
    assert {file.path for file in planned.files} == expected
    assert len([path for path in hub.asked("GET") if "/tree/" in path]) == 1
    size = sum(hub.files("org/model")[name].stat().st_size for name in expected)
    assert planned.total_bytes == planned.missing_bytes == size
    assert planned.revision == hub.revision("org/model")
    assert not here.cache.exists(), "a look at a model leaves nothing on the disk"

    hub.requests.clear()
    done = fetch("org/model", here, half_precision=half_precision)
    assert hub.fetched("org/model") == expected
    assert (done.bytes, done.file_count) == (size, len(expected))
    assert download.find_local(make_spec("org/model"), hub=here) == done.local


@pytest.mark.parametrize("edition", ["tiny_bin_folder", "tiny_full_folder"])
def test_a_downloaded_model_draws(
    hub: LocalHub, here: Hub, request: pytest.FixtureRequest, edition: str, tiny_folder: Path
) -> None:
    hub.add("org/model", request.getfixturevalue(edition))
    assert draw(fetch("org/model", here).local.path) == draw(tiny_folder)


def test_the_variant_of_what_was_fetched_is_known(here: Hub, tiny_repo: str) -> None:
    assert fetch(tiny_repo, here, half_precision=True).local.variant == "fp16"
    assert fetch(tiny_repo, here).local.variant is None


def test_progress_grows_to_the_total(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.slow(0.1)
    seen: list[DownloadProgress] = []
    planned = plan(tiny_repo, here)
    download.download(make_spec(tiny_repo), planned, seen.append, threading.Event(), hub=here)
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert done[-1] == planned.total_bytes
    assert {progress.bytes_total for progress in seen} == {planned.total_bytes}
    on_the_way = [progress for progress in seen if 0 < progress.bytes_done < planned.total_bytes]
    assert any(progress.bytes_per_second > 0 and progress.seconds_left for progress in on_the_way)


def test_what_is_in_the_cache_is_not_fetched_again(
    hub: LocalHub, here: Hub, tiny_repo: str
) -> None:
    folder = fetch(tiny_repo, here).local.path
    (folder / UNET).resolve().unlink()
    (folder / UNET).unlink()
    planned = plan(tiny_repo, here)
    assert planned.missing_bytes == hub.files(tiny_repo)[UNET].stat().st_size
    hub.requests.clear()
    done = fetch(tiny_repo, here)
    assert hub.fetched(tiny_repo) == {"model_index.json", UNET}  # the index by the plan
    assert (done.bytes, done.file_count) == (planned.missing_bytes, 1)


@pytest.mark.parametrize("size", [None, 0, 1000])
def test_an_incomplete_snapshot_is_not_found_and_is_mended(
    here: Hub, tiny_repo: str, size: int | None
) -> None:
    spec = make_spec(tiny_repo)
    folder = fetch(tiny_repo, here).local.path
    if size is None:
        (folder / UNET).unlink()
    else:
        with (folder / UNET).open("r+b") as file:
            file.truncate(size)
    assert download.find_local(spec, hub=here) is None
    assert fetch(tiny_repo, here).local == download.find_local(spec, hub=here)


def test_find_local_asks_no_network(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    spec = make_spec(tiny_repo)
    assert download.find_local(spec, hub=here) is None
    fetch(tiny_repo, here)
    hub.requests.clear()
    assert download.find_local(spec, hub=here) is not None
    assert hub.requests == []


def test_mirrors_are_tried_in_order(hub: LocalHub, here: Hub, tiny_folder: Path) -> None:
    hub.add("org/third", tiny_folder)
    hub.faults["org/second"] = Fault.gated()
    spec = make_spec("org/first", mirrors=("org/second", "org/third"))
    planned = download.plan_download(spec, half_precision=False, hub=here)
    assert planned.repo_id == "org/third"
    done = download.download(spec, planned, lambda _: None, threading.Event(), hub=here)
    assert done.local.repo_id == "org/third"
    assert download.find_local(spec, hub=here) == done.local


def test_gone_names_what_was_tried(hub: LocalHub, here: Hub) -> None:
    hub.faults["org/second"] = Fault.gone()
    spec = make_spec("org/first", mirrors=("org/second",))
    with pytest.raises(ModelNotFound, match="Tried were org/first, org/second"):
        download.plan_download(spec, half_precision=False, hub=here)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault.gone(), ModelNotFound, "gone from the Hub"),
        (
            Fault.gated(),
            ModelGated,
            "accept the terms at https://huggingface.co/tiny/diffusion and set HF_TOKEN",
        ),
        (Fault(status=401, headers=WRONG_TOKEN), ModelGated, "new one at .*/settings/tokens"),
        (Fault.errors(), DownloadFailed, "fault of its own .status 500"),
        (Fault.too_many(60), DownloadFailed, "set HF_TOKEN, or wait"),
        (Fault.silent(), DownloadFailed, "sent nothing for 2 seconds"),
    ],
)
def test_a_plan_that_fails_says_why(
    hub: LocalHub, here: Hub, tiny_repo: str, fault: Fault, kind: type[CanvasError], words: str
) -> None:
    hub.faults[tiny_repo] = fault
    with pytest.raises(kind, match=words):
        plan(tiny_repo, impatient(here) if fault.stall else here)


def test_a_gated_file_is_found_by_the_plan(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    hub.faults[f"{tiny_repo}/model_index.json"] = Fault.gated()
    with pytest.raises(ModelGated, match="accept the terms"):
        plan(tiny_repo, here)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault.gated(), ModelGated, "accept the terms"),
        (Fault.no_entry(), ModelCorrupted, "lists a file that the Hub does not have"),
        (Fault.stalls(after=100_000), DownloadFailed, "sent nothing for 2 seconds"),
        (Fault.silent(), DownloadFailed, "sent nothing for 2 seconds"),
        (Fault.too_many(60), DownloadFailed, "sent nothing for 2 seconds .*Rate limited"),
        (Fault.short(1000), DownloadFailed, "arrived damaged and was removed .*1000 of"),
        (Fault.damaged(), DownloadFailed, "arrived damaged and was removed"),
    ],
)
def test_a_download_that_fails_says_why_and_can_be_tried_again(
    hub: LocalHub, here: Hub, tiny_repo: str, fault: Fault, kind: type[CanvasError], words: str
) -> None:
    spec = make_spec(tiny_repo)
    planned = plan(tiny_repo, here)
    hub.faults[f"{tiny_repo}/{UNET}"] = fault
    patience = impatient(here) if "2 seconds" in words else here
    with pytest.raises(kind, match=words):
        download.download(spec, planned, lambda _: None, threading.Event(), hub=patience)
    assert download.find_local(spec, hub=here) is None
    assert not list(here.cache.rglob("*.incomplete"))
    hub.faults.clear()
    assert fetch(tiny_repo, here).local == download.find_local(spec, hub=here)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.errors(times=2, method="HEAD"),
        Fault.errors(times=2, method="GET"),
        Fault.too_many(1, times=2),
        Fault.breaks(after=200_000, times=1),
        Fault.redirected(),
    ],
    ids=["500 for HEAD", "500 for GET", "429", "broken connection", "redirect"],
)
def test_a_passing_fault_is_got_over(
    hub: LocalHub, here: Hub, tiny_repo: str, fault: Fault
) -> None:
    hub.faults[f"{tiny_repo}/{UNET}"] = fault
    local = fetch(tiny_repo, here).local
    assert (local.path / UNET).read_bytes() == hub.files(tiny_repo)[UNET].read_bytes()


@pytest.fixture
def changed_folder(tiny_full_folder: Path, tmp_path: Path) -> Path:
    """The next commit of the repository: other weights of the same size, and one file more."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_full_folder, folder)
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "README.md").write_text("newer")
    return folder


def test_a_repository_that_changes_under_way_gives_one_whole_commit(
    hub: LocalHub, here: Hub, tiny_repo: str, tiny_full_folder: Path, changed_folder: Path
) -> None:
    planned = plan(tiny_repo, here)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.slow(0.01)
    moved: list[str] = []

    def move(progress: DownloadProgress) -> None:
        if not moved:
            moved.append(hub.add(tiny_repo, changed_folder))

    spec = make_spec(tiny_repo)
    done = download.download(spec, planned, move, threading.Event(), hub=here)
    assert moved and done.local.revision == planned.revision != moved[0]
    for file in planned.files:
        name = file.path
        assert (done.local.path / name).read_bytes() == (tiny_full_folder / name).read_bytes()
    newer = plan(tiny_repo, here)
    assert newer.revision == moved[0]
    assert newer.missing_bytes == (changed_folder / UNET).stat().st_size, "only what changed"


def test_a_commit_that_vanishes_under_way_is_said_and_the_next_one_comes(
    hub: LocalHub, here: Hub, tiny_repo: str, changed_folder: Path
) -> None:
    planned = plan(tiny_repo, here)
    del hub.commits[planned.revision]
    hub.add(tiny_repo, changed_folder)
    spec = make_spec(tiny_repo)
    with pytest.raises(ModelUnavailable):
        download.download(spec, planned, lambda _: None, threading.Event(), hub=here)
    assert download.find_local(spec, hub=here) is None
    local = fetch(tiny_repo, here).local
    assert (local.path / UNET).read_bytes() == (changed_folder / UNET).read_bytes()


def test_offline_in_the_middle_keeps_what_came(
    hub: LocalHub, here: Hub, tiny_repo: str, tiny_full_folder: Path
) -> None:
    planned = plan(tiny_repo, here)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.stalls(after=100_000)

    def cut(progress: DownloadProgress) -> None:
        if progress.bytes_done > 100_000:
            hub.close()

    spec = make_spec(tiny_repo)
    with pytest.raises((HubOffline, DownloadFailed)):
        download.download(spec, planned, cut, threading.Event(), hub=impatient(here))
    assert download.find_local(spec, hub=here) is None, "what is broken is not loaded"
    again = LocalHub()
    try:
        again.add(tiny_repo, tiny_full_folder)
        back = Hub(again.url, here.cache_dir, here.token)
        left = plan(tiny_repo, back)
        assert 0 < left.missing_bytes < left.total_bytes
        assert fetch(tiny_repo, back).bytes == left.missing_bytes
    finally:
        again.close()


def test_a_plan_gets_over_passing_errors(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    hub.faults[tiny_repo] = Fault.errors(times=2)
    assert plan(tiny_repo, here).files


def test_a_download_can_be_stopped_and_goes_on_later(
    hub: LocalHub, here: Hub, tiny_repo: str
) -> None:
    spec = make_spec(tiny_repo)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.stalls(after=100_000)
    cancelled = threading.Event()

    def stop(progress: DownloadProgress) -> None:
        if progress.bytes_done > 100_000:
            cancelled.set()

    with pytest.raises(DownloadCancelled, match="whole stay"):
        download.download(spec, plan(tiny_repo, here), stop, cancelled, hub=here)
    assert not list(here.cache.rglob("*.incomplete"))
    hub.faults.clear()
    left = plan(tiny_repo, here)
    assert 0 < left.missing_bytes < left.total_bytes
    assert fetch(tiny_repo, here).bytes == left.missing_bytes


def test_a_plan_can_be_stopped(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    hub.faults[tiny_repo] = Fault.silent()
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(DownloadCancelled):
        download.plan_download(
            make_spec(tiny_repo), half_precision=False, hub=here, cancelled=cancelled
        )


def test_offline_says_what_is_on_disk(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    offline = Hub("http://127.0.0.1:9", here.cache_dir, here.token)
    with pytest.raises(HubOffline, match="Nothing of tiny-test is on this disk"):
        plan(tiny_repo, offline)
    folder = fetch(tiny_repo, here).local.path
    with pytest.raises(HubOffline, match="complete on this disk"):
        plan(tiny_repo, offline)
    (folder / UNET).unlink()
    with pytest.raises(HubOffline, match="MB are on this disk, not enough"):
        plan(tiny_repo, offline)


def test_a_full_disk_is_said_before_anything_is_fetched(
    hub: LocalHub, here: Hub, tiny_repo: str
) -> None:
    planned = plan(tiny_repo, here)
    huge = download.PlannedFile("unet/config.json", 10**18, "git:0")
    planned = DownloadPlan(planned.repo_id, planned.revision, (huge,), 10**18, 10**18, 0)
    hub.requests.clear()
    with pytest.raises(DiskFull, match=r"needs 1000000000\.00 GB, .* has \d+\.\d\d GB free"):
        download.download(
            make_spec(tiny_repo), planned, lambda _: None, threading.Event(), hub=here
        )
    assert hub.requests == []


def test_no_pipeline_is_said(hub: LocalHub, here: Hub, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}", encoding="utf-8")
    hub.add("org/other", tmp_path / "other")
    with pytest.raises(ModelCorrupted, match=r"org/other has no readable model_index\.json"):
        plan("org/other", here)


def test_a_name_that_cannot_be_a_repository(here: Hub) -> None:
    with pytest.raises(ModelNotFound, match="no folder or file on this machine, nor"):
        plan("./nowhere/at/all", here)


def test_a_folder_needs_no_download(tiny_folder: Path, here: Hub) -> None:
    spec = make_spec(str(tiny_folder))
    local = download.find_local(spec, hub=here)
    assert local == LocalModel(tiny_folder, str(tiny_folder))
    planned = plan(str(tiny_folder), here)
    assert (planned.files, planned.missing_bytes) == ((), 0)
    done = download.download(spec, planned, lambda _: None, threading.Event(), hub=here)
    assert (done.local, done.bytes) == (local, 0)


def test_a_folder_that_is_not_there(tmp_path: Path, here: Hub) -> None:
    name = str(tmp_path / "missing")
    assert download.find_local(make_spec(name), hub=here) is None
    with pytest.raises(ModelNotFound, match="does not exist"):
        plan(name, here)


def test_bytes_on_disk_and_remove(hub: LocalHub, here: Hub, tiny_repo: str) -> None:
    hub.add("org/other", hub.repositories[tiny_repo])
    spec = make_spec(tiny_repo)
    assert download.model_bytes_on_disk(spec, hub=here) == 0
    done = fetch(tiny_repo, here)
    other = fetch("org/other", here)
    size = download.model_bytes_on_disk(spec, hub=here)
    assert size >= done.bytes
    assert download.remove(spec, hub=here) == size
    assert download.model_bytes_on_disk(spec, hub=here) == 0
    assert download.find_local(spec, hub=here) is None
    assert download.find_local(make_spec("org/other"), hub=here) == other.local
    assert download.remove(spec, hub=here) == 0
    assert fetch(tiny_repo, here).bytes == done.bytes


def test_a_folder_of_the_user_is_never_removed(tiny_folder: Path, here: Hub) -> None:
    spec = make_spec(str(tiny_folder))
    size = sum(path.stat().st_size for path in tiny_folder.rglob("*") if path.is_file())
    assert download.model_bytes_on_disk(spec, hub=here) == size
    with pytest.raises(CanvasError, match="your own"):
        download.remove(spec, hub=here)
    assert tiny_folder.is_dir()
