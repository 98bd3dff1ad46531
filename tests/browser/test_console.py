"""The console in a real browser, used like support staff does."""

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from playwright.sync_api import Browser, Page, Route, expect

from app.services.order_actions import expire_orders
from tests.support.applications import Applications
from tests.support.credentials import api_key
from tests.support.receivers import receiver
from tests.support.servers import GUNICORN, Server, free_port, running, running_supervisor, wait_until
from tests.support.severing_proxy import severing_proxy

THREE_LINES: dict[str, Any] = {
    "customer_id": "c-77",
    "currency": "EUR",
    "channel": "web",
    "items": [
        {"item_id": "sku-1", "title": "Mug", "quantity": 2, "unit_price": 1250},
        {"item_id": "sku-2", "title": "Plate", "quantity": 1, "unit_price": 990},
        {"item_id": "sku-3", "title": "Bowl", "quantity": 3, "unit_price": 745},
    ],
    "adjustments": [{"type": "shipping", "amount": 490}],
    "shipping_address": {"name": "Ada Lovelace", "city": "London", "country": "GB"},
}
WIDTHS = (360, 1440)  # pixels
FORMS = ((360, "dark"), (1440, "light"))  # where every form is audited; elsewhere, the one with a conflict
WCAG_22_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def console_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('console')}/orders.db"


@pytest.fixture(scope="module")
def console_app(applications: Applications, console_url: str) -> Flask:
    return applications.migrated(console_url)


@pytest.fixture(scope="module")
def service(console_app: Flask, console_url: str) -> Iterator[Server]:
    """The web server and the worker, for all tests: each has orders of its own."""
    with running_supervisor(DATABASE_URL=console_url, WEBHOOKS_ALLOW_PRIVATE="1") as server:
        yield server


@contextmanager
def opened(chromium: Browser, **options: Any) -> Iterator[Page]:
    """A page in a new context, which must cause no error and no violation of its policy."""
    context = chromium.new_context(reduced_motion="reduce", **{"viewport": {"width": 1440, "height": 900}} | options)
    context.set_default_timeout(20_000)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    try:
        yield page
    finally:
        context.close()
    assert errors == []


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with opened(chromium) as page:
        yield page


def console(service: Server, view: str = "") -> str:
    return f"http://127.0.0.1:{service.port}/console{view}"


def create_order(service: Server, **members: Any) -> dict[str, Any]:
    reference = f"web-{uuid.uuid4()}"
    response = service.request("POST", "/orders", THREE_LINES | {"external_ref": reference} | members)
    assert response.status == 201, response.body
    order: dict[str, Any] = response.json
    return order


def wait_for_search(service: Server, *orders: dict[str, Any]) -> None:
    """Wait until the search has the orders as they are now."""
    for order in orders:
        path = f"/orders/search?q={order['number']}&status={order['status']}"
        wait_until(lambda path=path: service.request("GET", path).json["orders"])


def act(service: Server, order: dict[str, Any], action: str, **body: Any) -> dict[str, Any]:
    response = service.request("POST", f"/orders/{order['id']}/{action}", body)
    assert response.status in (200, 201), response.body
    changed: dict[str, Any] = response.json
    return changed


def read(service: Server, order: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service.request("GET", f"/orders/{order['id']}").json
    return found


def open_order(page: Page, service: Server, order: dict[str, Any]) -> None:
    page.goto(console(service, f"#/orders/{order['id']}"))
    expect(page.get_by_role("heading", name=order["number"])).to_be_visible()
    expect(page.get_by_text("Live · version")).to_be_visible()


def choose_action(page: Page, name: str) -> None:
    page.get_by_role("group", name="Actions").get_by_role("button", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_focused()


def send(page: Page, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()
    expect(page.get_by_text(f"{label}: done.")).to_be_visible()


def take(page: Page, action: str, label: str, **fields: str) -> None:
    """Take an action with its fields filled in, after its preview."""
    choose_action(page, action)
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(value)
    expect(page.get_by_role("table", name="What this will do")).to_be_visible()
    send(page, label)


def test_orders_are_found_while_typing_and_by_filters_with_counts(page: Page, service: Server) -> None:
    word = uuid.uuid4().hex[:10]
    address = THREE_LINES["shipping_address"] | {"name": f"Ada {word}"}
    orders = [create_order(service, shipping_address=address) for _ in range(3)]
    orders[0] = act(service, orders[0], "confirm")
    orders[1] = act(service, orders[1], "cancel", reason="customer")
    wait_for_search(service, *orders)
    links = page.get_by_role("region", name="Matching orders").get_by_role("link")

    page.goto(console(service))
    page.get_by_role("searchbox").press_sequentially(f"ada {word[:6]}")
    expect(links).to_have_count(3)
    expect(page.get_by_role("status")).to_have_text("3 orders")
    confirmed = page.get_by_role("checkbox", name="Confirmed")
    expect(confirmed.locator("..")).to_have_text("Confirmed1")
    confirmed.check()
    expect(links).to_have_text([orders[0]["number"]])
    expect(page.get_by_role("checkbox", name="Cancelled").locator("..")).to_have_text("Cancelled1")
    page.get_by_role("checkbox", name="Cancelled").check()
    expect(links).to_have_count(2)
    page.get_by_label("Currency").select_option("EUR")
    page.get_by_label("From").last.fill("100")
    page.get_by_label("From").last.blur()
    expect(page.get_by_text("No order matches.")).to_be_visible()
    page.get_by_role("link", name="Remove all filters").first.click()
    expect(links).to_have_count(3)
    page.reload()
    expect(links).to_have_count(3)
    page.get_by_role("searchbox").fill("a b c d e f g h i j k")
    expect(page.get_by_role("searchbox")).to_have_accessible_description("This must have at most 10 words.")
    page.get_by_role("searchbox").fill(orders[2]["external_ref"])
    page.get_by_role("searchbox").press("Enter")
    expect(links).to_have_text([orders[2]["number"]])


def test_letters_typed_during_a_search_are_not_lost(page: Page, service: Server) -> None:
    page.goto(console(service))
    box = page.get_by_role("searchbox")
    expect(box).to_be_visible()
    # The next letter is typed in the moment in which the page starts to search for the letters before.
    page.evaluate("""() => {
        const box = document.querySelector("[type=search]");
        addEventListener("hashchange", () => {
            if (box.value.length >= 5) return;
            box.value += "x";
            box.dispatchEvent(new Event("input", { bubbles: true }));
        }, { capture: true });
    }""")

    box.press_sequentially("ada")

    page.wait_for_url("**q=adaxx*")
    expect(box).to_have_value("adaxx")


def test_no_order_leaves_a_long_list_when_another_arrives(page: Page, service: Server) -> None:
    word = uuid.uuid4().hex[:10]
    template = THREE_LINES | {"customer_id": word}
    orders = service.request("POST", "/orders/batch", {"orders": [template] * 51}).json["results"]
    wait_for_search(service, *(result["order"] for result in orders))
    links = page.get_by_role("region", name="Matching orders").get_by_role("link")
    page.clock.install()
    page.goto(console(service, f"#/orders?q={word}"))
    expect(links).to_have_count(50)

    page.route("**/search?*cursor=*", lambda route: route.fulfill(status=500))
    page.get_by_role("button", name="Show more").click()
    expect(page.get_by_role("alert")).to_have_text("Internal Server ErrorTry again in a moment; nothing is done twice.")
    page.unroute("**/search?*cursor=*")
    page.get_by_role("button", name="Show more").click()
    expect(links).to_have_count(51)
    expect(page.get_by_role("alert")).to_have_count(0)

    wait_for_search(service, create_order(service, customer_id=word))
    page.clock.fast_forward(10_000)  # milliseconds
    expect(links).to_have_count(52)


def test_the_overview_counts_orders_by_minute_and_status_and_lists_the_late_ones(page: Page, service: Server) -> None:
    order = create_order(service, ship_by="2026-01-01T00:00:00Z")
    act(service, order, "confirm")
    wait_until(lambda: service.request("GET", f"/orders/search?q={order['number']}&late=true").json["orders"])

    page.goto(console(service, "#/overview"))
    expect(page.get_by_role("img", name="Orders a minute, at most")).to_be_visible()
    expect(page.get_by_text("in the last hour")).to_be_visible()
    expect(page.get_by_role("figure", name="Orders by status")).to_contain_text("Confirmed")
    check(page)
    page.get_by_role("figure", name="Need attention").get_by_role("link", name=order["number"]).click()
    expect(page.get_by_role("heading", name=order["number"])).to_be_visible()


def test_an_order_is_found_and_one_of_its_lines_cancelled_after_a_preview(page: Page, service: Server) -> None:
    order = create_order(service)
    page.goto(console(service))
    page.get_by_role("searchbox").fill(order["number"])
    expect(page.get_by_role("status")).to_have_text("1 order")  # the list before it had the order too
    page.get_by_role("link", name=order["number"]).click()
    choose_action(page, "Cancel")
    page.get_by_label("One more of Plate").click()
    page.get_by_label("Reason").select_option("Not in stock")
    preview = page.get_by_role("table", name="What this will do")
    expect(preview).to_contain_text("Line 2 · Plate1 open1 cancelled")
    expect(preview).to_contain_text("Total62.15 EUR52.25 EUR")
    assert read(service, order)["version"] == 1
    page.get_by_role("button", name="Cancel 1 unit").click()
    expect(page.get_by_text("Cancel 1 unit: done.")).to_be_visible()

    changed = read(service, order)
    assert [item["cancelled"] for item in changed["items"]] == [0, 1, 0]
    assert (changed["status"], changed["version"]) == ("pending", 2)
    expect(page.get_by_role("row", name="Plate")).to_contain_text("10100")
    expect(page.get_by_role("listitem").filter(has_text="Not in stock.")).to_contain_text("1 × Plate")
    expect(page.get_by_role("region", name="History")).to_contain_text("Partly cancelled")


def test_a_line_shows_its_remaining_total_after_a_cancellation(page: Page, service: Server) -> None:
    discount = {"type": "discount", "amount": -1, "line": 3}
    order = create_order(service, adjustments=[discount])
    open_order(page, service, order)
    total = page.get_by_role("row").locator("[data-label=Total]")
    expect(total).to_have_text(["25.00", "9.90", "22.34incl. discount −0.01"])

    changed = act(
        service, order, "cancel", reason="customer", items=[{"line": 2, "quantity": 1}, {"line": 3, "quantity": 1}]
    )

    remaining = [
        "25.00",
        "0.00before the cancellation: 9.90",
        "14.90before the cancellation: 22.34 incl. discount −0.01",
    ]
    expect(total).to_have_text(remaining)
    expect(total.locator("s")).to_have_text(["9.90", "22.34"])
    assert changed["totals"]["total"] == 2500 + 1490
    act(service, changed, "cancel", reason="customer")
    expect(total.filter(has_text="0.00before")).to_have_count(3)


def test_the_history_names_who_made_a_change_unless_authentication_is_off(
    page: Page, service: Server, console_app: Flask
) -> None:
    order = create_order(service, ship_by="2026-01-01T00:00:00Z")
    service.request("PUT", f"/orders/{order['id']}/holds/review", {"kind": "review"})
    open_order(page, service, order)
    choose_action(page, "Edit")
    act(service, order, "payments", type="capture", amount=6215, reference="pi_1")

    history = page.get_by_role("region", name="History")
    expect(history).to_contain_text("Became late automatically, as scheduled ·")
    expect(page.get_by_role("alert")).to_contain_text("Payment recorded")
    expect(page.get_by_text("anonymous").filter(visible=True)).to_have_count(0)

    open_order(page, service, create_order(service))
    choose_action(page, "Edit")
    with console_app.app_context():
        assert sum(expire_orders(older_than=timedelta(0))) > 0
    expect(page.get_by_role("alert")).to_contain_text("The service itself changed this order meanwhile")
    expect(page.get_by_role("alert")).to_contain_text("Cancelled automatically, not confirmed in time ·")


def test_texts_to_edit_may_be_as_long_as_the_service_accepts(page: Page, service: Server) -> None:
    schemas = service.request("GET", "/openapi.json").json["components"]["schemas"]
    of_order, of_address = schemas["OrderPatch"]["properties"], schemas["AddressPatch"]["properties"]
    open_order(page, service, create_order(service))
    choose_action(page, "Edit")

    expect(page.get_by_label("Reference")).to_have_attribute("maxlength", str(of_order["external_ref"]["maxLength"]))
    expect(page.get_by_label("Note")).to_have_attribute("maxlength", str(of_order["note"]["maxLength"]))
    for label, member in {"E-mail": "email", "Postal code": "postal_code", "City": "city", "Phone": "phone"}.items():
        field = page.get_by_label(label, exact=True).first
        expect(field).to_have_attribute("maxlength", str(of_address[member]["maxLength"]))
    tags = of_order["tags"]
    longest = ", ".join(["t" * tags["items"]["maxLength"]] * tags["maxItems"])
    assert int(page.get_by_label("Tags").get_attribute("maxlength") or 0) >= len(longest)


def test_a_browser_that_does_not_iterate_over_streams_shows_an_order_live(page: Page, service: Server) -> None:
    page.add_init_script(
        "delete ReadableStream.prototype[Symbol.asyncIterator]; delete ReadableStream.prototype.values"
    )
    order = create_order(service)
    open_order(page, service, order)

    act(service, order, "confirm")

    expect(page.get_by_role("list", name="Progress of the order")).to_be_visible()
    expect(page.get_by_text("Live · version 2")).to_be_visible()


@contextmanager
def silent_connection(page: Page, service: Server) -> Iterator[dict[str, Any]]:
    """Open a new order whose stream then becomes silent, without an end. The page's clock can be set."""
    order = create_order(service)
    page.clock.install()
    with severing_proxy(service.port, cuts=0) as proxy:
        page.goto(f"http://127.0.0.1:{proxy.port}/console#/orders/{order['id']}")
        expect(page.get_by_text("Live · version 1")).to_be_visible()
        proxy.silence()
        yield order


def test_a_silent_connection_is_opened_again(page: Page, service: Server) -> None:
    with silent_connection(page, service) as order:
        act(service, order, "confirm")
        page.clock.fast_forward(44_000)  # milliseconds
        expect(page.get_by_text("Live · version 1")).to_be_visible()

        def is_current_after_another_limit() -> bool:
            page.clock.fast_forward(45_000)
            page.wait_for_timeout(500)
            return page.get_by_text("Live · version 2").is_visible()

        wait_until(is_current_after_another_limit)  # a new request can meet another silent connection


def test_an_open_order_is_updated_as_soon_as_the_network_is_back(page: Page, service: Server) -> None:
    with silent_connection(page, service) as order:
        page.context.set_offline(True)
        page.clock.fast_forward(45_000)  # milliseconds
        expect(page.get_by_text("Connecting · version 1")).to_be_visible(timeout=10_000)
        expect(page.get_by_role("alert")).to_contain_text("No connection to the service")
        page.clock.pause_at(time.time() + 3600)  # no pause between two attempts ends by itself
        act(service, order, "confirm")

        page.context.set_offline(False)

        expect(page.get_by_text("Live · version 2")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("is_live", [True, False], ids=["seen by the stream", "seen by the refusal"])
def test_a_concurrent_change_is_shown_side_by_side_and_the_form_is_kept(
    page: Page, service: Server, is_live: bool
) -> None:
    order = create_order(service)
    act(service, order, "confirm")
    if is_live:
        open_order(page, service, order)
    else:
        page.route("**/events?*", lambda route: route.abort())
        page.goto(console(service, f"#/orders/{order['id']}"))
    choose_action(page, "Cancel")
    page.get_by_label("One more of Plate").click()
    expect(page.get_by_role("table", name="What this will do")).to_contain_text("Line 2 · Plate")

    act(service, order, "fulfillments", items=[{"line": 1, "quantity": 2}])
    if not is_live:
        page.get_by_role("button", name="Cancel 1 unit").click()

    conflict = page.get_by_role("alert").filter(has_text="Somebody else changed this order meanwhile")
    expect(conflict).to_contain_text("You saw: version 2Now: version 3")
    expect(conflict).to_contain_text("Fulfillmentunfulfilledpartly fulfilledLine 1 · Mug2 open2 fulfilled")
    assert [item["cancelled"] for item in read(service, order)["items"]] == [0, 0, 0]
    expect(page.get_by_role("heading", name="What this will do to version 3")).to_be_visible()
    page.get_by_role("button", name="Cancel 1 unit in version 3").click()
    expect(page.get_by_text("Cancel 1 unit: done.")).to_be_visible()

    changed = read(service, order)
    assert [(item["fulfilled"], item["cancelled"]) for item in changed["items"]] == [(2, 0), (0, 1), (0, 0)]


def test_units_taken_by_a_concurrent_change_are_named(page: Page, service: Server) -> None:
    order = create_order(service)
    act(service, order, "payments", type="capture", amount=6215, reference="pi_1")
    act(service, order, "confirm")
    open_order(page, service, order)
    choose_action(page, "Cancel")
    for item in ("Mug", "Mug", "Plate"):
        page.get_by_label(f"One more of {item}").click()
    expect(page.get_by_role("table", name="What this will do")).to_contain_text("Due0.00 EUR34.90 EUR to refund")

    act(service, order, "fulfillments", items=[{"line": 1, "quantity": 1}, {"line": 2, "quantity": 1}])
    expect(page.get_by_text("Mug: only 1 unit left. Enter a smaller number.")).to_be_visible()
    page.get_by_label("One less of Mug").click()
    expect(page.get_by_text("Plate: no unit left. Enter a smaller number.")).to_be_visible()
    page.get_by_label("One less of Plate").click()
    page.get_by_role("button", name="Cancel 1 unit in version 4").click()

    expect(page.get_by_text("Cancel 1 unit: done.")).to_be_visible()
    assert [item["cancelled"] for item in read(service, order)["items"]] == [1, 0, 0]


def test_an_edit_keeps_concurrent_changes_of_other_members(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    choose_action(page, "Edit")
    page.locator("[name=tags]").fill("gift")
    billing_address = page.get_by_role("group", name="Billing address")
    billing_address.get_by_label("City").fill("Paris")
    billing_address.get_by_label("Country").fill("fr")

    changed = service.request("PATCH", f"/orders/{order['id']}", {"note": "Ring twice"})
    assert changed.status == 200, changed.body
    expect(page.get_by_role("heading", name="What this will do to version 2")).to_be_visible()
    page.get_by_role("button", name="Save the changes in version 2").click()
    expect(page.get_by_text("Save the changes: done.")).to_be_visible()

    saved = read(service, order)
    assert (saved["note"], saved["tags"], saved["version"]) == ("Ring twice", ["gift"], 3)
    billing = saved["billing_address"]
    assert (saved["shipping_address"]["city"], billing["city"], billing["country"]) == ("London", "Paris", "FR")


def test_an_edit_sets_a_time_and_removes_what_is_emptied(page: Page, service: Server) -> None:
    order = create_order(service, note="Ring once", external_ref=None)
    open_order(page, service, order)
    choose_action(page, "Edit")
    page.get_by_label("Ship by").fill("2099-01-01T10:00")
    page.get_by_label("Note").fill("")
    shipping_address = page.get_by_role("group", name="Shipping address")
    for label in ("Name", "City", "Country"):
        shipping_address.get_by_label(label, exact=True).fill("")
    page.get_by_role("button", name="Save the changes").click()
    expect(page.get_by_text("Save the changes: done.")).to_be_visible()

    saved = read(service, order)
    assert (saved["note"], saved["shipping_address"], saved["billing_address"]) == (None, None, None)
    assert saved["ship_by"].startswith("2099-01-01T")


def test_the_history_shows_a_change_of_the_currency_of_an_order_without_prices(page: Page, service: Server) -> None:
    order = create_order(service, items=[{"item_id": "sku-1", "quantity": 1}], adjustments=[])
    changed = service.request("PATCH", f"/orders/{order['id']}", {"currency": "SEK"})
    assert changed.status == 200, changed.body

    open_order(page, service, order)

    expect(page.get_by_text(re.compile("^Currency: .*SEK$"))).to_be_visible()


def test_an_action_made_impossible_by_a_concurrent_change_is_explained(page: Page, service: Server) -> None:
    order = create_order(service, customer_id="c-erased")
    open_order(page, service, order)
    choose_action(page, "Confirm")

    act(service, order, "cancel", reason="customer")

    expect(page.get_by_text("“Confirm” is no longer possible: the order is cancelled.")).to_be_visible()
    page.get_by_role("button", name="Back to the order").click()
    expect(page.get_by_role("button", name="Reopen")).to_be_visible()

    service.request("DELETE", "/customers/c-erased/personal-data")

    expect(page.get_by_role("link", name="erased customer")).to_be_visible()
    expect(page.get_by_role("region", name="History")).to_contain_text("Personal data erased")


def test_a_change_is_sent_again_after_a_lost_connection_and_applied_once(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    choose_action(page, "Confirm")
    expect(page.get_by_role("table", name="What this will do")).to_contain_text("Orderpendingconfirmed")
    answers = []

    def lose_first_answer(route: Route) -> None:
        answers.append(route.fetch())
        if len(answers) == 1:
            route.abort("connectionreset")  # the service has done it, and the browser does not know
        else:
            route.fulfill(response=answers[-1])

    page.route("**/confirm", lose_first_answer)
    page.get_by_role("button", name="Confirm the order").click()
    expect(page.get_by_text("Confirm the order: done.")).to_be_visible()

    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]
    assert read(service, order)["version"] == 2


def test_an_offline_page_waits_and_continues_when_the_network_is_back(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    choose_action(page, "Confirm")
    expect(page.get_by_role("table", name="What this will do")).to_contain_text("Orderpendingconfirmed")

    page.context.set_offline(True)
    page.get_by_role("button", name="Confirm the order").click()
    expect(page.get_by_text("No response yet.")).to_be_visible()
    assert read(service, order)["version"] == 1
    page.context.set_offline(False)

    expect(page.get_by_text("Confirm the order: done.")).to_be_visible()
    expect(page.get_by_text("Live · version 2")).to_be_visible()
    assert read(service, order)["version"] == 2


def test_a_discarded_form_sends_no_further_request(page: Page, service: Server) -> None:
    order = create_order(service)
    page.clock.install()
    open_order(page, service, order)
    choose_action(page, "Confirm")
    expect(page.get_by_role("table", name="What this will do")).to_be_visible()
    page.route("**/confirm", lambda route: route.abort())
    page.get_by_role("button", name="Confirm the order").click()
    expect(page.get_by_text("No response yet.")).to_be_visible()

    page.get_by_role("button", name="Discard").click()
    sent: list[Any] = []
    page.unroute("**/confirm")
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    choose_action(page, "Hold")
    expect(page.get_by_role("table", name="What this will do")).to_be_visible()
    page.clock.fast_forward(15_000)  # milliseconds: the longest pause between two attempts
    page.wait_for_timeout(500)

    assert sent == []
    assert read(service, order)["version"] == 1


def test_a_request_without_a_response_is_not_shown_as_a_change_of_somebody_else(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    choose_action(page, "Cancel")
    page.get_by_label("One more of Mug").click()
    expect(page.get_by_role("table", name="What this will do")).to_contain_text("Line 1 · Mug")

    def lose_the_answer(route: Route) -> None:
        route.fetch()
        route.abort("connectionreset")

    page.route("**/cancel", lose_the_answer)
    page.get_by_role("button", name="Cancel 1 unit").click()
    expect(page.get_by_text("No response yet.")).to_be_visible()
    page.get_by_role("button", name="Stop trying").click()

    conflict = page.get_by_role("alert").filter(has_text="This order has changed, perhaps by your own request")
    expect(conflict).to_contain_text("Line 1 · Mug2 open1 open, 1 cancelled")
    expect(page.get_by_text("Somebody else")).to_have_count(0)
    assert read(service, order)["items"][0]["cancelled"] == 1


def test_the_focus_follows_the_workflow(page: Page, service: Server) -> None:
    order = create_order(service)
    wait_for_search(service, order)
    page.goto(console(service, f"#/orders?q={order['number']}"))
    page.get_by_role("link", name=order["number"]).press("Enter")
    expect(page.get_by_role("heading", name=order["number"])).to_be_focused()

    choose_action(page, "Edit")
    page.locator("[name=note]").focus()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()

    choose_action(page, "Confirm")
    act(service, order, "cancel", reason="customer")
    page.get_by_role("button", name="Back to the order").click()
    expect(page.get_by_role("heading", name=order["number"])).to_be_focused()


def test_a_late_preview_is_not_compared_with_a_newer_version(page: Page, service: Server) -> None:
    order = create_order(service)
    act(service, order, "confirm")
    open_order(page, service, order)
    choose_action(page, "Cancel")
    page.get_by_label("One more of Plate").click()
    preview = page.get_by_role("table", name="What this will do")
    expect(preview).to_contain_text("Line 2 · Plate1 open1 cancelled")
    page.route("**/cancel?*", lambda route: None)  # no other preview arrives

    act(service, order, "fulfillments", items=[{"line": 1, "quantity": 2}])
    expect(page.get_by_text("Somebody else changed this order meanwhile")).to_be_visible()

    expect(preview).not_to_contain_text("Mug")


def test_a_preview_arrives_when_the_network_is_back(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    page.context.set_offline(True)
    choose_action(page, "Confirm")
    expect(page.get_by_role("alert")).to_contain_text("No connection to the service")

    page.context.set_offline(False)

    expect(page.get_by_role("table", name="What this will do")).to_contain_text("Orderpendingconfirmed")


def test_a_preview_shows_a_delivery_event_of_the_same_status_and_the_page_of_a_tracking(
    page: Page, service: Server
) -> None:
    order = create_order(service)
    act(service, order, "confirm")
    act(service, order, "fulfillments", items=[{"line": 1, "quantity": 2}])
    act(service, order, "fulfillments/1/events", type="in_transit")
    open_order(page, service, order)
    preview = page.get_by_role("table", name="What this will do")

    choose_action(page, "Delivery")
    page.get_by_label("Event").select_option("in_transit")
    page.get_by_label("Description").fill("Leipzig")
    expect(preview).to_contain_text("Fulfillment 1, event 2—in transit, ")
    expect(preview).to_contain_text(", Leipzig")
    page.get_by_label("What", exact=True).select_option("tracking")
    page.get_by_label("Tracking page").fill("https://carrier.example/1")

    expect(preview).to_contain_text("https://carrier.example/1")


def test_a_form_that_is_sent_before_its_preview_is_sent_when_the_preview_has_arrived(
    page: Page, service: Server
) -> None:
    order = create_order(service)
    open_order(page, service, order)
    page.route("**/confirm?dry_run=true", lambda route: route.abort())  # the preview is tried again
    choose_action(page, "Confirm")
    page.get_by_role("button", name="Confirm the order").click()
    expect(page.get_by_role("button", name="Checking …")).to_have_attribute("aria-disabled", "true")
    page.get_by_role("button", name="Checking …").press("Enter")
    assert read(service, order)["version"] == 1

    page.unroute("**/confirm?dry_run=true")

    expect(page.get_by_text("Confirm the order: done.")).to_be_visible()
    assert read(service, order)["version"] == 2


def test_a_form_that_is_sent_before_its_preview_is_not_sent_if_something_else_has_changed(
    page: Page, service: Server
) -> None:
    order = create_order(service)
    open_order(page, service, order)
    page.route("**/holds/**", lambda route: None)  # no preview arrives
    choose_action(page, "Hold")
    button = page.get_by_role("button", name="Put on hold")
    button.click()
    expect(page.get_by_role("button", name="Checking …")).to_be_visible()
    page.get_by_label("Reason").fill("Address is incomplete")
    expect(button).to_be_visible()
    button.click()
    act(service, order, "confirm")

    expect(page.get_by_role("button", name="Put on hold in version 2")).to_be_visible()
    page.unroute("**/holds/**")
    page.get_by_label("Until").fill("2020-01-01T10:00")
    page.get_by_role("button", name="Put on hold in version 2").click()
    expect(page.get_by_label("Until")).to_be_focused()
    expect(page.get_by_label("Until")).to_have_accessible_description(re.compile("^This must be in the future."))
    assert read(service, order)["version"] == 2


def test_the_link_back_from_an_order_leads_to_the_last_search(page: Page, service: Server) -> None:
    order = create_order(service)
    wait_for_search(service, order)
    page.goto(console(service))
    page.get_by_role("searchbox").fill(order["number"])
    expect(page.get_by_role("status")).to_have_text("1 order")

    for leave in (lambda: page.keyboard.press("Escape"), lambda: page.locator(".crumb a").click()):
        page.get_by_role("link", name=order["number"]).click()
        expect(page.get_by_text("Live · version 1")).to_be_visible()
        leave()
        expect(page.get_by_role("searchbox")).to_have_value(order["number"])


def test_the_age_of_a_change_is_updated_on_the_page(page: Page, service: Server) -> None:
    order = create_order(service)
    page.clock.install()
    open_order(page, service, order)
    expect(page.get_by_text("version 1, changed just now")).to_be_visible()

    page.clock.set_system_time(time.time() + 270)
    page.clock.fast_forward(30_000)  # milliseconds

    expect(page.get_by_text("version 1, changed 5 minutes ago")).to_be_visible()


def test_the_console_is_usable_with_the_keyboard_alone(page: Page, service: Server) -> None:
    order = create_order(service, customer_id="c-keyboard")
    newer = create_order(service, customer_id="c-keyboard")
    wait_for_search(service, order, newer)
    page.goto(console(service))
    expect(page.get_by_role("link", name=newer["number"])).to_be_visible()

    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("c-keyboard")
    page.wait_for_url("**q=c-keyboard*")  # a part of the text, too, finds two orders
    expect(page.get_by_role("status")).to_have_text("2 orders")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("link", name=order["number"])).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=order["number"])).to_be_visible()
    page.keyboard.press("a")
    expect(page.get_by_role("button", name="Confirm")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Confirm")).to_be_focused()
    expect(page.get_by_role("table", name="What this will do")).to_be_visible()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Confirm the order")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Confirm the order: done.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).to_be_visible()

    assert read(service, order)["status"] == "confirmed"


def test_the_forms_take_an_order_through_its_whole_lifecycle(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)

    take(page, "Hold", "Put on hold", reason="Address is incomplete")
    take(page, "Release", "Release support")
    take(page, "Confirm", "Confirm the order")
    take(page, "Payment", "Record capture of 62.15 EUR", reference="pi_3Nd81b", method="card")
    take(page, "Fulfill", "Fulfill 6 units", carrier="DHL", tracking_number="003404")
    take(page, "Delivery", "Record “delivered”")
    choose_action(page, "Return")
    page.get_by_label("One more of Bowl").click()
    page.get_by_label("These units").select_option("expected")
    send(page, "Return 1 unit")
    take(page, "Receive return", "Receive return 1")
    take(page, "Edit", "Save the changes", note="Ring twice", tags="gift, vip")
    take(page, "Reopen", "Reopen the order", reason="Wrong parcel")
    take(page, "Complete", "Complete the order")

    ended = read(service, order)
    statuses = [ended[name] for name in ("status", "fulfillment_status", "payment_status", "return_status")]
    assert statuses == ["completed", "delivered", "paid", "partial"]
    assert (ended["note"], ended["tags"], ended["version"]) == ("Ring twice", ["gift", "vip"], 12)
    assert ended["fulfillments"][0]["tracking"] == {"carrier": "DHL", "number": "003404"}
    life = page.get_by_role("list", name="Progress of the order")
    expect(life.get_by_role("listitem").filter(has_not_text="not yet")).to_have_count(7)


def test_a_payment_is_reversed_by_choosing_it(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    take(page, "Payment", "Record capture of 62.15 EUR", reference="pi_1")
    choose_action(page, "Payment")
    reversals = page.locator("[name=type] option").filter(has_text="reversal")
    expect(reversals).to_have_text("Reversal of a capture: it was a mistake")
    page.get_by_label("Type").select_option("capture_reversal")
    page.get_by_label("Payment to reverse").select_option("pi_1")
    expect(page.get_by_label("Amount")).to_have_count(0)
    send(page, "Record reversal of a capture")

    expect(page.get_by_role("listitem").filter(has_text="pi_1").first).to_contain_text("Capture reversed")
    choose_action(page, "Payment")
    expect(reversals).to_have_count(0)
    assert read(service, order)["payment_status"] == "unpaid"


def test_no_payment_is_reversed_that_was_not_chosen(page: Page, service: Server) -> None:
    order = create_order(service)
    for reference in ("pi_1", "pi_2"):
        act(service, order, "payments", type="capture", amount=3000, reference=reference)
    open_order(page, service, order)
    choose_action(page, "Payment")
    page.get_by_label("Type").select_option("capture_reversal")

    act(service, order, "payments", type="capture_reversal", amount=3000, reference="pi_1")

    page.get_by_role("button", name="Record reversal of a capture in version 4").click()
    expect(page.get_by_label("Payment to reverse")).to_be_focused()
    assert read(service, order)["totals"]["paid"] == 3000


def test_a_refused_preview_shows_the_reason_and_cannot_be_sent(page: Page, service: Server) -> None:
    order = create_order(service, currency="JPY")
    open_order(page, service, order)

    choose_action(page, "Payment")
    page.get_by_label("Type").select_option("refund")
    page.get_by_label("Reference").fill("re_1")
    expect(page.get_by_role("alert")).to_contain_text("The amount is too large")
    page.get_by_role("button", name="Record refund of 6215 JPY").click()
    expect(page.get_by_label("Amount")).to_be_focused()
    expect(page.get_by_label("Amount")).to_have_accessible_description(re.compile("^You cannot refund more than"))
    page.get_by_label("Amount").fill("62.15")

    expect(page.get_by_label("Amount")).to_have_accessible_description(re.compile("^Enter an amount in JPY."))
    assert read(service, order)["version"] == 1


def test_errors_of_the_service_are_shown_beside_their_fields(page: Page, service: Server) -> None:
    order = create_order(service)
    open_order(page, service, order)
    page.route(
        f"**{order['id']}?*",  # with a member that no field stands for
        lambda route: route.continue_(post_data=route.request.post_data_json | {"metadata": {"gift": "x" * 501}}),
    )

    choose_action(page, "Hold")
    until = page.get_by_label("Until")
    until.fill("2020-01-01T10:00")
    expect(until).to_have_accessible_description(re.compile("^This must be in the future."))
    expect(until).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_have_text("Not acceptedCorrect the marked fields: Until.")
    check(page, ".panel")
    page.get_by_role("button", name="Put on hold").click()
    expect(until).to_be_focused()
    until.fill("2099-01-01T10:00")
    expect(page.get_by_role("table", name="What this will do")).to_be_visible()
    expect(until).to_have_attribute("aria-invalid", "false")

    choose_action(page, "Cancel")
    page.get_by_role("button", name="Cancel units").click()
    expect(page.get_by_label("Mug", exact=True)).to_be_focused()
    expect(page.get_by_label("Mug", exact=True)).to_have_accessible_description("Choose at least one unit.")
    page.get_by_label("Bowl", exact=True).fill("1.5")
    expect(page.get_by_label("Bowl", exact=True)).to_have_accessible_description("This must be an integer.")

    choose_action(page, "Edit")
    page.get_by_label("Tags").fill("gift, " + "x" * 65)
    too_long = re.compile("^“x+”: This must have 1 to 64 characters.")
    expect(page.get_by_label("Tags")).to_have_accessible_description(too_long)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Metadata, gift: This must have at most 500 characters.")
    expect(alert).not_to_contain_text("/")
    assert read(service, order)["version"] == 1


def test_the_page_asks_for_a_key_and_keeps_it_in_the_tab_also_under_a_prefix(
    page: Page, console_app: Flask, console_url: str
) -> None:
    key = api_key(console_app, "orders:read", "orders:write", "orders:manage", name="support")
    port = free_port()
    settings = {"DATABASE_URL": console_url, "WEB_CONCURRENCY": "1", "URL_PREFIX": "/shop/api"}
    with running(*GUNICORN, port=port, AUTH="required", **settings) as server:
        page.goto(f"http://127.0.0.1:{port}/shop/api/console")
        expect(page.get_by_label("Key")).to_be_focused()
        page.get_by_label("Key").fill("osk_wrong")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("alert")).to_contain_text("The key was not accepted.")
        check(page)
        page.get_by_label("Key").fill(key)
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("searchbox")).to_be_visible()

        headers = {"Authorization": f"Bearer {key}"}
        path = f"/orders/{server.request('POST', '/shop/api/orders', THREE_LINES, headers).json['id']}"
        server.request("PUT", f"/shop/api{path}/holds/review", {"kind": "review"}, headers)
        page.goto(f"http://127.0.0.1:{port}/shop/api/console#{path}")
        expect(page.get_by_role("region", name="History")).to_contain_text("Put on hold by support ·")
        expect(page.get_by_role("listitem").filter(has_text="needs review").first).to_contain_text("by support")
        page.reload()
        expect(page.get_by_text("Live · version 2")).to_be_visible()
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[key], 0, ""]
        page.get_by_role("link", name="Webhooks").click()
        expect(page.get_by_role("alert")).to_contain_text("webhooks:manage")
        page.get_by_role("button", name="Forget key").click()
        expect(page.get_by_label("Key")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_deliveries_of_a_webhook_are_shown_and_sent_again(page: Page, service: Server) -> None:
    with receiver() as hook:
        webhook = service.request("POST", "/webhooks", {"url": hook.url, "description": "Warehouse"}).json
        order = create_order(service)
        wait_until(lambda: len(hook.requests) == 1)

        page.route(f"**/orders/{order['id']}", lambda route: route.fulfill(status=500), times=1)
        page.goto(console(service, f"#/webhooks/{webhook['id']}"))
        delivery = page.get_by_role("listitem").filter(has_text="succeeded")
        expect(delivery).to_contain_text(f"Created order …{order['id'][-8:]} version 1")
        page.get_by_role("link", name="Orders").first.click()
        expect(page.get_by_role("searchbox")).to_be_visible()
        page.go_back()  # the number is read again
        expect(delivery).to_contain_text(f"Created {order['number']} version 1")
        check(page)
        delivery.get_by_text("1 attempt").click()
        expect(delivery).to_contain_text("Accepted (200)")
        delivery.get_by_role("button", name="Send again").click()
        expect(page.get_by_text("1 delivery queued.")).to_be_visible()
        wait_until(lambda: len(hook.requests) == 2)
        assert hook.event_ids[0] == hook.event_ids[1]
        page.get_by_role("button", name="Send a test").click()
        wait_until(lambda: len(hook.requests) == 3)
        assert hook.requests[2].json["type"] == "webhook.test"
        page.get_by_role("button", name="Switch off").click()
        expect(page.get_by_role("navigation", name="Endpoints")).to_contain_text("switched off")
    service.request("DELETE", f"/webhooks/{webhook['id']}")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_view_passes_the_accessibility_audit(chromium: Browser, service: Server, width: int, theme: str) -> None:
    order = create_order(service)
    act(service, order, "payments", type="capture", amount=500, reference="pi_1")
    act(service, order, "confirm")
    act(service, order, "fulfillments", items=[{"line": 1, "quantity": 2}], tracking={"carrier": "DHL", "number": "1"})
    act(service, order, "returns", items=[{"line": 1, "quantity": 1}], status="expected")
    act(service, order, "cancel", reason="customer", items=[{"line": 2, "quantity": 1}])
    wait_until(lambda: service.request("GET", f"/orders/search?q={order['number']}").json["orders"])
    viewport = {"width": width, "height": 800}
    with opened(chromium, color_scheme=theme, viewport=viewport) as page:
        page.goto(console(service))
        expect(page.get_by_role("link", name=order["number"])).to_be_visible()
        if width == 360:
            page.get_by_text("Filters").click()
        check(page)
        if width == 360:
            page.get_by_role("button", name=re.compile("^Show [0-9]+ orders?$")).click()
            expect(page.get_by_role("link", name=order["number"])).to_be_in_viewport()
        open_order(page, service, order)
        check(page)
        audited = (width, theme) in FORMS
        for action in page.get_by_role("group", name="Actions").get_by_role("button").all()[0 if audited else -1 :]:
            action.click()
            expect(page.locator(".preview .faint, .preview table, .preview .problem").first).to_be_visible()
            if audited:
                check(page, ".panel")
        act(service, order, "payments", type="refund", amount=100, reference="re_1")
        expect(page.get_by_text("Somebody else changed this order meanwhile")).to_be_visible()
        check(page, ".panel")
        for view in ("Overview", "Webhooks"):
            page.get_by_role("link", name=view).click()
            expect(page.get_by_role("heading", name=view, level=1)).to_be_visible()
            check(page)
        page.get_by_role("button", name="Help").click()
        check(page, "dialog")


def check(page: Page, part: str = "html") -> None:
    """Fail if axe finds a violation in that part of the page, or if the page is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    results = Axe().run(page, part, options={"runOnly": {"type": "tag", "values": WCAG_22_AA}})
    violations = [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in results.response["violations"]
        for node in violation["nodes"]
    ]
    assert violations == []
