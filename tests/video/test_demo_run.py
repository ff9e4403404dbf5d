"""The demo as a job: on a small made-up video to the end, and on input that does not fit."""

import colorsys
import itertools
import json
import re
from fractions import Fraction

import pytest

pytest.importorskip("av")
pytest.importorskip("jinja2")
pytest.importorskip("typer")
import numpy as np
import torch
from PIL import Image

from xmemk import Memory, MemoryConfig, api
from xmemk.cli.app import run
from xmemk.data.masks import read_mask, write_mask
from xmemk.data.video import read_frames
from xmemk.data.video_writer import VideoWriter
from xmemk.demo.checked_functions import CheckedFunctions
from xmemk.demo.memory_view import MemoryFrames
from xmemk.demo.original import memory_read as original_read
from xmemk.demo.pictures import Spread
from xmemk.demo.run import DemoJob
from xmemk.demo.run import run as run_job
from xmemk.demo.tint import tints
from xmemk.testing import compare_read, make_inputs

WIDTH, HEIGHT, FRAMES = 128, 96, 14


def square(i):
    """Labels of frame i: a square that wanders to the right."""
    labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    labels[32:64, 16 + 3 * i : 48 + 3 * i] = 1
    return labels


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    g = torch.Generator().manual_seed(0)
    ground = (
        (60 + 40 * torch.rand(HEIGHT // 8, WIDTH // 8, 3, generator=g)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    )
    with VideoWriter(folder / "clip.mp4", WIDTH, HEIGHT, Fraction(10)) as writer:
        for i in range(FRAMES):
            image = torch.where(square(i).bool().unsqueeze(2), torch.tensor([230.0, 40.0, 40.0]), ground)
            writer.write(image.to(torch.uint8))
    write_mask(folder / "00002.png", square(2))
    return folder


def arguments(clip, out, *more):
    return [
        "demo",
        "--video",
        f"{clip}/clip.mp4",
        "--mask",
        f"{clip}/00002.png",
        "--frame",
        "2",
        "--out",
        f"{out}",
        *more,
    ]


def test_the_whole_job(clip, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(arguments(clip, out, "--original-every", "3")) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "12 frames" in output
    assert "largest error against the float64 oracle" in output
    pictures = {"overlay.mp4", "moving.webp", "contact.png", "memory.webp"}
    assert {p.name for p in out.iterdir()} == {"masks", "index.html", "report.json", *pictures}
    masks = sorted((out / "masks").iterdir())
    assert [m.name for m in masks] == [f"{i:05d}.png" for i in range(2, FRAMES)]
    mask, drawn = read_mask(masks[-1]) > 0, square(FRAMES - 1) > 0
    assert (mask & drawn).sum() / (mask | drawn).sum() > 0.8
    film = list(read_frames(out / "overlay.mp4"))
    assert len(film) == 20 + 12  # two seconds come before the tint, of which the video has two frames
    close = [torch.isclose(a.float(), b.float(), atol=12).float().mean() for a, b in itertools.pairwise(film)]
    assert min(close[:18]) > 0.99 > close[19]  # the first frame stands still; frame 2 is tinted
    with Image.open(out / "contact.png") as sheet:
        assert sheet.width > 1000
    with Image.open(out / "moving.webp") as moving:
        assert 12 <= moving.n_frames <= 32  # Pillow joins frames that are alike
    page = (out / "index.html").read_text()
    assert "frame 13: the query" in page and "% of the read" in page
    assert "data:video/mp4;base64," in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 12
    assert len(report["totals"]["reads"]) == 11
    assert report["totals"]["compared"] == 4
    assert report["totals"]["share"] <= 1
    assert all(read["share"] <= 1 for read in report["totals"]["reads"])


def test_an_interrupted_run_leaves_the_earlier_one_whole(clip, tmp_path):
    out = tmp_path / "out"
    job = DemoJob(clip / "clip.mp4", clip / "00002.png", 2, out, original_every=0)
    run_job(job)
    before = {p: p.stat().st_mtime_ns for p in sorted(out.rglob("*")) if p.is_file()}

    def stop(done, total, ops):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, stop)
    assert {p: p.stat().st_mtime_ns for p in sorted(out.rglob("*")) if p.is_file()} == before
    assert not list(out.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--video": "absent.mp4"}, "absent.mp4: no such video file"),
        ({"--video": "00002.txt"}, "not a video that can be read"),
        ({"--mask": "absent.png"}, "absent.png: no such mask file"),
        ({"--mask": "empty.png"}, "empty.png: has no object"),
        (
            {"--mask": "tall.png"},
            "tall.png: is 96x128, which is not the size of the video (128x96) nor that size scaled",
        ),
        ({"--frame": "14"}, "frame 14: .*has frames 0 to 13"),
        ({"--frame": "13"}, "frame 13: is the last of .*nothing to follow"),
        ({"--frame": "-1"}, "frame -1"),
        ({"--mask": "tiny.png"}, "tiny.png: is 4x3, which is not the size"),
        ({"--backend": "metal"}, "backend: wanted 'auto' or one of"),
        ({"--backend": "triton"}, "backend: 'triton' needs cuda tensors"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(clip, tmp_path, capsys, changed, words):
    (clip / "00002.txt").write_text("text")
    write_mask(clip / "empty.png", torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8))
    write_mask(clip / "tall.png", square(0).t().contiguous())
    write_mask(clip / "tiny.png", torch.ones(3, 4, dtype=torch.uint8))
    typed = [*arguments(clip, tmp_path / "out"), "--backend", "auto"]
    for option, value in changed.items():
        typed[typed.index(option) + 1] = f"{clip / value}" if option in ("--video", "--mask") else value
    assert run(typed) == 1
    output = capsys.readouterr().err
    line = [text for text in output.splitlines() if "error" in text]
    assert len(line) == 1
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), line[0])
    assert not (tmp_path / "out").exists()


def test_what_the_demo_did_not_write_stays(clip, tmp_path):
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "mine.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    (out / "masks" / "00001.png").write_text("mine, too: no report tells of it")
    run_job(DemoJob(clip / "clip.mp4", clip / "00002.png", 2, out, original_every=0))
    run_job(DemoJob(clip / "clip.mp4", clip / "00002.png", 9, out, original_every=0))
    masks = {p.name for p in (out / "masks").iterdir()}
    # The masks of the first run that the second did not write anew are gone, the rest is there.
    assert masks == {"mine.png", "00001.png", *(f"{i:05d}.png" for i in range(9, FRAMES))}
    assert (out / "notes.txt").read_text() == (out / "masks" / "mine.png").read_text() == "mine"


def test_input_inside_the_products_is_refused(clip, tmp_path):
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    mask = out / "masks" / "00002.png"
    write_mask(mask, square(2))
    with pytest.raises(ValueError, match="would be overwritten by the results"):
        run_job(DemoJob(clip / "clip.mp4", mask, 2, out))
    assert read_mask(mask).any()
    with pytest.raises(ValueError, match=r"wanted a folder for results, got .*, which is a file"):
        run_job(DemoJob(clip / "clip.mp4", clip / "00002.png", 2, mask))


@pytest.mark.parametrize("count", [1, 2, 12, 13, 92, 1000])
def test_a_contact_sheet_needs_few_frames_of_any_video(count):
    spread = Spread(12)
    for number in range(count):
        spread.add(number, torch.zeros(1))
        assert len(spread._kept) <= 48
    numbers = [number for number, _ in spread.chosen()]
    assert len(numbers) == len(set(numbers)) == min(count, 12)
    assert numbers[0] == 0
    assert numbers[-1] == count - 1
    gaps = [b - a for a, b in itertools.pairwise(numbers)]
    assert not gaps or max(gaps) <= 2 * min(gaps[:-1] or gaps)


def test_a_video_needs_its_mask(clip, capsys):
    assert run(["demo", "--video", f"{clip}/clip.mp4"]) == 1
    assert "--video needs --mask" in capsys.readouterr().err


def test_the_original_formulation_is_the_same_function():
    x = make_inputs(300, 40, objects=2, value_channels=8)
    x.qk *= 0.9
    readout, usage = original_read([x.mk], [x.ms], [x.mv], x.qk, x.qe, top_k=10)
    compare_read(x, readout, usage, top_k=10).check()


def frames(memory, count=7):
    g = torch.Generator().manual_seed(0)
    for i in range(count):
        key, selection = torch.randn(1, 8, 6, 8, generator=g), torch.rand(1, 8, 6, 8, generator=g)
        if i:
            memory.read(key, selection)
        memory.add(key, torch.ones(1, 1, 6, 8), torch.rand(1, 1, 1, 6, 8, generator=g), [1], selection)


CONFIG = MemoryConfig(
    top_k=5, max_mid_term_frames=3, min_mid_term_frames=2, num_prototypes=16, max_long_term_elements=40, hidden_dim=0
)


def test_measured_ops_check_every_call():
    ops = CheckedFunctions(original_every=2)
    memory = Memory(CONFIG, functions=ops)
    frames(memory)
    assert memory.consolidations > 0
    assert memory.evictions > 0
    assert len(ops.reads) == 6
    assert sum(r.original_seconds is not None for r in ops.reads) == 3
    assert set(ops.upkeep) == {"consolidate", "evict_lfu"}
    assert all(0 < r.share <= 1 for r in ops.reads)


def test_the_view_of_the_memory():
    ops, remembered, g = CheckedFunctions(original_every=0), MemoryFrames(), torch.Generator().manual_seed(0)
    memory = Memory(CONFIG, functions=ops)
    image, labels = torch.zeros(48, 64, 3, dtype=torch.uint8), torch.zeros(48, 64, dtype=torch.uint8)
    labels[8:16, 40:64] = 1
    for i in range(5):
        key, selection = torch.randn(1, 8, 6, 8, generator=g), torch.rand(1, 8, 6, 8, generator=g)
        if i:
            memory.read(key, selection)
        memory.add(key, torch.ones(1, 1, 6, 8), torch.rand(1, 1, 1, 6, 8, generator=g), [1], selection)
        remembered.add(i, key, image)
    view = remembered.view(4, image, labels, ops.last_consolidation, ops.last_read)
    # Three frames fill working memory, two stay: the first, and the last. Frame 3 was consolidated.
    assert [caption for caption, _ in view.usage] == ["frame 3: 16 prototypes"]
    stars = np.asarray(view.usage[0][1]).min(2) == 255
    best = int(ops.last_consolidation.usage.argmax())
    y, x = (best // 8 + 0.5) * stars.shape[0] / 6, (best % 8 + 0.5) * stars.shape[1] / 8
    assert stars[int(y), int(x)]
    # The query is the middle of the object. All frames that it reads are known, prototypes' too.
    cross = np.argwhere((np.asarray(view.reading[0][1]) == (0, 229, 255)).all(2)).mean(0)
    assert np.allclose(cross, (1.5 * stars.shape[0] / 6, 6.5 * stars.shape[1] / 8), atol=2)
    assert view.share_shown == pytest.approx(1, abs=1e-5)
    shares = [int(re.search(r": (\d+) %", caption)[1]) for caption, _ in view.reading[1:]]
    assert sum(shares) == pytest.approx(100, abs=3)


def test_an_object_gets_a_colour_that_the_picture_lacks():
    image = torch.zeros(40, 40, 3, dtype=torch.uint8)
    image[:, :20], image[:, 20:] = torch.tensor([230, 40, 40]), torch.tensor([40, 200, 60])  # red and green
    labels = torch.zeros(40, 40, dtype=torch.uint8)
    labels[:10, :20], labels[30:, :20] = 1, 2
    colours = tints(image, labels)
    assert list(colours) == [1, 2]
    hues = [360 * colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0] for colour in colours.values()]
    assert all(60 < hue < 300 for hue in hues)  # not the red of the objects
    assert abs(hues[0] - 128) > 60  # nor the green of the rest
    assert abs(hues[0] - hues[1]) > 60
    grey = torch.full((8, 8, 3), 128, dtype=torch.uint8)
    assert set(tints(grey, torch.ones(8, 8, dtype=torch.uint8))) == {1}


@pytest.mark.parametrize("op", ["memory_read", "consolidate", "evict_lfu"])
def test_a_wrong_backend_stops_the_demo(monkeypatch, op):
    right = getattr(api, op)
    wrong = {
        "memory_read": lambda mk, ms, mv, qk, qe, **o: right(mk, [2 * s for s in ms], mv, qk, qe, **o),
        "consolidate": lambda mk, ms, me, mv, u, p, **o: right(mk, ms, None, mv, u, p, **o),
        "evict_lfu": lambda u, keep, **o: right(u.flip(1), keep, **o),
    }[op]
    wrong.__name__ = op
    monkeypatch.setattr(api, op, wrong)
    with pytest.raises(RuntimeError, match="fails the oracle"):
        frames(Memory(CONFIG, functions=CheckedFunctions(original_every=0)))
