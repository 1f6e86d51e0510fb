"""Benchmarks: `python -m benchmarks.bench_<op>`; each compares an operator with its peers in one run."""
