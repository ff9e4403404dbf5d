"""xmemk beside its peers, imported as ``xmemk.benchmarks``: what ``xmemk bench`` and the scripts of
this folder run.

Importing this loads nothing.
"""

if __name__ == "benchmarks":
    raise ImportError("this folder holds xmemk's benchmarks, to be imported as xmemk.benchmarks")
