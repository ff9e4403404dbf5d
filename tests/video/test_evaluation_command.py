"""`xmemk eval`: a run, its table and JSON, judging existing results, and errors of one sentence."""

import json
import re
import zipfile

import fixed_network as fixed
import layouts
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("vos_benchmark.evaluator", exc_type=ImportError)  # of OpenCV without libGL too

from xmemk.cli.app import run
from xmemk.evaluation.layouts import open_dataset
from xmemk.evaluation.metrics import judge, mean
from xmemk.evaluation.policies import POLICIES
from xmemk.network import NetworkConfig, XMem

SMALL = NetworkConfig(key_dim=8, value_dim=16, hidden_dim=4, width=4, key_blocks=(1, 1, 1), decoder_dim=8)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # so small a network is not faster with more


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network = XMem(SMALL)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(fixed.fixed_weights(network.state_dict()), path)
    return path


def test_a_run_and_its_summary(weights, tmp_path, capsys):
    root, out = layouts.davis(tmp_path / "data"), tmp_path / "out"
    words = ["eval", str(root), "--weights", str(weights), "--out", str(out), "--size", "0", "--mem-every", "2"]
    assert run([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "summary.json").read_text())
    judgement = judge(open_dataset(root), out)
    assert [report["whole"][name] for name in ("jf", "j", "f")] == list(mean(judgement.scores))
    bear = report["videos"][0]
    assert bear["video"] == "bear" and [o["label"] for o in bear["objects"]] == [1, 2]
    assert bear["j"] == sum(o["j"] for o in bear["objects"]) / 2
    assert (report["layout"], report["split"], report["rule"], report["judged_frames"]) == (
        "davis2017",
        "val",
        "davis",
        8,
    )
    assert report["whole"]["frames"] == 12 and report["whole"]["growth"] is None and not bear["resumed"]
    assert report["whole"]["fps"] == pytest.approx(12 / sum(v["seconds"] for v in report["videos"]))

    assert run(words) == 0  # the second time everything is there
    output = capsys.readouterr().out
    finished = len(report["videos"])
    assert f"{finished} of {finished} video(s) were finished by an earlier run" in " ".join(output.split())
    assert "davis2017 val, first and last annotation left out" in output and "fps: the tracker and resizing" in output
    line = next(line for line in output.splitlines() if line.startswith("bear"))
    assert re.findall(r"[\d.]+", line)[:3] == [f"{bear[name]:.1f}" for name in ("jf", "j", "f")]
    assert sum("object" in line for line in output.splitlines()) == 4
    assert all(v["resumed"] for v in json.loads((out / "summary.json").read_text())["videos"])


def test_results_that_are_there(tmp_path, capsys):
    root, results = layouts.davis(tmp_path / "data"), tmp_path / "r"
    layouts.write_masks(results / "bear", layouts.counted(6), late=0)
    words = ["eval", str(root), "--results", str(results), "--videos", "bear"]
    assert run([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["whole"] == {"jf": 100, "j": 100, "f": 100} and not (results / "summary.json").exists()
    assert run([*words, "--rule", "all"]) == 0
    assert "all annotations" in capsys.readouterr().out
    assert run(["eval", str(root), "--results", str(results)]) == 1
    output = capsys.readouterr().err
    assert "4 of 8 results are missing: swan/00001.png" in output and "Traceback" not in output


def test_a_submission_that_cannot_be_judged_here(weights, tmp_path, capsys):
    root, out = layouts.youtube(tmp_path / "data"), tmp_path / "out"
    words = [
        "eval",
        str(root),
        "--weights",
        str(weights),
        "--out",
        str(out),
        "--size",
        "0",
        "--zip",
        str(out / "s.zip"),
    ]
    assert run([*words, "--given-frames"]) == 0
    output = capsys.readouterr().out
    assert "not judged: " in output and "only those that the tracker is told" in output and "s.zip: 5 masks" in output
    with zipfile.ZipFile(out / "s.zip") as file:
        assert file.namelist() == [f"Annotations/0a/{name}.png" for name in layouts.counted(5, 5)]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy(weights, tmp_path, capsys, policy):
    root, out = layouts.long_video(tmp_path / "data"), tmp_path / "out"
    words = ["eval", str(root), "--weights", str(weights), "--out", str(out), "--size", "0", "--mem-every", "1"]
    assert run([*words, "--policy", policy, "--repeat", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["whole"]["frames"] == 19 and report["whole"]["jf"] is not None
    assert len(list((out / "dressage").iterdir())) == 10


def test_long_time_video_remembers_every_tenth_frame(weights, tmp_path):
    root = layouts.long_video(tmp_path / "data")
    words = ["eval", str(root), "--weights", str(weights), "--size", "0", "--out"]
    assert run([*words, str(tmp_path / "long")]) == 0
    assert run([*words, str(tmp_path / "other"), "--layout", "generic"]) == 1  # not the layout's folders
    memory = json.loads((tmp_path / "long" / ".xmemk" / "settings.json").read_text())["memory"]
    assert memory["mem_every"] == 10 and "hidden_dim" not in memory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "wanted either --weights, to make masks, or --results, to judge some"),
        (["--results", "r", "--weights", "w"], "wanted either --weights"),
        (["--results", "r", "--policy", "none"], "--policy: wanted one of xmem, xmem-plain"),
        (["--weights", "absent.pth", "--zip", "/no/such/s.zip"], "zip: wanted a file in a folder that there is"),
        (["--weights", "absent.pth", "--zip", "/dev/null"], "got /dev/null, which is there and no regular file"),
        (["--weights", "absent.pth", "--out", "/dev/null"], "--out: wanted a folder for results, got /dev/null"),
        (["--results", "r", "--rule", "coco"], "--rule: wanted one of davis, all, got 'coco'"),
        (["--results", "r", "--layout", "coco"], "layout: wanted one of davis2016"),
        (["--results", "r", "--videos", "bear,cow"], "videos: wanted some of bear, swan, got cow"),
        (["--results", "absent"], "absent: no such folder of results"),
        (["--weights", "absent.pth"], "absent.pth"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, words, message):
    assert run(["eval", str(layouts.davis(tmp_path / "data")), *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("xmemk: error: ") and len(error.splitlines()) == 1


def test_a_folder_that_is_no_dataset(tmp_path, capsys):
    assert run(["eval", str(tmp_path), "--results", str(tmp_path)]) == 1
    assert "no dataset; looked for ImageSets/2017" in capsys.readouterr().err


def test_the_policies_are_listed(tmp_path, capsys):
    assert run(["eval", str(tmp_path), "--policy", "help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(POLICIES)


def test_a_list_without_videos_and_a_layout_without_a_server(tmp_path, capsys):
    root = layouts.davis(tmp_path / "data")
    (root / "ImageSets/2017/val.txt").write_text("\n")
    assert run(["eval", str(root), "--results", str(tmp_path)]) == 1
    assert "the list of split 'val' names no video" in capsys.readouterr().err
    long = layouts.long_video(tmp_path / "long")
    assert run(["eval", str(long), "--weights", "absent.pth", "--zip", str(tmp_path / "s.zip")]) == 1
    assert "zip: wanted a dataset with a server" in capsys.readouterr().err  # before the weights are looked for


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("name", "message"), [("cuda", "PyTorch finds 0 CUDA device(s), no cuda"), ("tpu9", "got 'tpu9'")]
)
def test_a_device_that_is_not_there(weights, tmp_path, capsys, name, message):
    words = ["eval", str(layouts.davis(tmp_path / "data")), "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert run([*words, "--device", name]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
