"""The network against stored results of the released one; loading its files strictly and safely."""

import io
import pickle
import zipfile
from pathlib import Path

import fixed_network as fixed
import numpy as np
import pytest
import torch

from xmemk.network import NetworkConfig, XMem, aggregate

pytest_plugins = ("full_network",)
SMALL = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=4, width=4, key_blocks=(1, 2, 1), decoder_dim=8)


@pytest.fixture(scope="module")
def stored():
    return np.load(Path(__file__).parents[1] / "data" / "xmem_network.npz")


def small(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return XMem(config)


def test_every_stage_equals_the_released_network(full_network, stored):
    network = full_network
    x = fixed.stage_inputs()
    with torch.no_grad():
        key, shrinkage, selection, features = network.encode_key(x["image"])
        value, deep = network.encode_value(x["image"], features[0], x["hidden"], x["masks"])
        one, _ = network.encode_value(x["image"], features[0], x["hidden"][:, :1], x["masks"][:, :1])
        hidden, probability = network.segment(features, x["readout"], x["hidden"])
    outputs = {
        "key": key,
        "shrinkage": shrinkage,
        "selection": selection,
        "value": value,
        "deep": deep,
        "one": one,
        "hidden": hidden,
    }
    outputs |= dict(zip(("f16", "f8", "f4"), features), probability=probability)
    for name, output in outputs.items():
        expected = torch.from_numpy(stored[f"stage_{name}"])
        assert torch.allclose(fixed.thinned(name, output), expected, rtol=1e-4, atol=1e-4), name


def test_the_released_sizes(full_network):
    assert sum(p.numel() for p in full_network.parameters()) == 62_185_224
    names = full_network.state_dict()
    assert len(names) == 412
    assert names["value_encoder.conv1.weight"].shape == (64, 5, 7, 7)
    assert names["value_encoder.fuser.attention.ChannelGate.mlp.3.weight"].shape == (512, 32)
    assert names["decoder.hidden_update.g4_conv.weight"].shape == (256, 257, 1, 1)
    assert names["key_encoder.layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)
    assert names["decoder.up_16_8.out_conv.downsample.weight"].shape == (256, 512, 3, 3)


def test_what_is_not_needed_is_not_computed():
    network = small()
    image = torch.randn(2, 3, 32, 48)
    key, shrinkage, selection, (f16, f8, f4) = network.encode_key(image, need_shrinkage=False, need_selection=False)
    assert shrinkage is None and selection is None
    assert key.shape == (2, 8, 2, 3) and f16.shape[1:] == (64, 2, 3) and f8.shape[1:] == (32, 4, 6)
    assert f4.shape[1:] == (16, 8, 12)
    masks, hidden = torch.rand(2, 3, 32, 48), torch.randn(2, 3, 4, 2, 3)
    value, kept = network.encode_value(image, f16, hidden, masks, deep_update=False)
    assert value.shape == (2, 3, 16, 2, 3) and kept is hidden
    renewed, probability = network.segment((f16, f8, f4), value, hidden, update_hidden=False)
    assert renewed is None and probability.shape == (2, 4, 32, 48)


def test_objects_see_one_another_only_as_others_and_a_batch_is_its_elements():
    network = small()
    image, masks = torch.randn(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    hidden = torch.randn(2, 3, 4, 2, 2)
    with torch.no_grad():
        f16 = network.encode_key(image)[3][0]
        value, _ = network.encode_value(image, f16, hidden, masks)
        order = [2, 0, 1]
        turned, _ = network.encode_value(image, f16, hidden[:, order], masks[:, order])
        alone, _ = network.encode_value(image[1:], f16[1:], hidden[1:], masks[1:])
    torch.testing.assert_close(turned, value[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, value[1:], rtol=1e-4, atol=1e-5)


def test_batch_normalisation_keeps_its_statistics_in_training():
    network = small().train()
    before = network.key_encoder.bn1.running_mean.clone()
    network.encode_key(torch.randn(1, 3, 32, 32))
    assert torch.equal(network.key_encoder.bn1.running_mean, before) and network.training


def test_aggregation_by_hand():
    p = torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    odds = torch.tensor([0.375 / 0.625, 1.0, 1 / 3])  # (1 - 0.5)(1 - 0.25) = 0.375
    torch.testing.assert_close(aggregate(p).flatten(), odds / odds.sum())
    sure = aggregate(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).half())
    assert sure.dtype == torch.float32 and bool(sure.isfinite().all()) and float(sure[0, 1]) > 1 - 1e-6


def test_a_selector_takes_objects_out():
    network = small()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = network.encode_key(image)[3]
        readout, hidden = torch.randn(1, 2, 16, 2, 2), torch.zeros(1, 2, 4, 2, 2)
        _, probability = network.segment(features, readout, hidden, selector=torch.tensor([[1.0, 0.0]]))
    assert float(probability[0, 2].max()) < 1e-6


def stages(network, x):
    """The outputs of the three stages."""
    key, shrinkage, selection, features = network.encode_key(x["image"])
    value, deep = network.encode_value(x["image"], features[0], x["hidden"], x["masks"])
    hidden, probability = network.segment(features, x["readout"], x["hidden"])
    return [key, shrinkage, selection, *features, value, deep, hidden, probability]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_tuned_network_is_the_same_to_rounding(monkeypatch, compiled):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda stage: compiler(stage, backend="aot_eager", fullgraph=True))
    # Two blocks in one stage: one with a shortcut, one without. More would only take longer to
    # compile.
    blocks = {"key_blocks": (1, 2, 1), "value_blocks": (1, 2, 1)} if compiled else {}
    network = small(NetworkConfig(key_dim=8, value_dim=16, hidden_dim=64, width=4, decoder_dim=8, **blocks))
    network.load_state_dict(fixed.fixed_weights(network.state_dict()))
    before = {name: x.clone() for name, x in network.state_dict().items()}
    x = {name: part[:, :, :16] if name == "readout" else part for name, part in fixed.stage_inputs().items()}
    tuned = network.tuned(compile=compiled)
    with torch.no_grad():
        for objects in (3, 1):
            some = {name: part if name == "image" else part[:, :objects] for name, part in x.items()}
            for output, expected in zip(stages(tuned, some), stages(network, some)):
                assert float((output - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tuned.modules())
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    weight = tuned.decoder.up_8_4.out_conv.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.requires_grad


def test_saved_and_loaded(tmp_path):
    network = small()
    torch.save(network.state_dict(), tmp_path / "small.pth")
    loaded = XMem.from_checkpoint(tmp_path / "small.pth")
    assert loaded.config == SMALL and not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values()))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_without_sensory_memory(tmp_path):
    config = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=0, width=4, decoder_dim=8, key_blocks=(1, 1, 1))
    network = small(config)
    assert not any("hidden" in name for name in network.state_dict())
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    loaded = XMem.from_checkpoint(tmp_path / "plain.pth")
    assert loaded.config == config
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = loaded.encode_key(image)[3]
        value, hidden = loaded.encode_value(image, features[0], None, torch.rand(1, 1, 32, 32))
        assert hidden is None
        assert loaded.segment(features, value, None)[0] is None


def test_four_input_channels_get_a_fifth_of_zeros(tmp_path):
    network = small()
    state = dict(network.state_dict())
    state["value_encoder.conv1.weight"] = state["value_encoder.conv1.weight"][:, :4]
    torch.save(state, tmp_path / "four.pth")
    loaded = XMem.from_checkpoint(tmp_path / "four.pth")
    weight = loaded.value_encoder.conv1.weight
    assert torch.equal(weight[:, :4], state["value_encoder.conv1.weight"]) and not weight[:, 4].any()


def damaged(kind, state):
    if kind == "missing":
        del state["decoder.pred.bias"]
    elif kind == "unknown":
        state["fc.weight"] = torch.zeros(3)
    elif kind == "shape":
        state["key_proj.d_proj.weight"] = torch.zeros(2, 64, 3, 3)
    elif kind == "type":
        state["key_proj.d_proj.bias"] = torch.zeros(1, dtype=torch.int64)
    elif kind == "other model":
        state = {"layer1.0.weight": torch.zeros(3), "layer1.0.bias": torch.zeros(3)}
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "decoder.pred.bias is missing$"),
        ("unknown", "fc.weight is not one of XMem's$"),
        ("shape", r"key_proj.d_proj.weight: wanted shape \[1, 64, 3, 3\], got \[2, 64, 3, 3\]"),
        ("type", "key_proj.d_proj.bias: wanted float32, float16, bfloat16, float64, got torch.int64"),
        ("other model", "not XMem's parameters: there is no key_encoder.conv1.weight, but layer1.0.weight"),
    ],
)
def test_what_is_wrong_with_a_foreign_file_is_said(tmp_path, kind, message):
    file = tmp_path / "bad.pth"
    torch.save(damaged(kind, dict(small().state_dict())), file)
    with pytest.raises(ValueError, match=f"bad.pth: {message}"):
        XMem.from_checkpoint(file)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("never_made"),))


def test_files_that_are_no_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = io.BytesIO()
    torch.save(small().state_dict(), good)
    files = {
        "text.pth": b"hello",
        "empty.pth": b"",
        "half.pth": good.getvalue()[: len(good.getvalue()) // 2],
        "code.pth": pickle.dumps(Harmful()),
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    with zipfile.ZipFile("zip.pth", "w") as archive:
        archive.writestr("a", "b")
    for name in (*files, "zip.pth"):
        with pytest.raises(ValueError, match=f"{name}: not a file of parameters"):
            XMem.from_checkpoint(name)
    torch.save(small(), "whole.pth")
    with pytest.raises(ValueError, match=r"not a file of parameters but of Python objects \(xmemk.net") as raised:
        XMem.from_checkpoint("whole.pth")
    assert "\x1b" not in str(raised.value)
    assert not Path("never_made").exists()
    with pytest.raises(FileNotFoundError, match=r"none.pth: there is no such file"):
        XMem.from_checkpoint("none.pth")


@pytest.mark.parametrize("bad", [{"value_dim": 8}, {"width": 0}, {"hidden_dim": -1}, {"key_blocks": (1, 0, 1)}])
def test_sizes_that_make_no_network(bad):
    with pytest.raises(ValueError, match="wanted"):
        NetworkConfig(**bad)
