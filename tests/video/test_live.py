"""Streams: frames from pipes as they come, once, in constant memory."""

import contextlib
import io
import os
import subprocess
import sys
import threading

import fixed_network as fixed
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("typer")
from small_videos import CONFIG, COUNT, equal, pictures, results, write_video

from xmemk.cli.app import run
from xmemk.data.live import is_stream, open_stream
from xmemk.data.source import open_source
from xmemk.data.video import VideoError, read_frames
from xmemk.video.segment import SegmentJob, segment

SIZE = {"video_size": f"{fixed.WIDTH}x{fixed.HEIGHT}", "pixel_format": "rgb24", "framerate": "10"}


@pytest.fixture
def pipe(tmp_path):
    """A named pipe into which a thread writes: pipe(content) -> its path."""
    threads = []

    def open_pipe(content, name="pipe"):
        os.mkfifo(tmp_path / name)

        def write():
            with (tmp_path / name).open("wb") as file, contextlib.suppress(BrokenPipeError):
                file.write(content)

        threads.append(threading.Thread(target=write, daemon=True))
        threads[-1].start()
        return tmp_path / name

    yield open_pipe
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        ("matroska", "libx264", {}),
        ("mpegts", "libx264", {}),
        ("mjpeg", "mjpeg", {}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_a_pipe_gives_the_frames_of_the_file(tmp_path, pipe, form, codec, options):
    file = write_video(tmp_path / "v", form=form, codec=codec, container_options=options)
    source = open_stream(pipe(file.read_bytes()))
    assert (source.width, source.height, source.frames) == (fixed.WIDTH, fixed.HEIGHT, None)
    got = list(source.read())
    assert [f.number for f in got] == list(range(COUNT)) and [f.name for f in got][:2] == ["00000", "00001"]
    assert all(torch.equal(f.image, image) for f, image in zip(got, read_frames(file)))
    assert list(source.read()) == []  # they come once


def test_frames_without_a_header(pipe):
    raw = b"".join(picture.numpy().tobytes() for picture in pictures())
    source = open_stream(pipe(raw), "rawvideo", SIZE)
    got = list(source.read(3))
    assert [f.number for f in got] == list(range(3, COUNT)) and float(got[0].time) == pytest.approx(0.3)
    assert all(torch.equal(f.image, picture) for f, picture in zip(got, pictures()[3:]))


def test_what_is_a_stream(tmp_path, pipe):
    assert is_stream("-") and is_stream("rtsp://camera/1") and is_stream("/dev/null") and is_stream(pipe(b""))
    (tmp_path / "v.mp4").touch()
    assert not any(is_stream(path) for path in (tmp_path / "v.mp4", tmp_path, tmp_path / "absent"))
    (tmp_path / "pipe").open("rb").close()


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"", None, r"pipe: not a stream that can be read \(.*\); a pipe needs a format that can be read in one"),
        (b"text" * 999, None, "pipe: not a stream that can be read"),
        (b"", "no such", r"pipe: not a stream that can be read \(.*no such"),
    ],
)
def test_what_is_no_stream_is_one_sentence(pipe, content, form, message):
    path = pipe(content)
    with pytest.raises(VideoError, match=message):
        open_stream(path, form)


def test_a_stream_is_followed_as_its_file(network, tmp_path, mask, pipe):
    file = write_video(tmp_path / "v.mkv", form="matroska")
    segment(network, SegmentJob(file, mask, tmp_path / "file", start=2, size=0, config=CONFIG))
    seen = []
    job = SegmentJob(open_stream(pipe(file.read_bytes())), mask, tmp_path / "stream", start=2, size=0, config=CONFIG)
    report = segment(network, job, each=lambda frame, labels: seen.append((frame.number, labels)))
    assert equal(results(tmp_path / "stream"), results(tmp_path / "file"))
    assert (report.first, report.last) == (2, COUNT - 1) and [n for n, _ in seen] == list(range(2, COUNT))
    assert all(torch.equal(labels, results(tmp_path / "file")[f"{n:05d}.png"]) for n, labels in seen)
    assert not (tmp_path / "stream" / "resume").exists()
    job.video = open_stream(pipe(file.read_bytes(), "again"))
    with pytest.raises(ValueError, match="has results of an earlier run, and a stream cannot be resumed"):
        segment(network, job)
    list(job.video.read())
    job.video = open_stream(pipe(file.read_bytes(), "backwards"))
    job.direction = "both"
    with pytest.raises(ValueError, match="comes once and forwards, so it cannot be followed both"):
        segment(network, job)
    list(job.video.read())


def test_a_stream_that_ends_before_the_mask(network, tmp_path, mask, pipe):
    file = write_video(tmp_path / "v.mkv", form="matroska")
    job = SegmentJob(open_stream(pipe(file.read_bytes())), mask, tmp_path / "out", start=COUNT, size=0, config=CONFIG)
    with pytest.raises(VideoError, match=rf"pipe: ended after {COUNT} frames, so there is no frame {COUNT}$"):
        segment(network, job)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_stream_that_breaks_off_keeps_what_came(network, tmp_path, mask, pipe, capsys):
    torch.save(network.state_dict(), tmp_path / "w.pth")
    file = write_video(tmp_path / "v.mp4", form="mp4", container_options={"movflags": "frag_keyframe+empty_moov"})
    content = file.read_bytes()
    out = tmp_path / "out"
    words = ["segment", str(pipe(content[: len(content) * 2 // 3])), "--mask", str(mask), "--out", str(out)]
    code = run([*words, "--weights", str(tmp_path / "w.pth"), "--size", "0", "--side-by-side"])
    masks = len(results(out))
    assert 3 < masks < COUNT and code in (0, 1)
    for name in ("overlay.mp4", "side-by-side.mp4"):
        assert open_source(out / name).frames == masks
    capsys.readouterr()


def test_memory_does_not_grow_with_a_stream(tmp_path):
    """Two hundred frames of 1 MB through a pipe, of which few are in memory at a time."""
    code = (
        "import resource, sys\n"
        "from xmemk.data.live import open_stream\n"
        "size = {'video_size': '640x520', 'pixel_format': 'rgb24'}\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for frame in open_stream('-', 'rawvideo', size).read():\n"
        "    if frame.number == 50: before = peak()\n"
        "print(frame.number, peak() - before)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    frame = bytes(640 * 520 * 3)
    with process.stdin as pipe:
        for _ in range(200):
            pipe.write(frame)
    number, growth = (int(word) for word in process.stdout.read().split())
    process.stdout.close()
    assert process.wait() == 0 and number == 199 and growth < 30_000  # kilobytes


def test_an_interrupt_while_waiting_for_a_frame(tmp_path):
    """The pipe stays open and silent after three frames: Ctrl-C ends the command at once."""
    code = (
        "import os, signal, sys, threading, time\n"
        "from xmemk.data.live import open_stream\n"
        "size = {'video_size': '64x48', 'pixel_format': 'rgb24'}\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "frames = open_stream('-', 'rawvideo', size).read()\n"
        "print(*(next(frames).number for _ in range(3)), flush=True)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: next(frames)\n"
        "except KeyboardInterrupt: frames.close(); print('stopped')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(bytes(64 * 48 * 3) * 3)
    process.stdin.flush()
    assert io.TextIOWrapper(process.stdout).read().split() == ["0", "1", "2", "stopped"]
    assert process.wait(20) == 0
    process.stdin.close()
