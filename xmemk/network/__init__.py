"""XMem's network: encoders, decoder, checkpoints, and a copy tuned for inference."""
