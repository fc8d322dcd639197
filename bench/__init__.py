"""Benchmarks: what edgeflow costs, beside what the same machine gives without it, measured in the same run.

What it is: programs that start a cluster of their own and measure it from outside, as a client.
What it is not: a part of the package; nothing imports it.
"""
