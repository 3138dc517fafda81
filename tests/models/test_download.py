"""Planning and downloading with the real huggingface_hub, and every server fault."""

from __future__ import annotations

import inspect
import shutil
import threading
from dataclasses import replace
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
from tests.engine.test_tiny_pipeline import render
from tests.hub_server import Fault, LocalHub

UNET = "unet/diffusion_pytorch_model.safetensors"
INVALID_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
CONFIG_FILES = {
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
def client(hub: LocalHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=hub.url, cache_dir=tmp_path / "cache", token="none")  # noqa: S106


def with_short_timeout(client: Hub) -> Hub:
    return Hub(client.endpoint, client.cache_dir, client.token, timeout=2)


def plan(repo_id: str, client: Hub, *, half_precision: bool = False) -> DownloadPlan:
    return download.plan_download(replace(make_spec(repo_id), half_precision=half_precision), hub=client)


def fetch(repo_id: str, client: Hub, *, half_precision: bool = False) -> download.DownloadResult:
    return download.download(
        make_spec(repo_id),
        plan(repo_id, client, half_precision=half_precision),
        lambda _: None,
        threading.Event(),
        hub=client,
    )


def weights(suffix: str) -> set[str]:
    model = "pytorch_model" if suffix.endswith("bin") else "model"
    return {f"text_encoder/{model}.{suffix}"} | {f"{part}/diffusion_pytorch_model.{suffix}" for part in ("unet", "vae")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "half_precision", "suffix", "extra"),
    [
        ("tiny_folder", False, "safetensors", set()),
        ("tiny_folder", True, "safetensors", set()),
        ("tiny_bin_folder", True, "bin", {"feature_extractor/preprocessor_config.json"}),
        ("tiny_full_folder", False, "safetensors", {"feature_extractor/preprocessor_config.json"}),
        ("tiny_full_folder", True, "fp16.safetensors", {"feature_extractor/preprocessor_config.json"}),
    ],
)
def test_only_needed_files_are_planned_and_downloaded(
    hub: LocalHub,
    client: Hub,
    request: pytest.FixtureRequest,
    layout: str,
    half_precision: bool,
    suffix: str,
    extra: set[str],
) -> None:
    hub.add("org/model", request.getfixturevalue(layout))
    planned = plan("org/model", client, half_precision=half_precision)
    expected = CONFIG_FILES | weights(suffix) | extra
    assert {file.path for file in planned.files} == expected
    assert len([path for path in hub.asked("GET") if "/tree/" in path]) == 1
    size = sum(hub.files("org/model")[name].stat().st_size for name in expected)
    assert planned.total_bytes == planned.missing_bytes == size
    assert planned.revision == hub.revision("org/model")
    assert not client.cache.exists(), "planning writes nothing to the cache"

    hub.requests.clear()
    done = fetch("org/model", client, half_precision=half_precision)
    assert hub.fetched("org/model") == expected
    assert (done.bytes, done.file_count) == (size, len(expected))
    assert download.find_local(make_spec("org/model"), hub=client) == done.local


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tiny_bin_folder", "tiny_full_folder"])
def test_downloaded_model_generates(
    hub: LocalHub, client: Hub, request: pytest.FixtureRequest, layout: str, tiny_folder: Path
) -> None:
    hub.add("org/model", request.getfixturevalue(layout))
    assert render(fetch("org/model", client).local.path) == render(tiny_folder)


@pytest.mark.slow
def test_local_model_has_variant(client: Hub, tiny_repo: str) -> None:
    assert fetch(tiny_repo, client, half_precision=True).local.variant == "fp16"
    assert fetch(tiny_repo, client).local.variant is None


@pytest.mark.slow
def test_progress_increases_to_total(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.slow(0.1)
    updates: list[DownloadProgress] = []
    planned = plan(tiny_repo, client)
    download.download(make_spec(tiny_repo), planned, updates.append, threading.Event(), hub=client)
    done = [progress.bytes_done for progress in updates]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert done[-1] == planned.total_bytes
    assert {progress.bytes_total for progress in updates} == {planned.total_bytes}
    partial = [progress for progress in updates if 0 < progress.bytes_done < planned.total_bytes]
    assert any(progress.bytes_per_second > 0 and progress.seconds_left for progress in partial)


def test_cached_files_are_not_downloaded_again(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    folder = fetch(tiny_repo, client).local.path
    (folder / UNET).resolve().unlink()
    (folder / UNET).unlink()
    planned = plan(tiny_repo, client)
    assert planned.missing_bytes == hub.files(tiny_repo)[UNET].stat().st_size
    hub.requests.clear()
    done = fetch(tiny_repo, client)
    assert hub.fetched(tiny_repo) == {"model_index.json", UNET}  # the plan reads the index
    assert (done.bytes, done.file_count) == (planned.missing_bytes, 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 0, 1000])
def test_incomplete_snapshot_is_not_found_and_is_completed(client: Hub, tiny_repo: str, size: int | None) -> None:
    spec = make_spec(tiny_repo)
    folder = fetch(tiny_repo, client).local.path
    if size is None:
        (folder / UNET).unlink()
    else:
        with (folder / UNET).open("r+b") as file:
            file.truncate(size)
    assert download.find_local(spec, hub=client) is None
    assert fetch(tiny_repo, client).local == download.find_local(spec, hub=client)


def test_find_local_makes_no_request(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    spec = make_spec(tiny_repo)
    assert download.find_local(spec, hub=client) is None
    fetch(tiny_repo, client)
    hub.requests.clear()
    assert download.find_local(spec, hub=client) is not None
    assert hub.requests == []


@pytest.mark.slow
def test_mirrors_are_tried_in_order(hub: LocalHub, client: Hub, tiny_folder: Path) -> None:
    hub.add("org/third", tiny_folder)
    hub.faults["org/second"] = Fault.gated()
    spec = make_spec("org/first", mirrors=("org/second", "org/third"))
    planned = download.plan_download(spec, hub=client)
    assert planned.repo_id == "org/third"
    done = download.download(spec, planned, lambda _: None, threading.Event(), hub=client)
    assert done.local.repo_id == "org/third"
    assert download.find_local(spec, hub=client) == done.local


def test_not_found_error_names_all_repositories(hub: LocalHub, client: Hub) -> None:
    hub.faults["org/second"] = Fault.gone()
    spec = make_spec("org/first", mirrors=("org/second",))
    with pytest.raises(ModelNotFound, match="Tried: org/first, org/second"):
        download.plan_download(spec, hub=client)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault.gone(), ModelNotFound, "does not exist on the Hub"),
        (Fault.gated(), ModelGated, "accept the terms at https://huggingface.co/tiny/diffusion and set HF_TOKEN"),
        (Fault(status=401, headers=INVALID_TOKEN), ModelGated, "new one at .*/settings/tokens"),
        (Fault.errors(), DownloadFailed, "returned an error .status 500"),
        (Fault.too_many(60), DownloadFailed, "Set HF_TOKEN, or try again"),
        (Fault.silent(), DownloadFailed, "sent nothing for 2 seconds"),
    ],
)
def test_failed_plan_raises_the_reason(
    hub: LocalHub, client: Hub, tiny_repo: str, fault: Fault, kind: type[CanvasError], message: str
) -> None:
    hub.faults[tiny_repo] = fault
    with pytest.raises(kind, match=message):
        plan(tiny_repo, with_short_timeout(client) if fault.stall else client)


def test_plan_detects_gated_files(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    hub.faults[f"{tiny_repo}/model_index.json"] = Fault.gated()
    with pytest.raises(ModelGated, match="accept the terms"):
        plan(tiny_repo, client)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "message"),
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
def test_failed_download_raises_the_reason_and_can_be_retried(
    hub: LocalHub, client: Hub, tiny_repo: str, fault: Fault, kind: type[CanvasError], message: str
) -> None:
    spec = make_spec(tiny_repo)
    planned = plan(tiny_repo, client)
    hub.faults[f"{tiny_repo}/{UNET}"] = fault
    source = with_short_timeout(client) if "2 seconds" in message else client
    with pytest.raises(kind, match=message):
        download.download(spec, planned, lambda _: None, threading.Event(), hub=source)
    assert download.find_local(spec, hub=client) is None
    hub.faults.clear()
    assert fetch(tiny_repo, client).local == download.find_local(spec, hub=client)
    assert not list(client.cache.rglob("*.incomplete"))


@pytest.mark.slow
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
def test_temporary_fault_is_retried(hub: LocalHub, client: Hub, tiny_repo: str, fault: Fault) -> None:
    hub.faults[f"{tiny_repo}/{UNET}"] = fault
    local = fetch(tiny_repo, client).local
    assert (local.path / UNET).read_bytes() == hub.files(tiny_repo)[UNET].read_bytes()


@pytest.fixture
def changed_folder(tiny_full_folder: Path, tmp_path: Path) -> Path:
    """The next commit of the repository: other weights of the same size, and a new file."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_full_folder, folder)
    content = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "README.md").write_text("newer")
    return folder


@pytest.mark.slow
def test_commit_during_download_does_not_mix_files(
    hub: LocalHub, client: Hub, tiny_repo: str, tiny_full_folder: Path, changed_folder: Path
) -> None:
    planned = plan(tiny_repo, client)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.slow(0.01)
    commits: list[str] = []

    def commit(_: DownloadProgress) -> None:
        if not commits:
            commits.append(hub.add(tiny_repo, changed_folder))

    spec = make_spec(tiny_repo)
    done = download.download(spec, planned, commit, threading.Event(), hub=client)
    assert commits and done.local.revision == planned.revision != commits[0]
    for file in planned.files:
        name = file.path
        assert (done.local.path / name).read_bytes() == (tiny_full_folder / name).read_bytes()
    newer = plan(tiny_repo, client)
    assert newer.revision == commits[0]
    assert newer.missing_bytes == (changed_folder / UNET).stat().st_size, "only what changed"


@pytest.mark.slow
def test_removed_commit_fails_and_the_next_one_downloads(
    hub: LocalHub, client: Hub, tiny_repo: str, changed_folder: Path
) -> None:
    planned = plan(tiny_repo, client)
    del hub.commits[planned.revision]
    hub.add(tiny_repo, changed_folder)
    spec = make_spec(tiny_repo)
    with pytest.raises(ModelUnavailable):
        download.download(spec, planned, lambda _: None, threading.Event(), hub=client)
    assert download.find_local(spec, hub=client) is None
    local = fetch(tiny_repo, client).local
    assert (local.path / UNET).read_bytes() == (changed_folder / UNET).read_bytes()


@pytest.mark.slow
def test_complete_files_are_kept_when_the_connection_is_lost(
    hub: LocalHub, client: Hub, tiny_repo: str, tiny_full_folder: Path
) -> None:
    planned = plan(tiny_repo, client)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.stalls(after=100_000)

    def disconnect(progress: DownloadProgress) -> None:
        if progress.bytes_done > 100_000:
            hub.close()

    spec = make_spec(tiny_repo)
    with pytest.raises((HubOffline, DownloadFailed)):
        download.download(spec, planned, disconnect, threading.Event(), hub=with_short_timeout(client))
    assert download.find_local(spec, hub=client) is None, "an incomplete model is not found"
    again = LocalHub()
    try:
        again.add(tiny_repo, tiny_full_folder)
        back = Hub(again.url, client.cache_dir, client.token)
        left = plan(tiny_repo, back)
        assert 0 < left.missing_bytes < left.total_bytes
        assert fetch(tiny_repo, back).bytes == left.missing_bytes
    finally:
        again.close()


@pytest.mark.slow
def test_plan_retries_temporary_errors(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    hub.faults[tiny_repo] = Fault.errors(times=2)
    assert plan(tiny_repo, client).files


@pytest.mark.slow
def test_cancelled_download_keeps_complete_files(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    spec = make_spec(tiny_repo)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.stalls(after=100_000)
    cancelled = threading.Event()

    def cancel(progress: DownloadProgress) -> None:
        if progress.bytes_done > 100_000:
            cancelled.set()

    with pytest.raises(DownloadCancelled, match="What has arrived is kept"):
        download.download(spec, plan(tiny_repo, client), cancel, cancelled, hub=client)
    hub.faults.clear()
    left = plan(tiny_repo, client)
    assert 0 < left.missing_bytes < left.total_bytes
    assert fetch(tiny_repo, client).bytes == left.missing_bytes


def partial_file(client: Hub, repo_id: str, path: str) -> Path:
    [file] = [file for file in plan(repo_id, client).files if file.path == path]
    return client.repo_folder(repo_id) / "blobs" / f"{file.etag}.incomplete"


def test_file_is_continued_where_it_broke_off(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    content = hub.files(tiny_repo)[UNET].read_bytes()
    partial = partial_file(client, tiny_repo, UNET)
    whole = plan(tiny_repo, client)
    hub.faults[f"{tiny_repo}/{UNET}"] = Fault.breaks(after=len(content) // 2)
    cancelled = threading.Event()

    def cancel(_: DownloadProgress) -> None:
        if partial.exists() and partial.stat().st_size >= len(content) // 2:
            cancelled.set()

    with pytest.raises((DownloadCancelled, DownloadFailed)):
        download.download(make_spec(tiny_repo), whole, cancel, cancelled, hub=with_short_timeout(client))
    kept = partial.stat().st_size
    assert kept >= len(content) // 2
    rest = plan(tiny_repo, client)
    assert rest.missing_bytes <= rest.total_bytes - kept
    hub.faults.clear()
    hub.bytes_sent = 0
    updates: list[DownloadProgress] = []
    done = download.download(make_spec(tiny_repo), rest, updates.append, threading.Event(), hub=client)
    assert hub.bytes_sent <= whole.total_bytes - kept + 10_000
    assert done.bytes == rest.missing_bytes
    assert updates[0].bytes_done in (0, rest.total_bytes - rest.missing_bytes)
    counts = [progress.bytes_done for progress in updates]
    assert counts == sorted(counts) and counts[-1] == rest.total_bytes
    assert (done.local.path / UNET).read_bytes() == content
    assert not list(client.cache.rglob("*.incomplete"))


@pytest.mark.slow
def test_damaged_beginning_is_downloaded_again(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    content = hub.files(tiny_repo)[UNET].read_bytes()
    partial = partial_file(client, tiny_repo, UNET)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(len(content) // 2))
    assert (fetch(tiny_repo, client).local.path / UNET).read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize("surplus", [0, 1])
def test_complete_and_too_long_partial_files(hub: LocalHub, client: Hub, tiny_repo: str, surplus: int) -> None:
    content = hub.files(tiny_repo)[UNET].read_bytes()
    partial = partial_file(client, tiny_repo, UNET)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content + bytes(surplus))
    hub.requests.clear()
    done = fetch(tiny_repo, client)
    assert (done.local.path / UNET).read_bytes() == content
    assert (UNET in hub.fetched(tiny_repo)) == (surplus > 0)


@pytest.mark.slow
def test_stalled_connection_is_replaced(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    size = hub.files(tiny_repo)[UNET].stat().st_size
    fault = Fault.stalls(after=size // 2)
    fault.times, fault.method = 1, "GET"
    hub.faults[f"{tiny_repo}/{UNET}"] = fault
    source = Hub(client.endpoint, client.cache_dir, client.token, timeout=6)
    spec = make_spec(tiny_repo)
    planned = plan(tiny_repo, client)
    local = download.download(spec, planned, lambda _: None, threading.Event(), hub=source).local
    assert (local.path / UNET).read_bytes() == hub.files(tiny_repo)[UNET].read_bytes()


@pytest.mark.long
def test_last_tenth_of_a_large_file_is_fetched_after_the_process_was_killed(
    hub: LocalHub, client: Hub, tiny_folder: Path, tmp_path: Path
) -> None:
    size = 1_700_000_000
    folder = shutil.copytree(tiny_folder, tmp_path / "large")
    large = folder / UNET
    with large.open("r+b") as file:
        file.truncate(size)  # sparse: takes no space here
    hub.add("org/large", folder)
    planned = plan("org/large", client)
    partial = partial_file(client, "org/large", UNET)
    cancelled = threading.Event()

    def stop(_: DownloadProgress) -> None:
        if partial.exists() and partial.stat().st_size >= size * 9 // 10:
            cancelled.set()

    # The server breaks off there, so that the file cannot be complete before it is stopped.
    hub.faults[f"org/large/{UNET}"] = Fault.stalls(after=size * 9 // 10 + 1_000_000)
    with pytest.raises(DownloadCancelled):  # it kills the process that downloads
        download.download_files(client, planned, stop, cancelled)
    hub.faults.clear()
    hub.bytes_sent = 0
    rest = plan("org/large", client)
    assert rest.missing_bytes <= size / 10
    download.download_files(client, rest, lambda _: None, threading.Event())
    assert hub.bytes_sent <= size / 10 + 100_000, "a tenth and the file list"


def test_worker_replaces_what_the_library_has() -> None:
    """`hub_worker` replaces a private function; a release that renames it must be noticed."""
    from huggingface_hub import file_download

    parameters = inspect.signature(file_download._download_to_tmp_and_move).parameters
    assert list(parameters) == [
        *("incomplete_path", "destination_path", "url_to_download", "headers", "expected_size"),
        *("filename", "force_download", "etag", "xet_file_data", "tqdm_class"),
    ]
    assert {"resume_size", "expected_size"} <= set(inspect.signature(file_download.http_get).parameters)
    assert callable(file_download._chmod_and_move)


def test_plan_can_be_cancelled(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    hub.faults[tiny_repo] = Fault.silent()
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(DownloadCancelled):
        download.plan_download(make_spec(tiny_repo), hub=client, cancelled=cancelled)


@pytest.mark.slow
def test_offline_error_says_what_is_on_disk(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    offline = Hub("http://127.0.0.1:9", client.cache_dir, client.token)
    with pytest.raises(HubOffline, match="tiny-test is not downloaded yet"):
        plan(tiny_repo, offline)
    folder = fetch(tiny_repo, client).local.path
    with pytest.raises(HubOffline, match="already downloaded and works offline"):
        plan(tiny_repo, offline)
    (folder / UNET).unlink()
    with pytest.raises(HubOffline, match=r"only partly downloaded \(\d+ MB\)"):
        plan(tiny_repo, offline)


def test_full_disk_fails_before_the_download(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    planned = plan(tiny_repo, client)
    huge = download.PlannedFile("unet/config.json", 10**18, "0")
    planned = DownloadPlan(planned.repo_id, planned.revision, (huge,), 10**18, 10**18, 0)
    hub.requests.clear()
    with pytest.raises(DiskFull, match=r"needs 1000000000\.00 GB, .* has only \d+\.\d\d GB free"):
        download.download(make_spec(tiny_repo), planned, lambda _: None, threading.Event(), hub=client)
    assert hub.requests == []


def test_repository_without_pipeline_is_an_error(hub: LocalHub, client: Hub, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}", encoding="utf-8")
    hub.add("org/other", tmp_path / "other")
    with pytest.raises(ModelCorrupted, match=r"org/other is no diffusers pipeline: no readable model_index\.json"):
        plan("org/other", client)


def test_invalid_repository_id_is_an_error(client: Hub) -> None:
    with pytest.raises(ModelNotFound, match="neither a local file or folder nor"):
        plan("./nowhere/at/all", client)


def test_local_folder_needs_no_download(tiny_folder: Path, client: Hub) -> None:
    spec = make_spec(str(tiny_folder))
    local = download.find_local(spec, hub=client)
    assert local == LocalModel(tiny_folder, str(tiny_folder))
    planned = plan(str(tiny_folder), client)
    assert (planned.files, planned.missing_bytes) == ((), 0)
    done = download.download(spec, planned, lambda _: None, threading.Event(), hub=client)
    assert (done.local, done.bytes) == (local, 0)


def test_missing_local_folder_is_an_error(tmp_path: Path, client: Hub) -> None:
    name = str(tmp_path / "missing")
    assert download.find_local(make_spec(name), hub=client) is None
    with pytest.raises(ModelNotFound, match="does not exist"):
        plan(name, client)


@pytest.mark.slow
def test_bytes_on_disk_and_remove(hub: LocalHub, client: Hub, tiny_repo: str) -> None:
    hub.add("org/other", hub.repositories[tiny_repo])
    spec = make_spec(tiny_repo)
    assert download.model_bytes_on_disk(spec, hub=client) == 0
    done = fetch(tiny_repo, client)
    other = fetch("org/other", client)
    size = download.model_bytes_on_disk(spec, hub=client)
    assert size >= done.bytes
    assert download.remove(spec, hub=client) == size
    assert download.model_bytes_on_disk(spec, hub=client) == 0
    assert download.find_local(spec, hub=client) is None
    assert download.find_local(make_spec("org/other"), hub=client) == other.local
    assert download.remove(spec, hub=client) == 0
    assert fetch(tiny_repo, client).bytes == done.bytes


def test_local_folder_is_never_removed(tiny_folder: Path, client: Hub) -> None:
    spec = make_spec(str(tiny_folder))
    size = sum(path.stat().st_size for path in tiny_folder.rglob("*") if path.is_file())
    assert download.model_bytes_on_disk(spec, hub=client) == size
    with pytest.raises(CanvasError, match="is a local model"):
        download.remove(spec, hub=client)
    assert tiny_folder.is_dir()


def test_progress_has_the_rate_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DownloadProgress] = []
    now = [0.0]
    monkeypatch.setattr("canvas.models.download.time.monotonic", lambda: now[0])
    meter = download.ProgressMeter(1000, seen.append, "o/x")
    for time, done in ((0, 0), (2, 100), (12, 300), (12, 250), (14, 1100)):
        now[0] = float(time)
        meter(done)
    assert seen == [
        DownloadProgress(0, 1000, 0.0, None, "o/x"),
        DownloadProgress(100, 1000, 50.0, 18.0, "o/x"),
        DownloadProgress(300, 1000, 20.0, 35.0, "o/x"),
        DownloadProgress(250, 1000, 15.0, 50.0, "o/x"),
        DownloadProgress(1000, 1000, 400.0, 0.0, "o/x"),
    ]


def test_a_local_model_needs_no_download(client: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    spec = make_spec(str(tiny_folder))
    planned = download.plan_download(spec, hub=client)
    assert (planned.files, planned.total_bytes, planned.missing_bytes) == ((), 0, 0)
    done = download.download(spec, planned, lambda _: None, threading.Event(), hub=client)
    assert (done.local.path, done.bytes, done.file_count) == (tiny_folder, 0, 0)
    sizes = [path.stat().st_size for path in tiny_folder.rglob("*") if path.is_file()]
    assert download.model_bytes_on_disk(spec, hub=client) == sum(sizes)
    with pytest.raises(CanvasError, match="is a local model and is not deleted"):
        download.remove(spec, hub=client)
    file = tmp_path / "model.safetensors"
    file.write_bytes((2).to_bytes(8, "little") + b"{}")
    local = download.find_local(make_spec(str(file)), hub=client)
    assert local == LocalModel(file, str(file))
    assert local.variant is None
    assert local.component("vae") is None
    assert download.model_bytes_on_disk(make_spec(str(file)), hub=client) == 10
    assert download.find_local(make_spec(str(tmp_path / "none")), hub=client) is None


def test_components_on_this_computer_are_found(client: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    vae = tmp_path / "vae"
    spec = replace(make_spec(str(tiny_folder)), components=(("vae", str(vae)),))
    assert download.component_repositories(spec) == ()
    assert download.find_local(spec, hub=client) is None
    vae.mkdir()
    local = download.find_local(spec, hub=client)
    assert local is not None
    assert local.component("vae") == vae
    assert local.component("unet") is None
