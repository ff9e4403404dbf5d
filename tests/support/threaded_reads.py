"""Every C++ operator on several threads: `make sanitize-threads` runs it under the sanitizer.

Exits with 66 at a race, and with 1 where results differ from those of one thread.
"""

import sys

import torch
import xmemk._C as extension

import xmemk
from xmemk.testing import Inputs, make_inputs


def results(x: Inputs, many: torch.Tensor) -> list[torch.Tensor]:
    """Reads, gradients, affinities and upkeep of one case."""
    out: list[torch.Tensor] = []
    for top_k in (None, 20, 300):
        inputs = [t.clone().requires_grad_() for t in x.read if t is not None]
        read = xmemk.memory_read(*inputs, top_k=top_k, return_usage=True, backend="cpu")
        out += [*read, *torch.autograd.grad([read[0].sum(), read[1].square().sum()], inputs)]
    affinity = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=20, backend="cpu")
    out += [*affinity, *xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=20, hint=affinity[1], backend="cpu")]
    out.append(xmemk.readout_topk(x.mv, *affinity, backend="cpu"))
    usage = torch.rand(1, x.mk.shape[2])
    usage[:] = torch.arange(x.mk.shape[2]) % 97
    out += xmemk.consolidate(x.mk, x.ms, None, x.mv, usage, 128, backend="cpu")
    out += [xmemk.select_prototypes(many, 200, backend="cpu"), xmemk.evict_lfu(many, many.shape[1] // 2, backend="cpu")]
    return out


def main() -> None:
    many = (torch.arange(1 << 20) * 7919 % (1 << 20)).float()[None]
    for vectors in extension._vector_sets():
        extension._pin_vector_set(vectors)
        for tokens, queries, far in ((2600, 200, 0.0), (900, 70, 1e5)):
            x = make_inputs(tokens, queries, key_channels=18, value_channels=20, objects=2)
            x.mk[..., ::5] += far
            x.qk[..., ::4] += far
            torch.set_num_threads(1)
            alone = results(x, many)
            torch.set_num_threads(4)
            together = results(x, many)
            if not all(torch.equal(a, b) for a, b in zip(alone, together)):
                sys.exit(f"{vectors}, {tokens} tokens: results of 1 and 4 threads differ")
            print(f"{vectors}, {tokens} tokens: no race, results of 1 and 4 threads equal", flush=True)


if __name__ == "__main__":
    main()
