"""Signals end the real server: clients get answers, unfinished jobs are kept, the exit code is 0."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from canvas import GenerationRequest, Studio
from canvas.errors import ServerStopping
from canvas.server import launch
from canvas.server.launch import close_page, exit_on_signals, listening_port
from canvas.settings import Settings
from tests.hub_server import Fault, LocalHub

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 5.0  # from the signal to the end of the process
AS_PROCESS_1 = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
HUB_MODEL = """
[remote]
name = "tiny/diffusion"
size = "1 MB"
speed = "Fast"
quality = "None"
resolution = 64
type = "stable_diffusion"
"""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@contextmanager
def server(data: Path, *options: str, prefix: list[str] | None = None, **environ: str) -> Iterator[tuple[str, int]]:
    """URL and process id of `python app.py`, which must end with 0; killed at the end of the block."""
    port = listening_port("127.0.0.1", 0)
    command = [*(prefix or []), sys.executable, "app.py", "--port", str(port), "--data-dir", str(data), *options]
    env = {**os.environ, "CANVAS_DEVICE": "cpu", "CANVAS_DTYPE": "float32", "CANVAS_CACHE_DIR": str(data / "cache")}
    with subprocess.Popen(command, cwd=ROOT, env=env | environ, stdout=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_up(url))
            yield url, psutil.Process(process.pid).children()[0].pid if prefix else process.pid
            assert process.wait(60) == 0
        finally:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 90
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def jobs(url: str) -> dict[str, int]:
    """The number of unfinished jobs by status."""
    counts: dict[str, int] = httpx.get(f"{url}/healthz", timeout=30).json()["jobs"]
    return counts


def post(url: str, model: str = "starter") -> httpx.Response:
    body = {"prompt": "a fox", "model": model, "n": 16, "num_inference_steps": 150}
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=90)


def stop(pid: int, number: int) -> None:
    """Send a signal and wait for the end of the process."""
    started = time.monotonic()
    process = psutil.Process(pid)
    os.kill(pid, number)
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - started < 30, "it does not end"
        time.sleep(0.02)
    assert time.monotonic() - started < MAX_SECONDS


def assert_answered(responses: list[Future[httpx.Response]]) -> None:
    for response in responses:
        answer = response.result(1)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "server_stopping"
        assert "offers to resume" in answer.json()["error"]["message"]


def assert_kept(data: Path, count: int) -> None:
    """The next start offers the jobs again."""
    settings = Settings(data_dir=data, cache_dir=data / "cache", device="cpu", dtype="float32", engine="torch")
    with Studio(settings) as studio:
        assert len(studio.interrupted_jobs("local")) == count


def process_1() -> list[str]:
    if shutil.which("unshare") is None or subprocess.run([*AS_PROCESS_1, "true"], check=False).returncode:
        pytest.skip("a new PID namespace requires util-linux and root")
    return AS_PROCESS_1


@pytest.mark.parametrize(
    ("number", "workers", "as_process_1"),
    [
        pytest.param(signal.SIGINT, 2, False, id="Ctrl+C with two workers", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, True, id="process 1 of a container"),
    ],
)
def test_a_signal_ends_the_server_while_images_are_made(
    tmp_path: Path, number: int, workers: int, as_process_1: bool
) -> None:
    prefix = process_1() if as_process_1 else None
    with ThreadPoolExecutor() as pool:
        with server(tmp_path, "--workers", str(workers), prefix=prefix) as (url, pid):
            responses = [pool.submit(post, url) for _ in range(workers + 1)]
            wait_until(lambda: jobs(url)["running"] == workers)
            children = psutil.Process(pid).children(recursive=True)
            stop(pid, number)
        assert_answered(responses)
    assert not psutil.wait_procs(children, timeout=5)[1], "a worker is left"
    assert_kept(tmp_path, workers + 1)


@pytest.mark.slow
def test_a_stalled_download_does_not_delay_the_end(tmp_path: Path, hub: LocalHub, tiny_full_folder: Path) -> None:
    hub.add("tiny/diffusion", tiny_full_folder)
    hub.faults["tiny/diffusion/unet/diffusion_pytorch_model.fp16.safetensors"] = Fault.stalls(after=100)
    (tmp_path / "models.toml").write_text(HUB_MODEL)
    with ThreadPoolExecutor() as pool:
        with server(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "hub")) as (url, pid):
            response = pool.submit(post, url, "remote")
            wait_until(lambda: jobs(url)["downloading"] == 1)
            stop(pid, signal.SIGTERM)
        assert_answered([response])
    assert_kept(tmp_path, 1)


def test_work_that_cannot_be_interrupted_is_ended(tmp_path: Path) -> None:
    """As loading a large model, or a database that another program locks."""
    program = (
        "import threading, time\n"
        "from canvas.server.launch import exit_on_signals\n"
        "with exit_on_signals():\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        stop(process.pid, signal.SIGTERM)
        assert process.wait() == 0


def test_a_stopped_studio_refuses_jobs_and_keeps_those_it_has(settings: Settings) -> None:
    slow = GenerationRequest("a fox", num_inference_steps=150, num_images=16)
    with Studio(settings) as studio:
        cancelled, running, waiting = (studio.submit(slow) for _ in range(3))
        cancelled.cancel()
        next(change for change in running.subscribe() if change.status == "running")
        studio.stop()
        for job in (running, waiting):
            with pytest.raises(ServerStopping, match="offers to resume"):
                job.wait(timeout=0)
        with pytest.raises(ServerStopping, match="Try again"):
            studio.submit(slow)
        with pytest.raises(ServerStopping, match="Try again"):
            studio.download_model("small")
    with Studio(settings) as studio:
        rows = studio.database.rows("SELECT id FROM unfinished_jobs")  # for the next process
        assert {row["id"] for row in rows} == {running.id, waiting.id}


def test_only_the_first_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = []
    timers: list[Any] = []

    class Timer:
        daemon = False

        def __init__(self, seconds: float, function: Any, arguments: list[Any]) -> None:
            assert seconds < MAX_SECONDS
            function(*arguments)

        def start(self) -> None:
            timers.append(self)

    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: ends.append("functions at exit"))
    monkeypatch.setattr(threading, "Timer", Timer)
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_signals():
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 0
    assert ends == [0, "functions at exit", 0], "at the latest after some seconds, otherwise at the end of the block"
    assert [timer.daemon for timer in timers] == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_block_without_a_signal_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the process would end"))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with exit_on_signals():
        during = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(exit_in_block).result()
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == during
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before != during


def exit_in_block() -> None:
    """In another thread than the main one, which cannot handle signals."""
    with exit_on_signals():
        pass


@pytest.mark.parametrize("ends_after", [0.3, 60])
def test_a_page_closes_when_all_clients_have_their_answers(monkeypatch: pytest.MonkeyPatch, ends_after: float) -> None:
    clock, steps = SimpleNamespace(seconds=0.0), []

    def sleep(seconds: float) -> None:
        clock.seconds += seconds

    def is_alive() -> bool:
        return bool(clock.seconds < started + ends_after)

    def end_heartbeats() -> None:
        assert server.should_exit
        steps.append("heartbeats")

    def close(verbose: bool) -> None:
        assert server.force_exit
        steps.append("closed")

    monkeypatch.setattr(launch, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock.seconds))
    started = launch.ANSWER_SECONDS
    server = SimpleNamespace(should_exit=False, force_exit=False, thread=SimpleNamespace(is_alive=is_alive))
    app = SimpleNamespace(stop_event=SimpleNamespace(set=end_heartbeats))
    page: Any = SimpleNamespace(server=server, app=app, close=close)
    close_page(page)
    assert steps == ["heartbeats", "closed"]
    waited = clock.seconds - started
    assert waited == pytest.approx(min(ends_after, launch.DRAIN_SECONDS), abs=0.1)
