"""Reads from graphs that a test makes on the CPU: bit-exact with a memory without graphs."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from interpreter import interpreted
from memory_videos import CK, frame, numbers, query, run, same, small

import xmemk
from xmemk import Memory
from xmemk.memory import cuda_graphs, graph
from xmemk.memory.cuda_graphs import CudaGraphs

BOTH = pytest.mark.parametrize("groups", ["exact", "xmem"])
JOINS = {1: 0, 2: 0, 3: 4, 5: 9, 8: 13}


class Recorded:
    """Graphs on the CPU: a replay calls the function, which sees buffers and the table alone."""

    def __init__(self):
        self.captures = self.replays = self.placed = self.reads = 0
        self.is_ready = self.is_served = True

    def __deepcopy__(self, memo):
        return self

    def ready(self, like):
        return self.is_ready

    def serves(self, queries, mv, top_k, backend):
        return self.is_served

    def fits(self, tokens, top_k):
        return tokens > top_k

    def table(self, like):
        return torch.full((graph.SEGMENTS, 3), -1)

    def place(self, table, segments):
        self.placed += 1
        table.copy_(torch.tensor(segments))

    def read(self, memory, table, capacity, queries, top_k, return_usage):
        self.reads += 1
        parts = [], [], []
        for i, (tokens, in_keys, in_values) in enumerate(table.tolist()):
            if tokens > 0:
                for part, segments, first in zip(parts, memory, (in_keys, in_keys, in_values), strict=True):
                    part.append(segments[i][..., first : first + tokens])
        readout, usage = xmemk.memory_read(*parts, *queries, top_k=top_k, return_usage=True)
        padded = torch.nn.functional.pad(usage, (0, capacity - usage.shape[1]), value=float("nan"))
        return readout, padded if return_usage else None

    def capture(self, call, like):
        self.captures += 1
        result = call()

        def replay():
            self.replays += 1
            for place, new in zip(result, call(), strict=True):
                if place is not None:
                    place.copy_(new)

        for place in result:  # a capture runs nothing
            if place is not None:
                place.fill_(float("nan"))
        return result, replay


@pytest.fixture
def recorded(monkeypatch):
    graphs = Recorded()
    monkeypatch.setattr(cuda_graphs, "CUDA", graphs)
    return graphs


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def pair(groups="exact", **changes):
    return [Memory(small(groups, **changes), cuda_graphs=graphs) for graphs in (True, False)]


def agree(memories, first, last, joins=JOINS, **options):
    mine, plain = (run(memory, first, last, joins, **options) for memory in memories)
    for a, b in zip(mine, plain, strict=True):
        assert torch.equal(a, b)
    assert same(numbers(memories[0]), numbers(memories[1]))


@BOTH
def test_one_graph_serves_a_whole_video(recorded, groups):
    memories = pair(groups)
    agree(memories, 0, 60)
    assert memories[1].consolidations > 5 and memories[1].evictions > 3
    arenas = 4 if groups == "exact" else 1  # as many as frames at which objects join, or one for all
    assert recorded.captures == arenas
    assert recorded.replays > 50
    assert recorded.reads == recorded.captures * 2 + recorded.replays


@BOTH
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"batch": 2}),
        ({}, {"dtype": torch.float16}),
        ({"value_dtype": "float16"}, {}),
        ({"enable_long_term": False, "max_mid_term_frames": 90}, {}),
        ({"max_mid_term_frames": 6, "min_mid_term_frames": 5}, {}),
    ],
)
def test_every_kind_of_memory(recorded, groups, changes, options):
    if groups == "xmem" and "batch" in options:
        pytest.skip("of one video")
    agree(pair(groups, **changes), 0, 30, {1: 0, 2: 0}, **options)
    assert recorded.captures == 1
    assert recorded.replays > 20


def test_results_are_not_written_over(recorded):
    memory = Memory(small(), cuda_graphs=True)
    run(memory, 0, 8, {1: 0, 2: 0})
    queries = [query(t) for t in range(3)]
    first = [memory.look_up(x["query_key"], x["selection"]) for x in queries]
    kept = [(readout.clone(), usage.clone()) for readout, _, (usage,) in first]
    assert recorded.captures == 1
    for (readout, _, (usage,)), (expected, expected_usage) in zip(first, kept, strict=True):
        assert torch.equal(readout, expected)
        assert torch.equal(usage, expected_usage)
        readout.fill_(7)  # the caller's to change
    again = memory.look_up(queries[2]["query_key"], queries[2]["selection"])[0]
    assert torch.equal(again, kept[2][0])


def test_objects_leave_and_join(recorded):
    memories = pair()
    agree(memories, 0, 12)
    for memory in memories:
        memory.remove([2, 5])
    left = {label: since for label, since in JOINS.items() if label not in (2, 5)}
    agree(memories, 12, 20, left)
    before = recorded.captures
    for memory in memories:
        memory.remove([3])
    agree(memories, 20, 26, {label: since for label, since in left.items() if label != 3} | {2: 21})
    assert recorded.captures == before + 1  # that of the object which joined again


def test_the_kind_of_a_query_may_change(recorded):
    memories = pair()
    agree(memories, 0, 6, {1: 0})
    assert recorded.captures == 1
    flipped, bare = [], []
    for memory in memories:
        for t in range(3):
            x = query(t)
            turned = {name: q.transpose(2, 3).contiguous().transpose(2, 3) for name, q in x.items()}
            flipped.append(memory.read(**turned))
            bare.append(memory.read(x["query_key"]))
    for read in (flipped, bare):
        assert all(torch.equal(a, b) for a, b in zip(read[:3], read[3:], strict=True))
    agree(memories, 6, 12, {1: 0})
    assert recorded.captures == 2  # those between came one at a time


def test_inference_mode_in_between(recorded):
    memories = pair()
    agree(memories, 0, 5)
    with torch.inference_mode():
        agree(memories, 5, 9)
    agree(memories, 9, 20)
    assert recorded.captures == 4


def test_gradients_of_a_query_are_without_a_graph(recorded):
    memory = Memory(small(), cuda_graphs=True)
    run(memory, 0, 6, {1: 0})
    replays = recorded.replays
    x = query(0)
    x["query_key"].requires_grad_()
    memory.read(**x).sum().backward()
    assert x["query_key"].grad.abs().sum() > 0
    assert recorded.replays == replays
    with torch.no_grad():
        memory.read(**x)
    assert recorded.replays == replays + 1


def test_what_is_not_for_a_graph(recorded):
    for changes in ({"top_k": None}, {"value_dtype": "int8"}, {"top_k": 400}):
        agree(pair(**changes), 0, 15)
    recorded.is_ready = False
    agree(pair(), 0, 10)
    recorded.is_ready, recorded.is_served = True, False
    agree(pair(), 0, 10)
    assert recorded.reads == 0
    recorded.is_served = True
    memories = pair(enable_long_term=False, max_mid_term_frames=5)  # grows beyond its first block
    agree(memories, 0, 12, {1: 0})
    assert recorded.replays == 4  # of 11 reads; one of a memory of at most 5 frames comes before them


def test_copies_pickles_and_files_make_their_own(recorded, tmp_path):
    memory, plain = pair()
    agree([memory, plain], 0, 17)
    memory.save(tmp_path / "m")
    copies = [copy.deepcopy(memory), Memory.load(tmp_path / "m", cuda_graphs=True)]
    captures = recorded.captures
    for other in copies:
        assert not any(bucket.arena.graph.captured for bucket in other.groups.buckets)
        agree([other, copy.deepcopy(plain)], 17, 24)
    assert recorded.captures == captures + 8
    agree([memory, plain], 17, 24)  # whose graphs are still there
    assert recorded.captures == captures + 8
    read_graph = graph.ReadGraph(graph.Captures(CudaGraphs()))
    assert not pickle.loads(pickle.dumps(read_graph)).captured


@BOTH
@pytest.mark.parametrize("fails", ["capture", "read", "table", "replay"])
def test_where_a_capture_fails_the_memory_goes_on_without_and_says_so_once(recorded, monkeypatch, groups, fails):
    def out_of_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    def captured(call, like):
        return Recorded.capture(recorded, call, like)[0], out_of_memory

    monkeypatch.setattr(
        recorded, "capture" if fails == "replay" else fails, captured if fails == "replay" else out_of_memory
    )
    memories = pair(groups)
    words = "cuda_graphs: this memory reads without them from now on, OutOfMemoryError: CUDA out of memory.$"
    with pytest.warns(RuntimeWarning, match=words) as caught:
        agree(memories, 0, 20)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == "memory_videos.py"  # where the memory is asked
    assert recorded.replays == 0
    monkeypatch.undo()
    other = copy.deepcopy(memories[0])
    agree([other, copy.deepcopy(memories[1])], 20, 24)
    assert recorded.replays == 0


def test_what_is_wrong_with_a_read_itself_is_its_own_error(recorded, monkeypatch):
    memory = Memory(small(), cuda_graphs=True)
    run(memory, 0, 4, {1: 0})
    before = numbers(memory)

    def broken(*_, **__):
        raise RuntimeError("an illegal memory access")

    with monkeypatch.context() as patched:
        patched.setattr(xmemk.api, "affinity_topk", broken)
        patched.setattr(recorded, "capture", broken)
        memory.groups.buckets[0].arena.graph._reading.replay = broken
        with pytest.warns(RuntimeWarning, match="illegal"), pytest.raises(RuntimeError, match="illegal memory access"):
            memory.read(**query(4))
    assert same(numbers(memory), before)


def test_an_interruption_is_no_failure_of_a_graph(recorded, monkeypatch):
    memory = Memory(small(), cuda_graphs=True)
    run(memory, 0, 2, {1: 0})

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recorded, "capture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(memory, 2, 4, {1: 0})
    assert not memory.groups.buckets[0].arena.graph.captures.given_up
    run(memory, 4, 8, {1: 0})
    assert recorded.replays > 0


def test_without_cuda_all_is_as_it_was():
    agree(pair(), 0, 10)
    memory = pair()[0]
    run(memory, 0, 6)
    assert not memory.groups.buckets[0].arena.graph.captured
    with pytest.raises(TypeError, match="cuda_graphs: wanted a bool, got 'yes'"):
        Memory(cuda_graphs="yes")


class Interpreted(Recorded):
    """The kernels themselves, under Triton's interpreter."""

    fits, table = CudaGraphs.fits, CudaGraphs.table
    place, read = CudaGraphs.place, CudaGraphs.read


@interpreted
def test_the_kernels_follow_the_table():
    """Few reads of few queries, because the interpreter takes a second for each.

    A read needs 17 tokens or more. They lie in one run, then in long-term memory and two runs, then
    in all four segments, and last behind an eviction, in storage for 75 tokens.
    """
    recorded, before = Interpreted(), cuda_graphs.CUDA
    cuda_graphs.CUDA = recorded
    segments = []
    try:
        frames = {"max_mid_term_frames": 12, "min_mid_term_frames": 3}
        config = small(top_k=1, num_prototypes=2, max_long_term_elements=3, **frames)
        memories = [Memory(config, backend="triton", cuda_graphs=graphs) for graphs in (True, False)]
        for t in range(22):
            if t in (3, 6, 12, 13, 21):
                segments.append([run.tokens for run in memories[1].groups.buckets[0].arena.table.runs()])
                mine, plain = (memory.read(**query(t)) for memory in memories)
                assert torch.equal(mine, plain)
            for memory in memories:
                memory.add(**frame(t, [1]))
    finally:
        cuda_graphs.CUDA = before
    assert segments == [[18], [36], [2, 6, 12], [2, 6, 12, 6], [3, 6, 12]]
    assert same(numbers(memories[0]), numbers(memories[1]))
    assert memories[0].evictions == 1
    assert (recorded.captures, recorded.replays) == (1, 4)
    assert frame(0)["key"].shape[1] == CK
