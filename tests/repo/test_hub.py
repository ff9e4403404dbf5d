"""The layout for the Hugging Face Kernel Hub: made, loaded by the package ``kernels``, and held to
the oracle.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In a process of its own, away from the checkout: xmemk itself is hidden, so that nothing can lean
# on it.
USE = """
import sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "xmemk":
            raise ModuleNotFoundError(f"hidden: {name}")

sys.meta_path.insert(0, Hidden())
import torch
from kernels import get_local_kernel

xmemk = get_local_kernel(Path(sys.argv[1]))
from torch import rand
mk, ms, mv, qk, qe = rand(1, 8, 60), 1 + rand(1, 1, 60), rand(1, 2, 16, 60), rand(1, 8, 9), rand(1, 8, 9)
readout, usage = xmemk.memory_read(mk, ms, mv, qk, qe, top_k=5, return_usage=True)
score = -(qe[:, :, None] * (mk[..., None] - qk[:, :, None]) ** 2).sum(1) * ms.transpose(1, 2) / 8**0.5
score = score.masked_fill(score < score.topk(5, dim=1).values[:, -1:], -float("inf"))
torch.testing.assert_close(readout, mv @ score.softmax(1)[:, None], atol=1e-5, rtol=1e-5)
layer = xmemk.layers.MemoryRead()
layer.top_k = 5
assert torch.equal(layer(mk, ms, mv, qk, qe), readout)
memory = xmemk.Memory(xmemk.MemoryConfig(hidden_dim=0))
memory.add(rand(1, 8, 3, 4), 1 + rand(1, 1, 3, 4), rand(1, 1, 16, 3, 4), [1], rand(1, 8, 3, 4))
print(xmemk.explain(xmemk.memory_read, mk, ms, mv, qk, qe, top_k=5).chosen, memory.read(rand(1, 8, 3, 4)).shape)
print(xmemk.api.ops.kernels().__name__ if hasattr(xmemk.api, "ops") else xmemk.__name__)
print(xmemk.__name__)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "hub"
    subprocess.run([sys.executable, ROOT / "tools" / "hub.py", out], check=True)
    return out


def test_the_layout(hub):
    for variant, backend in (("torch-cpu", "cpu"), ("torch-cuda", "cuda"), ("torch-universal", "cuda")):
        folder = hub / "build" / variant
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["name"] == "xmemk"
        assert metadata["backend"] == {"type": backend}
        assert (folder / "__init__.py").exists()
        assert (folder / "xmemk" / "__init__.py").exists()
        assert (folder / "kernels" / "configs.json").exists()
    listed = re.findall(r'"((?:csrc|torch-ext)/[^"]+)"', (hub / "build.toml").read_text())
    assert len(listed) > 20
    assert all((hub / path).exists() for path in listed)
    card = (hub / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: kernels\n")
    assert "Medians of" in card and "memory_read" in card


def test_no_module_names_the_package(hub):
    """An absolute import, or an operator in the namespace of another version, would fail where both
    are loaded.
    """
    for path in (hub / "build" / "torch-cpu").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(?:from|import) xmemk", text, re.MULTILINE), path
        assert '"xmemk::' not in text and "torch.ops.xmemk." not in text and 'import_module("xmemk' not in text, path


def test_it_is_loaded_by_kernels(hub, tmp_path):
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package kernels: pip install 'xmemk[hub]'")
    command = [sys.executable, "-c", USE, str(hub)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "torch torch.Size([1, 1, 16, 3, 4])"
    assert lines[-1].startswith("_xmemk_cpu_")
