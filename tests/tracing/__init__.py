"""Traces as a collector receives them. `make tracing-test` runs them: they need requirements-tracing.txt."""
