"""How a host's code is recognised: where it lies, its signatures, and the hashes of its bodies."""
