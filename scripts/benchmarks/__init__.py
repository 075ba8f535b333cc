"""Benchmarks of a running relay. Started by `scripts/bench`; each module here is one measurement.

The generator is a process of its own on another core than the relay and its PostgreSQL, and speaks WebSocket over raw
sockets: it must cost less than what it measures. Absolute figures depend on the machine; ratios within one run count.
"""
