"""Triton kernels, one op per file, imported as ``xmemk.kernels``."""

if __name__ == "kernels":
    raise ImportError(
        "this folder holds xmemk's Triton kernels, to be imported as xmemk.kernels; it hides the package 'kernels' "
        "only because Python was started in xmemk's repository"
    )
