"""Evaluation on datasets: their layouts, the run, the judgement, submissions, and the paper's baselines."""
