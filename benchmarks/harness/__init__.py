"""How peers are timed, judged by their tests and written down: what the commands of this package share."""
