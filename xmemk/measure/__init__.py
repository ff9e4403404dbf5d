"""What figures are measured with: stopwatch, peak of memory, the machine in words."""
