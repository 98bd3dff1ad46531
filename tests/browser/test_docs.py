"""The HTML pages in a real browser: they work, and do not violate the content security policy."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import playwright.sync_api
import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from playwright.sync_api import Browser

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


def test_the_browser_reports_a_violation_of_the_policy(service: Server, browse: Callable[[str], Page]) -> None:
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
    assert '<option value="/shop/api"' in page.content  # the server that requests are tried on


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation_follows_the_theme_and_fits_a_phone(service: Server, chromium: Browser, scheme: Any) -> None:
    page = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme).new_page()
    messages = messages_of(page)

    for path in ("/docs", "/docs/guides", "/docs/guides/webhooks", "/problems", "/problems/version-mismatch"):
        page.goto(f"http://127.0.0.1:{service.port}{path}")
        if path == "/docs":
            page.locator("#operations-orders-createOrder .opblock-summary-control").first.click()
            page.locator("#operations-orders-createOrder .execute").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390, path
        red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (int(red) < 128) == (scheme == "dark"), path
    assert messages == []


def test_an_operation_can_be_tried_at_the_first_click_and_at_the_second(service: Server, chromium: Browser) -> None:
    page = chromium.new_page()
    messages = messages_of(page)
    page.goto(f"http://127.0.0.1:{service.port}/docs")
    page.locator("#operations-orders-createOrder .opblock-summary-control").first.click()

    created = [execute(page, "orders-createOrder", "POST") for _ in range(2)]
    page.locator("#operations-orders-createOrder .live-responses-table .response").wait_for()
    page.locator("#operations-orders-getOrder .opblock-summary-control").first.click()
    read = execute(page, "orders-getOrder", "GET")
    page.locator("#operations-changes-confirmOrder .opblock-summary-control").first.click()
    confirmed = execute(page, "changes-confirmOrder", "POST")

    assert [response.status for response in (*created, read, confirmed)] == [201, 201, 200, 200]
    first, second = (response.json() for response in created)
    assert first["id"] != second["id"]
    assert confirmed.json()["id"] == read.json()["id"] == second["id"]
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_are_accessible(service: Server, chromium: Browser, scheme: Any) -> None:
    page = chromium.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme).new_page()

    for path in ("/docs", "/problems", "/problems/version-mismatch", "/docs/guides", "/docs/guides/idempotency"):
        page.goto(f"http://127.0.0.1:{service.port}{path}")
        if path == "/docs":
            page.locator("#operations-orders-createOrder .opblock-summary-control").first.click()
            execute(page, "orders-createOrder", "POST")
            page.locator("#operations-orders-createOrder .live-responses-table .response").wait_for()
        # Swagger UI fades colours, and axe would find the contrast of one on the way.
        page.evaluate(
            "Promise.allSettled(document.getAnimations().map((animation) => animation.finished)).then(() => {})"
        )
        violations = Axe().run(page).response["violations"]
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in violations] == [], path


def messages_of(page: playwright.sync_api.Page) -> list[str]:
    """The messages of the browser's console from now on."""
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    return messages


def execute(page: playwright.sync_api.Page, operation: str, method: str) -> playwright.sync_api.Response:
    """Click on Execute and return the response."""
    button = page.locator(f"#operations-{operation} .execute")
    # Not that of the page's icon, which the browser may load late.
    with page.expect_response(lambda one: one.request.method == method and "/orders" in one.url) as response:
        button.click()
    return response.value
