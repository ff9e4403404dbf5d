"""The Triton kernels compiled ahead of time, without a GPU: a part of `make aot`."""

import dataclasses
import importlib.metadata
import importlib.util
import sys

import pytest
import torch
from interpreter import find_kernels
from once import once
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

find_kernels()
from xmemk.kernels import configs  # noqa: E402

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; it is made for Linux alone", allow_module_level=True)

from xmemk.kernels import aot  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # a minute, but on a busy machine

# The kernels that do most of the work of XMem's read at 480p, the one that is the most Python, and
# what else the read takes.
KERNELS = (*aot.MULTIPLY, "weigh_candidates")
ON_HOPPER = (
    "find_center",
    "fill_operands",
    "fallback_maxima",
    "select_groups",
    "read_rows",
)  # what else XMem's read takes
CASES = ("topk float16", "dense float16", "backward dense float16")


SOURCES = [*configs.PATH.parent.rglob("*.py"), configs.PATH]


@pytest.fixture(scope="module")
def compiled():
    """KERNELS for every architecture and ON_HOPPER for sm_90; last, a launch that does not fit."""
    jobs = []
    for architecture in configs.ARCHITECTURES:
        first = {x.kernel: x for x in reversed(aot.launches(architecture, lambda name: name in CASES))}
        jobs += [(first[kernel], architecture) for kernel in KERNELS + (ON_HOPPER if architecture == 90 else ())]
    launch = next(x for x in aot.launches(90, lambda name: name == "topk float16") if x.kernel == "split_maxima")
    stages = tuple((name, 8 if name == "num_stages" else value) for name, value in launch.options)
    jobs.append((dataclasses.replace(launch, options=stages), 90))
    versions = (torch.__version__, importlib.metadata.version("triton"), sys.version, repr(jobs))
    return once("aot", SOURCES, versions, lambda: list(aot.compile_all(jobs)))


@pytest.fixture
def reports(compiled):
    return compiled[:-1]


def test_kernels_fit_do_not_spill_and_use_matrix_units(reports):
    assert len(reports) == len(KERNELS) * len(configs.ARCHITECTURES) + len(ON_HOPPER)
    assert [r.row() for r in reports if r.problems] == []


def test_hopper_and_blackwell_get_their_own_instructions(reports):
    for report in reports:
        assert 24 < report.registers <= 255
        multiplies = report.launch.kernel in aot.MULTIPLY
        assert (report.matrix > 0) == multiplies


def test_a_launch_that_does_not_fit_is_a_problem(compiled):
    assert "shared memory" in compiled[-1].problems[0]


def test_every_configuration_is_launched():
    for architecture in configs.ARCHITECTURES:
        launched = {x.kernel for x in aot.launches(architecture)}
        table = set(configs.table()[str(architecture)])
        assert {name.removesuffix("_float32") for name in table} <= launched
        assert table == set(configs.table()["cpu"])


def kinds(top_k, n, segments=()):
    """The different launches of a read with usage."""
    from xmemk.kernels import memory_read

    with configs.assumed(90), aot.recorded() as made:
        memory_read(*aot.meta(n, 1620, segments=segments), top_k, True)
    return set(made)


@pytest.mark.parametrize("top_k", [None, 30])
def test_a_memory_that_grows_a_little_needs_no_new_kernels(top_k):
    assert len({frozenset(kinds(top_k, n, (1620, n))) for n in (24_580, 24_589, 24_592)}) == 1


@pytest.mark.parametrize(
    ("top_k", "following"), [(30, {"select_groups"}), (None, {"split_weights", "fallback_weights"})]
)
def test_a_memory_that_doubles_needs_few_new_kernels(top_k, following):
    known = kinds(top_k, 1024)
    for power in range(10, 17):  # to 131,072 tokens; of more, groups are grouped by a kernel of their own
        sizes = [2**power + step * 2**power // 8 + odd for step in range(8) for odd in (1, 16)] + [2 ** (power + 1)]
        new = set().union(*(kinds(top_k, n) for n in sizes)) - known
        assert len(new) <= 2, power
        assert {x.kernel for x in new} <= following
        assert top_k or power < 12 or not new
        known |= new
    beyond = set().union(*(kinds(top_k, n) for n in (140_000, 300_000, 600_000, 1_000_000))) - known
    assert len(beyond) <= (6 if top_k else 0)


def test_few_kernels_serve_all_small_memories():
    made = set().union(*(kinds(30, n) for n in range(31, 481)))
    assert len([x for x in made if x.kernel == "weigh_candidates"]) <= 5


def test_what_is_compiled_is_what_the_launcher_asks_for(monkeypatch):
    """Types, constants and alignments of every argument, by Triton's own code before a launch."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    class Device:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(driver, "_active", Device())
    recorded, seen = aot._launch, set()

    def asked(kind, key, path):
        if isinstance(kind, tuple):
            return tuple(asked(k, key[i], (*path, i)) for i, k in enumerate(kind))
        return kind, isinstance(key, str) and "D" in key

    def listed(launch, kind, path):
        if isinstance(kind, tuple):
            return tuple(listed(launch, k, (*path, i)) for i, k in enumerate(kind))
        return kind, path in launch.aligned

    def compared(kernel, arguments, options):
        launch = recorded(kernel, arguments, options)
        if launch not in seen:
            seen.add(launch)
            _, found, _ = kernel.create_binder()[-1](*arguments, **options, debug=False)
            for i, ((name, kind), given) in enumerate(zip(launch.signature, found, strict=True)):
                assert listed(launch, kind, (i,)) == asked(*given, (i,)), (launch.kernel, name)
        return launch

    monkeypatch.setattr(aot, "_launch", compared)
    assert len(aot.launches(90)) == len(seen) >= 100


@pytest.mark.parametrize(("top_k", "usage", "most"), [(30, False, 7), (30, True, 8)])
def test_a_top_k_read_takes_few_launches(top_k, usage, most):
    from xmemk.kernels import memory_read

    with configs.assumed(90), aot.recorded() as made:
        memory_read(*aot.meta(24_580, 1620), top_k, usage)
    assert len(made) == most


def test_a_dense_read_and_gradients_take_few_launches():
    from xmemk import kernels

    def count(call, *arguments):
        with configs.assumed(90), aot.recorded() as made:
            result = call(*arguments)
        return len(made), result

    x = aot.meta(24_580, 1620)
    assert count(kernels.memory_read, *x, None, False)[0] == 4 + 7 * 4  # in seven blocks of queries
    assert count(kernels.memory_read, *x, None, True)[0] == 4 + 7 * 5
    x = aot.meta(1728, 576, batch=2)
    launched, (readout, _, weight, index) = count(kernels.memory_read_saving, *x, 30, False)
    assert launched == 7
    assert count(kernels.memory_read_backward, *x, weight, index, readout, None)[0] == 3
    launched, (readout, _, weight, index) = count(kernels.memory_read_saving, *x, None, False)
    assert count(kernels.memory_read_backward, *x, weight, index, readout, None)[0] == 4 + 7


class Looks(TorchDispatchMode):
    """Fails where the host looks at numbers on the device, or moves them."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        waits = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
        if name in waits or (name == "_to_copy" and (options or {}).get("device") is not None):
            raise AssertionError(f"{name}: waits for the device")
        return function(*arguments, **options or {})


class Live(TorchDispatchMode):
    """The most bytes that lived at once, of what was allocated since; not those of ``inputs``."""

    def __init__(self, inputs):
        super().__init__()
        tensors = [*inputs[0].mk, *inputs[0].ms, *inputs[0].mv, *inputs[1]]
        self.inputs = {x.untyped_storage()._cdata for x in tensors}
        self.sizes, self.most = {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **options or {})
        self.sizes = {key: held for key, held in self.sizes.items() if not held[0].expired()}
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if torch.is_tensor(x) and (storage := x.untyped_storage())._cdata not in self.inputs:
                self.sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.sizes.values()))
        return result


@pytest.mark.parametrize(
    ("tokens", "queries", "objects", "top_k", "most"),
    [(24_580, 1620, 1, None, 64), (24_580, 1620, 5, None, 64), (83_440, 8160, 1, 30, 0.02 * 13_031)],
)
def test_extra_memory_of_a_read(tokens, queries, objects, top_k, most):
    """MB beyond the outputs: all tokens at 480p; top-k at 1080p, where XMem takes 13,031."""
    from xmemk.kernels import memory_read

    x = aot.meta(tokens, queries, objects=objects)
    for architecture in configs.ARCHITECTURES:
        with configs.assumed(architecture), aot.recorded(), Live(x) as live:
            outputs = memory_read(*x, top_k, True)
        extra = live.most - sum(t.untyped_storage().nbytes() for t in outputs)
        assert 10e6 < extra <= most * 1e6, architecture


def test_nothing_on_the_host_looks_at_numbers():
    from xmemk import kernels

    with Looks(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(3).sum().item()
    with configs.assumed(90), aot.recorded(), Looks():
        for name, call in aot.cases().items():
            call()
            assert name
        x = memory, queries = aot.meta(2000, 100, objects=2)
        kernels.readout_topk(memory.mv, *kernels.affinity_topk(memory, queries, 30, True)[:2])
        kernels.potentiate(memory, queries)
        for top_k in (None, 30):
            readout, usage, weight, index = kernels.memory_read_saving(*x, top_k, True)
            kernels.memory_read_backward(*x, weight, index, readout, usage)


def test_newer_gpus_use_the_nearest_older_table(monkeypatch):
    for capability, wanted in (((8, 7), "86"), ((9, 0), "90"), ((10, 3), "100"), ((12, 1), "120")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert configs.name(torch.device("cuda", 0)) == wanted
