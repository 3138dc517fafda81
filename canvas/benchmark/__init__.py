"""Benchmarks of speed, memory and similarity. Only the command `bench` imports it."""
