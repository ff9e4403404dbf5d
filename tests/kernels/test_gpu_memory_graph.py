"""xmemk.Memory with and without CUDA graphs on an NVIDIA GPU, bit for bit: `pytest -m gpu`."""

import copy
import warnings

import pytest
import torch
from gpu import DEVICE, gpu, no_waiting

import xmemk
from xmemk import Memory, MemoryConfig
from xmemk.memory.cuda_graphs import CudaGraphs

pytestmark = gpu
CK, CV, H, W = 64, 96, 10, 13
CONFIG = MemoryConfig(
    top_k=5, max_mid_term_frames=5, min_mid_term_frames=2, num_prototypes=40, max_long_term_elements=200
)


@pytest.fixture(autouse=True)
def _triton():
    x = xmemk.testing.make_inputs(9, 2, device=DEVICE)
    said = xmemk.explain(xmemk.memory_read, *x.read, top_k=5)
    if said.chosen != "triton":
        pytest.skip(f"no Triton kernels: {said.refusals['triton']}")


def frame(t, objects, dtype):
    g = torch.Generator().manual_seed(t)
    key, selection = torch.randn(1, CK, H, W, generator=g), torch.rand(1, CK, H, W, generator=g)
    shrinkage = 1 + 9 * torch.rand(1, 1, H, W, generator=g).square()
    value = torch.randn(1, 9, CV, H, W, generator=g)[:, [label - 1 for label in objects]]
    key, value, selection = (x.to(DEVICE, dtype) for x in (key, value, selection))
    return key, shrinkage.to(DEVICE), value, objects, selection


def run(memories, first, last, joins, dtype=torch.float16):
    for t in range(first, last):
        if memories[0].objects:
            query, selection = (frame(1000 + t, [1], dtype)[i] for i in (0, 4))
            mine, plain = (memory.read(query, selection) for memory in memories)
            assert torch.equal(mine, plain), t
        for memory in memories:
            memory.add(*frame(t, [label for label, since in joins.items() if since <= t], dtype))


def pair(config=CONFIG):
    return [Memory(config, cuda_graphs=graphs) for graphs in (True, False)]


def arenas(memory):
    groups = memory.groups
    return [bucket.arena for bucket in groups.buckets] if hasattr(groups, "buckets") else [groups.arena]


def same(memories):
    for mine, plain in zip(*map(arenas, memories), strict=True):
        assert mine.table.runs() == plain.table.runs()
        for run_ in mine.table.runs():
            assert torch.equal(mine.use.rows(run_), plain.use.rows(run_))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_types(dtype):
    memories = pair()
    run(memories, 0, 4, {1: 0}, dtype)  # a few frames: every number of runs has kernels of its own to compile
    assert arenas(memories[0])[0].graph.captured


@pytest.mark.parametrize("groups", ["exact", "xmem"])
def test_a_video_with_consolidation_eviction_and_objects_that_join(groups):
    memories = pair(MemoryConfig(**{**vars(CONFIG), "groups": groups}))
    run(memories, 0, 40, {1: 0, 2: 0, 3: 6, 4: 17})
    same(memories)
    assert memories[1].evictions > 2
    assert all(arena.graph.captured for arena in arenas(memories[0]))


def test_objects_leave_and_copies_go_on():
    memories = pair()
    run(memories, 0, 12, {1: 0, 2: 0, 3: 4})
    for memory in memories:
        memory.remove([2])
    run(memories, 12, 20, {1: 0, 3: 4})
    copies = copy.deepcopy(memories)
    run(copies, 20, 30, {1: 0, 3: 4})
    run(memories, 20, 30, {1: 0, 3: 4})
    same(memories)
    same(copies)


def test_a_replay_does_not_wait_and_results_are_kept():
    memory, plain = pair()
    run([memory, plain], 0, 9, {1: 0})
    asked = [frame(2000 + t, [1], torch.float16) for t in range(4)]
    with no_waiting():
        read = [memory.look_up(x[0], x[4]) for x in asked]
    for (mine, _, (usage,)), x in zip(read, asked, strict=True):
        wanted, _, (wanted_usage,) = plain.look_up(x[0], x[4])
        assert torch.equal(mine, wanted)
        assert torch.equal(usage, wanted_usage)


def test_another_stream_and_inference_mode():
    memories = pair()
    run(memories, 0, 7, {1: 0})
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        run(memories, 7, 15, {1: 0})
    torch.cuda.current_stream().wait_stream(stream)
    run(memories, 15, 20, {1: 0})
    same(memories)


def test_where_a_capture_fails_the_device_goes_on(monkeypatch):
    inside, looked = CudaGraphs.read, []

    def looking(self, *arguments):
        readout, usage = inside(self, *arguments)
        looked.append(torch.cuda.is_current_stream_capturing())
        readout.sum().item()  # not allowed while captured
        return readout, usage

    memories = pair()
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patched.setattr(CudaGraphs, "read", looking)
        run(memories, 0, 12, {1: 0})
    assert looked == [False, True]
    assert len([one for one in said if "cuda_graphs: this memory reads without them" in str(one.message)]) == 1
    run(memories, 12, 20, {1: 0})
    same(memories)
    assert not arenas(memories[0])[0].graph.captured
    assert torch.randn(3, device=DEVICE).isfinite().all()
    torch.cuda.empty_cache()
    others = pair()
    run(others, 0, 12, {1: 0})
    same(others)
    assert arenas(others[0])[0].graph.captured


def test_a_capture_by_the_caller_goes_through():
    memory, plain = pair()
    run([memory, plain], 0, 6, {1: 0})
    query, _, _, _, selection = frame(3000, [1], torch.float16)
    wanted = plain.look_up(query, selection)[0]
    memory.look_up(query, selection)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        plain.look_up(query, selection)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mine = memory.look_up(query, selection)[0]
    graph.replay()
    assert torch.equal(mine, wanted)
