"""Real processes under torchrun over a mesh, one of which is killed."""

import os
import subprocess
import sys

FOLLOW = """
import os, signal, sys, datetime, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
import xmemk
from xmemk import distributed
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
rank = dist.get_rank()
config = xmemk.MemoryConfig(hidden_dim=0, max_mid_term_frames=3, min_mid_term_frames=2, num_prototypes=5)
mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("tokens", "objects"))
memory, whole = distributed.Memory(config, group=mesh), xmemk.Memory(config)
torch.manual_seed(0)
for i in range(8):
    if rank == 1 and i == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    key, value = torch.randn(1, 8, 3, 4), torch.randn(1, 2, 6, 3, 4)
    shrinkage, selection = torch.ones(1, 1, 3, 4), torch.rand(1, 8, 3, 4)
    for m in (memory, whole):
        m.add(key, shrinkage, value, [1, 2], selection)
    readouts = [m.read(key, selection) for m in (memory, whole)]
    torch.testing.assert_close(*readouts, rtol=1e-4, atol=1e-4)
    memory.save(sys.argv[1])
"""


def torchrun(tmp_path):
    script = tmp_path / "follow.py"
    script.write_text(FOLLOW)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, script, tmp_path / "memory.json"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_killed_rank_leaves_whole_files(tmp_path):
    from xmemk import distributed

    done = torchrun(tmp_path)
    assert done.returncode != 0
    assert "AssertionError" not in done.stderr  # until then, reads were those of one process
    assert "SIGKILL" in done.stderr or "Signal 9" in done.stderr
    memory = distributed.Memory.load(tmp_path / "memory.json")
    assert memory.objects == (1, 2) and memory.working_size == 24
