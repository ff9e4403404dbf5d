"""The memory read on random tensors: what XMem does with every frame, and what it takes.

Run: python examples/read.py
"""

import time

import torch

import xmemk

torch.manual_seed(0)
frames, height, width = 6, 30, 54  # of 480p at a sixteenth
tokens, queries = frames * height * width, height * width
key_channels, value_channels, objects = 64, 512, 2

mk = torch.randn(1, key_channels, tokens)  # the memory's keys
ms = 1 + torch.rand(1, 1, tokens)  # shrinkage: how sharply each key compares
mv = torch.randn(1, objects, value_channels, tokens)  # values, for each object
qk = torch.randn(1, key_channels, queries)  # the new frame's keys
qe = torch.rand(1, key_channels, queries)  # selection: which channels matter for each query

print(xmemk.explain(xmemk.memory_read, mk, ms, mv, qk, qe, top_k=30, return_usage=True))
start = time.perf_counter()
readout, usage = xmemk.memory_read(mk, ms, mv, qk, qe, top_k=30, return_usage=True)
seconds = time.perf_counter() - start

print(f"readout {list(readout.shape)}, usage {list(usage.shape)}, in {1000 * seconds:.0f} ms")
print(f"the similarity of all with all would take {tokens * queries * 4 / 1e6:.0f} MB")
print(f"each query gives away one: usage adds up to {float(usage.sum()):.1f} for {queries} queries")

# The five most used tokens, as consolidation would choose its prototypes.
print("most used tokens:", xmemk.select_prototypes(usage, 5)[0].tolist())
