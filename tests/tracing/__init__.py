"""Traces as a collector receives them. `make tracing-test` runs these tests, which need requirements-tracing.txt."""
