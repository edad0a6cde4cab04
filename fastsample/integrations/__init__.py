"""fastsample inside other libraries: one module per host, importable where that host is installed."""
