"""The names and signatures of each host's memory code: what is called in the same way.

Names, order, kinds and defaults of parameters count; annotations do not. A manager with another
signature, or with an unknown public method, is refused by name. What the code does is told from its
bodies (:mod:`.known`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .bodies import attributes_of_self


class UnknownHost(RuntimeError):
    """A host whose memory code has an unknown signature, or one that xmemk cannot serve."""


@dataclass(frozen=True)
class Family:
    """Hosts that share one form of memory code. Methods and functions map names to signatures."""

    name: str
    methods: Mapping[str, str | None]  # of class MemoryManager: all public ones, private ones that we call
    store: Mapping[str, str]  # of class KeyValueMemoryStore
    functions: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = ()  # further public methods it may have, which stay its own
    own_state: tuple[str, ...] = ()  # what an unknown method may name of self, to be inherited too
    refusal: str = ""  # why managers of this family are not replaced, if they are not


_SOFTMAX = "(similarity, top_k=None, inplace=False, return_usage=False)"
_FUNCTIONS = {
    "get_similarity": "(mk, ms, qk, qe)",
    "do_softmax": _SOFTMAX,
    "get_affinity": "(mk, ms, qk, qe)",
    "readout": "(affinity, mv)",
}

# Sensory and object memory, which stay the host's own in Cutie and DEVA.
_OWN_STATE = (
    "sensory",
    "sensory_dim",
    "obj_v",
    "object_manager",
    "get_sensory",
    "update_sensory",
    "initialize_sensory_if_needed",
    "clear_sensory_memory",
)

XMEM = Family(
    name="XMem",
    methods={
        "__init__": "(self, config)",
        "update_config": "(self, config)",
        "match_memory": "(self, query_key, selection)",
        "add_memory": "(self, key, shrinkage, value, objects, selection=None)",
        "create_hidden_state": "(self, n, sample_key)",
        "set_hidden": "(self, hidden)",
        "get_hidden": "(self)",
        "compress_features": "(self)",
        "consolidation": "(self, candidate_key, candidate_shrinkage, candidate_selection, usage, candidate_value)",
    },
    store={
        "__init__": "(self, count_usage)",
        "add": "(self, key, value, shrinkage, selection, objects)",
        "update_usage": "(self, usage)",
        "sieve_by_range": "(self, start, end, min_size)",
        "remove_obsolete_features": "(self, max_size)",
    },
    functions=_FUNCTIONS,
)

CUTIE = Family(
    name="Cutie",
    methods={
        "__init__": "(self, cfg, object_manager)",
        "update_config": "(self, cfg)",
        "read": "(self, pix_feat, query_key, selection, last_mask, network)",
        "add_memory": "(self, key, shrinkage, msk_value, obj_value, objects, selection=None, *, as_permanent=False)",
        "purge_except": "(self, obj_keep_idx)",
        "compress_features": "(self, bucket_id)",
        "consolidation": "(self, candidate_key, candidate_shrinkage, candidate_selection, candidate_value, usage)",
        "initialize_sensory_if_needed": "(self, sample_key, ids)",
        "update_sensory": "(self, sensory, ids)",
        "get_sensory": "(self, ids)",
        "clear_non_permanent_memory": "(self)",
        "clear_sensory_memory": "(self)",
        "_get_mask_by_ids": "(self, mask, obj_ids)",
        "_get_sensory_by_ids": "(self, obj_ids)",
        "_get_object_mem_by_ids": "(self, obj_ids)",
    },
    store={
        "__init__": "(self, save_selection=False, save_usage=False)",
        "add": "(self, key, values, shrinkage, selection, supposed_bucket_id=-1, as_permanent='no')",
        "update_bucket_usage": "(self, bucket_id, usage)",
        "sieve_by_range": "(self, bucket_id, start, end, min_size)",
        "remove_old_memory": "(self, bucket_id, max_len)",
        "remove_obsolete_features": "(self, bucket_id, max_size)",
        "purge_except": "(self, obj_keep_idx)",
    },
    functions={**_FUNCTIONS, "get_similarity": "(mk, ms, qk, qe, add_batch_dim=False)"},
    own_state=_OWN_STATE,
)

# Known by its interface alone. ``inherited``: methods that stay the host's own.
DEVA = Family(
    name="DEVA",
    methods={
        "match_memory": "(self, query_key, selection)",
        "add_memory": "(self, key, shrinkage, value, objects, selection=None)",
        "purge_except": None,
    },
    store={},
    inherited=(
        "update_config",
        "initialize_sensory_if_needed",
        "update_sensory",
        "get_sensory",
        "clear_sensory_memory",
        "create_hidden_state",
        "set_hidden",
        "get_hidden",
        "compress_features",
        "consolidation",
    ),
    own_state=_OWN_STATE,
)

# Managers that are not replaced: only their interfaces are known here, and those do not determine
# the results. Their functions may be known.
XMEM_PLUS_PLUS = Family(
    name="XMem++",
    methods={"match_memory": "(self, query_key, selection, disable_usage_updates=False)"},
    store={},
    refusal="what its permanent memory does with 'ignore' and 'copy_perm_mem_only' cannot be told from its interface, "
    "so equal results cannot be promised",
)
MATANYONE = Family(
    name="MatAnyone",
    methods={
        "read": "(self, pix_feat, query_key, selection, last_mask, network, uncert_output=None, last_msk_value=None, "
        "ti=None, last_pix_feat=None, last_pred_mask=None)"
    },
    store={},
    functions={
        "get_similarity": "(mk, ms, qk, qe, add_batch_dim=False, uncert_mask=None)",
        "do_softmax": _SOFTMAX,
        "get_affinity": "(mk, ms, qk, qe, uncert_mask=None)",
        "readout": "(affinity, mv, uncert_mask=None)",
    },
    refusal="its network blends a readout with the last value, which stays its own",
)


def signature(function: Callable[..., Any]) -> str:
    """The signature without annotations: "(self, key, objects, selection=None)"."""
    try:
        full = inspect.signature(function)
    except (TypeError, ValueError):  # built in or scripted
        return "(unknown)"
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in full.parameters.values()]
    return str(full.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def looks_like_a_manager(candidate: Any) -> bool:
    """Whether this is a class MemoryManager of any family, known or not."""
    return (
        issubclass(type(candidate), type)  # isinstance runs code of the candidate, which may warn or load modules
        and candidate.__name__ == "MemoryManager"
        and callable(getattr(candidate, "add_memory", None))
        and (callable(getattr(candidate, "match_memory", None)) or callable(getattr(candidate, "read", None)))
    )


def base_manager(manager: type) -> type | None:
    """Another class MemoryManager that this one derives from."""
    return next((base for base in manager.__mro__[1:] if looks_like_a_manager(base)), None)


def family_of(manager: Any, families: tuple[Family, ...]) -> Family:
    """The family of a class MemoryManager.

    UnknownHost names the first function that differs from the nearest family's.
    """
    where = f"{manager.__module__}.{manager.__qualname__}"
    for known in (XMEM_PLUS_PLUS, MATANYONE):
        if not _difference(manager, known.methods, where):
            raise UnknownHost(f"{where} is that of {known.name}, which xmemk does not replace: {known.refusal}")
    complaints = []
    for family in families:
        complaint = _difference(manager, family.methods, where) or _unknown_method(manager, family, where)
        if not complaint:
            if manager.add_memory.__globals__.get("torch") is not torch:  # such as a port to NumPy and onnxruntime
                raise UnknownHost(f"{where}: wanted code on PyTorch tensors, found a module that does not use torch")
            check_store(manager, family)
            base = base_manager(manager)
            if base is not None:
                raise UnknownHost(
                    f"{where}: wanted a host's own manager, found a subclass of {base.__module__}.{base.__qualname__}, "
                    "whose methods would be lost; xmemk does not replace it"
                )
            return family
        # The nearest family shares the largest part of its methods.
        shared = sum(callable(getattr(manager, name, None)) for name in family.methods) / len(family.methods)
        complaints.append((shared, family.name, complaint))
    _, name, complaint = max(complaints)
    raise UnknownHost(f"{complaint} (as {name} has it); xmemk does not know this host")


def check_store(manager: Any, family: Family) -> None:
    """UnknownHost where the class of the manager's stores has another form."""
    store = manager.add_memory.__globals__.get("KeyValueMemoryStore")
    where = f"{manager.__module__}.KeyValueMemoryStore"
    if family.store and not isinstance(store, type):
        raise UnknownHost(f"{where}: wanted the class that {family.name}'s manager builds on, found none")
    if isinstance(store, type):
        complaint = _difference(store, family.store, where)
        if complaint:
            raise UnknownHost(f"{complaint} (as {family.name} has it); xmemk does not know this host")


def family_of_functions(functions: Mapping[str, Callable[..., Any]], where: str) -> Family:
    """The family whose form get_similarity has, and with it all other functions.

    UnknownHost names the first function of another form.
    """
    forms = {family.functions["get_similarity"]: family for family in (XMEM, CUTIE, MATANYONE)}
    family = forms.get(signature(functions["get_similarity"]), XMEM)
    for name, function in functions.items():
        known, actual = family.functions[name], signature(function)
        if actual != known:
            raise UnknownHost(f"{where}.{name}: wanted the signature {known}, found {actual}; xmemk does not know it")
    return family


def _difference(owner: type, methods: Mapping[str, str | None], where: str) -> str:
    for name, known in methods.items():
        function = getattr(owner, name, None)
        if not callable(function):
            return f"{where}.{name}: wanted the signature {known or '(...)'}, found no such method"
        actual = signature(function)
        if known is not None and actual != known:
            return f"{where}.{name}: wanted the signature {known}, found {actual}"
    return ""


def may_be_inherited(method: Callable[..., Any], family: Family) -> bool:
    """Whether a method that no known version has names only state that stays the host's own."""
    names = attributes_of_self(method) or set()
    return bool(names) and names <= set(family.own_state)


def _unknown_method(manager: type, family: Family, where: str) -> str:
    for name in dir(manager):
        known = name in family.methods or name in family.inherited or name.startswith("_")
        if not known and callable(getattr(manager, name)) and not may_be_inherited(getattr(manager, name), family):
            return f"{where}.{name}: found a method with the signature {signature(getattr(manager, name))}, wanted none"
    return ""
