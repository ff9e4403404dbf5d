"""A kernel of your own, judged as xmemk's are: against the float64 oracle, by what plain PyTorch
would be off.

Run: python examples/your_kernel.py
"""

import torch

from xmemk import testing


def my_read(mk, ms, mv, qk, qe, top_k):
    """A read of one's own: plain PyTorch here, in place of a kernel."""
    distance = (qe[:, :, None] * (mk[..., None] - qk[:, :, None]) ** 2).sum(1)
    score = -distance * ms.transpose(1, 2) / mk.shape[1] ** 0.5
    best, index = score.topk(top_k, dim=1)
    affinity = torch.zeros_like(score).scatter(1, index, best.softmax(1))
    return mv @ affinity[:, None], affinity.sum(2)


def my_wrong_read(mk, ms, mv, qk, qe, top_k):
    """The same, but for a factor that is easily forgotten: 1 / sqrt(CK)."""
    return my_read(mk, ms * mk.shape[1] ** 0.5, mv, qk, qe, top_k)


for read in (my_read, my_wrong_read):
    print(read.__name__)
    for n, q, objects in ((60, 7, 1), (500, 90, 3), (2000, 200, 1)):
        inputs = testing.make_inputs(n, q, objects=objects, value_channels=64)
        readout, usage = read(*inputs.read, top_k=30)
        for verdict in (
            testing.compare_read(inputs, readout, top_k=30),
            testing.compare_usage(inputs, usage, top_k=30),
        ):
            print(f"  N={n}, Q={q}, O={objects}: {'passed' if verdict.passed else 'FAILED'}: {verdict}")
