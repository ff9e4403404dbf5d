"""Masks as annotation tools write them: read as the labels that were written, or refused."""

import os

import pytest

pytest.importorskip("av")
import files
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from xmemk.data.label_rules import LabelRule
from xmemk.data.mask_files import find_masks, mask_for
from xmemk.data.masks import MaskError, read_colours, read_mask, read_object_mask, write_mask
from xmemk.data.source import open_source

RED, GREEN = (255, 0, 0), (0, 255, 0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(files.MASK_WRITERS)))
def test_labels_come_back_however_they_are_written(tmp_path_factory, data, kind):
    largest, suffix, write = files.MASK_WRITERS[kind]
    labels = data.draw(files.label_images(largest))
    path = tmp_path_factory.mktemp("masks") / f"mask{suffix}"
    write(path, labels)
    rule = data.draw(st.sampled_from([LabelRule(), LabelRule(stored=True)]))
    try:
        read = read_mask(path, rule)
    except MaskError as error:  # such as a rectangle that covers the background in colours
        assert not rule.stored or "no black" in str(error)
        assert str(path) in str(error) and ("--colours" in str(error) or "--threshold" in str(error))
        assert kind == "equal red, green and blue" or "colour" in kind or "lines between others" in str(error)
    else:
        assert read.dtype == torch.uint8 and read.tolist() == labels.tolist()


@pytest.mark.parametrize("kind", sorted(files.MASK_WRITERS))
def test_objects_on_background_are_read_in_every_kind(tmp_path, kind):
    largest, suffix, write = files.MASK_WRITERS[kind]
    labels = np.zeros((24, 40), np.uint8)
    labels[2:10, 3:12] = largest
    labels[12:20, 7:39] = 1
    write(tmp_path / f"mask{suffix}", labels)
    assert read_mask(tmp_path / f"mask{suffix}").tolist() == labels.tolist()


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from([k for k in sorted(files.MASK_WRITERS) if files.MASK_WRITERS[k][0] > 100]))
def test_any_noise_is_read_as_it_is_or_refused(tmp_path_factory, data, kind):
    largest, suffix, write = files.MASK_WRITERS[kind]
    seed, height, width = data.draw(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30)))
    values = data.draw(st.integers(1, largest))
    labels = np.random.default_rng(seed).integers(0, values, (height, width), np.uint8, endpoint=True)
    path = tmp_path_factory.mktemp("masks") / f"mask{suffix}"
    write(path, labels)
    try:
        assert read_mask(path).tolist() == labels.tolist()
    except MaskError as error:
        assert str(path) in str(error)


def colour_mask(*objects, background=(0, 0, 0), size=(48, 32)):
    image = Image.new("RGBA" if len(background) == 4 else "RGB", size, background)
    for number, colour in enumerate(objects):
        image.paste(colour, (2 + 12 * number, 3, 11 + 12 * number, 25))
    return image


def test_colours_are_numbered_alike_in_all_masks_of_a_video(tmp_path):
    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
    for number, colours in enumerate([(RED,), (GREEN, RED), ((0, 0, 255), GREEN)]):
        Image.new("RGB", (48, 32)).save(tmp_path / "frames" / f"{number}.png")
        colour_mask(*colours).save(tmp_path / "masks" / f"{number}.png")
    source = open_source(tmp_path / "frames")
    masks = find_masks(tmp_path / "masks", source)
    at = [mask_for(source, file, masks.rule)[10, [6, 18]].tolist() for file in masks.values()]
    assert at == [[1, 0], [2, 1], [3, 2]]
    assert masks.rule.note.startswith("labels of the masks: #ff0000 = 1, #00ff00 = 2, #0000ff = 3 (--colours")
    chosen = find_masks(tmp_path / "masks", source, rule=LabelRule.parse(colours="00ff00,ff0000=7,0000ff=9"))
    at = [mask_for(source, file, chosen.rule)[10, [6, 18]].tolist() for file in chosen.values()]
    assert at == [[7, 0], [1, 7], [9, 1]]
    files.indexed(np.ones((32, 48), np.uint8)).save(tmp_path / "masks" / "2.png")
    with pytest.raises(MaskError, match=r"0.png: has colours or 16 bits, unlike other masks in its folder"):
        find_masks(tmp_path / "masks", source)


def test_colours_of_davis_and_transparency(tmp_path):
    path = tmp_path / "m.png"
    colour_mask((0, 128, 0), (128, 0, 0)).save(path)
    assert read_mask(path)[10, [6, 18]].tolist() == [2, 1]
    colour_mask(RED, (0, 0, 255), background=(9, 9, 9, 0)).save(path)
    assert dict(LabelRule().fitted([str(path)]).numbers) == {-1: 0, 0: 0, 0x0000FF: 1, 0xFF0000: 2}
    assert read_mask(path)[10, [6, 18, 0]].tolist() == [2, 1, 0]
    colour_mask((0, 0, 0), background=(9, 9, 9, 0)).save(path)  # black on transparency
    assert read_mask(path)[10, [6, 18]].tolist() == [1, 0]
    Image.merge("LA", [Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)]).save(path)
    assert not read_mask(path).any()


def smoothed(size=(128, 80)):
    image = Image.new("L", size)
    image.paste(255, (25, 16, 65, 50))
    return image.resize((4 * size[0], 4 * size[1]), Image.BICUBIC).resize(size, Image.BICUBIC)


def two_levels():
    labels = Image.new("L", (128, 80))
    labels.paste(100, (10, 10, 50, 70))
    labels.paste(200, (60, 10, 110, 70))
    return labels


def voc():
    """An object with PASCAL VOC's void around it."""
    labels = np.zeros((40, 60), np.uint8)
    labels[5:35, 5:45] = 255
    labels[10:30, 10:40] = 3
    return files.indexed(labels)


def background_last():
    """A palette image whose background is not first."""
    image = Image.fromarray(np.where(np.arange(1200).reshape(30, 40) % 40 < 20, 1, 0).astype(np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            lambda: Image.fromarray(np.array(two_levels()) // 100).resize((256, 160), Image.BILINEAR),
            "a smoothed mask",
        ),
        (smoothed, r"has values such as .* in lines between others, .* --threshold 128 for one object"),
        (lambda: smoothed().filter(ImageFilter.GaussianBlur(6)), r"in lines between others"),
        (lambda: Image.linear_gradient("L"), r"in lines between others"),
        (lambda: smoothed().convert("RGB"), r"in lines between others|no black"),
        (lambda: colour_mask(RED, GREEN).resize((96, 64), Image.BICUBIC), r"--colours 00ff00=1,ff0000=2"),
        (lambda: Image.merge("LA", [Image.new("L", (128, 80), 255), smoothed()]), "has pixels of half opacity"),
        (voc, r"label 255 is in thin lines, as the void .* --colours 808000=3,e0e0c0=0 for"),
        (background_last, r"label 0, the background, is drawn in #ff0000, and label 1 is black .* --colours ff0000=1"),
        (
            lambda: colour_mask(RED, background=(200, 200, 200)),
            r"no black or transparent .* --colours c8c8c8=0,ff0000=1",
        ),
        (lambda: colour_mask(RED, (0, 0, 0, 255), background=(0, 0, 0, 0)), "has black and transparent pixels"),
        (lambda: Image.effect_noise((64, 64), 90).convert("RGB"), "in lines between others"),
        (lambda: Image.fromarray(np.full((9, 9), 24001, np.uint16)), "has the label 24001, wanted at most 255"),
    ],
)
def test_what_is_ambiguous_is_a_sentence_with_the_way_out(tmp_path, image, words):
    path = tmp_path / "mask.png"
    image().save(path)
    with pytest.raises(MaskError, match=words) as error:
        read_mask(path)
    assert str(error.value).startswith(f"{path}: ") and "--colours" in str(error.value)


def test_probabilities_want_a_threshold(tmp_path):
    path = tmp_path / "soft.tif"
    soft = np.zeros((20, 30), np.float32)
    soft[5:10, 5:20], soft[11:15] = 0.25, 0.75
    Image.fromarray(soft).save(path)
    with pytest.raises(MaskError, match=r"has probabilities, not labels; give --threshold 0.375"):
        read_mask(path)
    assert read_mask(path, LabelRule.parse(threshold=0.5)).tolist() == (soft > 0.5).astype(int).tolist()


def test_the_ways_out_lead_out(tmp_path):
    path = tmp_path / "mask.png"
    smoothed().save(path)
    hard = np.array(smoothed()) >= 128
    assert read_mask(path, LabelRule.parse(threshold=128)).tolist() == hard.astype(int).tolist()
    assert len(read_mask(path, LabelRule.parse(colours="stored")).unique()) > 5
    two_levels().resize((512, 320), Image.BICUBIC).resize((128, 80), Image.BICUBIC).save(path)
    wanted = np.array(two_levels())
    read = read_mask(path, LabelRule.parse(colours="646464,c8c8c8")).numpy()
    assert (read != np.where(wanted == 100, 1, np.where(wanted == 200, 2, 0))).mean() < 0.03
    colour_mask(RED, GREEN).resize((96, 64), Image.BICUBIC).save(path)
    assert read_mask(path, LabelRule.parse(colours="00ff00=1,ff0000=2"))[20, [12, 36]].tolist() == [2, 1]
    voc().save(path)
    assert read_mask(path, LabelRule.parse(colours="808000=3,e0e0c0=0"))[20, [6, 20]].tolist() == [0, 3]
    colour_mask(RED, background=(200, 200, 200)).save(path)
    assert read_mask(path, LabelRule.parse(colours="c8c8c8=0,ff0000=1"))[20, [6, 40]].tolist() == [1, 0]
    Image.fromarray(np.array([[0, 24001, 26002]], np.uint16)).save(path)
    assert read_mask(path, LabelRule.parse(colours="stored")).tolist() == [[0, 1, 2]]
    colour_mask(RED, GREEN).save(tmp_path / "mask.jpg", quality=60)
    with pytest.raises(MaskError, match=r"mask.jpg: wanted a PNG of labels, got JPEG"):
        read_mask(tmp_path / "mask.jpg")
    assert read_mask(tmp_path / "mask.jpg", LabelRule.parse(colours="ff0000,00ff00")).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"threshold": 1, "colours": "stored"}, "wanted one of them, got both"),
        ({"threshold": -1}, "threshold: wanted a number above 0"),
        ({"threshold": float("nan")}, "threshold: wanted a number above 0"),
        ({"colours": "red"}, "--colours: wanted 'stored' or different colours"),
        ({"colours": "ff0000=1,ff0000=2"}, "--colours: wanted"),
        ({"colours": "ff0000=256"}, "--colours: wanted"),
        ({"colours": ""}, "--colours: wanted"),
    ],
)
def test_rules_that_are_none(arguments, words):
    with pytest.raises(ValueError, match=words):
        LabelRule.parse(**arguments)
    with pytest.raises(ValueError, match=r"colours: wanted pairs of 0xRRGGBB and a label up to 255, got \(1, 300\)"):
        LabelRule(colours=((1, 300),))


def test_small_hard_objects_are_no_smoothed_edges(tmp_path):
    labels = np.zeros((60, 80), np.uint8)
    labels[10:30, 10:40] = 2
    labels[12:15, 40:41] = 1  # a sliver beside a larger label
    labels[40, 5:60], labels[50:52, 3:5] = 3, 4
    Image.fromarray(labels).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == labels.tolist()
    stripes = np.repeat(np.arange(12, dtype=np.uint8), 4)[None].repeat(20, 0)
    Image.fromarray(stripes).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == stripes.tolist()


@pytest.mark.parametrize("reader", [read_object_mask, lambda path: open_source(path.parent)])
@pytest.mark.parametrize("kind", ["folder", "empty", "link to nothing", "pipe", "animated", "bomb", "unreadable"])
def test_files_that_are_no_images_are_one_sentence_with_their_name(tmp_path, reader, kind, monkeypatch):
    path = tmp_path / "00000.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "absent")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "animated":
        pictures = [Image.new("L", (9, 9), value) for value in (1, 2)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:])
    elif kind == "bomb":
        files.png(path, [bytes(1000)], (50000, 50000), 8, 0)
    elif kind == "unreadable":
        Image.new("L", (9, 9), 1).save(path)

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Image, "open", denied)  # root reads everything, so no mode would do
    with pytest.raises(ValueError, match=r"00000.png: ") as error:
        reader(path)
    assert type(error.value).__name__ in ("MaskError", "VideoError") and "\n" not in str(error.value)


def test_labels_beyond_the_palette_are_written_whole(tmp_path):
    labels = torch.tensor([[0, 1, 2, 7, 255]], dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"labels: wanted uint8 \[H, W\], got torch.int64 of shape \(1, 5\)"):
        write_mask(tmp_path / "m.png", labels.long())
    write_mask(tmp_path / "m.png", labels, [0, 0, 0, 9, 9, 9])
    assert torch.equal(read_mask(tmp_path / "m.png"), labels)
    assert read_colours(tmp_path / "m.png")[3:9] == [9, 9, 9, 0, 128, 0]
