"""The storefront example in a real browser, on another origin than the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from app.models.principal import SCOPES
from tests.support.applications import Applications
from tests.support.credentials import AUDIENCE, ISSUER, SIGNING_KEY, api_key, bearer, public_pem, token
from tests.support.servers import Server, free_port, running, running_supervisor
from tests.support.severing_proxy import severing_proxy

CREATE = b"POST /orders HTTP"


@dataclass(frozen=True)
class Shop:
    """The storefront, the service, and the key of its staff."""

    origin: str
    service: Server
    staff: dict[str, str]

    def orders(self, customer: str) -> list[Any]:
        orders: list[Any] = self.call("GET", f"/orders?customer_id={customer}")["orders"]
        return orders

    def call(self, method: str, path: str, body: Any = None) -> Any:
        response = self.service.request(method, path, body, self.staff)
        assert response.status < 300, response.body
        return response.json


@pytest.fixture(scope="module")
def shop(applications: Applications, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    url, port = f"sqlite:///{tmp_path_factory.mktemp('storefront')}/orders.db", free_port()
    applications.migrated(url)
    key = api_key(applications.secure(url), *SCOPES, name="staff")
    origin = f"http://127.0.0.1:{port}"
    settings = {"JWT_PUBLIC_KEY": public_pem(SIGNING_KEY), "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
    settings |= {"DATABASE_URL": url, "AUTH": "required", "CORS_ORIGINS": origin, "LOG_LEVEL": "info"}
    files = ("-m", "http.server", "{port}", "--bind", "127.0.0.1", "--directory", "examples/storefront")
    with running(*files, port=port, status=404), running_supervisor(**settings) as service:
        yield Shop(origin, service, bearer(key))


@contextmanager
def opened(chromium: Browser, shop: Shop, customer: str, *, port: int | None = None) -> Iterator[Page]:
    """The storefront of a customer, with a teapot in the cart; it reaches the service at the port."""
    context = chromium.new_context()
    context.set_default_timeout(20_000)
    page = context.new_page()
    address = (
        f"service=http://127.0.0.1:{port or shop.service.port}&customer={customer}&token={token(customer=customer)}"
    )
    page.goto(f"{shop.origin}/#{address}")
    page.get_by_label("Teapot").fill("2")
    try:
        yield page
    finally:
        context.close()


def test_an_order_is_followed_live_and_cancelled(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-live") as page:
        expect(page.locator("#total")).to_have_text("€78.00")

        page.get_by_role("button", name="Order now").click()
        expect(page.locator("#events")).to_have_text("We have your order.")
        [order] = shop.orders("c-live")
        expect(page.locator("#number")).to_have_text(order["number"])
        shop.call("POST", f"/orders/{order['id']}/confirm")
        expect(page.locator("#status")).to_have_text("confirmed, unfulfilled")
        page.get_by_role("button", name="Cancel the order").click()
        expect(page.locator("#events li").last).to_have_text("Your order is cancelled.")
        expect(page.get_by_role("button", name="Cancel the order")).to_be_hidden()

    assert [order["status"] for order in shop.orders("c-live")] == ["cancelled"]
    assert '"method":"OPTIONS"' in shop.service.output()  # the browser has asked first: the origins differ


def test_a_double_click_creates_one_order(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-double") as page:
        page.get_by_role("button", name="Order now").dblclick()
        expect(page.locator("#events")).to_have_text("We have your order.")

    assert len(shop.orders("c-double")) == 1


def test_two_simultaneous_submissions_create_one_order(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-twice") as page:
        created: list[Any] = []
        page.on("response", lambda response: response.status == 201 and created.append(response.json()["id"]))
        page.evaluate("() => [1, 2].forEach(() => document.getElementById('cart').requestSubmit())")
        while len(created) < 2:
            page.wait_for_timeout(50)

    assert [order["id"] for order in shop.orders("c-twice")] == list(set(created))


def test_an_order_whose_response_is_lost_is_created_once(chromium: Browser, shop: Shop) -> None:
    with severing_proxy(shop.service.port, cuts=3, answering=CREATE) as proxy:
        with opened(chromium, shop, "c-lost", port=proxy.port) as page:
            page.get_by_role("button", name="Order now").click()
            expect(page.locator("#events")).to_have_text("We have your order.")
        assert proxy.severed == 3

    assert len(shop.orders("c-lost")) == 1


def test_a_reload_before_the_response_creates_one_order(chromium: Browser, shop: Shop) -> None:
    with severing_proxy(shop.service.port, cuts=1_000, answering=CREATE) as proxy:
        with opened(chromium, shop, "c-reload", port=proxy.port) as page:
            page.get_by_role("button", name="Order now").click()
            expect(page.get_by_text("We are sending your order")).to_be_visible()
            while not shop.orders("c-reload"):
                page.wait_for_timeout(50)
            page.reload()
            expect(page.get_by_text("We are sending your order")).to_be_visible()
            proxy.remaining = 0
            expect(page.locator("#events")).to_have_text("We have your order.")
            page.reload()
            expect(page.locator("#events")).to_have_text("We have your order.")

    assert len(shop.orders("c-reload")) == 1


def test_a_customer_without_a_connection_tries_again(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-offline") as page:
        page.context.set_offline(True)
        page.get_by_role("button", name="Order now").click()
        expect(page.get_by_text("We have no response yet. Your order will not be placed twice.")).to_be_visible()
        page.context.set_offline(False)
        expect(page.locator("#events")).to_have_text("We have your order.")

    assert len(shop.orders("c-offline")) == 1


def test_a_refusal_after_a_lost_response_does_not_create_another_order(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-expired") as page:
        sent: list[Any] = []

        def lose_the_response_then_refuse(route: Route) -> None:
            sent.append(route.request)
            if len(sent) == 1:
                route.fetch()
                route.abort("connectionreset")
            else:  # the token has expired meanwhile
                headers = {"Access-Control-Allow-Origin": shop.origin, "Content-Type": "application/problem+json"}
                problem = '{"type": "/problems/unauthenticated", "title": "Unauthenticated", "status": 401}'
                route.fulfill(status=401, headers=headers, body=problem)

        page.route("**/orders", lose_the_response_then_refuse)
        page.get_by_role("button", name="Order now").click()
        expect(page.get_by_text("We have no response yet. Your order will not be placed twice.")).to_be_visible()
        page.unroute("**/orders")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#events")).to_have_text("We have your order.")

    assert len(sent) == 2
    assert len(shop.orders("c-expired")) == 1


def test_a_link_with_another_service_does_not_get_the_token(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-link") as page:
        page.goto("about:blank")
        page.goto(f"{shop.origin}/#service=http://127.0.0.1:9")

        settings = page.evaluate("() => JSON.parse(sessionStorage.getItem('settings'))")

    assert settings == {"service": "http://127.0.0.1:9", "customer": "c-123"}


def test_an_order_that_staff_has_changed_is_cancelled_only_after_another_confirmation(
    chromium: Browser, shop: Shop
) -> None:
    with opened(chromium, shop, "c-conflict") as page:
        page.get_by_role("button", name="Order now").click()
        expect(page.locator("#events")).to_have_text("We have your order.")
        [order] = shop.orders("c-conflict")
        page.route("**/cancel*", lambda route: (shop.call("POST", f"/orders/{order['id']}/confirm"), route.continue_()))

        page.get_by_role("button", name="Cancel the order").click()
        expect(page.get_by_text("Your order has just changed. Do you still want to cancel it?")).to_be_visible()
        assert shop.orders("c-conflict")[0]["status"] == "confirmed"
        page.unroute("**/cancel*")
        page.get_by_role("button", name="Cancel the order").click()
        expect(page.locator("#status")).to_have_text("cancelled, unfulfilled")


def test_an_order_that_staff_has_completed_meanwhile_is_not_offered_for_cancellation(
    chromium: Browser, shop: Shop
) -> None:
    with opened(chromium, shop, "c-late") as page:
        page.get_by_role("button", name="Order now").click()
        expect(page.locator("#events")).to_have_text("We have your order.")
        [order] = shop.orders("c-late")

        def complete_first(route: Route) -> None:
            for action in ("confirm", "complete"):
                shop.call("POST", f"/orders/{order['id']}/{action}")
            route.continue_()

        page.route("**/cancel*", complete_first)
        page.get_by_role("button", name="Cancel the order").click()

        expect(page.get_by_role("status")).to_have_text("Your order has just changed. It can no longer be cancelled.")
        expect(page.get_by_role("button", name="Cancel the order")).to_be_hidden()


def test_a_double_click_cancels_an_order_once(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-cancel-twice") as page:
        page.get_by_role("button", name="Order now").click()
        expect(page.locator("#events")).to_have_text("We have your order.")
        statuses: list[int] = []
        page.on("response", lambda response: "/cancel" in response.url and statuses.append(response.status))

        page.evaluate("() => [1, 2].forEach(() => document.getElementById('cancel').click())")
        expect(page.locator("#events li").last).to_have_text("Your order is cancelled.")
        expect(page.locator("#cancel")).to_be_enabled()

        assert statuses == [200]


def test_the_storefront_is_accessible(chromium: Browser, shop: Shop) -> None:
    with opened(chromium, shop, "c-axe") as page:
        assert Axe().run(page).response["violations"] == []
        page.get_by_role("button", name="Order now").click()
        expect(page.locator("#events")).to_have_text("We have your order.")
        assert Axe().run(page).response["violations"] == []
