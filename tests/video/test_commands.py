"""Options have an effect or are refused before any work; output breaks no word."""

import inspect
import os
import pty
import re
import subprocess
import sys

import fixed_network as fixed
import layouts
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("typer")
from small_videos import COUNT, write_video

from xmemk.cli.app import app, run
from xmemk.cli.progress import Progress
from xmemk.cli.terminal import console_for, print_table
from xmemk.data.masks import write_mask
from xmemk.network import XMem

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A video, a folder of images, a mask, a folder of masks, and weights that are none."""
    from PIL import Image
    from small_videos import pictures

    folder = tmp_path_factory.mktemp("files")
    write_video(folder / "v.mp4", 5)
    (folder / "images").mkdir()
    for number, picture in enumerate(pictures(5)):
        Image.fromarray(picture.numpy()).save(folder / "images" / f"{number}.png")
    write_mask(folder / "m.png", fixed.first_mask().to(torch.uint8))
    (folder / "masks").mkdir()
    write_mask(folder / "masks" / "00001.png", fixed.first_mask().to(torch.uint8))
    (folder / "w.pth").write_bytes(b"no network")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("v.mp4 --mask masks --start 1", "--start: the masks of a folder are named as their frames"),
        ("v.mp4 --mask m.png --format mjpeg", "--format: is for streams, and"),
        ("images --mask m.png --option a=b", "--option: is for streams, and"),
        ("v.mp4 --mask m.png --missing skip", "--missing: is for a folder of images"),
        ("- --mask m.png --missing skip", "--missing: is for a folder of images"),
        ("- --mask m.png --direction both", "--direction: - is a stream, which comes once and forwards"),
        ("- --mask m.png --option size", "--option: wanted NAME=VALUE, got 'size'"),
        ("v.mp4 --mask m.png --account --json", "--account: the JSON has its figures"),
        ("v.mp4 --mask m.png --threshold 3 --colours stored", "--threshold, --colours: wanted one of them"),
        ("v.mp4 --mask m.png --direction backward", "direction: nothing comes before frame 0"),
        ("v.mp4 --mask m.png --start 5", "the video has 5 frames, so there is no frame 5"),
        ("v.mp4 --mask absent.png", "absent.png: no such mask file"),
        ("absent.mp4 --mask m.png", "absent.mp4: no such video file"),
        ("v.mp4 --mask m.png --device mps", "--device: PyTorch finds no mps device"),
        ("v.mp4 --mask m.png --device cuda:70", "--device: PyTorch finds "),
        ("v.mp4 --mask m.png --device tpu", "--device: wanted cpu, cuda, cuda:<number> or mps, got 'tpu'"),
        ("v.mp4 --mask m.png --device cpu:1", "--device: wanted cpu, cuda, cuda:<number> or mps, got 'cpu:1'"),
        ("images --mask m.png --out images", "wanted a folder for results, got images, which is input of the run"),
        ("v.mp4 --mask m.png --out v.mp4/x", "which is a file"),
        ("v.mp4 --mask m.png", "w.pth: not a file of parameters"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(files, capsys, monkeypatch, words, message):
    if ("mps" in words and torch.backends.mps.is_available()) or torch.cuda.device_count() > 70:
        pytest.skip("that device is here")
    monkeypatch.chdir(files)
    monkeypatch.setattr(XMem, "from_checkpoint", lambda *a: pytest.fail("the network was built"))
    before = sorted(files.rglob("*"))
    assert run(["segment", *words.split(), "--weights", "w.pth", *([] if "--out" in words else ["--out", "new"])]) == 1
    error = capsys.readouterr().err
    assert error.startswith("xmemk: error: ") and message in error and len(error.splitlines()) == 1
    assert sorted(files.rglob("*")) == before


def test_a_read_only_folder_is_one_sentence(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    assert run(["segment", "v.mp4", "--mask", "m.png", "--weights", "w.pth", "--out", "new"]) == 1
    assert capsys.readouterr().err == f"xmemk: error: {files}: cannot be written to; give another --out\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "3"], "--size: is for making masks, and --results are there already"),
        (["--out", "o", "--policy", "stcn"], "--out, --policy: is for making masks"),
        (["--half"], "--half: is for making masks"),
        (["--full"], "--full: is for making masks"),
        (["--given-frames"], "--given-frames: is for YouTube-VOS, and this is davis2017"),
        (["--compile"], "--compile: is for making masks"),
        (["--all-frames"], "--all-frames: is for YouTube-VOS, and this is davis2017"),
        (["--device", "cuda:70"], "--device: is for making masks"),
    ],
)
def test_eval_refuses_what_would_have_no_effect(tmp_path, capsys, words, message):
    assert run(["eval", str(layouts.davis(tmp_path / "data")), "--results", str(tmp_path), *words]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("option", [["--full"], ["--seconds", "9"], ["--device", "cpu"]])
def test_bench_refuses_what_would_have_no_effect(tmp_path, capsys, option):
    assert run(["bench", "--results", str(tmp_path / "r.jsonl"), *option]) == 1
    message = f"{option[0]}: is for measuring, and --results are there already"
    assert message in " ".join(capsys.readouterr().err.split())


def test_weights_refuses_a_name_that_is_not_looked_at(capsys):
    assert run(["weights", "XMem-s012", "--list"]) == 1
    assert "name: --list shows all there are" in capsys.readouterr().err


def test_each_command_has_an_output_folder_of_its_own():
    outs = {}
    for command in app.registered_commands:
        parameter = inspect.signature(command.callback).parameters.get("out")
        if parameter is not None:
            outs[command.name or command.callback.__name__] = str(parameter.default)
    assert len(set(outs.values())) == len(outs) >= 4, outs


def on_terminal(words, columns):
    """What a command writes to a terminal: lines without colours, and its exit code."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(words, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    os.close(parent)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()], process.wait()


def pieces(text):
    """Words, in parts at hyphens, where a line may break."""
    return {word.removesuffix("...") for word in re.split(r"[\s-]+", text)}


@pytest.mark.parametrize("columns", [60, 80])
def test_help_breaks_no_word(capsys, monkeypatch, columns):
    whole = {}
    for width in (400, columns):
        monkeypatch.setenv("COLUMNS", str(width))
        for command in ("", *COMMANDS):
            assert run([*([command] if command else []), "--help"]) == 0
            text = capsys.readouterr().out
            if width == 400:
                whole[command] = pieces(text)
            if width == columns:
                assert max(len(line) for line in text.splitlines()) <= columns, command
                words = pieces(text)
                assert words <= whole[command], words - whole[command]


def test_a_run_on_a_terminal_breaks_no_word(tmp_path, network, files, columns=60):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    xmemk = [sys.executable, "-m", "xmemk"]
    words = [*xmemk, "segment", str(files / "v.mp4"), "--mask", str(files / "m.png"), "--size", "0", "--no-overlay"]
    words += ["--weights", str(tmp_path / "w.pth"), "--out", str(tmp_path / "o")]
    lines, code = on_terminal([*words, "--account"], columns)
    assert code == 0 and max(len(line) for line in lines) <= columns
    text = " ".join(lines)
    for word in ("frames,", "decoder", "value encoder", "masks are in"):
        assert word in text


def test_progress_drops_what_does_not_fit(capsys):
    progress = Progress("segmenting")
    progress.update(0, 92, "")
    progress.update(40, 92, "12.3 fps, 1234 MB, 2 object(s)")
    assert "[" in progress.line(80) and "40/92" in progress.line(80)
    for width in range(80, 16, -1):
        line = progress.line(width)
        assert len(line) <= width and line.startswith("segmenting") and "40/92" in line
        assert set(line.split()) <= set(progress.line(1000).split())
    assert capsys.readouterr().err == "", "the first line comes after two seconds"


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    from xmemk.cli import progress as module

    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Progress("judging") as progress:
        for now in (0.5, 1.9, 2.1, 3.0, 11.0, 12.2):
            progress.update(now, 20)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["judging", "2/20"], ["judging", "12/20"]]


def test_a_table_that_does_not_fit_becomes_lines(capsys):
    from rich.table import Table

    table = Table(title="three", box=None)
    for name in ("stage", "milliseconds a call", "share of the frame"):
        table.add_column(name)
    table.add_row("decoder", "12.5", "30 %")
    console = console_for()
    console.soft_wrap, console.width = False, 24
    print_table(console, table)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["three", "decoder", "  milliseconds a call", "12.5", "  share of the frame 30", "%"]
    console.width = 70
    print_table(console, table)
    assert "decoder" in capsys.readouterr().out.splitlines()[2]


def test_an_interrupt_says_how_to_go_on(network, files, tmp_path, capsys, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    words = ["segment", str(files / "v.mp4"), "--mask", str(files / "m.png"), "--size", "0", "--no-overlay"]
    words += ["--weights", str(tmp_path / "w.pth"), "--out", str(tmp_path / "o")]
    encode, calls = XMem.encode_key, []

    def interrupted(self, *a, **o):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, *a, **o)

    monkeypatch.setattr(XMem, "encode_key", interrupted)
    assert run(words) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "xmemk: interrupted; 3 of 5 frames are done; the same command goes on from there"
    assert run(words) == 0 and COUNT > 5
    assert capsys.readouterr().out.startswith("5 frames")
