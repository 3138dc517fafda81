from __future__ import annotations

import errno
import io
import json
import os
import pty
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image

from canvas.cli import main as cli
from canvas.cli.console import print_json, progress_bar, wait
from canvas.errors import (
    CanvasError,
    DiskFull,
    GenerationCancelled,
    HubOffline,
    OutOfMemory,
    StorageError,
    UnknownModel,
)
from canvas.jobs.job import Job

ROOT = Path(__file__).resolve().parent.parent.parent
INVALID = [
    ([""], "Prompt must not be empty"),
    (["x" * 100_000], "at most 10,000 characters"),
    (["a\x07b"], "without control characters"),
    (["fox", "--width", "0"], "(got 0)"),
    (["fox", "--width", "7"], "(got 7)"),
    (["fox", "--width", "513"], "a multiple of 8 between 128 and 512"),
    (["fox", "--height", "1000000000"], "(got 1000000000)"),
    (["fox", "--width", "NaN"], "Width must be a multiple of 8 (got 'NaN')."),
    (["fox", "--steps", "0"], "Steps must be"),
    (["fox", "--count", "1000"], "Number of images must be"),
    (["fox", "--seed", "-2"], "(got -2)"),
    (["fox", "--seed", str(2**64)], "(got 18446744073709551616)"),
    (["fox", "--seed", "abc"], "Seed must be a whole number, or -1 for random (got 'abc')."),
    (["fox", "--guidance", "nan"], "(got nan)"),
    (["fox", "--model", "nope"], "one of starter, "),
    (["fox", "--style", "baroque"], "one of none, photorealistic"),
    (["fox", "--scheduler", "magic"], "one of DPM++ 2M"),
    (["fox", "--backend", "cloud"], "one of local, hf-inference, remote"),
    (["fox", "--output", "fox.gif"], "ending in .png"),
    (["fox", "--output", "no/such/folder/fox.png"], "a folder that exists"),
    (["fox", "--count", "2", "--output", "-"], "several images"),
    (["fox", "--colour", "red"], "--colour"),
    ([], "--prompts FILE"),
    (["fox", "--prompts", "x.txt"], "not both"),
    (["--prompts", "no.txt"], "Prompts cannot be read from 'no.txt' ([Errno 2] No such file"),
    (["--prompts", "."], "a text in UTF-8 or UTF-16"),
]
COMMANDS = [
    "generate",
    "edit",
    "upscale",
    "styles",
    "schedulers",
    "models",
    "download",
    "export",
    "import",
    "doctor",
    "serve",
    "completion",
    "bench",
    "bench startup",
    "keys create",
    "keys list",
    "keys revoke",
    "deploy",
]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    return int(raised.value.code or 0)


def test_same_seed_gives_the_same_image(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "a fox in the snow", "--seed", "7", "--steps", "2", "--output"]
    assert run(*command, "fox.png") == 0
    assert run(*command, "again.png") == 0
    assert capfd.readouterr().out.splitlines() == ["fox.png", "again.png"]
    with Image.open("fox.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()
        assert first.info["parameters"] == second.info["parameters"]
    with sqlite3.connect("ai_images.db") as database:
        rows = database.execute("SELECT prompt, seed FROM generated_images").fetchall()
    database.close()
    assert rows == [("a fox in the snow", 7)] * 2


@pytest.mark.slow
def test_output_dash_writes_only_the_image_to_stdout(workdir: Path) -> None:
    command = ["generate", "a boat", "--steps", "1", "--output", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "canvas", *command, "--data-dir", str(workdir)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"\x89PNG")
    assert done.stderr == b""


@pytest.mark.slow
def test_prompts_are_read_from_stdin(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (workdir / "prompts.txt").write_text("a boat\n\na tree\n", encoding="utf-8")
    with (workdir / "prompts.txt").open(encoding="utf-8") as prompts:
        monkeypatch.setattr("sys.stdin", prompts)
        command = ["generate", "-", "--steps", "1", "--seed", "1", "--json", "--output", "out.webp"]
        assert run(*command) == 0
    boat, tree = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (boat["prompt"], boat["output"]) == ("a boat", "out-1.webp")
    assert (tree["prompt"], tree["output"]) == ("a tree", "out-2.webp")
    with Image.open("out-2.webp") as image:
        assert image.format == "WEBP"


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        "\ufeffa fox\r\n",
        "a fox\n".encode("utf-16"),
        "a fox".encode("utf-16-le"),
        "a fox\r\n".encode("utf-16-be"),
        b"\xfe\xff" + "a fox\n".encode("utf-16-be"),
    ],
)
@pytest.mark.parametrize("source", ["stdin", "file"])
def test_prompts_in_other_encodings(
    workdir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: bytes | str, source: str
) -> None:
    path = workdir / "prompts.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    arguments = ["-"] if source == "stdin" else ["--prompts", "prompts.txt"]
    with path.open(encoding="utf-8") as prompts:
        monkeypatch.setattr("sys.stdin", prompts)
        assert run("generate", *arguments, "--steps", "1", "--json") == 0
    assert json.loads(capfd.readouterr().out)["prompt"] == "a fox"


@pytest.mark.slow
def test_a_line_separator_is_no_line_end(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "prompts.txt").write_text("a fox\u2028in the snow\n", encoding="utf-8")
    assert run("generate", "--prompts", "prompts.txt", "--steps", "1", "--json") == 0
    assert json.loads(capfd.readouterr().out)["prompt"] == "a fox\u2028in the snow"


def test_prompts_in_a_legacy_encoding_are_rejected(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "prompts.txt").write_bytes("une forêt".encode("latin-1"))
    assert run("generate", "--prompts", "prompts.txt") == 2
    assert "a text in UTF-8 or UTF-16" in capfd.readouterr().err


def test_a_file_without_prompts_is_rejected(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "prompts.txt").write_text("\n")
    assert run("generate", "--prompts", "prompts.txt") == 2
    assert "a text with one prompt per line (got 'prompts.txt')" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--insecure"),
        (["--insecure"], "cannot listen on --host 192.0.2.1"),
        (["--public"], "cannot listen on --host 192.0.2.1"),
        (["--share"], "cannot listen on --host 192.0.2.1"),
    ],
)
def test_serve_passes_its_flags_on(
    workdir: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run("serve", "--host", "192.0.2.1", *flags) == 2  # an address for documentation, RFC 5737
    assert message in capfd.readouterr().err


@pytest.mark.slow
def test_braces_and_wildcards_are_expanded(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "wildcards").mkdir()
    (workdir / "wildcards" / "places.txt").write_text("snow\n")
    assert run("generate", r"a {red|blue} fox in __places__ \{x\|y\}", "--steps", "1", "--json") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["a red fox in snow {x|y}", "a blue fox in snow {x|y}"]


@pytest.mark.slow
def test_prompts_are_read_from_a_file(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "prompts.txt").write_text("\ufeffa boat\r\n\n  a tree\n", encoding="utf-8")
    command = ["generate", "--prompts", "prompts.txt", "--steps", "1", "--count", "2", "--json"]
    assert run(*command) == 0
    output = capfd.readouterr()
    images = [json.loads(line) for line in output.out.splitlines()]
    assert [image["prompt"] for image in images] == ["a boat", "a boat", "a tree", "a tree"]
    assert {image["client"] for image in images} == {"cli"}
    assert output.err == ""


@pytest.mark.slow
def test_each_image_is_printed_when_it_is_finished(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "prompts.txt").write_text("a boat\na tree\n", encoding="utf-8")
    (workdir / "out-2.png").mkdir()  # cannot be written over
    command = ["generate", "--prompts", "prompts.txt", "--steps", "1", "--output", "out.png"]
    assert run(*command) == 4
    output = capfd.readouterr()
    assert output.out.splitlines() == ["out-1.png"]
    assert "out-2.png" in output.err


@pytest.mark.parametrize(("arguments", "message"), INVALID)
def test_invalid_input_prints_one_line_and_exits_with_2(
    workdir: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("generate", *arguments) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert message in output.err
    assert not list(workdir.rglob("*.png"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    output = capfd.readouterr().out
    assert f"python -m canvas {command}" in output.partition("Examples:")[2]
    assert "--json" in output or command == "completion"


@pytest.mark.slow
def test_bash_completes_commands_options_and_values(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("completion", "bash") == 0
    script = capfd.readouterr().out + (
        'complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _canvas_completion; '
        "echo ${COMPREPLY[@]}; }\n"
        "complete_line canvas gen; complete_line canvas generate --style pho\n"
        "complete_line canvas generate --model st; canvas keys list --json && echo ok\n"
    )
    done = subprocess.run(["bash", "-c", script], cwd=workdir, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["generate", "photorealistic", "starter", "ok"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_scripts_of_zsh_and_fish_run_the_module(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    output = capfd.readouterr().out
    assert output.count(f"{sys.executable} -m canvas") == (3 if shell == "fish" else 2)


@pytest.mark.long
def test_progress_bar_is_shown_only_on_a_terminal(workdir: Path) -> None:
    parent, child = pty.openpty()
    command = ["generate", "a boat", "--steps", "60", "--json", "--data-dir", str(workdir)]
    with subprocess.Popen(
        [sys.executable, "-m", "canvas", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=child
    ) as program:
        os.close(child)
        seen = b""
        with suppress(OSError):  # raised at the end of a terminal
            while part := os.read(parent, 4096):
                seen += part
        os.close(parent)
        assert program.stdout is not None
        assert json.loads(program.stdout.read())["prompt"] == "a boat"
    assert b"of 60" in seen


def test_nul_byte_in_stdin_is_rejected(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (workdir / "prompts.txt").write_bytes(b"a boat\na\x00tree\n")
    with (workdir / "prompts.txt").open(encoding="utf-8") as prompts:
        monkeypatch.setattr("sys.stdin", prompts)
        assert run("generate", "-") == 2
    assert "without control characters" in capfd.readouterr().err


def test_unusable_data_folder_exits_with_4(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "file").write_text("no folder", encoding="utf-8")
    assert run("models", "--data-dir", "file") == 4
    assert "--data-dir" in capfd.readouterr().err


def test_invalid_database_file_exits_with_4(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "ai_images.db").write_bytes(b"not a database at all" * 100)
    assert run("generate", "fox", "--steps", "1") == 4
    assert "is not a database" in capfd.readouterr().err


def test_invalid_models_file_exits_with_2(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "models.toml").write_text('[mine]\nname = "a/b"\ncolour = "red"\n', encoding="utf-8")
    assert run("models") == 2
    assert "models.mine.colour" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownModel("model_key", "x", "y"), 2),
        (HubOffline("offline"), 3),
        (DiskFull("full"), 3),
        (StorageError("locked"), 4),
        (OutOfMemory("too big"), 1),
    ],
)
def test_error_classes_have_exit_codes(error: Any, code: int) -> None:
    assert error.exit_code == code


def test_models_lists_models_as_text_and_json(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    assert "starter" in capfd.readouterr().out
    assert run("models", "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    [starter] = [line for line in lines if line["key"] == "starter"]
    assert starter["location"] == starter["where"] == "disk"
    assert starter["gflops_per_step"] == starter["gigaflops"]


def test_download_of_a_model_on_disk_returns_at_once(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("download", "starter", "--json") == 0
    assert json.loads(capfd.readouterr().out)["location"] == "disk"


def test_download_of_an_unknown_model_exits_with_2(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("download", "nope") == 2
    assert "one of starter" in capfd.readouterr().err


def test_key_is_created_listed_and_revoked(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "create", "laptop") == 0
    secret = capfd.readouterr().out.strip()
    assert run("keys", "list", "--json") == 0
    output = capfd.readouterr().out
    assert json.loads(output)["owner"] == "key-laptop"
    assert secret not in output
    assert run("keys", "create", "laptop") == 2
    assert run("keys", "revoke", "laptop", "--json") == 0
    assert '"revoked": "laptop"' in capfd.readouterr().out
    assert run("keys", "revoke", "laptop") == 1
    assert "'laptop'" in capfd.readouterr().err


@pytest.mark.slow
def test_commands_and_options_of_version_0_1_are_accepted(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "make", "laptop") == 0
    assert run("keys", "withdraw", "laptop") == 0
    capfd.readouterr()
    assert run("generate", "fox", "--steps", "1", "--where", "here", "--agree", "--json") == 0
    image = json.loads(capfd.readouterr().out)
    assert (image["backend"], image["where"]) == ("local", "here")
    assert image["preset"] == image["mode"]
    assert image["client"] == image["channel"] == "cli"
    assert run("generate", "fox", "--where", "remote") == 2
    assert "CANVAS_REMOTE" in capfd.readouterr().err
    assert run("generate", "--help") == 0
    assert "--where" not in capfd.readouterr().out


@pytest.mark.slow
def test_exported_images_can_be_imported_once(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a boat", "--steps", "1", "--count", "2") == 0
    assert run("export", "all.zip") == 0
    with zipfile.ZipFile("all.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(names) == 2
    capfd.readouterr()
    for added, duplicates in ((2, 0), (0, 2)):
        assert run("import", "all.zip", "--json", "--data-dir", "other") == 0
        result = json.loads(capfd.readouterr().out)
        assert (result["added"], result["duplicates"], result["errors"]) == (added, duplicates, [])
        assert result["refused"] == result["errors"]


@pytest.mark.slow
def test_export_dash_writes_a_zip_to_stdout(workdir: Path, capfdbinary: Any) -> None:
    assert run("generate", "a boat", "--steps", "1", "--count", "1") == 0
    capfdbinary.readouterr()
    assert run("export", "-", "--text", "castle") == 0
    with zipfile.ZipFile(io.BytesIO(capfdbinary.readouterr().out)) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".png")]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "no/such/folder/all.zip"], 4, "cannot be written"),
        (["export", "all.zip", "--format", "gif"], 2, "one of png, jpeg, webp"),
        (["import", "nothing.zip"], 2, "that exists"),
    ],
)
def test_export_and_import_errors_leave_no_file(
    workdir: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run(*arguments) == code
    assert message in capfd.readouterr().err
    assert not list(workdir.glob("*.zip"))
    assert not list(workdir.glob("tmp*"))


def test_doctor_checks_everything(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANVAS_PORT", "0")
    assert run("doctor", "--json") == 0
    checks = {line["name"]: line for line in map(json.loads, capfd.readouterr().out.splitlines())}
    device = checks["device"]
    assert device["message"].startswith("cpu, float32")
    assert (device["sentence"], device["well"]) == (device["message"], device["ok"])
    assert {"python", "torch", "disk", "memory", "gpu", "port", "hub"} <= set(checks)
    assert {"data folder", "model starter"} <= set(checks)


def test_doctor_reports_a_damaged_database(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workdir / "ai_images.db").write_bytes(b"not a database at all" * 100)
    assert run("doctor") == 1
    assert "FAIL database" in capfd.readouterr().out


def test_help_does_not_import_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from canvas.cli import main\n"
        "try:\n    main.main(['--help'])\n"
        "except SystemExit:\n"
        "    sys.exit(bool({'torch', 'gradio', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "generate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nope"], "one of starter"),
        (["--model", "small"], "python -m canvas download small"),
        (["--synthetic", "sd99"], "sd15"),
        (["--size", "513"], "512 or 520"),
        (["--size", "0"], "(got 0)"),
        (["--rounds", "many"], "(got 'many')"),
        (["--compare-with", "none.json"], "a file that --json wrote"),
        (["--turns", "many"], "(got 'many')"),
        (["--beside", "none.json"], "a file that --json wrote"),
        (["startup", "--turns", "0"], "(got 0)"),
    ],
)
def test_invalid_bench_options_exit_with_2(
    workdir: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("HF_HOME", str(workdir))
    assert run("bench", *arguments) == 2
    assert message in capfd.readouterr().err


def test_print_json_replaces_infinity_with_null(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"rows": [{"psnr": float("inf")}, {"psnr": 21.5}]})
    assert json.loads(capfd.readouterr().out) == {"rows": [{"psnr": None}, {"psnr": 21.5}]}
    print_json({"text": "hé", "count": 7})
    assert capfd.readouterr().out == '{"text": "hé", "count": 7}\n'


def test_a_reader_that_closes_the_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(text: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    errors = io.StringIO()
    for name in ("stdout", "stderr"):  # typer replaces them
        monkeypatch.setattr(sys, name, errors)
    monkeypatch.setattr("typer.echo", write)
    assert run("styles") == 0
    assert errors.getvalue() == ""


@pytest.mark.parametrize("code", [0, 7])
def test_a_command_may_end_the_program(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("canvas.studio.Studio", lambda settings: sys.exit(code))
    assert run("models") == code


def test_ctrl_c_is_told_and_has_the_exit_code_of_shells(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(settings: Any) -> None:
        raise KeyboardInterrupt

    assert run("styles") == 0
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("canvas.studio.Studio", interrupt)
    assert run("models") == 130
    assert capfd.readouterr().err.split() == ["Cancelled."]


def test_the_program_without_a_command_shows_its_help(capfd: pytest.CaptureFixture[str]) -> None:
    run()
    output = capfd.readouterr()
    assert "Usage: python -m canvas" in output.out + output.err
    assert run("--help") == 0
    assert "--install-completion" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["serve"]),
        (["--port", "0"], ["serve", "--port", "0"]),
        (["-h"], ["-h"]),
        (["--help"], ["--help"]),
        (["styles"], ["styles"]),
        (["styles", "--json"], ["styles", "--json"]),
        (["--json", "styles"], ["serve", "--json", "styles"]),
    ],
)
def test_magic_canvas_serves_unless_there_is_a_command(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]
) -> None:
    calls: list[tuple[list[str], str]] = []
    monkeypatch.setattr(cli, "main", lambda arguments, program: calls.append((arguments, program)))
    monkeypatch.setattr(sys, "argv", ["magic-canvas", *arguments])
    cli.magic_canvas()
    assert calls == [(expected, "magic-canvas")]


@pytest.mark.parametrize(("flags", "is_json"), [([], False), (["--json"], True)])
def test_serve_prints_its_address_as_json(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], flags: list[str], is_json: bool
) -> None:
    options: list[dict[str, Any]] = []

    def launch(studio: Any, **given: Any) -> Any:
        options.append(given)
        sys.stdout.write("of Gradio\n")
        return SimpleNamespace(local_url="http://127.0.0.1:1/")

    monkeypatch.setattr("canvas.server.launch.launch", launch)
    monkeypatch.setattr("canvas.server.launch.block_until_stopped", lambda page, studio: None)
    assert run("serve", *flags) == 0
    assert options == [{"block": False, "quiet": is_json}]
    output = capfd.readouterr()
    assert output.out == ('{"url": "http://127.0.0.1:1/"}\n' if is_json else "of Gradio\n")
    assert output.err == ("of Gradio\n" if is_json else "")


@pytest.mark.parametrize("arguments", [[], ["startup", "--rounds", "3"], ["--size", "64"]])
def test_bench_of_the_installed_package_says_where_it_is(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bench = typer.main.get_command(cli._bench_app())
    with pytest.raises(CanvasError, match="not part of the installed package"):
        bench.main(arguments, standalone_mode=False)


def test_ctrl_c_cancels_the_job_that_a_command_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("local", "download", "small")
    job.update(status="running")

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "subscribe", interrupt)
    with pytest.raises(GenerationCancelled):
        wait(job, "small")
    assert job.cancelled.is_set()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_drawn_on_a_terminal_and_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress_bar("a boat") as show:
        show(0.5, "step 2 of 4")
    output = capsys.readouterr()
    assert output.out == ""
    assert ("a boat" in output.err) == is_terminal
    assert ("\x1b[2K" in output.err.rpartition("a boat")[2]) == is_terminal
