"""The pages for people, in a real browser: they work, and nothing on them breaks the content security policy."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flask import Flask

from tests.browser.conftest import Page
from tests.support.servers import GUNICORN, Server, free_port, running


def test_the_documentation_shows_every_operation_under_its_policy(
    service: Server, browse: Callable[[str], Page]
) -> None:
    description = service.request("GET", "/openapi.json").json
    operations = [path[method] for path in description["paths"].values() for method in path.keys() - {"parameters"}]
    events = description["webhooks"]

    page = browse(f"http://127.0.0.1:{service.port}/docs")

    assert page.console == []
    assert page.content.count('class="opblock-summary"') == len(operations) + len(events)
    for operation in operations:
        assert f'-{operation["operationId"]}"' in page.content, operation["operationId"]
    assert "Authorize" in page.content


def test_the_browser_would_say_so_if_a_page_broke_the_policy(service: Server, browse: Callable[[str], Page]) -> None:
    policy = service.request("GET", "/docs").headers["Content-Security-Policy"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write(b"<script>document.title = 'broken'</script>")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browse(f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()

    assert "Content Security Policy" in "".join(page.console)
    assert "<title>broken" not in page.content


def test_a_problems_page_is_shown(service: Server, browse: Callable[[str], Page]) -> None:
    page = browse(f"http://127.0.0.1:{service.port}/problems/forbidden")

    assert page.console == []
    assert "<h1>Not allowed</h1>" in page.content


def test_the_documentation_is_shown_under_a_prefix(
    app: Flask, database_url: str, browse: Callable[[str], Page]
) -> None:
    port = free_port()
    settings = {"PORT": str(port), "DATABASE_URL": database_url, "WEB_CONCURRENCY": "1", "URL_PREFIX": "/shop/api"}
    with running(*GUNICORN, port=port, **settings):
        page = browse(f"http://127.0.0.1:{port}/shop/api/")  # which leads to /shop/api/docs

    assert page.console == []
    assert 'class="opblock-summary"' in page.content
    assert '<option value="/shop/api">' in page.content  # the server that requests are tried on
