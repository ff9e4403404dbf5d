"""A checkout of XMem or of its descendants without weights: memory manager, network, frame loop."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from pathlib import Path
from typing import Any

import torch

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


class Checkout:
    """``place``: a folder, or "rf-cutie" for the installed package.

    family: "xmem" or "cutie". prefix: of the names of its modules. The folders are put on the path.
    """

    def __init__(self, place: str) -> None:
        self.prefix = "cutie." if place == "rf-cutie" else self._prefix_in(Path(place).resolve())
        self.manager_class = self.module("memory_manager").MemoryManager
        self.family = "cutie" if hasattr(self.manager_class, "read") else "xmem"

    @staticmethod
    def _prefix_in(root: Path) -> str:
        for prefix in ("", "tracker.", "cutie."):
            folder = root / prefix.replace(".", "/") / "inference"
            if (folder / "memory_manager.py").exists():
                sys.path[:0] = [str(root), str(folder.parent)] if prefix == "tracker." else [str(root)]
                return prefix
        raise FileNotFoundError(f"{root}: wanted a checkout with inference/memory_manager.py, tracker/... or cutie/...")

    def module(self, name: str) -> Any:
        """One of the modules of its folder inference/."""
        return importlib.import_module(f"{self.prefix}inference.{name}")

    def network(self, config: dict[str, Any]) -> Any:
        """XMem's network with PyTorch's random weights; nothing is downloaded.

        Raises ImportError where a package that it imports is missing.
        """
        self.module("inference_core")
        for module in [m for name, m in list(sys.modules.items()) if name.endswith("model.resnet")]:
            vars(module).update(
                model_zoo=types.SimpleNamespace(load_url=lambda *_, **__: {}),
                load_weights_add_extra_dim=lambda *_, **__: None,
            )
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(f"{self.prefix}model.network").XMem(dict(config)).eval()

    def core(self, network: Any, config: dict[str, Any]) -> Any:
        """The frame loop on a network."""
        return self.module("inference_core").InferenceCore(network, dict(config))


class Nested(dict[str, Any]):
    """A configuration with attributes, as Cutie reads it."""

    __getattr__ = dict.__getitem__


class Manager:
    """Either family's memory manager behind the calls that are measured.

    ``limits``: those of LIMITS that are not as released, and "buffer_tokens".
    """

    def __init__(self, checkout: Checkout, objects: int, limits: dict[str, int]) -> None:
        self.family, self.limits = checkout.family, limits
        self.objects = list(range(1, objects + 1))
        manager = checkout.module("memory_manager").MemoryManager
        if self.family == "xmem":
            self.manager = manager(config=self._config())
        else:
            registry = checkout.module("object_manager").ObjectManager()
            registry.add_new_objects(self.objects)
            self.manager = manager(self._config(), registry)

    def _config(self) -> dict[str, Any]:
        limits = {**LIMITS, **self.limits}
        if self.family == "xmem":
            return limits
        names = {
            "max_mem_frames": "max_mid_term_frames",
            "min_mem_frames": "min_mid_term_frames",
            "num_prototypes": "num_prototypes",
            "max_num_tokens": "max_long_term_elements",
            "buffer_tokens": "buffer_tokens",
        }
        long_term = Nested({theirs: limits[ours] for theirs, ours in names.items()}, count_usage=True)
        flags = {"save_aux": False, "use_long_term": True, "model": Nested(sensory_dim=1)}
        return Nested(top_k=30, chunk_size=-1, max_mem_frames=5, long_term=long_term, **flags)

    def configure(self, **limits: int) -> None:
        self.limits = {**self.limits, **limits}
        self.manager.update_config(self._config())

    def read(self, key: torch.Tensor, selection: torch.Tensor) -> torch.Tensor:
        if self.family == "xmem":
            return self.manager.match_memory(key, selection)
        h, w = key.shape[-2:]
        self.manager.initialize_sensory_if_needed(key, self.objects)
        network = types.SimpleNamespace(
            pixel_fusion=lambda pix, visual, *_: visual, readout_query=lambda pixel, summaries: (pixel, None)
        )
        pix, mask = key.new_zeros(1, 1, h, w), key.new_zeros(1, len(self.objects), h, w)
        readout = self.manager.read(pix, key, selection, mask, network)
        return torch.cat([readout[obj] for obj in self.objects])

    def add(self, key: torch.Tensor, shrinkage: torch.Tensor, selection: torch.Tensor, value: torch.Tensor) -> None:
        if self.family == "xmem":
            self.manager.add_memory(key, shrinkage, value, self.objects, selection=selection)
        else:
            self.manager.add_memory(key, shrinkage, value, None, self.objects, selection, as_permanent="first")

    def _tokens(self, store: Any) -> int:
        return store.size if self.family == "xmem" else store.size(0)

    @property
    def long_term(self) -> int:
        """Tokens in long-term memory."""
        return self._tokens(self.manager.long_mem)

    @property
    def working_frames(self) -> int:
        """Frames in working memory, the permanent one included."""
        return self._tokens(self.manager.work_mem) // self.manager.HW
