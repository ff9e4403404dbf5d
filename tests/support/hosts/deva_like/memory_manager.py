"""What is known of DEVA's manager, over a plain memory per set of objects that joined together."""

import torch

from ..xmem_like.memory_manager import MemoryManager as OneGroup


class MemoryManager:
    def __init__(self, config):
        self.config = config
        self.buckets = []
        self.sensory = {}
        self.engaged = False

    def update_config(self, config):
        self.config = config

    def match_memory(self, query_key, selection):
        readouts = {}
        for objects, memory in self.buckets:
            readout = memory.match_memory(query_key, selection)
            readouts |= {obj: readout[row] for row, obj in enumerate(objects) if obj is not None}
        return readouts

    def add_memory(self, key, shrinkage, value, objects, selection=None):
        self.engaged = True
        known = [obj for some, _ in self.buckets for obj in some]
        new = [obj for obj in objects if obj not in known]
        if new:
            self.buckets.append((new, OneGroup(self.config)))
        for some, memory in self.buckets:
            # The rows of an object that has left are zeros here, which nothing reads.
            rows = [value[:, objects.index(o)] if o is not None else torch.zeros_like(value[:, 0]) for o in some]
            memory.add_memory(key, shrinkage, torch.stack(rows, 1), list(range(1, len(some) + 1)), selection)

    def purge_except(self, obj_keep_idx):
        remaining = [([o if o in obj_keep_idx else None for o in some], memory) for some, memory in self.buckets]
        self.buckets = [(some, memory) for some, memory in remaining if any(o is not None for o in some)]
        self.sensory = {obj: x for obj, x in self.sensory.items() if obj in obj_keep_idx}
        self.engaged = bool(self.buckets)

    def initialize_sensory_if_needed(self, sample_key, ids):
        for obj in ids:
            self.sensory.setdefault(obj, torch.zeros(1, 2, *sample_key.shape[-2:]))

    def get_sensory(self, ids):
        return torch.stack([self.sensory[obj] for obj in ids], 1)
