"""Files of parameters as they are found are loaded; all others are refused by name and fault."""

import os
import re

import pytest
import torch
from checkpoints import FAULTS, damaged, damaged_bytes, faults, wrappings, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_network import CONFIG, small_network

from xmemk.network import XMem

QUICK = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STATE = dict(small_network().state_dict())
PARAMETERS = [name for name, x in STATE.items() if x.is_floating_point() and "running_var" not in name]


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "case.pth"


@QUICK
@given(wrapping=wrappings)
def test_the_same_network_in_any_wrapping_is_loaded(file, wrapping):
    wrapping.write(STATE, file)
    network = XMem.from_checkpoint(file)
    assert network.config == CONFIG and not any(p.requires_grad for p in network.parameters())
    for name, x in network.state_dict().items():
        assert torch.equal(x, STATE[name].to(wrapping.dtype) if x.is_floating_point() else STATE[name]), name


@QUICK
@given(damages=faults(PARAMETERS), wrapping=wrappings)
def test_faults_are_named_and_the_file(file, damages, wrapping):
    wrapping = wrapping._replace(form="zip", dtype=torch.float32, parameters=False)
    state = damaged(STATE, damages)
    if not any(name == "key_encoder.conv1.weight" and fault == "missing" for name, fault in damages):
        wrapping.write(state, file)
    else:
        write(state, file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: ") as raised:
        XMem.from_checkpoint(file)
    assert any(name in str(raised.value) for name, _ in damages)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["decoder.pred.weight", "key_encoder.conv1.weight", "key_proj.key_proj.weight"])
def test_every_fault_of_every_kind_of_parameter(file, fault, name):
    write(damaged(STATE, [(name, fault)]), file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: .*{re.escape(name)}") as raised:
        XMem.from_checkpoint(file)
    if not (name == "key_encoder.conv1.weight" and fault == "missing"):
        assert FAULTS[fault][1] in str(raised.value)


def test_the_first_three_faults_are_listed(file):
    write(damaged(STATE, [(name, "NaN") for name in PARAMETERS[:5]]), file)
    with pytest.raises(ValueError, match=r"are NaN or Inf; .* are NaN or Inf; .* are NaN or Inf; and 2 more$"):
        XMem.from_checkpoint(file)
    state = {name: x for name, x in STATE.items() if not name.startswith("decoder.up")}
    write(state | {"fc.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"decoder\.\S+ is missing; decoder\.\S+ is missing; .*; and \d+ more$"):
        XMem.from_checkpoint(file)
    write(STATE | {"key_encoder.bn1.running_var": -torch.ones(4)}, file)
    with pytest.raises(ValueError, match=r"running_var: a variance is below 0$"):
        XMem.from_checkpoint(file)


OTHERS = {
    "empty": (b"", "it is empty"),
    "text": (b"hello", "a damaged one"),
    "page": (b"\n<!DOCTYPE html><html></html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "JSON": (b'{"network": {}}', "a damaged one"),
    "pickle that pops nothing": (b"\x80\x02]q\x00ee.", "a damaged one"),
    "pickle of nothing": (b"\x80\x02s.", "a damaged one"),
    "header of safetensors alone": (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "a damaged one"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_another_kind(file, name):
    content, message = OTHERS[name]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: not a file of parameters.* {message}"):
        XMem.from_checkpoint(file)


@pytest.mark.parametrize("content", [[], None, {}, {"network": None}, {1: torch.zeros(1)}, {"a": {"b": 3}}, 7])
def test_content_of_another_kind(file, content):
    write(content, file)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: (wanted parameters by name|not XMem's)"):
        XMem.from_checkpoint(file)


def test_several_networks_are_not_chosen_from(file):
    write({"model": STATE, "ema": {f"module.{name}": x for name, x in STATE.items()}}, file)
    with pytest.raises(ValueError, match=r"of one network, got 2: 'model', 'ema\.module'; save one alone"):
        XMem.from_checkpoint(file)


def test_a_mapping_within_itself(file):
    content = {"network": STATE}
    content["self"] = content
    write(content, file)
    with pytest.raises(ValueError, match="of one network"):
        XMem.from_checkpoint(file)


def test_folders_and_pipes(tmp_path):
    with pytest.raises(ValueError, match="wanted a file of parameters, got a folder"):
        XMem.from_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="wanted a file of parameters, got no file"):
        XMem.from_checkpoint(tmp_path / "pipe")


@settings(QUICK, max_examples=60)
@given(data=st.data(), form=st.sampled_from(["zip", "legacy", "safetensors"]))
def test_damaged_bytes_are_refused_by_name_or_make_no_difference_to_the_form(file, data, form):
    if form == "safetensors":
        save_file(STATE, file)
    else:
        write(STATE, file, form == "zip")
    file.write_bytes(data.draw(damaged_bytes(file.read_bytes())))
    try:
        network = XMem.from_checkpoint(file)
    except ValueError as error:
        assert str(error).startswith(f"{file}: ")
    else:  # other numbers, which a file does not guard
        assert network.config == CONFIG


# 16 bits


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_16_bits_forward_and_backward(dtype, autocast):
    from xmemk.memory.functions import PUBLIC

    results = []
    for kind in (torch.float32, dtype):
        network = small_network().to(kind).train()
        image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)).to(kind)
        masks = torch.rand(1, 2, 32, 48, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", dtype, enabled=autocast and kind == dtype):
            key, shrinkage, selection, features = network.encode_key(image)
            value, hidden = network.encode_value(image, features[0], torch.zeros(1, 2, 4, 2, 3), masks)
            tokens = [x.flatten(x.dim() - 2) for x in (key, shrinkage, value, key, selection)]
            readout = PUBLIC.memory_read(*tokens, top_k=3).unflatten(3, (2, 3))
            hidden, probability = network.segment(features, readout, hidden)
            assert hidden.dtype == shrinkage.dtype == probability.dtype == torch.float32
            loss = probability[:, 1].mean() + hidden.square().mean()
        loss.backward()
        gradients = {name: p.grad.float() for name, p in network.named_parameters() if p.grad is not None}
        assert all(bool(g.isfinite().all()) for g in gradients.values())
        results.append((float(loss.detach()), gradients))
    (exact, gradients), (rounded, others) = results
    assert abs(exact - rounded) < 0.02 and gradients.keys() == others.keys()
    a, b = (torch.cat([x.flatten() for x in g.values()]) for g in (gradients, others))
    assert float(torch.nn.functional.cosine_similarity(a, b, 0)) > 0.95


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".tar", ""])
def test_the_suffix_of_a_file_does_not_count(tmp_path, suffix, new):
    torch.save(STATE, tmp_path / f"file{suffix}", _use_new_zipfile_serialization=new)
    assert XMem.from_checkpoint(tmp_path / f"file{suffix}").config == CONFIG


class RunsACommand:
    def __reduce__(self):
        return os.mkdir, ("made by a checkpoint",)


def test_code_in_a_file_is_named_and_not_run(tmp_path, file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"network": STATE, "hook": RunsACommand()}, file)
    with pytest.raises(ValueError, match=r"case\.pth: .* of Python objects \(posix\.mkdir\), which could run code"):
        XMem.from_checkpoint(file)
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    with pytest.raises(ValueError, match=r"case\.pth: .* of Python objects \(TorchScript\)"):
        XMem.from_checkpoint(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
