"""XMem's memory manager by its interface and rules; stops where the released one stops."""

import torch

from .kv_memory_store import KeyValueMemoryStore
from .memory_util import do_softmax, get_similarity


class MemoryManager:
    def __init__(self, config):
        self.enable_long_term = config["enable_long_term"]
        self.enable_long_term_usage = config["enable_long_term_count_usage"]
        self._limits(config)
        self.CK = self.CV = self.H = self.W = self.hidden = None
        self.work_mem = KeyValueMemoryStore(self.enable_long_term)
        if self.enable_long_term:
            self.long_mem = KeyValueMemoryStore(self.enable_long_term_usage)

    def update_config(self, config):
        assert self.enable_long_term == config["enable_long_term"]
        assert self.enable_long_term_usage == config["enable_long_term_count_usage"]
        self._limits(config)

    def match_memory(self, query_key, selection):
        stores = [self.work_mem]
        if self.enable_long_term and self.long_mem.engaged():
            stores.insert(0, self.long_mem)
        mk, ms = torch.cat([x.k for x in stores], -1), torch.cat([x.s for x in stores], -1)
        parts = get_similarity(mk, ms, query_key, selection).split([x.size for x in stores], 1)
        readouts = []
        for group, objects in enumerate(self.work_mem.obj_groups):
            own = [(part, x.v[group]) for part, x in zip(parts, stores) if group < len(x.v)]
            score = torch.cat([part[:, part.shape[1] - v.shape[-1] :] for part, v in own], 1)
            affinity, usage = do_softmax(score, top_k=self.top_k, return_usage=True)
            readouts.append(torch.cat([v for _, v in own], -1) @ affinity)
            assert len(readouts[-1]) == len(objects)
            if group == 0 and self.enable_long_term:
                for x, used in zip(stores, usage.split([x.size for x in stores], 1)):
                    x.update_usage(used)
        return torch.cat(readouts).unflatten(2, query_key.shape[-2:])

    def add_memory(self, key, shrinkage, value, objects, selection=None):
        if self.H is None or self.reset_config:
            self.reset_config = False
            self.H, self.W = key.shape[-2:]
            self.HW = self.H * self.W
            if self.enable_long_term:
                self.min_work_elements = self.min_mt_frames * self.HW
                self.max_work_elements = self.max_mt_frames * self.HW
        self.CK, self.CV = key.shape[1], value.shape[2]
        selection = None if selection is None else selection.flatten(2)
        self.work_mem.add(key.flatten(2), value[0].flatten(2), shrinkage.flatten(2), selection, objects)
        if self.enable_long_term and self.work_mem.size >= self.max_work_elements:
            room = self.max_long_elements - self.num_prototypes
            if self.long_mem.size >= room:
                self.long_mem.remove_obsolete_features(room)
            self.compress_features()

    def compress_features(self):
        store, start, end = self.work_mem, self.HW, self.HW - self.min_work_elements
        takes_part = [v.shape[-1] == store.size or v.shape[-1] > self.min_work_elements + self.HW for v in store.v]
        values = [v[..., start:end] if yes else None for v, yes in zip(store.v, takes_part)]
        candidates = [x[..., start:end] for x in (store.k, store.s, store.e, store.get_usage())]
        key, values, shrinkage = self.consolidation(*candidates, values)
        store.sieve_by_range(start, end, self.min_work_elements + self.HW)
        self.long_mem.add(key, values, shrinkage, None, None)

    def consolidation(self, candidate_key, candidate_shrinkage, candidate_selection, usage, candidate_value):
        n = candidate_key.shape[-1]
        chosen = usage.flatten().topk(self.num_prototypes).indices
        key = candidate_key[..., chosen]
        score = get_similarity(candidate_key, candidate_shrinkage, key, candidate_selection[..., chosen])
        values = []
        for value in candidate_value:
            v = 0 if value is None else value.shape[-1]
            valid = chosen >= n - v
            values.append(value @ do_softmax(score[:, n - v :, valid]) if valid.any() else None)
        return key, values, candidate_shrinkage @ do_softmax(score)

    def create_hidden_state(self, n, sample_key):
        new = n - (0 if self.hidden is None else self.hidden.shape[1])
        zeros = torch.zeros(1, new, self.hidden_dim, *sample_key.shape[-2:])
        self.hidden = zeros if self.hidden is None else torch.cat([self.hidden, zeros], 1)

    def set_hidden(self, hidden):
        self.hidden = hidden

    def get_hidden(self):
        return self.hidden

    def _limits(self, config):
        self.reset_config = True
        self.hidden_dim, self.top_k = config["hidden_dim"], config["top_k"]
        if self.enable_long_term:
            self.max_mt_frames, self.min_mt_frames = config["max_mid_term_frames"], config["min_mid_term_frames"]
            self.num_prototypes, self.max_long_elements = config["num_prototypes"], config["max_long_term_elements"]
