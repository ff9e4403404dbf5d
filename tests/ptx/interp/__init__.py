"""Runs the PTX of compiled kernels on the CPU, and reports what would go wrong on a GPU.

``ptx`` reads the text, ``decode`` makes tables of it, ``core`` (C++) executes them, ``launch``
takes launches from Triton. docs/verification.md says what is modelled and what is not.
"""
