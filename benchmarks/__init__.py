"""Benchmarks: the naive reference, the workloads, the measuring and the reports.

    python -m benchmarks --help

``naive`` is both the baseline of every timing and the oracle of the parity tests; it does not know the engine.
"""
