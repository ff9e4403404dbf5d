"""A type checker sees what users import, py.typed, in an editable install; and the checkout's other
folders do not become modules by it.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

USE = """
import torch
import xmemk

x = torch.rand(1, 4, 5)
reveal_type(xmemk.Memory().read)
reveal_type(xmemk.evict_lfu)
xmemk.evict_lfu(x, "three")
xmemk.evict_lru
"""


SITE = Path(sysconfig.get_path("purelib"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _set_up():
    if not (SITE / "xmemk_source" / "xmemk").exists():
        pytest.skip("not set up by tools/setup.sh, which tells type checkers where the source is")


def test_the_checkout_is_not_on_the_path(tmp_path):
    code = (
        "import importlib.util, sys, xmemk.kernels\n"
        "print(sys.path)\n"
        "names = 'benchmarks', 'kernels', 'tests', 'tools', 'setup'\n"
        "print([name for name in names if importlib.util.find_spec(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    path, modules = done.stdout.splitlines()
    assert f"'{ROOT}'" not in path
    assert modules == "[]"


@pytest.mark.slow
def test_mypy_sees_the_package(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "use.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    revealed = [line for line in lines if "Revealed type" in line]
    assert len(revealed) == 2
    assert all("def (" in line and "Tensor" in line for line in revealed), revealed
    errors = [line for line in lines if "error:" in line]
    assert len(errors) == 2, errors
    assert 'incompatible type "str"; expected "int"' in errors[0]
    assert 'has no attribute "evict_lru"' in errors[1]  # names that are imported lazily are known, no others
