"""The hashes of known versions, by :mod:`.syntax`: what is equal to one of them is bound.

``BODIES`` has a family's functions one by one, and says which of them is another's. DEVA's are not
complete; a copy of it is known by the fingerprint of all its code.
"""

from __future__ import annotations

from .bodies import fingerprint

# The four functions. All of a name compute the same: they differ in rounding, in memory, and in
# parameters that nobody reads.
FUNCTIONS: dict[str, set[str]] = {
    "get_similarity": {
        "bee2a899673c57e2",  # XMem, Track-Anything
        "3f6c4274483b2baf",  # Cutie, DEVA
        "eb02c6eac3097f4f",  # rf-cutie 1.0.1: in place
        "60bb7f8870168191",  # MatAnyone, MatAnyone 2, EZ-CorridorKey
        "2619504a9bee4420",  # MatAnyone in WanGP
        "4264f762a5b85c15",  # MatAnyone in Sammie-Roto 2
        "466c7b07169715a5",  # a fork of XMem with an unused parameter
    },
    "do_softmax": {"83a93437241e1b7e", "bbf3e88907af8871"},  # all but rf-cutie, rf-cutie
    "get_affinity": {"09a09c22fb2a2fd2", "02107aea9f3b4ae8", "38f2bf9fc438cdaa"},  # XMem, rf-cutie, MatAnyone
    "readout": {"18a0f9e5e4dc3c85", "17d4d716ced94cb6", "2428d48f13dff643"},  # the same
}

# All code of a host together (:func:`.bodies.fingerprint`), by family.
FINGERPRINTS: dict[str, set[str]] = {
    "XMem": {
        "97ba2edd5f92bd9a",  # XMem, Track-Anything, Characterize-Anything and unchanged copies
        "e6b1412970715574",  # with a store that nobody uses
        "1032144d673ad01f",  # with an unused parameter of get_similarity
    },
    "Cutie": {"6fdf0839749be904", "be7d9151a29d83e9"},  # Cutie, rf-cutie 1.0.1
    "DEVA": {"b96ceb0d8323c1f8"},
}

_XMEM = {
    "KeyValueMemoryStore.__init__": "50af36ae48c3fb8c",
    "KeyValueMemoryStore.add": "2983ae5f2378ef9a",
    "KeyValueMemoryStore.update_usage": "db66b73c551ee401",
    "KeyValueMemoryStore.sieve_by_range": "9d499f786e95ce6c",
    "KeyValueMemoryStore.remove_obsolete_features": "f11dea50f3b9c5bb",
    "KeyValueMemoryStore.get_usage": "4f38e9ad8e721117",
    "KeyValueMemoryStore.get_all_sliced": "682f649fc730a5ad",
    "KeyValueMemoryStore.get_v_size": "009bc523a6c3695c",
    "KeyValueMemoryStore.engaged": "3052aa0803d139bf",
    "KeyValueMemoryStore.size": "a863cfabe3f3ac71",
    "KeyValueMemoryStore.num_groups": "161780d3eee1bb98",
    "KeyValueMemoryStore.key": "ad8ddeaa72a23d8a",
    "KeyValueMemoryStore.value": "dc94cb98a2c9db43",
    "KeyValueMemoryStore.shrinkage": "f10f0ea8dc088570",
    "KeyValueMemoryStore.selection": "78d026ce05d6fccc",
    "MemoryManager.__init__": "98fc4fec65d2c35f",
    "MemoryManager.update_config": "e408d9b97feea677",
    "MemoryManager._readout": "83e17b0064b2d889",
    "MemoryManager.match_memory": "842c2d0946658795",
    "MemoryManager.add_memory": "8deb9be73030a80c",
    "MemoryManager.create_hidden_state": "d07381b72f24812d",
    "MemoryManager.set_hidden": "9749521138482f58",
    "MemoryManager.get_hidden": "e138db68df260e80",
    "MemoryManager.compress_features": "0fb2bccf24693ed1",
    "MemoryManager.consolidation": "bdd8470c2c1dc0c9",
}

_CUTIE = {
    "kv._add_last_dim": "71c91629e65fe8d3",
    "KeyValueMemoryStore.__init__": "0f4ef1cc1e7bd06d",
    "KeyValueMemoryStore.add": "7b7e850060311a76",
    "KeyValueMemoryStore.update_bucket_usage": "1def8f5dc9bda911",
    "KeyValueMemoryStore.sieve_by_range": "9b0e508eb0f2351f",
    "KeyValueMemoryStore.remove_old_memory": "be00d63debb3fc4b",
    "KeyValueMemoryStore.remove_obsolete_features": "f3b979a57967bebc",
    "KeyValueMemoryStore.get_usage": "1acd708d63f4a95e",
    "KeyValueMemoryStore.get_all_sliced": "36c5efb35bd44238",
    "KeyValueMemoryStore.purge_except": "cef38612e212a690",
    "KeyValueMemoryStore.clear_non_permanent_memory": "1adf5b61df8e386f",
    "KeyValueMemoryStore.get_v_size": "33f0cdae60410e0f",
    "KeyValueMemoryStore.size": "8ca86d5ce5abca2c",
    "KeyValueMemoryStore.perm_size": "499281551d25df4c",
    "KeyValueMemoryStore.non_perm_size": "6cfa498e85174334",
    "KeyValueMemoryStore.engaged": "dde4230db2eacdd7",
    "KeyValueMemoryStore.num_objects": "a5950ebe4a37b167",
    "KeyValueMemoryStore.key": "ad8ddeaa72a23d8a",
    "KeyValueMemoryStore.value": "dc94cb98a2c9db43",
    "KeyValueMemoryStore.shrinkage": "f10f0ea8dc088570",
    "KeyValueMemoryStore.selection": "78d026ce05d6fccc",
    "KeyValueMemoryStore.__contains__": "370034bea814f868",
    "MemoryManager.__init__": "f3ca8c607e44bbcc",
    "MemoryManager.update_config": "9616aac8f41bf5f9",
    "MemoryManager._readout": "c3243e0291c155cc",
    "MemoryManager._get_mask_by_ids": "6ce3eff913f4c06d",
    "MemoryManager._get_sensory_by_ids": "13678c71afc01afa",
    "MemoryManager._get_object_mem_by_ids": "6c4745bbe76be770",
    "MemoryManager._get_visual_values_by_ids": "c6aba1dbea456c18",
    "MemoryManager.read": "ec2cb746086338fc",
    "MemoryManager.add_memory": "56510ca33a12b141",
    "MemoryManager.purge_except": "9062506955c25465",
    "MemoryManager.compress_features": "3da260400c459214",
    "MemoryManager.consolidation": "aacf0c1889b2b5c6",
    "MemoryManager.initialize_sensory_if_needed": "52125adcc80c9164",
    "MemoryManager.update_sensory": "313bc54099569937",
    "MemoryManager.get_sensory": "953a2f6e517a20a1",
    "MemoryManager.clear_non_permanent_memory": "2e904a21f4d05683",
    "MemoryManager.clear_sensory_memory": "5c5b41b42edd2330",
}

_RF_CUTIE = {
    "KeyValueMemoryStore.get_usage": "34676229abc1df55",
    "MemoryManager.add_memory": "f91f2cf753edcd4c",
}

_DEVA = {
    "MemoryManager._readout": "3c3814808c64f867",
    "MemoryManager.__init__": "668fd4745445be69",
    "MemoryManager.update_config": "d91d105e1f462f4b",
    "MemoryManager.match_memory": "8cbc01688614bd2b",
    "MemoryManager.add_memory": "496189e0c3e119cb",
    "MemoryManager.compress_features": "132ffa8a1d99db9e",
    "MemoryManager.consolidation": "decfb66b1420ec68",
    "KeyValueMemoryStore.add": "fa85b3162a0daa58",
    "KeyValueMemoryStore.sieve_by_range": "d9877777688ff476",
    "KeyValueMemoryStore.remove_obsolete_features": "12346ec60322f72e",
}

BODIES: dict[str, tuple[dict[str, str], ...]] = {"XMem": (_XMEM,), "Cutie": (_CUTIE, _RF_CUTIE), "DEVA": (_DEVA,)}


def unknown_bodies(bodies: dict[str, str], family: str) -> dict[str, str]:
    """The bodies that no known version of a family has; none where all together are known."""
    if fingerprint(bodies) in FINGERPRINTS.get(family, ()):
        return {}
    known = {name: set(hashes) for name, hashes in FUNCTIONS.items()}
    for table in BODIES.get(family, ()):
        for name, digits in table.items():
            known.setdefault(name, set()).add(digits)
    return {name: digits for name, digits in bodies.items() if digits not in known.get(name, ())}
