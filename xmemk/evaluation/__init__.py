"""Evaluation on datasets: layouts, the run, metrics, submissions, and the paper's baselines."""
