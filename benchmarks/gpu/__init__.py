"""Everything that is to be known from a GPU, in one command: tests, sanitizers, times, counters, one report.

From a checkout, whether or not it is installed: `python benchmarks/gpu/from_source.py`. Installed in editable mode also
`python -m fastsample.benchmarks.gpu`. docs/gpu-notes.md says what each part means.
"""
