"""What the benchmarks share: processes, problems, measurements, reports."""
