"""The same order service, implemented with other frameworks."""
