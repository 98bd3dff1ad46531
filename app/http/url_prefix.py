"""The service under a prefix such as /shop/api, behind proxies that remove it from the path and behind others."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask

from app.http.application import OUTSIDE_PREFIX

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Also without the prefix, for whoever asks the service itself: the load balancer and the monitoring.
_WITHOUT_PREFIX = ("/healthz", "/readyz", "/metrics")


def init_app(app: Flask) -> None:
    """Serve the application under its URL_PREFIX, if it has one."""
    if prefix := app.config["URL_PREFIX"]:
        app.wsgi_app = URLPrefix(app.wsgi_app, prefix)  # type: ignore[method-assign]


class URLPrefix:
    """Moves the prefix from PATH_INFO to SCRIPT_NAME (PEP 3333), to which every link of the service is relative.

    A path must begin with the prefix, unless the proxy says that it has removed it: `X-Forwarded-Prefix` names it. It
    is never guessed, or /shop/api/shop/api/metrics would lead past a proxy's rule for /shop/api/metrics.
    """

    def __init__(self, application: "WSGIApplication", prefix: str) -> None:
        self._application = application
        self._prefix = prefix

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Call the application with the environment of a path below the prefix."""
        path: str = environ.get("PATH_INFO", "")
        environ["SCRIPT_NAME"] = self._prefix
        removed = environ.get("HTTP_X_FORWARDED_PREFIX", "").rpartition(",")[2].strip().rstrip("/")
        if removed != self._prefix and path not in _WITHOUT_PREFIX:
            below = path.removeprefix(self._prefix)
            if below == path or below[:1] not in ("", "/"):
                environ[OUTSIDE_PREFIX] = True
            else:
                environ["PATH_INFO"] = below
        return self._application(environ, start_response)
