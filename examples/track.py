"""The frame loop on the bundled clip. Without weights the network is random, and its masks mean
nothing.

Run: python examples/track.py [XMem.pth] (xmemk weights fetches it)
"""

import itertools
import sys

import torch
import torch.nn.functional as F

import xmemk
from xmemk.data import BUNNY
from xmemk.data.masks import read_mask, write_mask
from xmemk.data.video import read_frames
from xmemk.network import NetworkConfig

FIRST, COUNT, SIZE = 40, 12, (96, 160)

if len(sys.argv) > 1:
    network = xmemk.XMem.from_checkpoint(sys.argv[1])
else:
    torch.manual_seed(0)
    network = xmemk.XMem(NetworkConfig(key_dim=16, value_dim=32, width=8, key_blocks=(1, 1, 1), decoder_dim=16))
    print("no weights given: the masks are those of a small random network")

# When a frame is remembered, and how much; so low that the few frames here reach consolidation.
rules = xmemk.MemoryConfig(mem_every=2, min_mid_term_frames=2, max_mid_term_frames=4, num_prototypes=16)
tracker = xmemk.Tracker(network.tuned(), rules)

labels = read_mask(BUNNY / "00040.png")[None, None].float()
labels = F.interpolate(labels, SIZE, mode="nearest")[0, 0].long()
for number, frame in enumerate(itertools.islice(read_frames(BUNNY / "clip.mp4", start=FIRST), COUNT)):
    image = frame.movedim(2, 0) if frame.shape[-1] == 3 else frame
    image = F.interpolate(image[None].float() / 255, SIZE, mode="area")[0]
    probability = tracker.step(image, mask=labels if number == 0 else None)
    mask = probability.argmax(0)
    share = float((mask > 0).float().mean())
    print(f"frame {FIRST + number}: {100 * share:4.1f} % of the picture belongs to an object; {tracker.memory}")

write_mask("last_mask.png", mask.to(torch.uint8))
print("the last mask is in last_mask.png")
