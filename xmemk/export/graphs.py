"""The tracker's step as modules: the network's three stages, and four steps of a memory of fixed
room.

The memory's state is seven tensors with a row per token, N = long-term room + T_max frames of
tokens: ``key`` [N, CK], ``shrinkage`` [N, 1], ``selection`` [N, CK], ``value`` [N, O, CV], ``use``
[N] (mass received), ``life`` [N] (reads taken part in) and ``valid`` [N] bool. Long-term tokens lie
in front, frames behind them, oldest first. A module that changes the state takes it and returns all
of it. Which one comes when is decided by counters (runner.py), never by what a tensor holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..network.network import XMem
from ..reference.config import MemoryConfig
from .read import read_rows, scores

LIFE_OF_A_NEW_TOKEN = 1e-7  # as in xmemk.Memory
Outputs = tuple[Tensor, ...]


class State(NamedTuple):
    key: Tensor
    shrinkage: Tensor
    selection: Tensor
    value: Tensor
    use: Tensor
    life: Tensor
    valid: Tensor


class Part(nn.Module):
    def __init__(self, network: XMem, config: MemoryConfig) -> None:
        super().__init__()
        self.network, self.config = network, config


class EncodeKey(Part):
    """image [1, 3, H, W], normalised and padded -> key, shrinkage, selection, features at 1/16, 1/8
    and 1/4.
    """

    def forward(self, image: Tensor) -> Outputs:
        key, shrinkage, selection, features = self.network.encode_key(image)
        assert shrinkage is not None and selection is not None
        return key, shrinkage, selection, *features


class EncodeValue(Part):
    """image, f16, masks [1, O, H, W], hidden [1, O, CH, h, w] -> value [1, O, CV, h, w], hidden
    after the update.
    """

    def forward(self, image: Tensor, f16: Tensor, masks: Tensor, hidden: Tensor | None = None) -> Outputs:
        value, hidden = self.network.encode_value(image, f16, hidden, masks)
        return (value,) if hidden is None else (value, hidden)


class Decode(Part):
    """Features, readout [1, O, CV, h, w], hidden -> probability [1, 1 + O, H, W], hidden after the
    update.
    """

    def forward(
        self, features: tuple[Tensor, Tensor, Tensor], readout: Tensor, hidden: Tensor | None = None
    ) -> Outputs:
        hidden, probability = self.network.segment(features, readout, hidden)
        return (probability,) if hidden is None else (probability, hidden)


class Read(Part):
    """The state without its selection, qk and qe [1, CK, Q] -> readout [1, O, CV, Q], use and life
    after the read.
    """

    def forward(self, state: tuple[Tensor, ...], qk: Tensor, qe: Tensor) -> Outputs:
        key, shrinkage, value, use, life, valid = state
        tokens = (key[None], shrinkage[None], value[None], valid[None])
        readout, usage = read_rows(*tokens, qk.transpose(1, 2), qe.transpose(1, 2), self.config.top_k)
        return readout.permute(0, 2, 3, 1), use + usage[0], life + valid.to(life.dtype)


class Remember(Part):
    """The state with a frame of tokens [1, *, HW] written from row ``start`` [1] on."""

    def forward(
        self, state: State, start: Tensor, key: Tensor, shrinkage: Tensor, selection: Tensor, value: Tensor
    ) -> Outputs:
        return _written(state, start, key[0].T, shrinkage[0].T, selection[0].T, value[0].permute(2, 0, 1))


class Consolidate(Part):
    """The state in which all frames but the first and the last T_min - 1 have become P long-term
    tokens from row ``start`` [1] on: selection by usage and potentiation (Eq. 3). The frames that
    stay close up.
    """

    def forward(self, state: State, start: Tensor) -> Outputs:
        frames, long = self.config.max_mid_term_frames, self.config.max_long_term_elements
        frame = (state.key.shape[0] - long) // frames
        first = long + frame
        last = first + (frames - self.config.min_mid_term_frames) * frame
        c = State(*(x[first:last] for x in state))
        index = (c.use / (c.life + LIFE_OF_A_NEW_TOKEN)).topk(self.config.num_prototypes).indices
        pk, pe = c.key[index], c.selection[index]
        weight = scores(c.key[None], c.shrinkage[None], pk[None], pe[None])[0].softmax(1)
        pv = (weight @ c.value.flatten(1)).unflatten(1, c.value.shape[1:])
        gone = c._replace(valid=torch.zeros_like(c.valid))
        moved = State(*(torch.cat([x[:first], x[last:], free]) for x, free in zip(state, gone)))
        return _written(moved, start, pk, weight @ c.shrinkage, pe, pv)


class Evict(Part):
    """The state of whose long-term tokens the most used stay, so many that there is room for P; of
    equals the newer.
    """

    def forward(self, state: State) -> Outputs:
        long = self.config.max_long_term_elements
        stay = long - self.config.num_prototypes
        usage = state.use[:long] / (state.life[:long] + LIFE_OF_A_NEW_TOKEN)
        usage = usage.masked_fill(~state.valid[:long], -1.0)
        # Of equals ONNX takes the lower index, so that the newest are put in front.
        index = (long - 1 - usage.flip(0).topk(stay).indices).sort().values
        kept = State(*(torch.cat([x[index], x[stay:]]) for x in state))
        there = torch.arange(state.valid.shape[0])
        return kept._replace(valid=(there < stay) | ((there >= long) & kept.valid))


def _written(state: State, start: Tensor, key: Tensor, shrinkage: Tensor, selection: Tensor, value: Tensor) -> Outputs:
    """The state with new tokens from row ``start`` on."""
    row = (start + torch.arange(key.shape[0]),)
    nothing = torch.zeros_like(key[:, 0])
    new = (key, shrinkage, selection, value, nothing, nothing, nothing == 0)
    return tuple(x.index_put(row, y) for x, y in zip(state, new))
