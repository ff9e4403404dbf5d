"""One operator a file: what the host launches, and the kernels.

A package of its own: a module ``xmemk.kernels.memory_read`` would take the place of the function of that name.
"""
