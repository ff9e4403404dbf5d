"""A small network, and a folder of images with its mask."""

import fixed_network as fixed
import pytest
import torch


@pytest.fixture(scope="module")
def network():
    from small_videos import SMALL

    from xmemk.network import XMem

    network = XMem(SMALL)
    network.load_state_dict(fixed.fixed_weights(network.state_dict()))
    return network


@pytest.fixture
def video(tmp_path):
    from PIL import Image
    from small_videos import pictures

    folder = tmp_path / "video"
    folder.mkdir()
    for i, picture in enumerate(pictures()):
        Image.fromarray(picture.numpy()).save(folder / f"{i:05d}.png")
    return folder


@pytest.fixture
def mask(tmp_path):
    from xmemk.data.masks import write_mask

    write_mask(tmp_path / "first.png", fixed.first_mask().to(torch.uint8))
    return tmp_path / "first.png"
