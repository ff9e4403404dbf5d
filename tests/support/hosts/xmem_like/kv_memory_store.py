"""Tokens of working or long-term memory, with values per group of objects."""

import torch

SHARED = ("k", "s", "e", "use_count", "life_count")


class KeyValueMemoryStore:
    def __init__(self, count_usage):
        self.count_usage = count_usage
        self.k = self.s = self.e = self.use_count = self.life_count = None
        self.v, self.obj_groups, self.all_objects = [], [], []

    def add(self, key, value, shrinkage, selection, objects):
        unused = torch.zeros_like(key[:, :1], dtype=torch.float32)
        for name, new in zip(SHARED, (key, shrinkage, selection, unused, unused + 1e-7)):
            old = getattr(self, name)
            if new is not None:
                setattr(self, name, new if old is None else torch.cat([old, new], -1))
        if objects is None:  # prototypes, per group, None for a group without any
            for i, prototypes in enumerate(value):
                if prototypes is not None and i < len(self.v):
                    self.v[i] = torch.cat([self.v[i], prototypes], -1)
                elif prototypes is not None:
                    self.v.append(prototypes)
            return
        self.v = [torch.cat([old, value[group]], -1) for old, group in zip(self.v, self.obj_groups)]
        new = [label - 1 for label in objects if label - 1 not in self.all_objects]
        if new:
            self.v.append(value[new])
            self.obj_groups.append(new)
            self.all_objects += new
            assert self.all_objects == sorted(self.all_objects), "objects out of order"

    def update_usage(self, usage):
        if self.count_usage:
            self.use_count = self.use_count + usage
            self.life_count = self.life_count + 1

    def sieve_by_range(self, start, end, min_size):
        def outside(x):
            return torch.cat([x[..., :start], x[..., end:]], -1)

        self._each(outside)
        self.v = [outside(v) if v.shape[-1] >= min_size else v for v in self.v]

    def remove_obsolete_features(self, max_size):
        usage = self.get_usage().flatten()
        go = usage.topk(self.size - max_size, largest=False).values
        survives = usage > go[-1]  # stops where none has to go
        self._each(lambda x: x[..., survives])
        if len(self.v) > 1:
            raise NotImplementedError("eviction with several groups of objects")
        self.v = [self.v[0][..., survives]]

    def get_usage(self):
        if not self.count_usage:
            raise RuntimeError("usage was not counted")
        return self.use_count / self.life_count

    def get_v_size(self, ni):
        return self.v[ni].shape[-1]

    def engaged(self):
        return self.k is not None

    def _each(self, change):
        for name in SHARED:
            if getattr(self, name) is not None:
                setattr(self, name, change(getattr(self, name)))

    size = property(lambda self: 0 if self.k is None else self.k.shape[-1])
    num_groups = property(lambda self: len(self.v))
    key = property(lambda self: self.k)
    shrinkage = property(lambda self: self.s)
    selection = property(lambda self: self.e)
    value = property(lambda self: self.v)
