"""Marks that run a test on one of the two databases only."""
