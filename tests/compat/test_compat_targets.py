"""The copy in use: which of the copies of a host's code a patch binds, and when it refuses."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import types
from pathlib import Path

import hosts.xmem_like.memory_manager as xmem_like
import pytest
from test_compat_xmem import CONFIG, frames

import xmemk
from xmemk.compat import UnknownHost, patching


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)
    yield
    leftover, patching._active[:] = list(patching._active), []
    for binding in leftover:
        binding.unbind()
    assert leftover == []


@pytest.fixture
def application(tmp_path, monkeypatch):
    """An application as Track-Anything is laid out: its folder ``tracking`` goes on the path, too.

    Its code imports its memory as ``inference.memory_manager``; by the other path the same file is
    ``tracking.inference.memory_manager``.
    """
    home, folder = Path(xmem_like.__file__).parent, tmp_path / "tracking"
    (folder / "inference").mkdir(parents=True)
    (folder / "model").mkdir()
    places = {"memory_manager": "inference", "kv_memory_store": "inference", "inference_core": "inference"}
    places["memory_util"] = "model"
    for module, place in places.items():
        text = (home / f"{module}.py").read_text()
        for other, where in places.items():
            text = text.replace(f"from .{other} import", f"from {where}.{other} import")
        (folder / place / f"{module}.py").write_text(text)
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def start():
        monkeypatch.syspath_prepend(folder)
        return importlib.import_module("inference.inference_core")

    yield types.SimpleNamespace(start=start, folder=folder)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_copy_that_the_application_uses_is_bound(application):
    core = application.start()
    original = core.Manager
    with xmemk.patch("tracking") as handle:
        assert core.Manager.__module__ == "xmemk.compat.xmem"
        assert core.Manager is sys.modules["inference.memory_manager"].MemoryManager
        assert "inference.memory_manager.MemoryManager -> xmemk.compat.xmem.MemoryManager" in handle.report.bound
        assert "model.memory_util.readout -> xmemk.compat.functions.readout" in handle.report.bound
        assert "tracking.inference.memory_manager" not in sys.modules
    assert core.Manager is original


def test_before_the_application_starts(application, monkeypatch):
    monkeypatch.syspath_prepend(application.folder)
    with xmemk.patch("tracking"):
        assert application.start().Manager.__module__ == "xmemk.compat.xmem"


def test_both_copies_where_both_are_loaded(application):
    core = application.start()
    second = importlib.import_module("tracking.inference.memory_manager")
    for target in ("tracking", "tracking.inference", None):
        with xmemk.patch(target):
            assert core.Manager.__module__ == second.MemoryManager.__module__ == "xmemk.compat.xmem"


def test_a_copy_that_nothing_uses_is_no_success(application, monkeypatch):
    with pytest.raises(RuntimeError, match=r"imports its memory as 'inference.memory_manager', which is not"):
        xmemk.patch("tracking")
    monkeypatch.syspath_prepend(application.folder)
    second = importlib.import_module("tracking.inference.memory_manager")
    for name in [name for name in sys.modules if name.split(".")[0] == "inference"]:
        del sys.modules[name]
    with pytest.raises(RuntimeError, match=r"nothing in use can be patched: no module uses tracking.inference"):
        xmemk.patch(second)
    assert second.MemoryManager.__module__ == "tracking.inference.memory_manager"
    held = types.ModuleType("a_script")
    held.Manager = second.MemoryManager
    monkeypatch.setitem(sys.modules, "a_script", held)
    with xmemk.patch(second):
        assert held.Manager.__module__ == "xmemk.compat.xmem"


def test_the_same_names_from_another_folder_are_not_the_target(application, tmp_path, monkeypatch):
    other = tmp_path / "other" / "inference"
    other.mkdir(parents=True)
    for path in (application.folder / "inference").iterdir():
        (other / path.name).write_text(path.read_text())
    monkeypatch.syspath_prepend(application.folder)
    monkeypatch.syspath_prepend(tmp_path / "other")
    importlib.import_module("inference.inference_core")
    with pytest.raises(RuntimeError, match="nothing in use can be patched"):
        xmemk.patch("tracking")


def test_a_patch_that_may_be_made_twice(application):
    core = application.start()
    first = xmemk.patch("tracking", exist_ok=True)
    ours = core.Manager
    with pytest.raises(RuntimeError, match=r"patched already: .* share it with exist_ok=True"):
        xmemk.patch("tracking")
    with pytest.raises(RuntimeError, match="patched already"):
        xmemk.patch("tracking", exist_ok=True, functions=False)  # with other options
    second = xmemk.patch("tracking", exist_ok=True)
    third = xmemk.patch("inference", exist_ok=True)
    assert core.Manager is ours
    assert second.report is first.report
    first.undo()
    first.undo()  # once is enough
    assert not first.active
    assert second.active
    assert core.Manager is ours
    second.undo()
    assert core.Manager is ours
    third.undo()
    assert core.Manager.__module__ == "inference.memory_manager"


def test_sharing_from_many_threads(application):
    core = application.start()
    handles, start = [], threading.Barrier(4)

    def share():
        start.wait()
        handle = xmemk.patch("tracking", exist_ok=True)
        handles.append(core.Manager.__module__)
        handle.undo()

    threads = [threading.Thread(target=share) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handles == ["xmemk.compat.xmem"] * 4
    assert core.Manager.__module__ == "inference.memory_manager"


def test_a_host_that_is_being_imported(application, monkeypatch):
    path = application.folder / "inference" / "memory_manager.py"
    text = path.read_text()
    for words, line in (
        ("inference.memory_manager is being imported now", text + "\nimport xmemk\nxmemk.patch('inference')\n"),
        ("nothing to patch: inference.* is being imported now", "import xmemk\nxmemk.patch('inference')\n" + text),
    ):
        path.write_text(line)
        importlib.invalidate_caches()
        with pytest.raises((RuntimeError, ImportError), match=words):
            application.start()
        for name in [name for name in sys.modules if name.split(".")[0] in ("inference", "model")]:
            del sys.modules[name]


def test_a_thread_inside_the_hosts_manager(application, monkeypatch):
    core = application.start()
    entered, leave = threading.Event(), threading.Event()
    engine = core.InferenceCore(CONFIG)
    store = sys.modules["inference.kv_memory_store"].KeyValueMemoryStore
    right = store.add

    def add(self, key, value, shrinkage, selection, objects):
        entered.set()
        assert leave.wait(20)
        right(self, key, value, shrinkage, selection, objects)

    monkeypatch.setattr(store, "add", add)
    key, shrinkage, selection, value = next(frames(1))
    thread = threading.Thread(
        target=engine.step, args=(key, shrinkage, selection, value[:, :1], [1], True), daemon=True
    )
    thread.start()
    assert entered.wait(20)
    before = dict(vars(engine.memory))
    try:
        with pytest.raises(UnknownHost, match=r"add: its code code"):  # the store was changed at run time
            xmemk.patch("tracking", functions=False)
        monkeypatch.setattr(store, "add", right)
        with pytest.raises(RuntimeError, match=r"a thread is inside a memory manager of inference.memory_manager"):
            xmemk.patch("tracking")
        assert type(engine.memory) is core.Manager
        assert vars(engine.memory) == before
        with xmemk.patch("tracking", functions="only"):  # has no state
            pass
    finally:
        leave.set()
        thread.join()
    assert engine.memory.work_mem.engaged()


def test_reading_while_functions_are_patched_and_undone(application):
    """Functions have no state: a read may meet any mixture of the host's and ours."""
    core = application.start()
    engine, wrong, stop = core.InferenceCore(CONFIG), [], threading.Event()
    for key, shrinkage, selection, value in frames(8):
        engine.memory.add_memory(key, shrinkage, value[:, :2], [1, 2], selection)
    expected = engine.memory.match_memory(key, selection)

    def read():
        while not stop.is_set():
            with contextlib.suppress(StopIteration):
                out = engine.memory.match_memory(key, selection)
                wrong.append(float((out - expected).abs().max()))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        xmemk.patch("tracking", functions="only").undo()
    stop.set()
    for thread in threads:
        thread.join()
    assert len(wrong) > 4
    assert max(wrong) < 1e-5


def test_another_packages_patch_stays(application):
    core = application.start()
    module, original = sys.modules["inference.memory_manager"], core.Manager
    handle = xmemk.patch("tracking")
    theirs = type("MemoryManager", (), {})
    core.Manager = theirs  # after ours
    handle.undo()
    assert core.Manager is theirs
    assert module.MemoryManager is original


def test_options_that_do_not_exist(application):
    application.start()
    with pytest.raises(ValueError, match="functions: wanted True, False or \"only\", got 'all'"):
        xmemk.patch("tracking", functions="all")
    with pytest.raises(ValueError, match="trust: wanted fingerprints"):
        xmemk.patch("tracking", trust=["abc"])
    with pytest.raises(ModuleNotFoundError, match="no module 'nowhere'"):
        xmemk.patch("nowhere")


def test_another_programs_memory_manager_is_no_hindrance(application, monkeypatch):
    class MemoryManager:
        """Of a chat program."""

        def add_memory(self, text):
            pass

        def read(self, query):
            pass

    chat = types.ModuleType("chat")
    chat.MemoryManager, MemoryManager.__module__ = MemoryManager, "chat"
    monkeypatch.setitem(sys.modules, "chat", chat)
    application.start()
    with xmemk.patch() as handle:
        assert any(line.startswith("chat.") for line in handle.report.left)
        assert chat.MemoryManager is MemoryManager
    with pytest.raises(UnknownHost, match=r"chat.*: wanted the signature"):
        xmemk.patch(chat)
