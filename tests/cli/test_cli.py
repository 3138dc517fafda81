from __future__ import annotations

import io
import json
import os
import pty
import sqlite3
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from canvas.cli import main as cli
from canvas.cli.bench import run_server
from canvas.cli.console import print_json
from canvas.errors import DiskFull, HubOffline, OutOfMemory, StorageError, UnknownModel

ROOT = Path(__file__).resolve().parent.parent.parent
BAD = [
    ([""], "prompt: ''"),
    (["x" * 100_000], "at most 10,000 characters"),
    (["a\x07b"], "without control characters"),
    (["fox", "--width", "0"], "width: 0"),
    (["fox", "--width", "7"], "width: 7"),
    (["fox", "--width", "513"], "512 or 520"),
    (["fox", "--height", "1000000000"], "height: 1000000000"),
    (["fox", "--width", "NaN"], "width: 'NaN'"),
    (["fox", "--steps", "0"], "num_inference_steps: 0"),
    (["fox", "--count", "1000"], "num_images: 1000"),
    (["fox", "--seed", "-2"], "seed: -2"),
    (["fox", "--seed", str(2**64)], "seed: 18446744073709551616"),
    (["fox", "--seed", "abc"], "seed: 'abc'"),
    (["fox", "--guidance", "nan"], "guidance_scale: nan"),
    (["fox", "--model", "nope"], "one of starter, tiny"),
    (["fox", "--style", "baroque"], "one of none, photorealistic"),
    (["fox", "--scheduler", "magic"], "one of DPM++ 2M"),
    (["fox", "--output", "fox.gif"], "ends in .png"),
    (["fox", "--output", "no/such/folder/fox.png"], "a folder that exists"),
    (["fox", "--count", "2", "--output", "-"], "several pictures"),
    (["fox", "--colour", "red"], "--colour"),
    ([], "--prompts FILE"),
    (["fox", "--prompts", "x.txt"], "not both"),
    (["--prompts", "no.txt"], "No such file"),
    (["--prompts", "."], "a text file"),
]
COMMANDS = [
    "generate",
    "models",
    "download",
    "export",
    "import",
    "doctor",
    "serve",
    "completion",
    "bench",
    "bench startup",
    "keys make",
    "keys list",
    "keys withdraw",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANVAS_DEVICE", "cpu")
    monkeypatch.setenv("CANVAS_DTYPE", "float32")
    monkeypatch.setenv("CANVAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    return int(leaving.value.code or 0)


def test_the_same_line_gives_the_same_picture(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["generate", "a fox in the snow", "--seed", "7", "--steps", "2", "--output"]
    assert run(*line, "fox.png") == 0
    assert run(*line, "again.png") == 0
    assert capfd.readouterr().out.splitlines() == ["fox.png", "again.png"]
    with Image.open("fox.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()
        assert first.info["parameters"] == second.info["parameters"]
    with sqlite3.connect("ai_images.db") as database:
        rows = database.execute("SELECT prompt, seed FROM generated_images").fetchall()
    database.close()
    assert rows == [("a fox in the snow", 7)] * 2


def test_standard_output_gets_the_picture_alone(here: Path) -> None:
    line = ["generate", "a boat", "--steps", "1", "--output", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "canvas", *line, "--data-dir", str(here)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"\x89PNG")
    assert done.stderr == b""


def test_prompts_come_from_standard_input(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "prompts.txt").write_text("a boat\n\na tree\n", encoding="utf-8")
    with (here / "prompts.txt").open(encoding="utf-8") as prompts:
        monkeypatch.setattr("sys.stdin", prompts)
        line = ["generate", "-", "--steps", "1", "--seed", "1", "--json", "--output", "out.webp"]
        assert run(*line) == 0
    boat, tree = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (boat["prompt"], boat["output"]) == ("a boat", "out-1.webp")
    assert (tree["prompt"], tree["output"]) == ("a tree", "out-2.webp")
    with Image.open("out-2.webp") as picture:
        assert picture.format == "WEBP"


def test_prompts_come_from_a_file(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "prompts.txt").write_text("\ufeffa boat\r\n\n  a tree\n", encoding="utf-8")
    line = ["generate", "--prompts", "prompts.txt", "--steps", "1", "--count", "2", "--json"]
    assert run(*line) == 0
    shown = capfd.readouterr()
    made = [json.loads(line) for line in shown.out.splitlines()]
    assert [one["prompt"] for one in made] == ["a boat", "a boat", "a tree", "a tree"]
    assert {one["client"] for one in made} == {"cli"}
    assert shown.err == ""


def test_a_line_is_told_as_soon_as_its_picture_is_there(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "prompts.txt").write_text("a boat\na tree\n", encoding="utf-8")
    (here / "out-2.png").mkdir()  # cannot be written over
    line = ["generate", "--prompts", "prompts.txt", "--steps", "1", "--output", "out.png"]
    assert run(*line) == 4
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["out-1.png"]
    assert "out-2.png" in shown.err


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_input_is_one_line_and_code_2(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run("generate", *arguments) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert sentence in shown.err
    assert not list(here.rglob("*.png"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    shown = capfd.readouterr().out
    assert f"python -m canvas {command}" in shown.partition("Examples:")[2]
    assert "--json" in shown or command == "completion"


def test_a_shell_completes(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("completion", "bash") == 0
    script = capfd.readouterr().out + (
        'complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _canvas_completion; '
        "echo ${COMPREPLY[@]}; }\n"
        "complete_line canvas gen; complete_line canvas generate --style pho\n"
        "complete_line canvas generate --model st; canvas keys list --json && echo well\n"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=here, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["generate", "photorealistic", "starter", "well"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_that_runs_the_program(
    shell: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("completion", shell) == 0
    shown = capfd.readouterr().out
    assert shown.count(f"{sys.executable} -m canvas") == (3 if shell == "fish" else 2)


def test_a_terminal_sees_a_bar_and_a_pipe_the_lines(here: Path) -> None:
    ours, theirs = pty.openpty()
    line = ["generate", "a boat", "--steps", "60", "--json", "--data-dir", str(here)]
    with subprocess.Popen(
        [sys.executable, "-m", "canvas", *line], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs
    ) as program:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 4096):
                seen += part
        os.close(ours)
        assert program.stdout is not None
        assert json.loads(program.stdout.read())["prompt"] == "a boat"
    assert b"of 60" in seen


def test_a_nul_byte_in_a_line_of_standard_input_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "prompts.txt").write_bytes(b"a boat\na\x00tree\n")
    with (here / "prompts.txt").open(encoding="utf-8") as prompts:
        monkeypatch.setattr("sys.stdin", prompts)
        assert run("generate", "-") == 2
    assert "without control characters" in capfd.readouterr().err


def test_an_unusable_data_folder_is_said(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("no folder", encoding="utf-8")
    assert run("models", "--data-dir", "file") == 4
    assert "data_dir" in capfd.readouterr().err


def test_a_file_that_is_no_database_is_said(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "ai_images.db").write_bytes(b"not a database at all" * 100)
    assert run("generate", "fox", "--steps", "1") == 4
    assert "is not a database" in capfd.readouterr().err


def test_a_wrong_models_file_is_said(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "models.toml").write_text('[mine]\nname = "a/b"\ncolour = "red"\n', encoding="utf-8")
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
def test_every_kind_of_failure_has_its_code(error: Any, code: int) -> None:
    assert error.exit_code == code


def test_models_are_listed_for_people_and_programs(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("models") == 0
    assert "starter" in capfd.readouterr().out
    assert run("models", "--json") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {line["key"]: line["where"] for line in lines}["starter"] == "disk"


def test_downloading_what_is_there_costs_nothing(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("download", "starter", "--json") == 0
    assert json.loads(capfd.readouterr().out)["where"] == "disk"


def test_downloading_an_unknown_model_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("download", "nope") == 2
    assert "one of starter" in capfd.readouterr().err


def test_a_key_is_made_listed_and_withdrawn(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "make", "laptop") == 0
    secret = capfd.readouterr().out.strip()
    assert run("keys", "list", "--json") == 0
    listed = capfd.readouterr().out
    assert json.loads(listed)["owner"] == "key-laptop"
    assert secret not in listed
    assert run("keys", "make", "laptop") == 2
    assert run("keys", "withdraw", "laptop") == 0
    assert run("keys", "withdraw", "laptop") == 1
    assert "no key named 'laptop'" in capfd.readouterr().err


def test_pictures_go_out_and_come_in_again(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "a boat", "--steps", "1", "--count", "2") == 0
    assert run("export", "all.zip") == 0
    with zipfile.ZipFile("all.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(names) == 2
    capfd.readouterr()
    for added, duplicates in ((2, 0), (0, 2)):
        assert run("import", "all.zip", "--json", "--data-dir", "other") == 0
        told = json.loads(capfd.readouterr().out)
        assert (told["added"], told["duplicates"], told["refused"]) == (added, duplicates, [])


def test_an_export_of_few_goes_to_standard_output(here: Path, capfdbinary: Any) -> None:
    assert run("generate", "a boat", "--steps", "1", "--count", "1") == 0
    capfdbinary.readouterr()
    assert run("export", "-", "--text", "castle") == 0
    with zipfile.ZipFile(io.BytesIO(capfdbinary.readouterr().out)) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".png")]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["export", "no/such/folder/all.zip"], 4, "cannot be written"),
        (["export", "all.zip", "--format", "gif"], 2, "one of png, jpeg, webp"),
        (["import", "nothing.zip"], 2, "that exists"),
    ],
)
def test_archives_that_cannot_be_are_said(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, sentence: str
) -> None:
    assert run(*arguments) == code
    assert sentence in capfd.readouterr().err
    assert not list(here.glob("*.zip"))
    assert not list(here.glob("tmp*"))


def test_the_doctor_looks_at_everything(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANVAS_PORT", "0")
    assert run("doctor", "--json") == 0
    findings = {line["name"]: line for line in map(json.loads, capfd.readouterr().out.splitlines())}
    assert findings["device"]["sentence"].startswith("cpu, float32")
    assert {"python", "torch", "disk", "memory", "gpu", "port", "hub"} <= set(findings)
    assert {"data folder", "model starter"} <= set(findings)


def test_the_doctor_finds_what_is_wrong(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "ai_images.db").write_bytes(b"not a database at all" * 100)
    assert run("doctor") == 1
    assert "BAD  database" in capfd.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from canvas.cli import main\n"
        "try:\n    main.main(['--help'])\n"
        "except SystemExit:\n"
        "    sys.exit(bool({'torch', 'gradio', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "generate" in done.stdout


def test_a_first_answer_is_timed() -> None:
    began = time.monotonic()
    with run_server(["-m", "http.server"]) as (start, port):
        assert began <= start <= time.monotonic()
        assert port > 0


def test_a_server_that_ends_is_said() -> None:
    ends = ["-c", "import sys; sys.exit('no such thing')"]
    with pytest.raises(cli.CanvasError, match="no such thing"), run_server(ends):
        pass


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "nope"], "one of starter"),
        (["--model", "small"], "python -m canvas download small"),
        (["--synthetic", "sd99"], "sd15"),
        (["--size", "513"], "512 or 520"),
        (["--size", "0"], "size: 0"),
        (["--turns", "many"], "turns: 'many'"),
        (["--beside", "none.json"], "a file that --json wrote"),
        (["startup", "--turns", "0"], "turns: 0"),
    ],
)
def test_a_wrong_benchmark_is_refused(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setenv("HF_HOME", str(here))
    assert run("bench", *arguments) == 2
    assert sentence in capfd.readouterr().err


def test_json_for_programs_holds_no_infinity(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"rows": [{"psnr": float("inf")}, {"psnr": 21.5}]})
    assert json.loads(capfd.readouterr().out) == {"rows": [{"psnr": None}, {"psnr": 21.5}]}
