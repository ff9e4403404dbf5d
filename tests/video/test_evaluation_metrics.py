"""J and F of cases worked out by hand, which frames are judged, missing results, submissions."""

import builtins
import zipfile

import layouts
import numpy as np
import pytest

pytest.importorskip("vos_benchmark.evaluator", exc_type=ImportError)  # of OpenCV without libGL too

from xmemk.data.masks import MaskError
from xmemk.evaluation.layouts import DatasetError, open_dataset
from xmemk.evaluation.metrics import has_truth, judge, mean
from xmemk.evaluation.pack import pack

SIZE = (60, 80)  # its diagonal is 100, of which 0.8 % are 1 pixel: how far contours may be apart


def box(top, left, height=20, width=20, label=1):
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[top : top + height, left : left + width] = label
    return mask


def dataset_of(root, truths, layout="generic"):
    """A generic dataset of one video with these annotations, None where a frame has none."""
    for number, truth in enumerate(truths):
        layouts.write_labels(root / "JPEGImages" / "v" / f"{number:05d}.png", np.zeros(SIZE), mode="L")
        if truth is not None:
            layouts.write_labels(root / "Annotations" / "v" / f"{number:05d}.png", truth)
    return open_dataset(root, layout)


def results_of(root, masks):
    for number, mask in enumerate(masks):
        if mask is not None:
            layouts.write_labels(root / "v" / f"{number:05d}.png", mask)
    return root


def test_a_perfect_result_has_100(tmp_path):
    truths = [box(10, 10 + 2 * i) for i in range(4)]
    dataset, results = dataset_of(tmp_path / "d", truths), results_of(tmp_path / "r", truths)
    judgement = judge(dataset, results)
    assert [(s.video, s.label, s.j, s.f, s.jf) for s in judgement.scores] == [("v", 1, 100, 100, 100)]
    assert judgement.frames == 4 and judgement.rule == "all" and mean(judgement.scores) == (100, 100, 100)


def test_half_a_box_beside_it(tmp_path):
    """Truth in columns 10 to 29, result in 20 to 39, same rows: intersection 200, union 600 pixels.

    A contour runs above and left of a region, and on its last row and column. The contour of a box
    of 20 x 20 is therefore a ring of 21 x 21 with 80 pixels: here rows 9 and 29, and columns 9 and
    29 of the truth, 19 and 39 of the result. In rows 9 and 29 of the truth, the 12 pixels in
    columns 18 to 29 are within one pixel of the result's contour. In its column 29, two more are,
    next to those rows; in its column 9, none. That is 2 x 12 + 2 = 26 of 80, and by symmetry the
    same for the result: F = 32.5 %.
    """
    truth, result = box(10, 10), box(10, 20)
    dataset, results = dataset_of(tmp_path / "d", [truth] * 3), results_of(tmp_path / "r", [result] * 3)
    (score,) = judge(dataset, results).scores
    assert score.j == pytest.approx(100 / 3) and score.f == pytest.approx(32.5)
    assert score.jf == pytest.approx((100 / 3 + 32.5) / 2)


def test_a_contour_one_pixel_off_is_right_and_two_is_not(tmp_path):
    """A box of 20 x 20 within one that has a margin of m: J = 400 / (20 + 2 m)^2.

    With m = 1, each of the inner contour's 80 pixels is next to one of the outer contour. Of the
    outer contour's 88 pixels all are, except the four corners, whose nearest are diagonal. So
    F = 2 x 84/88 / (1 + 84/88) = 168/172. With m = 2, none are.
    """
    for margin, f in ((1, 100 * 168 / 172), (2, 0)):
        side = 20 + 2 * margin
        dataset = dataset_of(tmp_path / f"d{margin}", [box(20, 20)] * 3)
        results = results_of(tmp_path / f"r{margin}", [box(20 - margin, 20 - margin, side, side)] * 3)
        (score,) = judge(dataset, results).scores
        assert score.j == pytest.approx(100 * 400 / side**2) and score.f == pytest.approx(f)


def test_the_first_and_the_last_annotation_are_left_out(tmp_path):
    """J of the frames is 0, 1, 1/3, 0. DAVIS takes the mean of the middle two, others of all."""
    truth = box(10, 10)
    dataset = dataset_of(tmp_path / "d", [truth] * 4)
    results = results_of(tmp_path / "r", [box(35, 55), truth, box(10, 20), box(35, 55)])
    davis, everything = judge(dataset, results, "davis"), judge(dataset, results, "all")
    assert davis.scores[0].j == pytest.approx(200 / 3) and davis.frames == 2
    assert everything.scores[0].j == pytest.approx(100 / 3) and everything.frames == 4
    with pytest.raises(ValueError, match="rule: wanted one of davis, all, got 'coco'"):
        judge(dataset, results, "coco")


def test_sparse_annotations_need_results_of_their_frames_alone(tmp_path):
    truths = [box(10, 10), None, None, box(10, 14), None, box(10, 18)]
    dataset = dataset_of(tmp_path / "d", truths)
    judgement = judge(dataset, results_of(tmp_path / "r", truths))
    assert judgement.frames == 3 and judgement.scores[0].j == 100


def test_objects_and_videos_are_averaged_over_objects(tmp_path):
    """Object 1 right everywhere, object 2 (20 x 20) shifted by half its width: J 1 and 1/3."""
    truth = box(5, 5) + box(35, 40, label=2)
    result = box(5, 5) + box(35, 50, label=2)
    dataset = dataset_of(tmp_path / "d", [truth] * 3)
    judgement = judge(dataset, results_of(tmp_path / "r", [truth, result, result]), "davis")
    assert [s.label for s in judgement.of("v")] == [1, 2]
    assert [s.j for s in judgement.scores] == pytest.approx([100, 100 / 3])
    assert mean(judgement.scores)[1] == pytest.approx(200 / 3)
    assert mean(judgement.scores)[0] == pytest.approx(sum(s.jf for s in judgement.scores) / 2)
    with pytest.raises(ValueError, match="at least one object"):
        mean(())


def test_an_object_that_is_gone_and_one_that_is_missed(tmp_path):
    """An object absent from truth and result is right; absent from one of them, wrong."""
    truth, nothing = box(10, 10), np.zeros(SIZE)
    dataset = dataset_of(tmp_path / "d", [truth, truth, nothing, nothing, truth, truth])
    results = results_of(tmp_path / "r", [truth, truth, nothing, truth, nothing, truth])
    (score,) = judge(dataset, results, "davis").scores
    assert score.j == score.f == 50  # 1, 1, 0, 0


@pytest.mark.parametrize("rule", ["davis", "all"])
def test_the_figures_are_those_of_vos_benchmark_on_folders(tmp_path, rule):
    from vos_benchmark.benchmark import VideoEvaluator

    root, results = layouts.davis(tmp_path / "data", videos=("bear",)), tmp_path / "r"
    for number in range(6):
        mask = np.roll(layouts.labels(number, 0), (number % 3, number), (0, 1))
        layouts.write_labels(results / "bear" / f"{number:05d}.png", mask)
    theirs = VideoEvaluator(str(root / "Annotations" / "480p"), str(results), skip_first_and_last=rule == "davis")
    _, j, f = theirs("bear")
    ours = judge(open_dataset(root), results, rule).scores
    assert {s.label: s.j for s in ours} == j and {s.label: s.f for s in ours} == f
    assert all(0 < s.j < 100 and 0 < s.f < 100 for s in ours)


def test_davis_2016_has_one_object(tmp_path):
    root = layouts.davis(tmp_path / "data", videos=("bear",), year="2016")
    for number in range(6):
        merged = (layouts.labels(number, 0) > 0) * 255
        layouts.write_labels(tmp_path / "r" / "bear" / f"{number:05d}.png", merged, mode="L")
    (score,) = judge(open_dataset(root), tmp_path / "r").scores
    assert (score.label, score.j, score.f) == (1, 100, 100)


def test_a_video_played_twice_is_judged_twice(tmp_path):
    root = layouts.long_video(tmp_path / "data", count=3, annotated=(0, 1, 2))
    dataset = open_dataset(root, repeat=2)
    for shot in dataset.videos[0].shots:
        mask = layouts.labels(int(shot.image.stem), 0)
        if shot.name == "00001_x2":
            mask = np.roll(mask, 6, 1)
        layouts.write_labels(tmp_path / "r" / "dressage" / f"{shot.name}.png", mask)
    judgement = judge(dataset, tmp_path / "r")
    assert judgement.frames == 3  # 00001, 00002, 00001_x2 of 00000 ... 00000_x2
    assert [s.j for s in judgement.scores] == pytest.approx([100 * (2 + 6 / 18) / 3] * 2)


def test_annotations_that_are_told_judge_nothing(tmp_path):
    for make in (layouts.mose, layouts.youtube):
        dataset = open_dataset(make(tmp_path / make.__name__))
        assert not any(has_truth(video) for video in dataset.videos)
        with pytest.raises(DatasetError, match=r"there are only those that the tracker is told$"):
            judge(dataset, tmp_path)
    assert all(has_truth(v) for v in open_dataset(layouts.lvos(tmp_path / "lvos")).videos)
    two = layouts.davis(tmp_path / "davis", count=2)
    with pytest.raises(DatasetError, match="too few to leave out the first and the last"):
        judge(open_dataset(two), tmp_path)


def test_videos_without_truth_are_named(tmp_path):
    root = layouts.mose(tmp_path / "data", split="train")
    names = layouts.counted(3)
    layouts.write_frames(root / "train" / "JPEGImages" / "full", names, late=0)
    layouts.write_masks(root / "train" / "Annotations" / "full", names, late=0)
    layouts.write_masks(tmp_path / "r" / "full", names, late=0)
    judgement = judge(open_dataset(root), tmp_path / "r")
    assert judgement.unjudged == ("3f",) and {s.video for s in judgement.scores} == {"full"}


def test_results_that_do_not_fit(tmp_path):
    root = layouts.davis(tmp_path / "data")
    dataset, results, names = open_dataset(root), tmp_path / "r", layouts.counted(6)
    with pytest.raises(DatasetError, match="no such folder of results"):
        judge(dataset, results)
    layouts.write_masks(results / "bear", names[:4], late=0)
    with pytest.raises(DatasetError, match=r"5 of 8 results are missing: bear/00004.png, swan/00001.png, .*00004.png$"):
        judge(dataset, results)
    layouts.write_masks(results / "bear", names, late=0)
    layouts.write_masks(results / "swan", names, late=0)
    assert mean(judge(dataset, results).scores) == (100, 100, 100)
    layouts.write_labels(results / "swan" / "00002.png", np.ones((10, 12)))
    with pytest.raises(MaskError, match=r"swan/00002.png: is 12x10, the annotation 48x32"):
        judge(dataset, results)
    layouts.write_labels(results / "swan" / "00002.png", layouts.labels(2, 0) * 3)
    with pytest.raises(MaskError, match=r"swan/00002.png: has label 3, swan is annotated with \[1, 2\]"):
        judge(dataset, results)
    (results / "swan" / "00002.png").write_bytes(b"torn")
    with pytest.raises(MaskError, match=r"00002.png: not an image that can be read"):
        judge(dataset, results)


def test_without_vos_benchmark(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("vos_benchmark"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="vos_benchmark")
        return real(name, *rest)

    dataset = open_dataset(layouts.davis(tmp_path))
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(RuntimeError, match=r"J and F need vos_benchmark: pip install 'xmemk\[eval\]'"):
        judge(dataset, tmp_path)


@pytest.mark.parametrize(
    ("make", "first", "count"),
    [
        (layouts.youtube, "Annotations/0a/00000.png", 5),
        (layouts.lvos, "Annotations/long/00000000.png", 6),
        (layouts.mose, "3f/00000.png", 4),
        (layouts.davis, "bear/00000.png", 12),
    ],
)
def test_submissions(tmp_path, make, first, count):
    dataset, results = open_dataset(make(tmp_path / "data")), tmp_path / "r"
    for video in dataset.videos:
        layouts.write_masks(results / video.name, [shot.name for shot in video.shots if shot.has_result], late=0)
        layouts.write_masks(results / video.name, ["unwanted"])
    assert pack(dataset, results, tmp_path / "sub.zip") == count
    with zipfile.ZipFile(tmp_path / "sub.zip") as file:
        assert file.testzip() is None and file.namelist()[0] == first and len(file.namelist()) == count
    lost = results / first.removeprefix("Annotations/")
    lost.unlink()
    with pytest.raises(DatasetError, match=rf"1 of {count} results are missing, {first.removeprefix('Annotations/')}"):
        pack(dataset, results, tmp_path / "again.zip")
    assert {p.name for p in tmp_path.glob("*.zip*")} == {"sub.zip"}


def test_a_dataset_without_a_server_has_no_submission(tmp_path):
    with pytest.raises(DatasetError, match=r"wanted a dataset with a server \(youtube, .*\), got generic"):
        pack(open_dataset(layouts.generic(tmp_path / "data")), tmp_path, tmp_path / "sub.zip")
