"""Makes tests/data/xmem_network.npz with the released XMem: `python tests/data/make_xmem_network.py
CHECKOUT`.

CHECKOUT is a clone of https://github.com/hkchengrex/XMem (MIT); the file holds numbers that its
network computes from the weights and frames of fixed_network.py, nothing else of it.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import fixed_network as fixed

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def original(checkout):
    sys.path.insert(0, checkout)
    import torch.utils.model_zoo
    from model import resnet
    from model.network import XMem

    torch.utils.model_zoo.load_url = lambda *_, **__: {}  # ImageNet weights, which are overwritten anyway
    resnet.load_weights_add_extra_dim = lambda *_, **__: None
    network = XMem({**fixed.MEMORY, "key_dim": 64, "value_dim": 512}).eval()
    network.load_state_dict(fixed.fixed_weights(network.state_dict()), strict=True)
    return network


def stages(network):
    x = fixed.stage_inputs()
    key, shrinkage, selection, f16, f8, f4 = network.encode_key(x["image"])
    value, deep = network.encode_value(x["image"], f16, x["hidden"], x["masks"], is_deep_update=True)
    one, _ = network.encode_value(x["image"], f16, x["hidden"][:, :1], x["masks"][:, :1])
    hidden, _, probability = network.segment((f16, f8, f4), x["readout"], x["hidden"], h_out=True, strip_bg=False)
    found = {
        "key": key,
        "shrinkage": shrinkage,
        "selection": selection,
        "f16": f16,
        "f8": f8,
        "f4": f4,
        "value": value,
        "deep": deep,
    }
    found |= {"one": one, "hidden": hidden, "probability": probability}
    return {name: fixed.thinned(name, x) for name, x in found.items()}


def followed(network):
    from inference.inference_core import InferenceCore

    core = InferenceCore(network, {**fixed.MEMORY, "key_dim": 64, "value_dim": 512})
    results = []
    for t, frame in enumerate(fixed.frames()):
        mask = labels = None
        if t == 0:
            labels = [1, 2]
            core.set_all_labels(labels)
            mask = torch.stack([fixed.first_mask() == label for label in labels]).float()
        if t == fixed.LATE:
            labels = [3]
            core.set_all_labels([1, 2, 3])
            mask = torch.stack([fixed.late_mask() == label for label in (1, 2, 3)]).float()
        probability = core.step((frame - MEAN) / STD, mask, labels, end=t == fixed.FRAMES - 1)
        results.append(fixed.thinned("frame", probability))
    return results


def main(checkout):
    network = original(checkout)
    with torch.no_grad():
        arrays = {f"stage_{name}": x.numpy() for name, x in stages(network).items()}
        results = followed(network)
    arrays["two"] = torch.stack(results[: fixed.LATE]).numpy()
    arrays["three"] = torch.stack(results[fixed.LATE :]).numpy()
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    for name, x in arrays.items():
        print(f"{name:20} {x.shape!s:24} {np.abs(x).max():.3g}")
    np.savez_compressed(Path(__file__).with_name("xmem_network.npz"), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
