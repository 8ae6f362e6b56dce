"""Many virtual institutions on one machine: scenarios, engines, comparisons, benchmarks."""
