"""Images, masks and networks that do not fit are refused on the first frame, with the way out."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import CONFIG, IMAGES, labels, small_network
from torch import nn

from xmemk import MemoryConfig, Tracker
from xmemk.network import XMem

IMAGE = IMAGES[0]
RULES = MemoryConfig(hidden_dim=4, top_k=5, mem_every=2)
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
NORMALISED = "as of a normalised image; pass it as it was before"


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def network():
    return small_network()


def step(network, image, mask=None, objects=None):
    return Tracker(network, RULES).step(image, labels(1) if mask is None else mask, objects)


# Images

UNFIT_IMAGES = {
    "floats of 0 to 255": (255 * IMAGE, r"from 0 to 1, got 0\.\d+ to 25[45]\.?\d*; divide it by 255"),
    "float16 of 0 to 255": ((255 * IMAGE).half(), "divide it by 255"),
    "floats of 16 bits": (65535 * IMAGE, "divide it by 65535"),
    "floats of 1e6": (1e6 * IMAGE, "scale it so that 1 is white"),
    "normalised": ((IMAGE - MEAN) / STD, NORMALISED),
    "of -1 to 1": (2 * IMAGE - 1, NORMALISED),
    "NaN": (IMAGE / 0 * 0, "some are NaN or Inf"),
    "Inf": (IMAGE / 0, "some are NaN or Inf"),
    "channels last": (IMAGE.permute(1, 2, 0), r"wanted RGB of shape \[3, H, W\], got .*; image.permute\(2, 0, 1\)"),
    "RGBA, channels last": (torch.rand(32, 48, 4), r"image\[\.\.\., :3\]\.permute\(2, 0, 1\)"),
    "RGBA": (torch.rand(4, 32, 48), r"image\[:3\] leaves the fourth channel out"),
    "grey": (IMAGE[0], r"image\.expand\(3, -1, -1\)"),
    "grey of one channel": (IMAGE[:1], r"image\.expand\(3, -1, -1\)"),
    "a batch": (IMAGE[None], r"image\[0\]"),
    "int64": ((255 * IMAGE).long(), r"got torch\.int64; image\.to\(torch\.uint8\)"),
    "bool": (IMAGE > 0.5, r"got torch\.bool"),
    "complex": (IMAGE.to(torch.complex64), r"image\.real"),
    "meta": (IMAGE.to("meta"), "wanted a tensor with numbers, got one on the meta device"),
    "sparse": (IMAGE.to_sparse(), r"wanted a dense tensor, got .*; image\.to_dense\(\)"),
    "NumPy": (IMAGE.numpy(), r"got ndarray; torch\.from_numpy\(image\)"),
    "a list": ([1], r"got list$"),
}


@pytest.mark.parametrize("name", UNFIT_IMAGES)
def test_an_image_that_does_not_fit_is_refused_on_the_first_frame(network, name):
    image, message = UNFIT_IMAGES[name]
    tracker = Tracker(network, RULES)
    with pytest.raises((ValueError, TypeError), match=rf"^image: .*{message}"):
        tracker.step(image, labels(1))
    assert tracker.objects == () and tracker.step(IMAGE, labels(1)).shape == (2, 32, 48)
    with pytest.raises((ValueError, TypeError), match=r"^image: "):
        tracker.step(image)  # and on the CPU on later ones


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_of_every_type_that_is_admitted(network, dtype):
    pixels = (255 * IMAGE).round()
    image = pixels.to(dtype) if dtype == torch.uint8 else (pixels / 255).to(dtype)
    torch.testing.assert_close(step(network, image), step(network, pixels / 255), rtol=0, atol=0.02)


def test_what_resizing_leaves_beyond_the_range_is_admitted(network):
    picture = (labels(1, 2)[None, None] == 2).float().expand(1, 3, -1, -1)
    image = torch.nn.functional.interpolate(picture, (64, 96), mode="bicubic")[0, :, :32, :48]
    assert float(image.min()) < 0 and float(image.max()) > 1
    step(network, image)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(low=st.floats(-300, 300), width=st.floats(0, 300))
def test_an_image_is_admitted_if_its_numbers_are_those_of_one(low, width):
    from xmemk.video.frame_inputs import check_image

    image = low + width * torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    fits = float(image.min()) >= -0.25 and float(image.max()) <= 1.25
    if fits:
        assert check_image(image, None, first=True) is image
    else:
        with pytest.raises(ValueError, match=re.escape(f"got {float(image.min()):.4g} to {float(image.max()):.4g}")):
            check_image(image, None, first=True)


# Masks

ROWS = torch.stack([(labels(4, 9) == label).float() for label in (4, 9)])
UNFIT_MASKS = {
    "bool": (labels(1) > 0, None, r"got torch\.bool; mask\.long\(\) has labels"),
    "float": (labels(1).float(), None, r"mask\[None\] with objects=\[1\] is a row"),
    "complex": (labels(1).to(torch.complex64), None, "wanted labels of an integer type"),
    "negative": (-labels(1), None, "wanted each label once, from 1, got .-1."),
    "int8 that overflowed": (labels(255).to(torch.int8), None, "from 1, got .-1."),
    "rows of 0 and 255": (255 * ROWS, [4, 9], r"from 0 to 1, got 0 to 255; divide it by 255"),
    "rows below 0": (ROWS - 1, [4, 9], "got -1 to 0"),
    "rows of NaN": (ROWS / 0, [4, 9], "wanted probabilities"),
    "meta": (labels(1).to("meta"), None, "wanted a tensor with numbers"),
    "sparse": (ROWS.to_sparse(), [4, 9], r"mask\.to_dense\(\)"),
    "NumPy": (labels(1).numpy(), None, r"got ndarray; torch\.from_numpy\(mask\)"),
}


@pytest.mark.parametrize("name", UNFIT_MASKS)
def test_a_mask_that_does_not_fit_is_refused(network, name):
    mask, objects, message = UNFIT_MASKS[name]
    with pytest.raises((ValueError, TypeError), match=rf"^mask: .*{message}"):
        step(network, IMAGE, mask, objects)


@pytest.mark.parametrize("objects", [[1.5, 2], ["1"], [None], 3])
def test_labels_are_whole_numbers(network, objects):
    with pytest.raises(TypeError, match=r"^objects: wanted whole numbers"):
        step(network, IMAGE, labels(1), objects)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64])
def test_labels_of_every_integer_type(network, dtype):
    assert torch.equal(step(network, IMAGE, labels(3, 7).to(dtype)), step(network, IMAGE, labels(3, 7)))


def test_rows_of_bool_and_labels_of_numpy(network):
    assert torch.equal(
        step(network, IMAGE, ROWS > 0, np.array([4, 9])), step(network, IMAGE, ROWS, [4, torch.tensor(9)])
    )


# Networks


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrapped_networks_are_unwrapped(network, wrap):
    tracker = Tracker(nn.DataParallel(wrap(network)), RULES)
    assert type(tracker.network) is XMem
    assert torch.equal(tracker.step(IMAGE, labels(1)), step(network, IMAGE))


def on_meta():
    with torch.device("meta"):
        return XMem(CONFIG)


def mixed():
    network = small_network()
    network.decoder.half()
    return network


def on_two_devices():
    network = small_network()
    network.decoder.to("meta")
    return network


UNFIT_NETWORKS = {
    "compiled": (lambda: torch.compile(small_network()), r"wrapped by torch\.compile.*network\.tuned\(compile=True\)"),
    "another": (lambda: nn.Linear(1, 1), "wanted an XMem network, got Linear"),
    "wrapped another": (lambda: nn.DataParallel(nn.Linear(1, 1)), "got Linear"),
    "parameters": (lambda: small_network().state_dict(), "got OrderedDict"),
    "a path": (lambda: "XMem.pth", "got str"),
    "without numbers": (on_meta, "the meta device; load a checkpoint"),
    "mixed types": (mixed, r"of one type, got float16, float32; network\.float\(\)"),
    "two devices": (on_two_devices, r"on one device, got cpu, meta; network\.to\(device\)"),
    "float8": (lambda: small_network().to(torch.float8_e5m2), "got float8_e5m2"),
}


@pytest.mark.parametrize("name", UNFIT_NETWORKS)
def test_a_network_that_does_not_fit_is_refused(name):
    make, message = UNFIT_NETWORKS[name]
    with pytest.raises((ValueError, TypeError), match=rf"^network: .*{message}"):
        Tracker(make(), RULES)


def test_a_network_that_changes_under_its_tracker():
    network = small_network()
    tracker = Tracker(network, RULES)
    before = tracker.step(IMAGE, labels(1))
    network.half()
    with pytest.raises(ValueError, match=r"^network: wanted it in torch\.float32 .*; make a new Tracker"):
        tracker.step(IMAGE)
    network.float()
    assert tracker.step(IMAGE).shape == before.shape


# Many objects


def test_objects_in_chunks_are_equal_to_rounding(network):
    every = labels(*range(1, 8))
    whole = Tracker(network, RULES)
    chunked = [Tracker(network, RULES, object_chunk=size) for size in (1, 3, 7, 100)]
    for t in range(5):
        expected = whole.step(IMAGES[t], every if t == 0 else None)
        for tracker in chunked:
            result = tracker.step(IMAGES[t], every if t == 0 else None)
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    for bad in (0, -1, 2.0, True, "4"):
        with pytest.raises(ValueError, match=r"^object_chunk: wanted a whole number from 1"):
            Tracker(network, RULES, object_chunk=bad)


def test_the_network_sees_no_more_objects_than_a_chunk(network, monkeypatch):
    seen = []
    for part in (network.value_encoder, network.decoder):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3] if len(inputs) == 5 else inputs[1]))
    try:
        tracker = Tracker(network, RULES, object_chunk=2)
        tracker.step(IMAGE, labels(1, 2, 3, 4, 5))
        tracker.step(IMAGE)
    finally:
        for part in (network.value_encoder, network.decoder):
            part._forward_pre_hooks.clear()
    assert [x.shape[1] for x in seen] == [2, 2, 1, 2, 2, 1]


# 16 bits


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_networks_of_16_bits_follow_as_one_of_32(network, dtype, autocast, tuned):
    other = small_network().to(dtype)
    other = other.tuned() if tuned else other
    if autocast is not None and dtype.itemsize == 2 and autocast != dtype:
        with pytest.raises(ValueError, match=rf"^autocast: wanted None or {dtype}, which the network is in"):
            Tracker(other, RULES, autocast=autocast)
        with pytest.raises(ValueError, match=r"^autocast: "), torch.autocast("cpu", autocast):
            Tracker(other, RULES).step(IMAGE, labels(1, 2))
        return
    mine, full = Tracker(other, RULES, autocast=autocast), Tracker(network, RULES)
    coarse = 2e-2 if torch.bfloat16 in (dtype, autocast) else 2e-3
    for t in range(6):
        a, b = (x.step(IMAGES[t], labels(1, 2) if t == 0 else None) for x in (mine, full))
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.sum(0), torch.ones(32, 48))
        assert float((a - b).abs().mean()) < coarse
    hidden = mine.memory.sensory.get()
    assert hidden.dtype == torch.float32 and bool(hidden.any())
