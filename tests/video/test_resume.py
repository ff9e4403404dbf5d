"""Whose results a folder has: finished runs, killed runs, links, other jobs, and full disks."""

import json
import os
import shutil
import sys

import fixed_network as fixed
import pytest
import torch

pytest.importorskip("av")
from small_videos import CONFIG, COUNT, SMALL, equal, results, write_video

from xmemk.data.masks import write_mask
from xmemk.data.source import open_source
from xmemk.data.whole_files import results_folder
from xmemk.network import XMem
from xmemk.video.job import FILES, FOLDERS
from xmemk.video.resume import weights_digest
from xmemk.video.segment import SegmentJob, segment


def never(*_):
    raise AssertionError("nothing was to be done")


@pytest.fixture
def job(video, mask, tmp_path):
    return SegmentJob(video, mask, tmp_path / "out", size=0, config=CONFIG, save_every=4)


def test_a_finished_job_is_not_done_again(network, job, mask, tmp_path):
    segment(network, job)
    before = {p: p.stat().st_mtime_ns for p in job.out.rglob("*")}
    called = []
    report = segment(network, job, never, lambda *a: called.append(a))
    assert (report.frames, report.resumed, report.first, report.last) == (COUNT, COUNT, 0, COUNT - 1)
    assert called == [(job.out / "masks", 0, COUNT - 1)] and before == {p: p.stat().st_mtime_ns for p in before}
    job.soft = True
    with pytest.raises(ValueError, match="was finished without soft; give --overwrite to do it again"):
        segment(network, job)
    job.overwrite = True
    assert segment(network, job).resumed == 0 and len(results(job.out, "soft/1")) == COUNT
    job.overwrite = job.soft = False
    (job.out / "masks" / "00003.png").unlink()
    assert segment(network, job).resumed == 0 and len(results(job.out)) == COUNT


def test_contents_count_and_not_where_they_are(network, job, video, mask, tmp_path):
    segment(network, job)
    shutil.move(video, tmp_path / "elsewhere")
    shutil.move(mask, tmp_path / "another name.png")
    job.video, job.masks = tmp_path / "elsewhere", tmp_path / "another name.png"
    reordered = XMem(SMALL)
    reordered.load_state_dict(dict(reversed(list(network.state_dict().items()))))
    assert segment(reordered, job).resumed == COUNT
    (tmp_path / "elsewhere" / "00020.png").write_bytes((tmp_path / "elsewhere" / "00019.png").read_bytes())
    with pytest.raises(ValueError, match=r"has results of another run \(video differs\)"):
        segment(network, job)


def test_the_digest_of_weights_is_of_their_values(network, threads):
    state = network.state_dict()
    digests = set()
    for count in (1, 2, 3):
        threads(count)
        digests.add(weights_digest(state))
    digests.add(weights_digest(dict(reversed(list(state.items())))))
    assert len(digests) == 1
    name = next(iter(state))
    swapped = state[name].flatten().roll(1).view_as(state[name])  # of equal sum
    assert weights_digest({**state, name: swapped}) not in digests
    assert weights_digest({**state, name: state[name].bfloat16()}) not in digests


def test_what_killed_runs_left_is_collected_and_links_are_not_followed(network, job, tmp_path):
    segment(network, job)
    expected, elsewhere = results(job.out), tmp_path / "elsewhere.png"
    elsewhere.write_bytes(b"mine")
    masks, resume = job.out / "masks", job.out / "resume"
    resume.mkdir()
    left = [job.out / ".01234567.part", masks / ".89abcdef.part", masks / "00003.part", job.out / "overlay.part.mp4"]
    left.append(resume / ".memory-5.safetensors.01234567.tmp")
    for path in left:
        path.write_bytes(b"half")
    (masks / "00004.part").symlink_to(elsewhere)
    (masks / "00005.png").unlink()
    (masks / "00005.png").symlink_to(elsewhere)
    assert segment(network, job).resumed == 0
    assert not any(path.exists() for path in left) and not resume.exists()
    assert elsewhere.read_bytes() == b"mine" and not (masks / "00005.png").is_symlink()
    (masks / "00004.part").unlink()
    assert equal(results(job.out), expected)


@pytest.mark.parametrize("name", [*FOLDERS, *FILES, "soft/1"])
def test_a_product_that_is_a_link_is_refused(network, job, tmp_path, name):
    target = tmp_path / "target"
    target.mkdir()
    (job.out / name).parent.mkdir(parents=True)
    (job.out / name).symlink_to(target)
    job.soft = job.cutout = True
    with pytest.raises(ValueError, match=rf"{name}: is a symbolic link, and results are not written through links"):
        segment(network, job)
    assert list(target.iterdir()) == []


def test_a_folder_belongs_to_one_run_at_a_time(network, job):
    with results_folder(job.out, FILES), pytest.raises(OSError, match="another run is writing to it"):
        segment(network, job)
    assert segment(network, job).frames == COUNT


def test_masks_of_others_stay(network, job):
    (job.out / "masks").mkdir(parents=True)
    write_mask(job.out / "masks" / "mine.png", fixed.first_mask().to(torch.uint8))
    for job.overwrite in (False, True):
        with pytest.raises(ValueError, match="has masks of which xmemk segment has no record; give another --out"):
            segment(network, job)
    assert os.listdir(job.out / "masks") == ["mine.png"]


def test_overwrite_replaces_the_results_of_another_job(network, job, tmp_path):
    job.soft = True
    segment(network, job)
    (job.out / "notes.txt").write_text("mine")
    (job.out / "overlay.mp4").write_bytes(b"of the job before")
    job.soft, job.start, job.overwrite = False, 15, True
    segment(network, job)
    assert list(results(job.out)) == [f"{i:05d}.png" for i in range(15, COUNT)]
    assert sorted(os.listdir(job.out)) == ["job.json", "masks", "notes.txt"]


@pytest.mark.parametrize("record", ["{", "[]", '{"of": "an earlier version"}', '{"job": 3, "products": 4}', ""])
def test_a_damaged_record_is_none(network, job, record):
    segment(network, job)
    (job.out / "job.json").write_text(record)
    with pytest.raises(ValueError, match="has masks of which xmemk segment has no record"):
        segment(network, job)
    shutil.rmtree(job.out / "masks")
    assert segment(network, job).frames == COUNT
    assert json.loads((job.out / "job.json").read_text())["finished"] == [0, COUNT - 1]


def test_an_interrupt_at_any_line_leaves_a_run_that_resumes(network, tmp_path):
    """KeyboardInterrupt in lines of the loop, of saving and of writing, spread over a short run."""
    short = SegmentJob(write_video(tmp_path / "v.mp4", 6), tmp_path / "m.png", tmp_path / "whole", start=2, size=0)
    short.config, short.direction, short.save_every = CONFIG, "both", 2
    write_mask(short.masks, fixed.first_mask().to(torch.uint8))
    files = tuple(
        f"xmemk/{name}.py" for name in ("video/segment", "video/resume", "video/interrupts", "data/whole_files")
    )
    lines = 0

    def tracer(at):
        def trace(frame, event, argument):
            nonlocal lines
            if not frame.f_code.co_filename.endswith(files):
                return None
            if event == "line":
                lines += 1
                if lines == at:
                    raise KeyboardInterrupt
            return trace

        return trace

    def run(at):
        nonlocal lines
        lines = 0
        before = sys.gettrace()
        sys.settrace(tracer(at))
        try:
            segment(network, short)
        finally:
            sys.settrace(before)

    run(0)
    total, expected = lines, results(short.out)
    assert total > 300
    for number, at in enumerate(range(3, total, total // 12)):
        short.out = tmp_path / f"out {number}"
        with pytest.raises(KeyboardInterrupt):
            run(at)
        segment(network, short)
        assert equal(results(short.out), expected), at
        assert sorted(p.name for p in short.out.rglob("*") if p.suffix != ".png") == ["job.json", "masks"]


def test_a_source_is_open_already(network, video, mask, tmp_path):
    report = segment(network, SegmentJob(open_source(video), mask, tmp_path / "out", size=0, config=CONFIG))
    assert report.frames == COUNT
