"""The top-k read with its sizes on the device, interpreted: bit for bit a read of views."""

import pytest
import torch
from interpreter import interpreted

import xmemk
from xmemk.inputs import MemoryInputs, QueryInputs
from xmemk.testing import make_inputs

ROOM = (150, 200)  # tokens of two blocks of storage
HELD = [  # runs of tokens (block, first, last), in the order in which they are read
    [(1, 0, 100)],
    [(0, 0, 100), (1, 0, 20), (1, 60, 100)],
    [(0, 0, 150), (1, 180, 200), (1, 0, 20), (1, 60, 100)],
    [(0, 0, 1), (1, 3, 140)],
]


class Storage:
    """Blocks [B, room, ...] that hold NaN wherever no token is."""

    def __init__(self, x):
        b, ck, _ = x.mk.shape
        o, cv = x.mv.shape[1:3]
        self.mk, self.ms, self.mv = (
            [torch.full((b, room, *rest), float("nan"), dtype=like.dtype) for room in ROOM]
            for like, rest in ((x.mk, (ck,)), (x.ms, ()), (x.mv, (o, cv)))
        )

    def hold(self, x, runs):
        """The tokens of x, in order, come to lie in these runs -> views of them, mk, ms, mv."""
        at = 0
        lists = [], [], []
        for block, first, last in runs:
            n = last - first
            for rows, given in ((self.mk, x.mk), (self.ms, x.ms[:, 0]), (self.mv, x.mv)):
                rows[block][:, first:last] = given[..., at : at + n].movedim(-1, 1)
            lists[0].append(self.mk[block][:, first:last].movedim(1, -1))
            lists[1].append(self.ms[block][:, None, first:last])
            lists[2].append(self.mv[block][:, first:last].movedim(1, -1))
            at += n
        return lists, at

    def segments(self, runs):
        """The whole blocks for the runs, and for segments without a run."""
        blocks = [block for block, _, _ in runs]
        blocks += [1] * (4 - len(blocks))
        return MemoryInputs(
            [self.mk[i].movedim(1, -1) for i in blocks],
            [self.ms[i][:, None] for i in blocks],
            [self.mv[i].movedim(1, -1) for i in blocks],
        )


def rows(runs):
    from xmemk.kernels import sized

    given = [(last - first, first, first) for _, first, last in runs]
    return sized.rows(given + [(0, 0, 0)] * (4 - len(given)))


@interpreted
@pytest.mark.parametrize(
    ("dtype", "certified"), [(torch.float32, True), (torch.float16, True), (torch.float32, False)], ids=str
)
def test_it_reads_the_tokens_that_the_table_names(dtype, certified):
    from xmemk.kernels import sized

    x = make_inputs(300, 3, batch=2, objects=2, key_channels=9, value_channels=5, dtype=dtype)
    queries = QueryInputs(x.qk, x.qe)
    if not certified:  # all is scored by the direct form
        x.qe[:, 0, 0] = -0.01
    storage, table = Storage(x), sized.new_table(x.qk)
    for runs in HELD if certified else HELD[:2]:  # the direct form takes the interpreter long
        views, tokens = storage.hold(x, runs)
        sized.write(table, rows(runs))
        assert table.flatten().tolist() == rows(runs)
        wanted = xmemk.memory_read(*views, x.qk, x.qe, top_k=3, return_usage=True, backend="triton")
        readout, usage = sized.memory_read(storage.segments(runs), table, sum(ROOM), queries, 3, True)
        assert torch.equal(readout, wanted[0])
        assert torch.equal(usage[:, :tokens], wanted[1])
        assert (usage[:, tokens:] == 0).all()
        assert usage.shape == (2, sum(ROOM))
    alone, none = sized.memory_read(storage.segments(runs), table, sum(ROOM), queries, 3, False)
    assert none is None
    assert torch.equal(alone, readout)


@interpreted
def test_values_may_lie_elsewhere_than_keys():
    from xmemk.kernels import sized

    x = make_inputs(140, 3, key_channels=8, value_channels=5)
    wanted = xmemk.memory_read(x.mk, None, x.mv, x.qk, None, top_k=2, backend="triton")
    mk = torch.nn.functional.pad(x.mk, (60, 0), value=float("nan"))  # 60 tokens that are not read
    mv = torch.nn.functional.pad(x.mv, (7, 9), value=float("nan"))
    table = sized.new_table(x.qk)
    sized.write(table, sized.rows([(100, 60, 7), (0, 0, 0), (40, 160, 107), (0, 0, 0)]))
    memory = MemoryInputs([mk] * 4, None, [mv] * 4)
    readout, _ = sized.memory_read(memory, table, 200, QueryInputs(x.qk, None), 2, False)
    assert torch.equal(readout, wanted)


@interpreted
def test_what_is_too_few_to_be_read_by_groups():
    from xmemk.kernels import sized
    from xmemk.kernels.ops.affinity_topk_groups import GROUP

    assert not sized.fits(30 * GROUP, 30)
    assert sized.fits(30 * GROUP + 1, 30)
