"""Memory.save and Memory.load: bit-exact resume, refusal of other files, old files left whole."""

import json
import math
import os
import resource
import stat

import pytest
import torch
from checkpoints import damaged_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_videos import frame, numbers, query, run, same, small
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import xmemk
from xmemk import Memory
from xmemk.compat.xmem_stores import reconfigure

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])
JOINS = {1: 0, 2: 0, 3: 4, 5: 9, 8: 13}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def filled(groups="exact", frames=17, **changes):
    memory = Memory(small(groups, **changes))
    run(memory, 0, frames, JOINS)
    return memory


@BOTH
@pytest.mark.parametrize("frames", [1, 3, 8, 17, 30])
def test_goes_on_as_if_it_had_never_been_saved(groups, frames, tmp_path):
    memory = filled(groups, frames)
    memory.sensory.create(memory.objects, frame(0)["key"])
    memory.sensory.set(torch.randn_like(memory.sensory.get()))
    memory.save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m")
    assert loaded.config == memory.config
    assert same(numbers(loaded), numbers(memory))
    assert torch.equal(loaded.sensory.get(), memory.sensory.get())
    for a, b in zip(run(memory, frames, frames + 20, JOINS), run(loaded, frames, frames + 20, JOINS), strict=True):
        assert torch.equal(a, b)
    assert same(numbers(loaded), numbers(memory))
    assert memory.consolidations > 2 and memory.evictions > 1


def test_every_kind_of_memory(tmp_path):
    for changes, options in (
        ({"enable_long_term": False}, {}),
        ({"enable_long_term_count_usage": False, "max_long_term_elements": 100}, {}),
        ({"top_k": None}, {"batch": 2}),
        ({}, {"dtype": torch.float64}),
        ({}, {"dtype": torch.bfloat16}),
        ({}, {"h": 1, "w": 1}),
    ):
        memory = Memory(small(**changes))
        run(memory, 0, 19, JOINS, **options)
        memory.save(tmp_path / "m")
        loaded = Memory.load(tmp_path / "m")
        assert same(numbers(loaded), numbers(memory))
        assert torch.equal(loaded.read(**query(0, **options)), memory.read(**query(0, **options)))


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"max_mid_term_frames": 8},
        {"max_mid_term_frames": 4},
        {"max_long_term_elements": 6},
        {"max_long_term_elements": 30},
    ],
)
def test_after_limits_have_changed(groups, changes, tmp_path):
    """As compat's update_config changes them; storage stays as large as it was, or grows."""
    memory = filled(groups)
    reconfigure(memory, small(groups, **changes))
    memory.save(tmp_path / "at once")
    loaded = Memory.load(tmp_path / "at once")
    assert same(numbers(loaded), numbers(memory))
    run(memory, 17, 40, JOINS | {9: 20})
    run(loaded, 17, 40, JOINS | {9: 20})
    memory.save(tmp_path / "later")
    for each in (loaded, Memory.load(tmp_path / "later")):
        assert same(numbers(each), numbers(memory))
    assert torch.equal(loaded.read(**query(0)), memory.read(**query(0)))


def test_without_a_selection(tmp_path):
    memory = Memory(small())
    for t in range(9):
        memory.add(**frame(t) | {"selection": None})
    memory.save(tmp_path / "m")
    assert same(numbers(Memory.load(tmp_path / "m")), numbers(memory))


def test_after_objects_have_left(tmp_path):
    memory = filled()
    memory.remove([2, 3])
    memory.save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m")
    assert loaded.objects == (1, 5, 8)
    assert same(numbers(loaded), numbers(memory))
    loaded.remove([1, 5, 8])
    loaded.save(tmp_path / "none")
    assert Memory.load(tmp_path / "none").objects == ()


def test_a_memory_that_is_still_empty(tmp_path):
    memory = Memory(small("xmem"))
    memory.save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m")
    assert repr(loaded) == repr(memory)
    assert len(run(loaded, 0, 3)) == 2


def test_options_of_a_loaded_memory(tmp_path):
    filled().save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m", "cpu", backend="torch", check_finite=False)
    assert (loaded.backend, loaded.check_finite) == ("torch", False)
    bad = frame(0, loaded.objects)
    bad["key"] = bad["key"].clone()
    bad["key"][0, 0, 0, 0] = torch.nan
    loaded.add(**bad)
    with pytest.raises((RuntimeError, AssertionError)):
        Memory.load(tmp_path / "m", "cuda:77")


def test_the_file_holds_what_is_held_and_no_more(tmp_path):
    """No room that was never used, whose bytes could be anything."""
    memory = filled(frames=2)
    memory.save(tmp_path / "m")
    tokens = {name: x.shape[1] for name, x in load_file(tmp_path / "m").items()}
    assert tokens["0.key.0"] == tokens["0.value0.0"] == memory.working_size == 12
    assert (tmp_path / "m").stat().st_size < 12 * 4 * (2 * 4 + 2 * 3 + 4) + 4000


# What is no memory


def damaged(path, how):
    """The file's metadata and tensors, changed by ``how`` and written back."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    state = json.loads(metadata["state"])
    how(metadata, state, tensors)
    if "state" in metadata:
        metadata["state"] = json.dumps(state)
    save_file(tensors, path, metadata)


DAMAGE = {
    "another format": (lambda m, s, t: m.update(format="pt"), "got: another safetensors file"),
    "a newer version": (lambda m, s, t: m.update(version="2"), "version 1, got: version 2 of the format"),
    "no state": (lambda m, s, t: m.pop("state"), "got: 'state'"),
    "a missing tensor": (lambda m, s, t: t.pop("0.key.0"), "0.key.0"),
    "a tensor of another size": (lambda m, s, t: t.update({"0.key.0": t["0.key.0"][:, 1:].clone()}), "key of torch"),
    "a tensor of another type": (lambda m, s, t: t.update({"0.use.0": t["0.use.0"].double()}), "use of torch.float64"),
    "an unknown option": (lambda m, s, t: s["config"].update(colour=1), "colour"),
    "an impossible option": (lambda m, s, t: s["config"].update(top_k=0), "top_k: wanted"),
    "too many tokens": (lambda m, s, t: s["groups"]["buckets"][0].update(long=11), "11 long-term tokens"),
    "a frame twice": (lambda m, s, t: s["groups"]["buckets"][0]["frames"].append([1, 0]), "frames at"),
    "a frame nowhere": (lambda m, s, t: s["groups"]["buckets"][0]["frames"].append([1, 5]), "frames at"),
    "a frame in no block": (lambda m, s, t: s["groups"]["buckets"][0]["frames"].append([2, 0]), "frames at"),
    "less room than is wanted": (lambda m, s, t: s["groups"]["buckets"][0].update(room=9), "room for 9 long-term"),
    "room for no frame": (lambda m, s, t: s["groups"]["buckets"][0].update(slots=[0]), "and 0 frames"),
    "more room than there is": (lambda m, s, t: s["groups"]["buckets"][0].update(room=1 << 60), "got: "),
    "reads below none": (lambda m, s, t: s["groups"]["buckets"][0].update(reads=-1), "-1 reads"),
    "fewer reads than tokens saw": (lambda m, s, t: s["groups"]["buckets"][0].update(reads=1), "1 reads"),
    "tokens from before": (lambda m, s, t: t["0.birth.0"].sub_(99), "16 reads, and tokens that came before"),
    "a frame without a height": (lambda m, s, t: s["layout"].update(height=0), "height: wanted a whole number from 1"),
    "a frame less than wide": (lambda m, s, t: s["layout"].update(width=-3, height=-2), "wanted a whole number from 1"),
    "reads without end": (lambda m, s, t: s["groups"]["buckets"][0].update(reads=math.inf), "infinity"),
    "a label twice": (lambda m, s, t: s["groups"]["buckets"][1].update(objects=[1]), "each label once"),
    "a type that is none": (lambda m, s, t: s["layout"].update(key_dtype="nn"), "no type"),
    "a device that is not here": (lambda m, s, t: s["layout"].update(device="cuda:77"), "got: "),
    "no layout": (lambda m, s, t: s.pop("layout"), "got: 'layout'"),
    "a batch of another size": (lambda m, s, t: s["layout"].update(batch=2), "key of torch.float32 .1, "),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused_by_name(case, tmp_path):
    how, message = DAMAGE[case]
    path = tmp_path / "m"
    filled().save(path)
    damaged(path, lambda m, s, t: None)
    Memory.load(path)  # so far it is right
    damaged(path, how)
    with pytest.raises(ValueError, match=f"^{path}: wanted a whole file that Memory.save wrote.*{message}"):
        Memory.load(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    path = tmp_path / "m"
    filled().save(path)
    whole = path.read_bytes()
    for size in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"^{path}: wanted a whole file"):
            Memory.load(path)
    path.write_bytes(b"PNG" + whole)
    with pytest.raises(ValueError, match=f"^{path}"):
        Memory.load(path)


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "m")
    with pytest.raises(ValueError, match="got: another safetensors file"):
        Memory.load(tmp_path / "m")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Memory.load(tmp_path / "m")


# Writing


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync", "xmemk.memory.files._write_tensors"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(broken, tmp_path, monkeypatch):
    path = tmp_path / "m"
    memory = filled()
    memory.save(path)
    old, before = path.read_bytes(), numbers(memory)
    run(memory, 17, 18, JOINS)
    after = numbers(memory)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="No space left"):
        memory.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m"]
    assert same(numbers(memory), after) and not same(before, after)


def test_a_disk_that_is_full(tmp_path):
    """A limit on the size of files, so that the write stops in the middle."""
    path = tmp_path / "m"
    memory = filled()
    memory.save(path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, hard))
    try:
        with pytest.raises(OSError, match=str(path)):
            memory.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m"]
    memory.save(path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        filled().save(tmp_path / "nowhere" / "m")


def test_saved_files_have_ordinary_permissions(tmp_path):
    filled().save(tmp_path / "m")
    (tmp_path / "other").write_text("")
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'xmemk\[memory\]'"):
        xmemk.Memory().save(tmp_path / "m")


@pytest.mark.parametrize("stored", [None, "float16", "bfloat16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_memories_of_16_bits_resume(stored, dtype, tmp_path):
    memory = Memory(small(value_dtype=stored))
    run(memory, 0, 12, JOINS, dtype=dtype)
    memory.sensory.create(memory.objects, frame(0, dtype=dtype)["key"])
    memory.sensory.set(torch.ones_like(memory.sensory.get(), dtype=dtype))
    memory.save(tmp_path / "m")
    loaded = Memory.load(tmp_path / "m")
    assert same(numbers(loaded), numbers(memory))
    assert loaded.sensory.get().dtype == dtype and torch.equal(loaded.sensory.get(), memory.sensory.get())
    for a, b in zip(run(memory, 12, 20, JOINS, dtype=dtype), run(loaded, 12, 20, JOINS, dtype=dtype), strict=True):
        assert a.dtype == dtype and torch.equal(a, b)


@pytest.mark.parametrize("name", ["0.key.0", "0.value0.0", "0.use.1", "sensory"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(name, number, tmp_path):
    path = tmp_path / "m"
    memory = filled()
    memory.sensory.create(memory.objects, frame(0)["key"])
    memory.save(path)
    damaged(path, lambda m, s, t: t[name].view(-1)[0:1].fill_(number))
    with pytest.raises(
        ValueError, match=rf"^{path}: .*{name}: wanted finite numbers, got 1 of \d+ that are NaN or Inf"
    ):
        Memory.load(path)
    assert Memory.load(path, check_finite=False).objects == memory.objects


def test_folders_and_pipes_are_no_memories(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match=f"^{path}: wanted a file that Memory.save wrote, got a folder, pipe or"):
            Memory.load(path)
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path}: wanted the name of a file, got a folder"):
        filled().save(tmp_path)
    assert os.listdir(tmp_path) == ["pipe"]


def test_what_is_written_is_what_safetensors_would_write(tmp_path):
    memory = filled()
    memory.save(tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "m")
    save_file(tensors, tmp_path / "again", metadata)
    for name in ("m", "again"):
        assert same(numbers(Memory.load(tmp_path / name)), numbers(memory))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_by_name(data, tmp_path):
    memory, path = filled(frames=6), tmp_path / "m"
    memory.save(path)
    path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    try:
        Memory.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: wanted a whole file")
