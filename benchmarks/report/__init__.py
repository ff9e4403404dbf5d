"""The page and the words that come from result files."""
