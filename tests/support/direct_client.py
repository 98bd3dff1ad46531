"""Requests without Flask's test client, which takes longer for a small request than the application does."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

import orjson
from flask import Flask
from werkzeug.test import TestResponse, create_environ
from werkzeug.wrappers import Request


class DirectClient:
    """Calls the WSGI application. Paths must not contain characters to be percent-encoded."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._environ = create_environ()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> TestResponse:
        return self.send("GET", path, query=query)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> TestResponse:
        return self.send("POST", path, body=body, headers=headers)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> TestResponse:
        """The response. The body is sent as JSON, and None is no body."""
        environ = self._environ | {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": urlencode(query or {})}
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in (headers or {}).items()}
        content = b"" if body is None else orjson.dumps(body)
        if content:
            environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(content))}
        environ["wsgi.input"] = BytesIO(content)
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            started[:] = status, headers

        chunks = self._app(environ, start_response)
        try:
            data = b"".join(chunks)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        status, response_headers = started
        return TestResponse([data], status, response_headers, Request(environ))
