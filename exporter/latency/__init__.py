"""Latency of the runtimes."""
