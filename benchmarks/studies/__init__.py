"""Measurements that answer one question each: growth, length of a video, the paper's claims."""
