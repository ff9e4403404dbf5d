"""rf-cutie before and after `xmemk.patch`: the same probabilities, from another memory.

Run: pip install rf-cutie omegaconf; python examples/drop_in_cutie.py
The network has random weights, so nothing is downloaded.
"""

import time
from pathlib import Path
from unittest import mock

import cutie
import torch
from cutie.inference.inference_core import InferenceCore
from cutie.model.cutie import CUTIE
from cutie.model.utils import resnet
from omegaconf import OmegaConf

import xmemk

folder = Path(cutie.__path__[0]) / "config"
config, small = OmegaConf.load(folder / "eval_config.yaml"), OmegaConf.load(folder / "model" / "small.yaml")
del config["hydra"], config["defaults"], small["defaults"]
sizes = {"pixel_dim": 16, "value_dim": 16, "sensory_dim": 16, "embed_dim": 16, "key_dim": 16}
config.model = OmegaConf.merge(OmegaConf.load(folder / "model" / "base.yaml"), small, sizes)
config.model.object_transformer.update(num_blocks=1, num_heads=2, ff_dim=16)
config.model.mask_decoder.up_dims = [16, 8, 8]
config.update(use_long_term=True, mem_every=2)

torch.manual_seed(0)
with (
    mock.patch.object(resnet.model_zoo, "load_url", lambda *args, **options: {}),
    mock.patch.object(resnet, "load_weights_add_extra_dim", lambda *args, **options: None),
):
    network = CUTIE(config).eval()
frames = torch.rand(12, 3, 96, 128)
mask = torch.zeros(96, 128, dtype=torch.int64)
mask[20:60, 30:70] = 1


@torch.inference_mode()
def follow() -> tuple[torch.Tensor, float]:
    """Cutie's own loop, unchanged."""
    core, start = InferenceCore(network, cfg=config), time.perf_counter()
    results = [core.step(frames[0], mask, objects=[1])]
    results += [core.step(frame) for frame in frames[1:]]
    return torch.stack(results), time.perf_counter() - start


before, seconds_before = follow()
with xmemk.patch("cutie") as handle:
    after, seconds_after = follow()
print(handle)
print(f"before {seconds_before:.2f} s, after {seconds_after:.2f} s")
print(f"largest difference of a probability: {float((before - after).abs().max()):.1e}")
