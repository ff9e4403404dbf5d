"""A frame loop around the manager, with features in place of a network."""

from .memory_manager import MemoryManager as Manager
from .memory_util import *  # noqa: F403


class InferenceCore:
    def __init__(self, config):
        self.config = config
        self.clear_memory()

    def clear_memory(self):
        self.t = -1
        self.memory = Manager(config=self.config)

    def step(self, key, shrinkage, selection, value, objects, memorise):
        """Readouts of all objects so far, [O, CV, H, W], or None on the first frame."""
        self.t += 1
        readouts = self.memory.match_memory(key, selection) if self.t else None
        if memorise:
            self.memory.create_hidden_state(len(objects), key)
            long_term = self.config["enable_long_term"]
            self.memory.add_memory(key, shrinkage, value, objects, selection=selection if long_term else None)
        return readouts
