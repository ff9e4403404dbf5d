"""All or nothing: exceptions at every line, real signals, and kill -9 while a file is written."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupted import interruptions
from memory_videos import frame, numbers, query, run, same, small

from xmemk import Memory
from xmemk.memory import SensoryMemory, read_batch

JOINS = {1: 0, 2: 0, 3: 4}


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def filled(groups="exact"):
    """A memory that has evicted, so that the next access moves rows; the next add evicts, too."""
    memory = Memory(small(groups, max_mid_term_frames=3))
    run(memory, 0, 12, JOINS)
    memory.sensory.create(memory.objects, frame(0)["key"])
    while not any(bank._later for bank in banks(memory)):
        run(memory, 12, 13, JOINS)
    return memory


def banks(memory):
    groups = memory.groups
    arenas = [bucket.arena for bucket in groups.buckets] if hasattr(groups, "buckets") else [groups.arena]
    return [bank for arena in arenas for bank in arena.banks.values()]


CALLS = {
    "add": lambda m: m.add(**frame(20, [1, 2, 3, 4])),
    "read": lambda m: m.read(**query(20)),
    "remove": lambda m: m.remove([1, 3]),
}


@pytest.mark.parametrize(
    ("groups", "name"), [("exact", "add"), ("exact", "read"), ("exact", "remove"), ("xmem", "add"), ("xmem", "read")]
)
def test_a_call_that_is_interrupted_anywhere_has_changed_nothing(groups, name):
    memory, call = filled(groups), CALLS[name]
    before = numbers(copy.deepcopy(memory))
    after = copy.deepcopy(memory)
    call(after)
    assert not same(numbers(after), before)

    def make():
        subject = copy.deepcopy(memory)
        return subject, lambda: call(subject)

    for i, (subject, where) in enumerate(interruptions(make, again=groups == "exact")):
        assert same(numbers(subject), before), where
        if i % 20 == 0:
            call(subject)
            assert same(numbers(subject), numbers(after)), where


def test_a_batch_of_reads_that_is_interrupted_anywhere_has_changed_nothing():
    memories = [filled(), filled("xmem")]
    before = [numbers(copy.deepcopy(memory)) for memory in memories]
    q = query(20)

    def make():
        subject = copy.deepcopy(memories)
        return subject, lambda: read_batch(subject, [q["query_key"]] * 2, [q["selection"]] * 2)

    for subject, where in interruptions(make, "/xmemk/memory/batch.py"):
        assert all(same(numbers(memory), numbers_before) for memory, numbers_before in zip(subject, before)), where


@pytest.mark.parametrize("name", ["create", "set", "remove", "restore"])
def test_sensory_memory_that_is_interrupted_anywhere_has_not_changed(name):
    key = torch.zeros(1, 4, 2, 3)
    calls = {
        "create": lambda s: s.create([1, 2, 3], key),
        "set": lambda s: s.set(torch.ones(1, 2, 4, 2, 3)),
        "remove": lambda s: s.remove([1]),
        "restore": lambda s: s.restore([5], torch.ones(1, 1, 4, 2, 3)),
    }

    def make():
        sensory = SensoryMemory(4)
        sensory.create([1, 2], key)
        return sensory, lambda: calls[name](sensory)

    for sensory, where in interruptions(make, "/xmemk/memory/sensory.py" if name != "set" else "/xmemk/memory/"):
        assert sensory.objects == (1, 2) and torch.equal(sensory.get(), torch.zeros(1, 2, 4, 2, 3)), where


def test_a_save_that_is_interrupted_anywhere_leaves_the_old_file_or_the_new_one(tmp_path):
    old, new = filled(), filled()
    new.read(**query(0))
    old.save(tmp_path / "old")
    new.save(tmp_path / "new")
    contents = [(tmp_path / name).read_bytes() for name in ("old", "new")]
    path = tmp_path / "folder" / "m"
    path.parent.mkdir()

    def make():
        path.write_bytes(contents[0])
        return None, lambda: new.save(path)

    for _, where in interruptions(make, "/xmemk/memory/files.py"):
        assert path.read_bytes() in contents, where
        assert os.listdir(path.parent) == ["m"], where


def test_a_load_that_is_interrupted_can_be_repeated(tmp_path):
    memory = filled()
    memory.save(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    for _, where in interruptions(lambda: (None, lambda: Memory.load(tmp_path / "m")), "/xmemk/memory/files.py"):
        assert (tmp_path / "m").read_bytes() == content, where
    assert same(numbers(Memory.load(tmp_path / "m")), numbers(memory))


def test_what_killed_saves_left_is_collected_and_nothing_else(tmp_path):
    memory = filled()
    (tmp_path / ".m.01234567.tmp").write_bytes(b"half")
    (tmp_path / ".n.01234567.tmp").write_bytes(b"of another")
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".m.89abcdef.tmp").symlink_to("precious")
    (tmp_path / "m").symlink_to("precious")
    memory.save(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == [".m.89abcdef.tmp", ".n.01234567.tmp", "m", "precious"]
    assert (tmp_path / "precious").read_text() == "kept" and not (tmp_path / "m").is_symlink()
    assert same(numbers(Memory.load(tmp_path / "m")), numbers(memory))


SIGNALLED = """
import copy, os, random, signal, sys, time
import torch
from memory_videos import frame, numbers, query, run, same, small
from xmemk import Memory

torch.set_num_threads(1)
random.seed(0)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
joins = {1: 0, 2: 0, 3: 4}
mine, twin = Memory(small(max_mid_term_frames=3)), Memory(small(max_mid_term_frames=3))
for m in (mine, twin):
    run(m, 0, 6, joins)
interrupted = 0
for t in range(6, 60):
    for call in (lambda m: m.read(**query(t)), lambda m: m.add(**frame(t, [1, 2, 3]))):
        before = numbers(twin)
        call(twin)
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 4e-3))
                call(mine)
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted += 1
                state = numbers(mine)
                assert same(state, before) or same(state, numbers(twin)), t
                if same(state, numbers(twin)):
                    break
        assert same(numbers(mine), numbers(twin)), t
assert interrupted > 10, interrupted

path, seen = sys.argv[1] + "/m", set()
for kill in range(12):
    child = os.fork()
    if child == 0:
        while True:
            mine.save(path)
    time.sleep(0.05 + random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert same(numbers(Memory.load(path)), numbers(mine))
    seen |= set(os.listdir(sys.argv[1]))
mine.save(path)
assert os.listdir(sys.argv[1]) == ["m"], os.listdir(sys.argv[1])
print("interrupted", interrupted, "left behind", len(seen) - 1)
"""


def test_real_signals(tmp_path):
    support = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": str(support)}
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
