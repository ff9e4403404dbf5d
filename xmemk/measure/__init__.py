"""How figures are measured: stopwatch, peak of memory, description of the machine."""
