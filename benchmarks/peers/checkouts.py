"""A checkout of XMem or its descendants, loaded without weights, for dropin.py and parity.py."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from pathlib import Path
from typing import Any

LIMITS = {
    "hidden_dim": 64,
    "top_k": 30,
    "mem_every": 5,
    "deep_update_every": -1,
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
    "max_mid_term_frames": 10,
    "min_mid_term_frames": 5,
    "num_prototypes": 128,
    "max_long_term_elements": 10000,
}  # as released


def locate(checkout: str) -> tuple[str, str]:
    """The family, "xmem" or "cutie", and the package prefix of a checkout, whose folders are put on
    the path.

    "rf-cutie" stands for the installed package.
    """
    if checkout == "rf-cutie":
        return "cutie", "cutie."
    root = Path(checkout).resolve()
    for prefix in ("", "tracker.", "cutie."):
        folder = root / prefix.replace(".", "/") / "inference"
        if (folder / "memory_manager.py").exists():
            sys.path[:0] = [str(root), str(folder.parent)] if prefix == "tracker." else [str(root)]
            manager = importlib.import_module(f"{prefix}inference.memory_manager").MemoryManager
            return ("cutie" if hasattr(manager, "read") else "xmem"), prefix
    raise SystemExit(f"{checkout}: wanted a checkout with inference/memory_manager.py, tracker/... or cutie/...")


def network_of(prefix: str, config: dict[str, Any]) -> Any:
    """The host's network with PyTorch's random weights; nothing is downloaded.

    Raises ImportError.
    """
    importlib.import_module(f"{prefix}inference.inference_core")
    for module in [m for name, m in list(sys.modules.items()) if name.endswith("model.resnet")]:
        vars(module).update(
            model_zoo=types.SimpleNamespace(load_url=lambda *_, **__: {}),
            load_weights_add_extra_dim=lambda *_, **__: None,
        )
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module(f"{prefix}model.network").XMem(dict(config)).eval()


def core_of(prefix: str, network: Any, config: dict[str, Any]) -> Any:
    """The host's frame loop."""
    return importlib.import_module(f"{prefix}inference.inference_core").InferenceCore(network, dict(config))
