"""rf-cutie, patched and unpatched, with random weights: equal probabilities, masks and memories."""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path

import cutie
import pytest
import torch
from cutie.inference.inference_core import InferenceCore
from cutie.model.cutie import CUTIE
from cutie.model.utils import resnet
from omegaconf import OmegaConf

import xmemk

SIZE = (48, 64)
LONG_TERM = {
    "max_mem_frames": 5,
    "min_mem_frames": 3,
    "num_prototypes": 8,
    "max_num_tokens": 40,
    "buffer_tokens": 10,
}
SMALL_MODEL = {"pixel_dim": 16, "value_dim": 16, "sensory_dim": 16, "embed_dim": 16, "key_dim": 16}


def configuration(**changes):
    """rf-cutie's own configuration with a smaller network and lower limits; "a.b" is a__b here."""
    folder = Path(cutie.__path__[0]) / "config"
    config = OmegaConf.load(folder / "eval_config.yaml")
    del config["hydra"], config["defaults"]
    small = OmegaConf.load(folder / "model" / "small.yaml")
    del small["defaults"]
    config.model = OmegaConf.merge(OmegaConf.load(folder / "model" / "base.yaml"), small, SMALL_MODEL)
    config.model.object_transformer.update(num_blocks=1, num_heads=2, ff_dim=16)
    config.model.mask_decoder.up_dims = [16, 8, 8]
    config.long_term.update(LONG_TERM)
    config.update(use_long_term=True, mem_every=2, top_k=8)
    for name, value in changes.items():
        OmegaConf.update(config, name.replace("__", "."), value)
    return config


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@contextlib.contextmanager
def one_thread():
    """For fixtures that live longer than a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # Random weights: nothing is downloaded.
        patch.setattr(resnet.model_zoo, "load_url", lambda *args, **kwargs: {})
        patch.setattr(resnet, "load_weights_add_extra_dim", lambda *args, **kwargs: None)
        torch.manual_seed(2)
        network = CUTIE(configuration()).eval()
        network.encode_image = remembering(network.encode_image)
        yield network


def remembering(encode_image):
    """Encodes each image once: the tests follow the same frames, patched and unpatched."""
    features = {}

    def encode(image, *arguments):
        key = (image.numpy().tobytes(), image.shape, torch.is_autocast_enabled("cpu"), arguments)
        if key not in features:
            features[key] = encode_image(image, *arguments)
        return features[key]

    return encode


class Parked:
    """A core to copy any number of times. It has no memory manager meanwhile.

    A patch refuses where a manager of the host's holds objects.
    """

    def __init__(self, core):
        self.network, self.core = core.network, core
        self.manager, self.state = type(core.memory), vars(core.memory)
        core.memory = None

    def copy(self):
        core, state = copy.deepcopy((self.core, self.state), {id(self.network): self.network})
        core.memory = self.manager.__new__(self.manager)
        vars(core.memory).update(state)
        return core


@pytest.fixture(scope="module")
def plain_run(network):
    """Probabilities and core of the unpatched host over 44 frames, with the default settings."""
    with one_thread():
        probabilities, core = follow(network, configuration())
        return probabilities, Parked(core)


@pytest.fixture(scope="module")
def cores(network):
    """A patched and an unpatched core that have followed 30 frames, with the default settings."""
    with one_thread():
        with xmemk.patch("cutie"):
            patched = Parked(follow(network, configuration(), 30)[1])
        return patched, Parked(follow(network, configuration(), 30)[1])


def follow(network, config, frames=44, joining=None, permanent=(), leaving=None, dtype=None, core=None, seed=0):
    """Probabilities of every frame, and the core.

    joining and leaving: labels by frame. permanent: frames that are kept.

    The features of an untrained network are much alike. Where two tokens at rank k differ by less
    than rounding, host and replacement may read either. That happens with some settings, and
    verification then says so.
    """
    joining = {0: [1, 2, 3], 11: [7], 20: [5]} if joining is None else joining
    g = torch.Generator().manual_seed(seed)
    core = core or InferenceCore(network, config)
    scene, probabilities = torch.rand(3, *SIZE, generator=g), []
    with torch.inference_mode(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        for t in range(frames):
            image = (scene.roll(t, 2) + 0.1 * torch.rand(3, *SIZE, generator=g)).clamp(0, 1)
            labels = joining.get(t, [])
            mask = torch.zeros(SIZE, dtype=torch.long) if labels else None
            for i, label in enumerate(labels):
                mask[4 + 12 * i : 22 + 12 * i, 6 + 14 * i : 30 + 14 * i] = label
            for label in (leaving or {}).get(t, []):
                core.delete_objects([label])
            probabilities.append(core.step(image, mask, labels or None, force_permanent=t in permanent))
    return probabilities, core


def differences(ours, theirs):
    """The largest difference of a probability. Masks must agree where the host itself is sure."""
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for a, b in zip(ours, theirs):
        best = b.topk(2, dim=0).values if len(b) > 1 else None
        sure = torch.ones(b.shape[1:], dtype=torch.bool) if best is None else best[0] - best[1] > 2e-5
        assert sure.float().mean() > 0.5
        assert torch.equal(a.argmax(0)[sure], b.argmax(0)[sure])
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs))


def compare_stores(mine, host):
    """What the two managers hold at the end."""
    assert mine.engaged == host.engaged
    assert {k: v.shape for k, v in mine.obj_v.items()} == {k: v.shape for k, v in host.obj_v.items()}
    assert all(torch.allclose(mine.obj_v[k], host.obj_v[k], rtol=1e-4, atol=1e-4) for k in host.obj_v)
    for name in ("CK", "CV", "H", "W", "HW", "max_work_tokens", "max_mem_frames", "use_long_term"):
        assert getattr(mine, name) == getattr(host, name), name
    for name in ["work_mem", "long_mem"] if host.use_long_term else ["work_mem"]:
        a, b = getattr(mine, name), getattr(host, name)
        assert a.buckets == b.buckets
        assert a.num_objects == b.num_objects
        assert a.engaged() == b.engaged()
        for i in b.buckets:
            assert (a.size(i), a.perm_size(i), a.non_perm_size(i)) == (b.size(i), b.perm_size(i), b.non_perm_size(i))
            assert a.engaged(i)
            assert torch.allclose(a.key[i], b.key[i], atol=1e-5)
            assert torch.allclose(a.shrinkage[i], b.shrinkage[i], atol=1e-5)
            if b.save_selection and i in b.selection:
                assert torch.allclose(a.selection[i], b.selection[i], atol=1e-5)
            if b.save_usage and i in b.use_cnt:
                assert torch.allclose(a.get_usage(i), b.get_usage(i), atol=1e-5)
        for obj, value in b.value.items():
            assert obj in a
            assert a.get_v_size(obj) == b.get_v_size(obj)
            assert torch.allclose(a.value[obj], value, atol=1e-5)


CASES = {
    "one object": ({}, {"joining": {0: [1]}}),
    "three objects, two join late": ({}, {}),
    "chunks": ({"chunk_size": 2}, {}),
    "flip": ({"flip_aug": True}, {}),
    "first in, first out": ({"use_long_term": False}, {}),
    "permanent frames, objects leave": ({}, {"permanent": (5, 10), "leaving": {14: [2], 30: [7]}}),
    "permanent frames, first in, first out": ({"use_long_term": False}, {"permanent": (5, 10)}),
    "usage of long-term memory not counted": ({"long_term__count_usage": False, "long_term__max_num_tokens": 4000}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_probabilities_masks_and_memories(network, plain_run, case):
    changes, schedule = CASES[case]
    config = configuration(**changes)
    with xmemk.patch("cutie"):
        ours, mine = follow(network, config, **schedule)
        assert type(mine.memory).__module__ == "xmemk.compat.cutie"
    if changes or schedule:
        theirs, host = follow(network, config, **schedule)
    else:
        theirs, host = plain_run[0], plain_run[1].copy()
    assert differences(ours, theirs) < 1e-5
    compare_stores(mine.memory, host.memory)


def test_many_frames_verified_call_by_call(network):
    with xmemk.patch("cutie", verify=True) as handle:
        follow(network, configuration(), 120)
    report = handle.report
    assert report.reads == 119
    assert report.steps["add"].calls == 61
    assert report.host_stopped == []
    assert 0 < report.largest < 1e-5
    assert all(seconds > 0 for seconds in report.seconds)
    assert "119 verified" in str(handle)


def test_limits_may_change_while_a_video_runs(network, cores):
    def run(core):
        raised = {"long_term__max_num_tokens": 90, "long_term__max_mem_frames": 7, "long_term__num_prototypes": 12}
        core.update_config(configuration(top_k=6, **raised))
        return follow(network, None, 30, joining={}, core=core, seed=1)

    with xmemk.patch("cutie"):
        ours, mine = run(cores[0].copy())
        with pytest.raises(ValueError, match="use_long_term: wanted True as before, got False"):
            mine.update_config(configuration(use_long_term=False))
    theirs, host = run(cores[1].copy())
    assert differences(ours, theirs) < 1e-5
    compare_stores(mine.memory, host.memory)


def test_clearing_what_is_not_permanent(network, cores):
    def run(core):
        core.clear_non_permanent_memory()
        sizes = [core.memory.work_mem.size(i) for i in core.memory.work_mem.buckets]
        sizes += [core.memory.long_mem.size(i) for i in core.memory.long_mem.buckets]
        probabilities, _ = follow(network, None, 20, joining={}, core=core, seed=1)
        core.clear_sensory_memory()
        core.delete_objects([1, 2, 3, 7, 5])
        return sizes, probabilities, core

    with xmemk.patch("cutie"):
        sizes, ours, mine = run(cores[0].copy())
    host_sizes, theirs, host = run(cores[1].copy())
    assert sizes == host_sizes
    assert differences(ours, theirs) < 1e-5
    compare_stores(mine.memory, host.memory)
    assert not mine.memory.engaged


def test_autocast(network, plain_run):
    with xmemk.patch("cutie"):
        ours, mine = follow(network, configuration(), 20, dtype=torch.bfloat16)
        assert mine.memory.work_mem.value[1].dtype == torch.bfloat16
    exact = plain_run[0][:20]
    assert max(float((a.float() - b).abs().max()) for a, b in zip(ours, exact, strict=True)) < 0.1


def test_auxiliary_outputs_where_the_host_stops(network):
    config = configuration(save_aux=True)
    with pytest.raises(KeyError, match="attn_mask"):
        follow(network, config, 4)
    with xmemk.patch("cutie"):
        _, core = follow(network, config, 4)
        assert set(core.memory.aux) == {"sensory", "pixel_readout", "q_logits", "q_weights", "p_weights", "attn_mask"}


def test_fewer_tokens_than_top_k(network):
    config = configuration(top_k=100)
    with pytest.raises(RuntimeError, match="out of range"):
        follow(network, config, 4)
    with xmemk.patch("cutie"):
        assert len(follow(network, config, 4)[0]) == 4


def test_bad_input_names_the_argument_and_changes_nothing(network):
    with xmemk.patch("cutie"):
        _, core = follow(network, configuration(), 12)
        memory = core.memory
        h, w = memory.H, memory.W
        key, shrinkage, selection = torch.randn(1, 16, h, w), torch.ones(1, 1, h, w), torch.rand(1, 16, h, w)
        value, objects = torch.randn(1, 4, 16, h, w), [1, 2, 3, 7]
        sizes = [memory.work_mem.size(i) for i in memory.work_mem.buckets]
        bad = {
            "key": (key[..., 1:], shrinkage[..., 1:], value[..., 1:], None, objects, selection[..., 1:]),
            "objects: wanted all of": (key, shrinkage, value[:, :3], None, [1, 2, 7], selection),
            "objects: wanted each": (key, shrinkage, value, None, [1, 2, 3, 3], selection),
            "msk_value": (key, shrinkage, value[:, :2], None, objects, selection),
            "obj_value": (key, shrinkage, value, torch.zeros(1, 2, 3, 4), objects, selection),
            "shrinkage": (key, shrinkage[..., 1:], value, None, objects, selection),
            "selection": (key, shrinkage, value, None, objects, None),
            "msk_value: wanted finite": (key, shrinkage, value * float("nan"), None, objects, selection),
        }
        for words, arguments in bad.items():
            with pytest.raises(ValueError, match=words):
                memory.add_memory(*arguments)
        with pytest.raises(ValueError, match="as_permanent"):
            memory.add_memory(key, shrinkage, value, None, objects, selection, as_permanent="often")
        with pytest.raises(ValueError, match="query_key"):
            memory.read(torch.zeros(1, 16, h, w + 1), key, selection, torch.zeros(1, 4, h, w), network)
        assert sizes == [memory.work_mem.size(i) for i in memory.work_mem.buckets]
        assert memory.obj_v[1].shape[0] == 1
    for changes, words in (
        ({"long_term__min_mem_frames": 5}, "long_term.max_mem_frames"),
        ({"long_term__buffer_tokens": 39}, "long_term.max_num_tokens"),
        ({"use_long_term": False, "max_mem_frames": 0}, "max_mem_frames"),
    ):
        with xmemk.patch("cutie"), pytest.raises(ValueError, match=words):
            InferenceCore(network, configuration(**changes))


def test_every_name_is_put_back():
    import cutie.inference.inference_core as core_module
    import cutie.inference.memory_manager as manager_module
    import cutie.model.cutie as network_module
    import cutie.model.utils.memory_utils as functions_module

    modules = (core_module, manager_module, network_module, functions_module)
    before = [dict(vars(module)) for module in modules]
    handle = xmemk.patch("cutie")
    changed = {f"{m.__name__}.{n}" for m, b in zip(modules, before) for n, x in vars(m).items() if x is not b[n]}
    assert changed == {line.split(" -> ")[0] for line in handle.report.bound}
    assert len(changed) == 14
    handle.undo()
    for module, names in zip(modules, before):
        assert all(vars(module)[name] is value for name, value in names.items())
