"""patch(): what it binds, what it refuses, and that it puts everything back."""

from __future__ import annotations

import copy
import pickle
import re
import sys
import threading
import types
from pathlib import Path

import pytest
import torch
from hosts.xmem_like import inference_core, kv_memory_store, memory_manager, memory_util
from test_compat_xmem import CONFIG, follow, frames

import xmemk
from xmemk.compat import UnknownHost, VerificationError, patching, xmem
from xmemk.compat.recognition import signatures
from xmemk.compat.report import PatchReport
from xmemk.compat.verify import Judge

HOST = "hosts.xmem_like"
MODULES = (inference_core, memory_manager, memory_util, kv_memory_store)


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)
    yield
    for binding in list(patching._active):
        binding.unbind()
        patching._active.remove(binding)


@pytest.fixture
def names():
    """All names of the host before; afterwards they must be as they were."""
    before = [dict(vars(module)) for module in MODULES]
    yield
    for module, values in zip(MODULES, before):
        assert all(vars(module)[name] is value for name, value in values.items())


def test_binds_every_name_under_any_alias_and_says_so(names, monkeypatch):
    elsewhere = types.ModuleType("notebook")
    elsewhere.MM, elsewhere.similarity = memory_manager.MemoryManager, memory_util.get_similarity
    monkeypatch.setitem(sys.modules, "notebook", elsewhere)
    with xmemk.patch(HOST) as handle:
        assert issubclass(inference_core.Manager, xmem.MemoryManager)
        assert elsewhere.MM is inference_core.Manager is memory_manager.MemoryManager
        assert elsewhere.similarity is inference_core.get_similarity is memory_util.get_similarity
        lines = handle.report.bound
        assert f"{HOST}.inference_core.Manager -> xmemk.compat.xmem.MemoryManager" in lines
        assert "notebook.MM -> xmemk.compat.xmem.MemoryManager" in lines
        assert f"{HOST}.memory_util.readout -> xmemk.compat.functions.readout" in lines
        assert handle.report.families == ["XMem"]
        assert "notebook.MM" in repr(handle)
        assert handle.active
    assert "undone" in repr(handle)
    assert not handle.active
    handle.undo()
    assert elsewhere.MM is memory_manager.MemoryManager


def test_puts_back_after_an_exception_and_in_modules_imported_since(names, monkeypatch):
    with pytest.raises(KeyError), xmemk.patch(HOST):
        later = types.ModuleType("imported_later")
        later.MemoryManager = memory_manager.MemoryManager
        monkeypatch.setitem(sys.modules, "imported_later", later)
        raise KeyError("anything")
    assert later.MemoryManager is memory_manager.MemoryManager
    assert xmem.MemoryManager.__name__ == "MemoryManager"


def test_functions_can_be_left_alone(names):
    with xmemk.patch(HOST, functions=False) as handle:
        assert all(" -> xmemk.compat.xmem.MemoryManager" in line for line in handle.report.bound)
        assert memory_util.readout.__module__ == f"{HOST}.memory_util"


def test_a_module_as_a_target_and_no_target_at_all(names):
    with xmemk.patch(memory_manager):
        assert issubclass(inference_core.Manager, xmem.MemoryManager)
        assert memory_util.readout.__module__ == f"{HOST}.memory_util"  # its home is not below that module
    with xmemk.patch() as handle:
        assert "XMem" in handle.report.families
        assert memory_util.readout.__module__ == "xmemk.compat.functions"


def test_refuses_to_patch_twice(names):
    with xmemk.patch(HOST):
        for target in (HOST, memory_manager):
            with pytest.raises(RuntimeError, match="patched already"):
                xmemk.patch(target)
        assert issubclass(inference_core.Manager, xmem.MemoryManager)


def test_nothing_to_patch(monkeypatch):
    with pytest.raises(RuntimeError, match="nothing to patch: 'json' does not hold"):
        xmemk.patch("json")
    with pytest.raises(ModuleNotFoundError, match="no module 'a_host_that_is_not_there'"):
        xmemk.patch("a_host_that_is_not_there")
    with pytest.raises(TypeError, match="target: wanted a module"):
        xmemk.patch(3)
    with pytest.raises(ValueError, match="groups: wanted one of 'xmem', 'exact', got 'both'"):
        xmemk.patch(HOST, groups="both")
    with pytest.raises(ValueError, match="groups: wanted"):
        xmemk.patch(HOST, groups="exact", verify=True)


def test_imports_a_host_that_is_not_loaded(tmp_path, monkeypatch):
    package = tmp_path / "freshhost"
    package.mkdir()
    for module in (memory_manager, memory_util, kv_memory_store):
        source = Path(module.__file__)
        (package / source.name).write_text(source.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    with xmemk.patch("freshhost") as handle:
        assert "freshhost.memory_manager.MemoryManager -> xmemk.compat.xmem.MemoryManager" in handle.report.bound
        from freshhost.memory_manager import MemoryManager

        assert issubclass(MemoryManager, xmem.MemoryManager)
    for name in [name for name in sys.modules if name.startswith("freshhost")]:
        del sys.modules[name]


def changed_host(monkeypatch, **methods):
    """A host with other methods than XMem's, in a module of its own."""
    manager = type("MemoryManager", (memory_manager.MemoryManager,), {**methods, "__module__": "changed_host"})
    module = types.ModuleType("changed_host")
    module.MemoryManager, module.torch = manager, torch
    monkeypatch.setitem(sys.modules, "changed_host", module)
    return module


def test_refuses_other_signatures_by_name(names, monkeypatch):
    def match_memory(self, query_key, selection, mask):
        pass

    def add_permanent_memory(self, key):
        pass

    def match_plus(self, query_key, selection, disable_usage_updates=False):
        pass

    cases = {
        r"changed_host.MemoryManager.match_memory: wanted the signature \(self, query_key, selection\), found "
        r"\(self, query_key, selection, mask\)": {"match_memory": match_memory},
        r"add_permanent_memory: found a method with the signature \(self, key\)": {
            "add_permanent_memory": add_permanent_memory
        },
        r"that of XMem\+\+, which xmemk does not replace": {"match_memory": match_plus},
    }
    for words, methods in cases.items():
        module = changed_host(monkeypatch, **methods)
        with pytest.raises(UnknownHost, match=words):
            xmemk.patch(module)
        assert module.MemoryManager.__module__ == "changed_host"


def test_refuses_a_subclass_of_a_hosts_manager_under_its_name(names, monkeypatch):
    def match_memory(self, query_key, selection):
        return 2 * memory_manager.MemoryManager.match_memory(self, query_key, selection)

    module = changed_host(monkeypatch, match_memory=match_memory)
    for target in (None, module):
        with pytest.raises(UnknownHost, match=rf"changed_host.MemoryManager: .* a subclass of {HOST}.memory_manager.M"):
            xmemk.patch(target)


def test_names_subclasses_that_stay_on_the_hosts_code(names):
    class Mine(memory_manager.MemoryManager):
        pass

    class Yours(Mine):
        pass

    with xmemk.patch(HOST) as handle:
        assert [line.split(", ")[0].rsplit(".", 1)[1] for line in handle.report.left] == ["Mine", "Yours"]
        assert "Yours, a subclass of hosts.xmem_like.memory_manager.MemoryManager" in repr(handle)
    manager = Yours(CONFIG)
    key, shrinkage, selection, value = next(frames(1))
    manager.add_memory(key, shrinkage, value[:, :1], [1], selection)
    with pytest.raises(RuntimeError, match=r"1 memory managers of .* hold objects already"):
        xmemk.patch(HOST)


@pytest.mark.parametrize("verify", [False, True])
def test_a_manager_of_an_earlier_patch_is_no_hindrance(names, verify):
    with xmemk.patch(HOST, verify=verify):
        _, core = follow(CONFIG, 5)
    with xmemk.patch(HOST, verify=verify) as handle:
        assert handle.report.left == []
    assert core.memory.work_mem.engaged()


def test_refuses_a_store_or_functions_of_another_form(names, monkeypatch):
    def add(self, key, value):
        pass

    other = type("KeyValueMemoryStore", (kv_memory_store.KeyValueMemoryStore,), {"add": add})
    monkeypatch.setattr(memory_manager, "KeyValueMemoryStore", other)
    words = r"KeyValueMemoryStore.add: wanted the signature .* found \(self, key, value\)"
    with pytest.raises(UnknownHost, match=words):
        xmemk.patch(HOST, functions=False)
    with xmemk.patch(HOST) as handle:  # the functions alone
        assert re.search(words, handle.report.left[0])
        assert inference_core.Manager is memory_manager.MemoryManager
    monkeypatch.setattr(memory_manager, "KeyValueMemoryStore", kv_memory_store.KeyValueMemoryStore)

    def get_similarity(mk, ms, qk, qe, uncert_mask=None):
        pass

    get_similarity.__module__ = memory_util.__name__
    monkeypatch.setattr(memory_util, "get_similarity", get_similarity)
    with pytest.raises(UnknownHost, match=r"memory_util.get_similarity: wanted the signature"):
        xmemk.patch(HOST)
    monkeypatch.undo()
    monkeypatch.setattr(memory_manager, "torch", None)
    with pytest.raises(UnknownHost, match="does not use torch"):
        xmemk.patch(HOST, functions=False)


def test_managers_that_hold_objects_are_refused_and_empty_ones_taken_over(names):
    core = inference_core.InferenceCore(CONFIG)
    original = core.memory.__class__
    with xmemk.patch(HOST) as handle:
        assert handle.report.adopted == 1
        assert isinstance(core.memory, xmem.MemoryManager)
        assert core.memory.max_long_elements == CONFIG["max_long_term_elements"]
    assert core.memory.__class__ is original
    assert not core.memory.work_mem.engaged()
    key, shrinkage, selection, value = next(frames(1))
    with xmemk.patch(HOST):
        core.step(key, shrinkage, selection, value[:, :1], [1], True)
    assert isinstance(core.memory, xmem.MemoryManager)  # it goes on serving its video
    assert core.step(key, shrinkage, selection, value[:, :1], [1], True).shape == (1, *value.shape[2:])
    core.clear_memory()
    core.step(key, shrinkage, selection, value[:, :1], [1], True)
    with pytest.raises(RuntimeError, match=r"1 memory managers of .* hold objects already"):
        xmemk.patch(HOST)
    assert core.memory.__class__ is original


def test_a_failure_half_way_leaves_nothing_bound(names, monkeypatch):
    core = inference_core.InferenceCore(CONFIG | {"max_mid_term_frames": 2})  # T_max < T_min, which ours refuses
    with pytest.raises(ValueError, match="max_mid_term_frames"):
        xmemk.patch(HOST)
    assert core.memory.__class__ is memory_manager.MemoryManager
    assert core.memory.max_mt_frames == 2


def test_from_several_threads(names):
    outcomes = []

    def attempt():
        try:
            outcomes.append(xmemk.patch(HOST))
        except RuntimeError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handles = [x for x in outcomes if isinstance(x, xmemk.compat.Patch)]
    assert len(handles) == 1
    assert all("patched already" in x for x in outcomes if isinstance(x, str))
    handles[0].undo()


@pytest.mark.parametrize("groups", ["xmem", "exact"])
def test_managers_can_be_pickled_and_copied(names, groups):
    with xmemk.patch(HOST, groups=groups, backend="torch"):
        _, core = follow(CONFIG, 20, {0: 2, 5: 1})
        copied = copy.deepcopy(core.memory)
        assert type(copied) is type(core.memory)
        pickled = pickle.dumps(core.memory)
    loaded = pickle.loads(pickled)
    assert isinstance(loaded, xmem.MemoryManager)
    assert (loaded.groups, loaded.backend) == (groups, "torch")
    key, shrinkage, selection, value = next(frames(1))
    for _ in range(12):  # consolidates and evicts
        expected = core.memory.match_memory(key, selection)
        for manager in (core.memory, copied, loaded):
            if manager is not core.memory:
                assert torch.equal(manager.match_memory(key, selection), expected)
            manager.add_memory(key, shrinkage, value[:, :3], [1, 2, 3], selection)
    assert loaded.work_mem.size == core.memory.work_mem.size == loaded.memory.working_size


def test_verification_reports_reads_adds_and_times(names):
    with xmemk.patch(HOST, verify=True) as handle:
        follow(CONFIG, 120, {0: 2})
    report = handle.report
    assert report.reads == 119
    assert report.steps["add"].calls == 60
    assert 0 < report.largest < 1e-5
    assert "119 verified" in str(report)
    assert "share of the time" in str(report)
    assert not any("memory_util" in line for line in report.bound)  # the host's path stays the host's


def test_verification_goes_on_alone_where_the_host_stops(names):
    with xmemk.patch(HOST, verify=True) as handle:
        readouts, _ = follow(CONFIG, 120, {0: 1, 9: 1})
    assert len(readouts) == 119
    assert len(handle.report.host_stopped) == 1
    assert "NotImplementedError" in handle.report.host_stopped[0]
    assert "add " in handle.report.host_stopped[0]


SABOTAGE = {
    "a readout": ("match_memory", lambda self, out: out + 1e-3),
    "usage": ("match_memory", lambda self, out: self.memory.groups.arena.use.blocks[1].add_(0.5) is None or out),
    "a stored key": ("add_memory", lambda self, out: self.memory.groups.arena.key.blocks[1].add_(1e-6)),
    "a stored value": ("add_memory", lambda self, out: self.memory.groups.arena.values.bank.blocks[1].add_(1e-3)),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_verification_rejects(names, monkeypatch, what):
    method, spoil = SABOTAGE[what]
    right = getattr(xmem.MemoryManager, method)
    monkeypatch.setattr(xmem.MemoryManager, method, lambda self, *a, **k: spoil(self, right(self, *a, **k)))
    kind = "read" if method == "match_memory" else "add"
    with (
        xmemk.patch(HOST, verify=True),
        pytest.raises(VerificationError, match=rf"{kind} 1.* of XMem's MemoryManager, "),
    ):
        follow(CONFIG, 20)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("factor", [2.0, 0.0, -1.0])
def test_verification_rejects_a_host_that_reads_wrongly(names, monkeypatch, factor, autocast):
    """Ours is right by float64, and yet that is no verification."""
    right = memory_manager.MemoryManager.match_memory

    def match_memory(self, query_key, selection):
        return factor * right(self, query_key, selection)

    monkeypatch.setattr(memory_manager.MemoryManager, "match_memory", match_memory)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        xmemk.patch(HOST, verify=True),
        pytest.raises(VerificationError, match=r"read 1 .*group 0: differs .* the host's from float64 by .*; ours is"),
    ):
        follow(CONFIG, 20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_host_under_autocast_is_only_rounded(names, dtype):
    config = CONFIG | {"enable_long_term": False}  # usage would choose other prototypes
    with torch.autocast("cpu", dtype), xmemk.patch(HOST, verify=True) as handle:
        follow(config, 40)
    assert handle.report.reads == 39
    assert handle.report.steps["read"].settled > 0


def test_a_judge_settles_by_float64_and_only_what_is_right():
    from xmemk.testing import make_inputs

    x = make_inputs(60, 9, value_channels=4)
    exact = xmemk.reference.memory_read(*x.double().read, top_k=5)
    rough = exact.float()
    rough[..., 3] += 1e-4

    def of(queries):
        return make_inputs(60, 9, value_channels=4).__class__(
            x.mk, x.ms, x.mv, x.qk[..., queries], x.qe[..., queries], x.me, x.usage
        )

    judge = Judge("read 1")
    judge.read("ours is right", exact.float(), rough, of, 5)
    assert judge.settled
    assert judge.open_queries == 1
    with pytest.raises(VerificationError, match="read 2, the host is right: differs"):
        Judge("read 2").read("the host is right", rough, exact.float(), of, 5)
    with pytest.raises(VerificationError, match="NaN or Inf"):
        Judge("read 3").read("spoilt", exact.float() * float("nan"), exact.float(), of, 5)
    with pytest.raises(VerificationError, match="shape"):
        Judge("read 4").close("short", rough[..., 1:], rough)
    with pytest.raises(VerificationError, match="2 of 4 numbers differ"):
        Judge("add 5").equal("key", torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 4, 3]))
    report = PatchReport()
    judge.report_to(report, "read")
    assert report.steps["read"].settled == 1


def test_signatures_are_compared_without_annotations():
    def annotated(self, key: torch.Tensor, *, as_permanent: bool = False) -> None: ...

    assert signatures.signature(annotated) == "(self, key, *, as_permanent=False)"
