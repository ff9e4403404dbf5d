"""MatAnyone's manager by its interface and rules, for one object in one bucket.

A readout is blended with the last frame's value. The first frame stays; the others leave first in
first out, or become prototypes of a long-term memory.
"""

import torch

from .memory_utils import do_softmax, get_similarity


class MemoryManager:
    def __init__(self, cfg, object_manager):
        self.object_manager = object_manager
        self.update_config(cfg)
        self.sensory, self.obj_v, self.engaged = {}, {}, False
        self.clear_work_mem()
        self.long = None

    def update_config(self, cfg):
        self.top_k, self.use_long_term = cfg["top_k"], cfg["use_long_term"]
        self.max_mem_frames = cfg["max_mem_frames"] - 1

    def read_first_frame(self, last_msk_value, pix_feat, last_mask, network, uncert_output=None):
        return self._fuse(last_msk_value, pix_feat, last_mask, network)

    def read(
        self,
        pix_feat,
        query_key,
        selection,
        last_mask,
        network,
        uncert_output=None,
        last_msk_value=None,
        ti=None,
        last_pix_feat=None,
        last_pred_mask=None,
    ):
        h, w = query_key.shape[-2:]
        mask = None if uncert_output is None else uncert_output["mask"]
        k, s, v = self.key, self.shrinkage, self.value
        if self.long is not None:
            k, s, v = (torch.cat([a, b], -1) for a, b in zip(self.long, (k, s, v)))
        masked = {} if self.use_long_term else {"uncert_mask": mask}
        similarity = get_similarity(k, s, query_key.flatten(2), selection.flatten(2), **masked)
        affinity, usage = do_softmax(similarity, top_k=self.top_k, inplace=True, return_usage=True)
        if self.use_long_term:
            self.usage = self.usage + usage[:, usage.shape[1] - self.usage.shape[1] :]
        visual = self._readout(affinity, v, None if self.use_long_term else mask).unflatten(3, (h, w))
        changed = visual[:, 0] - last_msk_value[:, 0]
        prob = network.pred_uncertainty(last_pix_feat, pix_feat, last_pred_mask, changed)["prob"][:, None]
        return self._fuse(prob * visual + (1 - prob) * last_msk_value, pix_feat, last_mask, network)

    def _readout(self, affinity, v, uncert_mask=None):
        visual = (v.flatten(1, 2) @ affinity).unflatten(1, v.shape[1:3])
        return visual if uncert_mask is None else visual * uncert_mask.flatten(2)[:, None]

    def _fuse(self, visual, pix_feat, last_mask, network):
        sensory = torch.stack([self.sensory[obj] for obj in self.obj_v], 1)
        pixel = network.pixel_fusion(pix_feat, visual, sensory, last_mask)
        memory, _ = network.readout_query(pixel, torch.stack(list(self.obj_v.values()), 1))
        return {obj: memory[:, i] for i, obj in enumerate(self.obj_v)}

    def add_memory(self, key, shrinkage, msk_value, obj_value, objects, selection=None, *, as_permanent=False):
        new = (key.flatten(2), shrinkage.flatten(2), selection.flatten(2), msk_value.flatten(3))
        self.engaged, tokens = True, new[0].shape[-1]
        for i, obj in enumerate(objects):
            self.obj_v[obj] = self.obj_v[obj] + obj_value[:, i] if obj in self.obj_v else obj_value[:, i]
        stored = (self.key, self.shrinkage, self.selection, self.value)
        joined = new if self.key is None else tuple(torch.cat([a, b], -1) for a, b in zip(stored, new))
        fresh = torch.zeros_like(new[1][:, 0])
        self.usage = fresh if self.usage is None else torch.cat([self.usage, fresh], 1)
        self.key, self.shrinkage, self.selection, self.value = joined
        if self.key.shape[-1] > (self.max_mem_frames + 1) * tokens:
            if self.use_long_term:
                self.compress_features(0)
            stay = [*range(tokens), *range(2 * tokens, self.key.shape[-1])]
            self.key, self.shrinkage, self.selection, self.value, self.usage = (
                x[..., stay] for x in (self.key, self.shrinkage, self.selection, self.value, self.usage)
            )

    def compress_features(self, bucket_id):
        tokens = self.key.shape[-1] // (self.max_mem_frames + 2)
        leaving = slice(tokens, 2 * tokens)
        parts = [x[..., leaving] for x in (self.key, self.shrinkage, self.selection, self.value, self.usage)]
        new = self.consolidation(*parts)
        self.long = new if self.long is None else tuple(torch.cat([a, b], -1) for a, b in zip(self.long, new))

    def consolidation(self, candidate_key, candidate_shrinkage, candidate_selection, candidate_value, usage):
        chosen = usage[0].topk(4).indices
        pk, pe = candidate_key[..., chosen], candidate_selection[..., chosen]
        affinity = do_softmax(get_similarity(candidate_key, candidate_shrinkage, pk, pe))
        return pk, candidate_shrinkage @ affinity, self._readout(affinity, candidate_value)

    def purge_except(self, obj_keep_idx):
        self.obj_v = {obj: x for obj, x in self.obj_v.items() if obj in obj_keep_idx}

    def initialize_sensory_if_needed(self, sample_key, ids):
        for obj in ids:
            self.sensory.setdefault(obj, sample_key.new_zeros(sample_key.shape[0], 2, *sample_key.shape[-2:]))

    def update_sensory(self, sensory, ids):
        self.sensory |= {obj: sensory[:, i] for i, obj in enumerate(ids)}

    def get_sensory(self, ids):
        return torch.stack([self.sensory[obj] for obj in ids], 1)

    def clear_work_mem(self):
        self.key = self.shrinkage = self.selection = self.value = self.usage = None

    def clear_obj_mem(self):
        self.obj_v = {}

    def clear_sensory_memory(self):
        self.sensory = {}

    def clear_non_permanent_memory(self):
        self.long = None
