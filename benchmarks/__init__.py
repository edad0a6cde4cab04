"""The benchmarks and the demo, imported as fastsample.benchmarks."""
