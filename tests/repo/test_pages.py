"""What README and docs/ show runs as it stands: every Python block, and every command but those
that say here why not.
"""

import os
import re
import shlex
import subprocess
import sys

import pages
import pytest
import torch
import typer.main

from xmemk.cli.app import app

ROOT = pages.ROOT

# Blocks that are not run, by words of theirs: what they need. Blocks that are run begin with
# ```python, these with ```py.
NOT_RUN = {
    'xmemk.patch("inference")': "XMem's checkout; tests/compat runs it on stand-ins, examples/ on rf-cutie",
    'xmemk.patch("cutie")': "a program that uses Cutie; examples/drop_in_cutie.py is one, and is run",
    'patch("my_fork"': "a fork of a host; tests/compat runs it on stand-ins",
    "values = values - values[:, :1]": "a line of rf-cutie's own file",
    "self._memory_patch": "the same",
    'memory_backend: str = "cutie"': "lines of roboflow trackers' own files",
    'get_local_kernel(Path("build/hub"))': "what `make hub` writes; tests/repo/test_hub.py loads it",
    'export_tracker(network, "graphs"': "half a minute; tests/export exports such a tracker and runs it",
}
# Commands that are not run, by their beginning: why. Their words are parsed all the same.
NOT_TYPED = {
    "make ": "sets up environments and takes minutes; the target must exist",
    "pip install": "changes the environment; `make wheel` installs into others, the extras must exist",
    "XMEMK_BUILD_CPP=0 pip install": "the same",
    "xmemk demo": "a minute; tests/video/test_demo_run.py runs the job",
    "xmemk weights": "downloads 249 MB; tests/weights runs it against a local server",
    "xmemk segment": "needs weights; tests/video/test_segment.py runs it with random ones",
    "ffmpeg ": "another program, which pipes a film into ours; tests/video/test_live.py does the same",
    "xmemk eval": "needs weights and a dataset; tests/video/test_evaluation_command.py makes both",
    "xmemk bench --full": "half an hour; tests/benchmarks runs its parts",
    "xmemk bench": "two minutes; tests/benchmarks runs its parts",
    "xmemk validate": "a minute; tests/repo/test_cli.py runs it on fewer shapes",
    "python tests/ptx/": "minutes; tests/ptx runs the essential cases",
    "pytest tests/ptx": "minutes; is a part of `make test`",
    "python tools/export_times.py": "minutes; tests/export runs it on a small size",
    "python benchmarks/dropin.py": "needs a checkout of a host; tests/benchmarks runs it on stand-ins",
    "python benchmarks/readme.py": "writes what tests/repo/test_readme.py compares",
}
RUN = {command for command in pages.commands() if not command.startswith(tuple(NOT_TYPED))}
RUN |= {"xmemk bench --results benchmarks/results/cpu.jsonl"}


def name_of(block):
    return f"{block.page}:{block.number}"


@pytest.mark.parametrize("block", pages.blocks("python"), ids=name_of)
def test_a_python_block_runs_by_itself(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(block.text, name_of(block), "exec"), {"__name__": "__main__"})


def test_other_python_blocks_are_few_and_have_a_reason():
    shown = pages.blocks("py")
    for block in shown:
        compile(block.text, name_of(block), "exec")
        assert any(words in block.text for words in NOT_RUN), f"{name_of(block)}: run it, or say why not"
    assert all(any(words in block.text for block in shown) for words in NOT_RUN)


@pytest.mark.parametrize("command", sorted(RUN))
def test_a_command_runs_as_it_stands(command, tmp_path):
    for path in ROOT.iterdir():
        if path.name not in ("out", "build") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    program, *words = shlex.split(command)
    start = {"xmemk": [sys.executable, "-m", "xmemk"], "python": [sys.executable]}[program]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_reasons_are_of_commands_that_there_are():
    for start in NOT_TYPED:
        assert any(command.startswith(start) for command in pages.commands()), start


def expect_known(command):
    """Raises where a command has a target, option, extra or file that does not exist."""
    command = command.rpartition("|")[2]  # into which others are piped
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        assert words[1] in re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "xmemk":
        chosen = typer.main.get_command(app).commands[words[1]]
        chosen.make_context(words[1], words[2:], resilient_parsing=not words[2:])
    elif words[0] == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        for names in re.findall(r"\[([\w,]+)\]", command):
            assert set(names.split(",")) <= set(extras)
    else:
        assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("command", sorted(pages.commands()))
def test_the_words_of_a_command_are_known(command):
    expect_known(command)


@pytest.mark.parametrize(
    "command",
    [
        "make tea",
        "xmemk dance",
        "xmemk segment a.mp4 --mask b.png --speed 3",
        "xmemk eval --out",
        "pip install '.[tea]'",
    ],
)
def test_words_that_are_not_known_are_noticed(command):
    try:
        expect_known(command)
    except Exception:
        return
    pytest.fail(f"{command} was taken")


def test_files_that_pages_name_are_there():
    for page in pages.PAGES:
        for path in re.findall(
            r"`((?:xmemk|tests|tools|benchmarks|examples|kernels|csrc)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_public_name_has_its_place_in_the_api_pages():
    import xmemk

    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: (xmemk\.\w+)$", pages, re.MULTILINE))
    missing = {f"xmemk.{name}" for name in xmemk.__all__ if not name.startswith("_")} - documented
    assert not missing, f"docs/api lacks {sorted(missing)}"
