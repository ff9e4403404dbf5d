"""What is compared: workloads, the peers that serve them, and the verdict on a result."""
