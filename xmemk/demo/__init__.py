"""The demo: following an object through a real video with XMem's memory and training-free features."""
