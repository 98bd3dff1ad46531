"""Take the screenshots of the README: `make screenshots`."""

import shutil
import tempfile
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from app.config import ROOT
from tests.browser.conftest import PROGRAMS
from tests.support.commands import run_python
from tests.support.servers import Server, running_supervisor

IMAGES = ROOT / "docs" / "images"
FLASK = ("-m", "flask", "--app", "wsgi")
SIZE = {"width": 1360, "height": 850}  # pixels
ORDER: dict[str, Any] = {
    "customer_id": "c-1047",
    "external_ref": "web-20931",
    "currency": "EUR",
    "channel": "web",
    "items": [
        {"item_id": "sku-101", "title": "Stoneware mug", "quantity": 2, "unit_price": 1250},
        {"item_id": "sku-204", "title": "Linen apron", "quantity": 1, "unit_price": 3490},
        {"item_id": "sku-310", "title": "Oak board", "quantity": 3, "unit_price": 4200},
    ],
    "adjustments": [
        {"type": "discount", "label": "WELCOME10", "amount": -1858},
        {"type": "shipping", "amount": 490},
    ],
    "shipping_address": {
        "name": "Ada Lovelace", "line1": "Lindenweg 7", "postal_code": "50667", "city": "Köln", "country": "DE",
    },
    "note": "Ring twice.",
    "tags": ["gift"],
}  # fmt: skip


def main() -> None:
    """Write the pictures to docs/images/."""
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        settings = {"DATABASE_URL": f"sqlite:///{directory}/orders.db", "AUTH": "off"}
        run_python(*FLASK, "db", "upgrade", **settings)
        run_python(*FLASK, "seed", "--orders", "400", "--force", **settings)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with running_supervisor(**settings) as server:
            for name, theme, view in (("conflict", "light", show_conflict), ("orders", "dark", show_orders)):
                page = browser.new_page(viewport=SIZE, color_scheme=theme, reduced_motion="reduce")
                view(page, server)
                page.screenshot(path=IMAGES / f"console-{name}.png")
                page.close()
        browser.close()


def show_orders(page: Page, server: Server) -> None:
    """Orders found by a name."""
    page.goto(f"http://127.0.0.1:{server.port}/console#/orders?q=ada")
    expect(page.get_by_role("link", name="26").nth(9)).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("orders")


def show_conflict(page: Page, server: Server) -> None:
    """A cancellation of one of three lines, after the warehouse has sent another one."""
    order = server.request("POST", "/orders", ORDER).json
    path = f"/orders/{order['id']}"
    server.request("POST", f"{path}/payments", {"type": "capture", "amount": 17222, "reference": "pi_3Nd81b"})
    server.request("POST", f"{path}/confirm", {})
    page.goto(f"http://127.0.0.1:{server.port}/console#{path}")
    expect(page.get_by_text("Live · version 3")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_label("One more of Linen apron").click()
    tracking = {"carrier": "DHL", "number": "0034043416"}
    server.request("POST", f"{path}/fulfillments", {"items": [{"line": 1, "quantity": 2}], "tracking": tracking})
    expect(page.get_by_text("Somebody else changed this order meanwhile")).to_be_visible()
    expect(page.get_by_role("table", name="What this will do")).to_be_visible()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    main()
