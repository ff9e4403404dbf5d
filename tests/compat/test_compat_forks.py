"""Same signatures, other code: copies are bound, forks by their functions or not at all."""

from __future__ import annotations

import contextlib
import importlib
import re
import types

import forks
import pytest
import test_compat_cutie
import torch
from test_compat_cutie import configuration, differences
from test_compat_cutie import follow as follow_cutie
from test_compat_xmem import CONFIG, frames

import xmemk
from xmemk.compat import UnknownHost, VerificationError
from xmemk.compat.recognition import bodies, known

network = test_compat_cutie.network  # the fixture


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def make(tmp_path):
    """Makes forks, each under a name of its own."""
    names = []

    def one(kind, **edits):
        names.append(f"fork_{tmp_path.name.replace('-', '_')}_{len(names)}")
        return names[-1], getattr(forks, f"{kind}_fork")(tmp_path, names[-1], **edits)

    yield one
    for name in names:
        forks.forget(tmp_path, name)


def follow_xmem(modules, config=CONFIG, n=60):
    core, readouts = modules["inference_core"].InferenceCore(config), []
    for t, (key, shrinkage, selection, value) in enumerate(frames(n)):
        out = core.step(key, shrinkage, selection, value[:, :2], [1, 2], t % 2 == 0)
        readouts += [] if out is None else [out]
    return readouts


def follow(modules, network, config=None, **schedule):
    """Probabilities. The core goes: a patch refuses where a manager of the host's holds objects."""
    core = modules["inference_core"].InferenceCore(network, config or configuration())
    return follow_cutie(network, None, core=core, **schedule)[0]


HARMLESS = {
    "a docstring and a comment": (r"(def match_memory\(.*\):\n)", r"\1        '''Reads.'''  # all of it\n"),
    "an annotation": (r"def set_hidden\(self, hidden\):", "def set_hidden(self, hidden: object) -> None:"),
    "another name of a local": (r"\breadouts\b", "everything"),
    "a line of printing": (r"(def compress_features\(self\):\n)", r"\1        print(self.HW)\n"),
    "an unused local": (r"(def get_hidden\(self\):\n)", r"\1        width = self.W\n"),
    "brackets": (r"return self\.hidden\n", "return (self.hidden)\n"),
}
CHANGES = {
    "a factor": (r"torch\.cat\(readouts\)", "2 * torch.cat(readouts)", "match_memory"),
    "another slice": (r"self\.HW, self\.HW - ", "2 * self.HW, self.HW - ", "compress_features"),
    "another attribute": (r"self\.top_k, return_usage", "self.num_prototypes, return_usage", "match_memory"),
    "a condition less": (r"group == 0 and self\.enable", "self.enable", "match_memory"),
    "a default": (r"hidden\.shape\[1\]\)", "hidden.shape[1] - 1)", "create_hidden_state"),
}


@pytest.mark.parametrize("edit", HARMLESS)
def test_edits_that_change_no_result_are_bound(make, edit):
    name, modules = make("xmem", memory_manager=[HARMLESS[edit]])
    with xmemk.patch(name) as handle:
        assert handle.report.levels[f"{name}.memory_manager.MemoryManager"] == "manager"
        assert modules["inference_core"].Manager.__module__ == "xmemk.compat.xmem"


@pytest.mark.parametrize("edit", CHANGES)
def test_edits_that_change_results_are_named_with_their_hash(make, edit):
    pattern, replacement, function = CHANGES[edit]
    name, modules = make("xmem", memory_manager=[(pattern, replacement)])
    digits = bodies.body_hash(vars(modules["memory_manager"].MemoryManager)[function])
    words = re.escape(f"{name}.memory_manager.MemoryManager.{function}: its code {digits} is not that of a known")
    with pytest.raises(UnknownHost, match=words):
        xmemk.patch(name, functions=False)
    with xmemk.patch(name) as handle:  # the functions are known
        assert re.search(words, str(handle))
        assert modules["inference_core"].Manager is modules["memory_manager"].MemoryManager
        assert handle.report.levels == {f"{name}.memory_util": "functions only"}
    assert handle.report.left[0].startswith(f"{name}.memory_manager.MemoryManager, which goes on to use xmemk's")


def test_a_fork_that_consolidates_another_range(make):
    """Several input frames: they stay in working memory, and are never consolidated."""
    edits = [
        (r"(def _limits\(self, config\):\n)", r'\1        self.num_input = config.get("num_input", 1)\n'),
        (r"self\.HW, self\.HW - ", "self.num_input * self.HW, self.HW - "),
    ]
    name, modules = make("xmem", memory_manager=edits)
    config = CONFIG | {"num_input": 2}
    theirs = follow_xmem(modules, config)
    plain = follow_xmem(make("xmem")[1], config)
    assert max(float((a - b).abs().max()) for a, b in zip(plain, theirs)) > 1e-3  # it does matter
    with xmemk.patch(name):
        ours = follow_xmem(modules, config)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs)) < 1e-5
    with xmemk.patch(name, verify=True) as handle, pytest.raises(VerificationError, match="'num_input'"):
        follow_xmem(modules, config)
    assert handle.report.trust == []


def test_a_clean_verified_run_gives_a_fingerprint_to_trust(make, capsys):
    """Code that looks different and computes the same."""
    edits = [(r"group == 0 and self\.enable", "not group and self.enable")]
    name, modules = make("xmem", memory_manager=edits)
    theirs = follow_xmem(modules)
    with xmemk.patch(name, verify=True) as handle:
        follow_xmem(modules)
        (fingerprint,) = handle.report.trust
    assert fingerprint in capsys.readouterr().out
    for trust in (fingerprint, ["0" * 16, fingerprint]):
        with xmemk.patch(name, trust=trust) as handle:
            assert handle.report.levels[f"{name}.memory_manager.MemoryManager"] == "manager"
            ours = follow_xmem(modules)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs)) < 1e-5
    name, _ = make("xmem", memory_manager=[*edits, CHANGES["a factor"][:2]])
    with pytest.raises(UnknownHost, match="match_memory"):
        xmemk.patch(name, trust=fingerprint, functions=False)


@pytest.mark.parametrize("how", ["replaced", "wrapped", "edited"])
def test_code_that_is_not_its_source_is_noticed(make, how, monkeypatch):
    name, modules = make("xmem")
    manager = modules["memory_manager"].MemoryManager
    right = manager.match_memory
    if how == "edited":
        path = importlib.import_module(f"{name}.memory_manager").__file__
        with open(path, "a") as file:
            file.write("\n")  # harmless: all lines stay where they are
        xmemk.patch(name, functions=False).undo()
        with open(path) as file:
            text = file.read()
        with open(path, "w") as file:
            file.write(text.replace("torch.cat(readouts)", "(2 * torch.cat(readouts))"))
    elif how == "replaced":
        monkeypatch.setattr(manager, "match_memory", lambda self, query_key, selection: 2 * right(query_key, selection))
    else:
        monkeypatch.setattr(manager, "match_memory", torch.no_grad()(right))
    with pytest.raises(UnknownHost, match=r"match_memory: its code code[0-9a-f]{12} is not that of a known version"):
        xmemk.patch(name, functions=False)


def test_a_fork_that_appends_permanent_frames(make, network):
    edits = [(r"\n        if prepend:", "\n        if prepend is None:")]
    name, modules = make("cutie", kv_memory_store=edits)
    theirs = follow(modules, network, frames=24, permanent=(5, 10))
    plain = follow_cutie(network, configuration(), 24, permanent=(5, 10))[0]
    assert differences_at_all(plain, theirs) > 1e-3  # it does matter
    with pytest.raises(UnknownHost, match=r"kv\._add_last_dim: its code [0-9a-f]{16} is not that of a known version"):
        xmemk.patch(name, functions=False)
    with xmemk.patch(name) as handle:
        ours = follow(modules, network, frames=24, permanent=(5, 10))
    assert handle.report.levels == {f"{name}.model.utils.memory_utils": "functions only"}
    assert differences(ours, theirs) < 1e-5
    with (
        xmemk.patch(name, verify=True),
        pytest.raises(VerificationError, match=r"add .*work_mem.key\[0\]"),
    ):
        follow(modules, network, permanent=(5, 10))
    with xmemk.patch(name, verify=True) as handle:
        follow(modules, network, frames=8)
    with xmemk.patch(name, trust=handle.report.trust) as handle:
        assert handle.report.levels[f"{name}.inference.memory_manager.MemoryManager"] == "manager"


def test_a_fork_that_leaves_weights_on_the_manager(make, network):
    edits = [
        (r"( +)(\w+, \w+ = network\.readout_query\(.*\))\n", r"\1\2\n\1self.last_q_weights = visual_readout.mean()\n"),
        (r"(        self\.sensory_dim = )", r"        self.last_q_weights = None\n\1"),
    ]
    name, modules = make("cutie", memory_manager=edits)
    core = modules["inference_core"].InferenceCore(network, configuration())
    theirs = follow(modules, network, frames=12)
    with xmemk.patch(name):
        ours, core = follow_cutie(network, None, 12, core=core)
        assert type(core.memory) is modules["memory_manager"].MemoryManager
        assert core.memory.last_q_weights.isfinite()
    assert differences(ours, theirs) < 1e-5
    del core
    with xmemk.patch(name, verify=True), pytest.raises(VerificationError, match=r"read 1.*'last_q_weights'"):
        follow(modules, network, frames=12)


def test_a_fork_that_asks_its_network_for_more(make, network):
    edits = [(r"network\.readout_query\((\w+, \w+)\)", r"network.readout_query(\1, need_weights=True)")]
    name, modules = make("cutie", memory_manager=edits)
    with xmemk.patch(name, verify=True), pytest.raises(VerificationError, match=r"read 1.*calls of the network"):
        follow(modules, network, frames=12)


RESIZE = """    def resize_sensory(self, size):
        self.sensory = {obj: x[..., : size[0], : size[1]] for obj, x in self.sensory.items()}

"""


def test_a_further_method_is_inherited_where_it_touches_only_what_stays_the_hosts(make, network):
    name, modules = make("cutie", memory_manager=[(r"(    def get_sensory\()", RESIZE + r"\1")])
    theirs = follow(modules, network, frames=12)
    with xmemk.patch(name) as handle:
        assert handle.report.levels[f"{name}.inference.memory_manager.MemoryManager"] == "manager"
        core = modules["inference_core"].InferenceCore(network, configuration())
        ours = follow_cutie(network, None, 12, core=core)[0]
        core.memory.resize_sensory((2, 3))
        assert all(x.shape[-2:] == (2, 3) for x in core.memory.sensory.values())
    assert differences(ours, theirs) < 1e-5
    for change in ("self.work_mem.k = {}", "self.clear_non_permanent_memory()", "vars(self).clear()"):
        body = RESIZE.replace("        self.sensory = ", f"        {change}\n        self.sensory = ")
        name, _ = make("cutie", memory_manager=[(r"(    def get_sensory\()", body + r"\1")])
        with pytest.raises(UnknownHost, match="resize_sensory: found a method"):
            xmemk.patch(name, functions=False)
        with xmemk.patch(name) as handle:
            assert handle.report.levels == {f"{name}.model.utils.memory_utils": "functions only"}


def test_functions_alone_for_a_known_manager_in_mid_video(make):
    """Slices and joins of similarities stay lazy: no N x Q matrix in the host's own read."""
    name, modules = make("xmem")
    theirs = follow_xmem(modules, n=120)
    core, readouts, handle = modules["inference_core"].InferenceCore(CONFIG), [], contextlib.ExitStack()
    for t, (key, shrinkage, selection, value) in enumerate(frames(120)):
        if t == 30:
            handle = xmemk.patch(name, functions="only")
            assert handle.report.levels == {f"{name}.memory_util": "functions only"}
        out = core.step(key, shrinkage, selection, value[:, :2], [1, 2], t % 2 == 0)
        readouts += [] if out is None else [out]
    handle.undo()
    assert type(core.memory) is modules["memory_manager"].MemoryManager
    assert max(float((a - b).abs().max()) for a, b in zip(readouts, theirs)) < 1e-5


def test_one_unknown_function_is_left_and_the_others_are_bound(make):
    name, modules = make("xmem", memory_util=[(r"return \(mv\.flatten", "return 2 * (mv.flatten")])
    with xmemk.patch(name) as handle:
        assert modules["memory_util"].readout.__module__ == f"{name}.memory_util"
        assert modules["memory_util"].get_similarity.__module__ == "xmemk.compat.functions"
    assert any("readout: its code" in line for line in handle.report.left)


def test_the_hashes_of_the_installed_package_are_known():
    from cutie.inference.memory_manager import MemoryManager

    code = bodies.bodies_of_manager(MemoryManager)
    assert len(code) == 43
    assert bodies.fingerprint(code) == "be7d9151a29d83e9"
    assert code["MemoryManager.read"] == "ec2cb746086338fc"
    assert code["get_similarity"] == "eb02c6eac3097f4f"
    assert known.unknown_bodies(code, "Cutie") == {}
    assert known.unknown_bodies(code | {"MemoryManager.read": "0" * 16}, "Cutie") == {"MemoryManager.read": "0" * 16}


def differences_at_all(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs))


def test_code_without_a_source_is_told_apart():
    """Wrappers share one code object; what they wrap counts, too."""

    def once(x):
        return x

    def twice(x):
        return 2 * x

    def wrapped(function):
        return lambda x: function(x)

    hashes = [bodies.body_hash(f) for f in (once, twice, wrapped(once), wrapped(twice), torch.no_grad()(once))]
    assert hashes[:2] == [bodies.body_hash(once), bodies.body_hash(twice)]
    assert len(set(hashes)) == 5
    assert all(x.startswith("code") for x in hashes[2:])
    assert bodies.body_hash(wrapped(once)) == hashes[2]
    frozen = [types.FunctionType(f.__code__.replace(co_filename="<frozen>"), {}) for f in (once, twice)]
    assert len({bodies.body_hash(f) for f in frozen} | set(hashes)) == 7
    assert bodies.body_hash(frozen[0]) == bodies.body_hash(types.FunctionType(frozen[0].__code__, {}))
    assert bodies.body_hash(len) != bodies.body_hash(max)
