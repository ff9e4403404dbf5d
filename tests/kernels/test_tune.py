"""The tool that chooses tile sizes, without a GPU: a clock of ours, reads in the interpreter."""

import importlib.util
import math

import pytest
import torch
from interpreter import find_kernels, interpreted

find_kernels()
from xmemk.kernels import configs  # noqa: E402

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; it is made for Linux alone", allow_module_level=True)

from xmemk.kernels import aot, tune  # noqa: E402

NOW = {"BLOCK_Q": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2}


def fine(config, every_form):
    return None


def test_the_table_is_written_as_it_is_committed(tmp_path, monkeypatch):
    from xmemk.kernels import tune

    committed, table = configs.PATH.read_text(), configs.table()
    monkeypatch.setattr(configs, "PATH", tmp_path / "configs.json")
    tune.write(table)
    assert configs.PATH.read_text() == committed


def test_the_fastest_is_kept_and_what_cannot_be_launched_is_said():
    def time(config):
        if config["num_stages"] == 4:
            raise RuntimeError("out of resource: shared memory\nand more")
        return 2.0 if config == NOW else 1.0 + abs(config["BLOCK_N"] - 64) + config["num_warps"]

    said = []
    assert tune.best("split_lse", NOW, time, fine, said.append) == (NOW, 2.0)
    kept, least = tune.best("split_lse", NOW, lambda c: 9.0 if c == NOW else time(c), fine, said.append)
    assert kept["num_warps"] == 4 and kept["BLOCK_N"] == 64 and least == 5.0
    assert len(said) == 2 * 2 * 3 * 2
    assert all(line.endswith("rejected, out of resource: shared memory") for line in said)
    for kernel, config in configs.table()["90"].items():
        assert set(config) == set(next(tune.candidates(kernel)))
    assert set(tune.TIMED) == set(configs.table()["90"])


def test_a_fast_one_with_a_problem_is_rejected():
    asked = []

    def problem(config, every_form):
        asked.append((config["num_warps"], every_form))
        if config["num_warps"] == 4:
            return "split_lse: spills" if not every_form else None
        return "multiply_parts: spills" if every_form and config["BLOCK_N"] != 64 else None

    said = []
    kept, least = tune.best(
        "split_lse", NOW, lambda c: 3.0 if c == NOW else 1.0 + c["num_stages"] / 100, problem, said.append
    )
    assert kept == {"BLOCK_Q": 64, "BLOCK_N": 64, "num_warps": 8, "num_stages": 1} and least == 1.01
    assert sum(line.endswith("rejected, split_lse: spills") for line in said) == 24
    assert any(line.endswith("rejected, multiply_parts: spills") for line in said)
    assert (4, True) not in asked


def test_what_is_used_now_is_kept_where_nothing_can_be_used():
    said = []
    kept, least = tune.best("split_lse", NOW, lambda c: 1.0, lambda c, every: "spills", said.append)
    assert (kept, least) == (NOW, math.inf)
    assert said[0].startswith("split_lse: what is used now") and said[0].endswith("would be rejected: spills")
    # One that is right replaces one that is not, however slow it is.
    kept, least = tune.best(
        "split_lse", NOW, lambda c: 7.0, lambda c, every: "spills" if c == NOW else None, said.append
    )
    assert kept != NOW and least == 7.0


@pytest.mark.timeout(900)
def test_the_compilers_problems_are_those_of_make_aot():
    committed = configs.table()["90"]["split_maxima"]
    assert tune.compiled_problem("split_maxima", 90, committed, False) is None
    why = tune.compiled_problem("split_maxima", 90, {**committed, "num_stages": 8}, False)
    assert why == f"split_maxima compiled for sm_90: more than {aot.SHARED_LIMIT[90]} bytes of shared memory"
    assert configs.table()["90"]["split_maxima"] is committed
    assert configs.of("split_maxima", torch.empty(1, device="meta")) == configs.table()["cpu"]["split_maxima"]


def test_what_is_wrong_is_not_expected():
    wanted = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    for dtype in (torch.float16, torch.float32):
        tune.expect(wanted.to(dtype), wanted)
        for bad in (wanted * 1.01, torch.full_like(wanted, math.nan)):
            with pytest.raises(ValueError, match="wrong by"):
                tune.expect(bad.to(dtype), wanted)


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert "no GPU" in capsys.readouterr().err


@interpreted
def test_a_run_in_the_interpreter():
    """Reads by the kernels, with a clock that prefers blocks of 64 queries; then one that stops,
    and one whose reads are wrong.
    """
    import tempfile
    from pathlib import Path
    from unittest import mock

    from xmemk.kernels import configs, tune

    table = dict(configs.table())
    patched = mock.patch.object(configs, "table", lambda: table)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(configs, "PATH", Path(folder) / "configs.json"),
        patched,
    ):
        table["90"] = table["cpu"]  # the one that is used here, under a name that can be compiled for
        now = dict(table["90"]["read_rows"])
        work = {"read_rows": tune.workloads("cpu", 500, 2)["read_rows"]}

        def clock(read):
            return 1.0 if table["90"]["read_rows"]["SLOTS"] == 8 else 2.0

        small = mock.patch.object(tune, "candidates", lambda kernel: iter([{**now, "SLOTS": 16}, {**now, "SLOTS": 8}]))
        with small, mock.patch.object(tune, "compiled_problem", lambda *_: None):
            tune.tune("90", ["read_rows"], work, clock)
            assert table["90"]["read_rows"] == {**now, "SLOTS": 8}
            assert '"SLOTS": 8' in configs.PATH.read_text()
            configs.PATH.unlink()
            table["90"]["read_rows"] = now

            def stopped(read):
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                tune.tune("90", ["read_rows"], work, stopped)
            read, wanted = work["read_rows"]
            tune.tune("90", ["read_rows"], {"read_rows": (read, wanted + 1)}, clock)
        assert table["90"]["read_rows"] == now
        assert list(Path(folder).iterdir()) == []
