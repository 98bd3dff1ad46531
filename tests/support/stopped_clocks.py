"""The application without heartbeats of event streams, and with a clock of the rate limits that stands still."""

from types import SimpleNamespace

from app.http import rate_limit, streams
from wsgi import app

__all__ = ["app"]

streams.HEARTBEAT = 1e9
vars(rate_limit)["time"] = SimpleNamespace(monotonic=lambda: 1000.0)
