"""Helpers of the tests: real servers and databases, credentials, sample orders, a model of an order."""
