"""Datasets as they lie on disk: recognised, listed, played back and forth, and what is wrong with a folder."""

import json
import shutil

import layouts
import pytest

from xmemk.evaluation.layouts import DatasetError, open_dataset, recognise


def names(video):
    return [shot.name for shot in video.shots]


def wanted(video):
    return [shot.name for shot in video.shots if shot.has_result]


def annotated(video):
    return [shot.name for shot in video.shots if shot.annotation is not None]


@pytest.mark.parametrize(
    ("made", "layout", "split", "rule", "joins"),
    [
        (layouts.davis, "davis2017", "val", "davis", False),
        (layouts.youtube, "youtube", "valid", "all", True),
        (layouts.lvos, "lvos", "valid", "all", True),
        (layouts.mose, "mose", "valid", "all", True),
        (layouts.long_video, "long", None, "davis", False),
        (layouts.generic, "generic", None, "all", True),
    ],
)
def test_a_layout_is_recognised(tmp_path, made, layout, split, rule, joins):
    root = made(tmp_path / "data")
    assert recognise(root) == layout
    found = open_dataset(root)
    assert (found.layout, found.split, found.rule) == (layout, split, rule)
    assert all(video.joins is joins and not video.merged for video in found.videos)
    assert open_dataset(root, layout, split) == found
    for video in found.videos:
        assert all(shot.image.is_file() for shot in video.shots)


def test_davis(tmp_path):
    root = layouts.davis(tmp_path)
    (root / "ImageSets" / "2017" / "train.txt").write_text("bear\n")
    found = open_dataset(root)
    assert [video.name for video in found.videos] == ["bear", "swan"] and found.split == "val"
    assert names(found.videos[0]) == wanted(found.videos[0]) == annotated(found.videos[0]) == layouts.counted(6)
    assert [video.name for video in open_dataset(root, split="train").videos] == ["bear"]
    assert [video.name for video in open_dataset(root, videos=["swan"]).videos] == ["swan"]
    with pytest.raises(DatasetError, match=r"SPLIT.txt: split 'test-dev' wanted, found val, train"):
        open_dataset(root, split="test-dev")
    with pytest.raises(DatasetError, match=r"wanted JPEGImages/Full-Resolution, found 480p"):
        open_dataset(root, resolution="Full-Resolution")
    shutil.move(root / "JPEGImages" / "480p", root / "JPEGImages" / "Full-Resolution")
    shutil.move(root / "Annotations" / "480p", root / "Annotations" / "Full-Resolution")
    assert open_dataset(root).videos[0].folder == root / "JPEGImages" / "Full-Resolution" / "bear"


def test_davis_2016_and_test_dev(tmp_path):
    root = layouts.davis(tmp_path / "both", year="2016")
    assert recognise(root) == "davis2016" and all(video.merged for video in open_dataset(root).videos)
    old = layouts.davis(tmp_path / "old", year="480p")
    lines = [f"/JPEGImages/480p/swan/{name}.jpg /Annotations/480p/swan/{name}.png" for name in layouts.counted(6)]
    (old / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines))
    assert [video.name for video in open_dataset(old).videos] == ["swan"] and open_dataset(old).layout == "davis2016"
    test = open_dataset(layouts.davis(tmp_path / "test", split="test-dev", annotated=[0]))
    assert test.split == "test-dev" and annotated(test.videos[0]) == ["00000"]


def test_youtube(tmp_path):
    root = layouts.youtube(tmp_path / "YouTube")
    (video,) = open_dataset(root, all_frames=False).videos
    assert names(video) == layouts.counted(6, 5) and video.labels == {1, 2}
    assert wanted(video) == layouts.counted(5, 5) and annotated(video) == ["00000", "00015"]
    (whole,) = open_dataset(root).videos  # all frames, where they are there
    assert names(whole) == layouts.counted(26) and wanted(whole) == wanted(video)
    assert open_dataset(root / "valid").videos == open_dataset(root).videos  # the split's own folder
    shutil.rmtree(root / "all_frames")
    assert names(open_dataset(root).videos[0]) == names(video)
    with pytest.raises(DatasetError, match="wanted all_frames/valid_all_frames/JPEGImages, found"):
        open_dataset(root, all_frames=True)
    meta = json.loads((root / "valid" / "meta.json").read_text())
    meta["videos"]["0a"]["objects"]["2"]["frames"].append("00099")
    (root / "valid" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"frame 00099, which meta.json names, is missing"):
        open_dataset(root)
    (root / "valid" / "meta.json").write_text('{"videos": [1]}')
    with pytest.raises(DatasetError, match=r"meta.json: wanted"):
        open_dataset(root)


def test_long_time_video(tmp_path):
    found = open_dataset(layouts.long_video(tmp_path))
    assert wanted(found.videos[0]) == ["00000", "00002", "00004", "00006"] and len(found.videos[0].shots) == 7
    assert open_dataset(tmp_path / "long_video").videos == found.videos


def test_back_and_forth(tmp_path):
    root = layouts.long_video(tmp_path, count=4, annotated=(0, 2))
    (video,) = open_dataset(root, repeat=3).videos
    assert [shot.image.stem[-1] for shot in video.shots] == list("0123210123")
    assert wanted(video) == ["00000", "00002", "00002_x2", "00000_x2", "00002_x3"]
    assert annotated(video) == wanted(video) and len(set(names(video))) == 10
    assert [s.annotation.stem for s in video.shots if s.annotation] == ["00000", "00002", "00002", "00000", "00002"]
    assert len(open_dataset(root, repeat=1).videos[0].shots) == 4


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        open_dataset(tmp_path / "absent")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"no dataset; looked for ImageSets/2017 .* found photos$"):
        open_dataset(tmp_path)
    for layout, words in (
        ("davis2017", r"ImageSets/2017/SPLIT.txt wanted, found none"),
        ("youtube", "SPLIT/JPEGImages wanted, found none"),
        ("long", "wanted JPEGImages, found photos"),
        ("generic", "wanted JPEGImages, found photos"),
        ("coco", "layout: wanted one of davis2016, .*, got 'coco'"),
    ):
        with pytest.raises(DatasetError, match=words):
            open_dataset(tmp_path, layout)


def test_datasets_with_parts_missing(tmp_path):
    root = layouts.davis(tmp_path)
    with pytest.raises(DatasetError, match="videos: wanted some of bear, swan, got cow"):
        open_dataset(root, videos=["bear", "cow"])
    with pytest.raises(DatasetError, match="repeat: wanted at least 1, got 0"):
        open_dataset(root, repeat=0)
    (root / "JPEGImages" / "480p" / "swan" / "00003.jpg").unlink()
    with pytest.raises(DatasetError, match=r"00003.png: video swan has no frame 00003; it has 00000 to 00005"):
        open_dataset(root)
    shutil.rmtree(root / "JPEGImages" / "480p" / "swan")
    with pytest.raises(DatasetError, match="swan: wanted the frames of video swan, found no such folder"):
        open_dataset(root)
    shutil.rmtree(root / "Annotations" / "480p" / "bear")
    with pytest.raises(DatasetError, match="bear: wanted masks of video bear, found no such folder"):
        open_dataset(root)
    shutil.rmtree(root / "Annotations")
    with pytest.raises(DatasetError, match="Annotations/480p: wanted a folder of masks, found none"):
        open_dataset(root)
