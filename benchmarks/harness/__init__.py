"""How peers are timed and recorded: what the commands of this package share."""
