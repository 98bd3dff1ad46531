"""The sample shop of `flask seed`: catalogue, customers, and orders.

Distributions are those of a wholesaler's real orders: two orders in five have one line, one in a hundred eleven or
more; quantities are 1, 2, or dozens; a few customers and items make up much of the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from math import log
from random import Random
from typing import Any

from app.schemas.order import ITEMS_MAX

_ITEMS = 10_000
_ORDERS_PER_CUSTOMER = 3
_PRICE_MU, _PRICE_SIGMA = log(350), 1  # half of the items cost less than 3.50 euros, one in a hundred over 35
_MORE_LINES = 0.58  # the share of orders of n lines or more that have one more
_QUANTITIES = (1, 2, 12, 6, 4, 3, 24, 10, 8, 5, 48, 36, 100, 500)
_QUANTITY_WEIGHTS = list(accumulate((22, 15, 14, 9, 8, 7, 6, 5, 3, 2, 1.5, 1, 1, 0.1)))
_CAMPAIGNS = (("WELCOME10", 10), ("SPRING15", 15), ("THANKS5", 5))
_SHIPPING, _FREE_FROM = 490, 7500  # cents of the euro
_CHANNELS = ("web", "web", "web", "app", "app", "phone")
_DEVICES = ("desktop", "phone", "phone", "tablet")
_TAGS = ("gift", "express", "wholesale", "first-order", "newsletter")
_MATERIALS = ("Oak", "Steel", "Linen", "Glass", "Wool", "Paper", "Cork", "Stone", "Cotton", "Copper")
_PRODUCTS = tuple("Bowl Mug Lamp Box Frame Towel Tray Clock Vase Spoon Basket Candle Card Brush Rug Plate".split())
_SHIP_DAYS, _DELIVERY_DAYS = 3, 4
_NOTES = (
    "Please leave the parcel with the neighbour.",
    "A gift: no invoice in the parcel, please.",
    "Deliver on weekdays, 8:00 to 16:00.\nRing twice; the bell is quiet.",
    "Bitte nicht knicken!",
)
_NAMES = tuple("Ada Bo Chloé Dmitri Elif Femke Gareth Hana Inés João Kofi Łucja Mei Noor Søren Zoë".split())
_SURNAMES = tuple("Andersson Berg Costa Dubois Evans García Ito Jansen Keller Müller Novák O’Brien Petit Smith".split())


@dataclass(frozen=True, slots=True)
class Market:
    """A country to sell in: minor units of its currency for a cent of the euro, sales tax that prices do not include
    (per cent), towns with their postal codes, and streets."""

    country: str
    currency: str
    rate: float
    tax: int
    towns: Sequence[tuple[str, str]]
    streets: Sequence[str]


_MARKETS = (
    Market("DE", "EUR", 1, 0, (("10115", "Berlin"), ("50667", "Köln")), ("Lindenweg", "Am Markt")),
    Market("FR", "EUR", 1, 0, (("75011", "Paris"), ("69002", "Lyon")), ("Rue des Lilas", "Place de l’Église")),
    Market("GB", "GBP", 0.86, 0, (("M1 2JW", "Manchester"), ("BS1 4DJ", "Bristol")), ("High Street", "Mill Lane")),
    Market("US", "USD", 1.1, 7, (("97205", "Portland"), ("60601", "Chicago")), ("Main Street", "Oak Avenue")),
    Market("SE", "SEK", 11, 0, (("411 03", "Göteborg"), ("211 22", "Malmö")), ("Storgatan", "Björkvägen")),
    Market("JP", "JPY", 1.6, 0, (("150-0001", "渋谷区"), ("530-0001", "大阪市")), ("神宮前", "梅田")),
)
_MARKET_WEIGHTS = list(accumulate((38, 20, 20, 14, 5, 3)))


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer with one address and one currency."""

    id: str
    market: Market
    address: dict[str, str]


class Shop:
    """Customers and items are numbered by how much they sell: c-1 and sku-1 are ordered most."""

    def __init__(self, orders: int, *, seed: int) -> None:
        self._seed = seed
        self._customers = _skewed(max(1, orders // _ORDERS_PER_CUSTOMER))
        self._items = _skewed(_ITEMS)
        rng = Random(seed)  # reproducible sample data  # nosec B311
        self._cents = [1 + int(rng.lognormvariate(_PRICE_MU, _PRICE_SIGMA)) for _ in range(_ITEMS)]

    def draw_order(self, rng: Random, *, external_ref: str, at: datetime) -> dict[str, Any]:
        """A body for `POST /orders` at that time. Nine in ten carry the reference; one in fifty has no prices and
        extras."""
        customer = self._customer(_draw(rng, self._customers)[0])
        lines = min(ITEMS_MAX, 1 + int(log(1 - rng.random()) / log(_MORE_LINES)))
        items = self._draw_items(rng, lines, customer.market)
        body: dict[str, Any] = {"customer_id": customer.id, "items": items}
        if rng.random() < 0.9:
            body["external_ref"] = external_ref
        if rng.random() < 0.02:
            for item in items:
                del item["unit_price"]
            return body
        return body | {
            "currency": customer.market.currency,
            "adjustments": _draw_adjustments(rng, items, customer.market),
            **_draw_extras(rng, customer, at),
        }

    def _draw_items(self, rng: Random, lines: int, market: Market) -> list[dict[str, Any]]:
        ranks = dict.fromkeys(_draw(rng, self._items, lines))  # an item drawn twice is one line
        quantities = rng.choices(_QUANTITIES, cum_weights=_QUANTITY_WEIGHTS, k=len(ranks))
        return [
            {
                "item_id": f"sku-{rank + 1}",
                "title": f"{_MATERIALS[rank % 10]} {_PRODUCTS[rank // 10 % 16]} No. {rank // 160 + 1}",
                "quantity": quantity,
                "unit_price": round(self._cents[rank] * market.rate),
            }
            for rank, quantity in zip(ranks, quantities, strict=True)
        ]

    def _customer(self, rank: int) -> Customer:
        # Derived from the rank alone, so that a customer is the same in every order without being stored.
        rng = Random(self._seed << 32 | rank)  # reproducible  # nosec B311
        [market] = rng.choices(_MARKETS, cum_weights=_MARKET_WEIGHTS)
        name, surname = rng.choice(_NAMES), rng.choice(_SURNAMES)
        postal_code, town = rng.choice(market.towns)
        address = {
            "name": f"{name} {surname}",
            "line1": f"{rng.choice(market.streets)} {1 + int(rng.random() * 120)}",
            "city": town,
            "postal_code": postal_code,
            "country": market.country,
            "email": f"customer-{rank + 1}@example.com",
        }
        return Customer(f"c-{rank + 1}", market, address)


def _draw_adjustments(rng: Random, items: Sequence[dict[str, Any]], market: Market) -> list[dict[str, Any]]:
    """A discount on one order in eight, shipping on small orders, sales tax where it comes on top."""
    total = sum(item["quantity"] * item["unit_price"] for item in items)
    adjustments = []
    if rng.random() < 0.12:
        label, per_cent = rng.choice(_CAMPAIGNS)
        adjustments.append({"type": "discount", "label": label, "amount": -(total * per_cent // 100)})
    if market.tax:
        taxed = total + sum(adjustment["amount"] for adjustment in adjustments)
        adjustments.append({"type": "tax", "label": f"{market.tax} %", "amount": taxed * market.tax // 100})
    if total < _FREE_FROM * market.rate:
        adjustments.append({"type": "shipping", "label": "Standard", "amount": round(_SHIPPING * market.rate)})
    return adjustments


def _draw_extras(rng: Random, customer: Customer, at: datetime) -> dict[str, Any]:
    extras: dict[str, Any] = {"channel": rng.choice(_CHANNELS), "metadata": {"device": rng.choice(_DEVICES)}}
    if rng.random() < 0.2:
        extras["tags"] = rng.sample(_TAGS, k=rng.choice((1, 1, 2)))
    if rng.random() < 0.6:
        extras["ship_by"] = at.replace(hour=18, minute=0, second=0, microsecond=0) + timedelta(days=_SHIP_DAYS)
        extras["deliver_by"] = extras["ship_by"] + timedelta(days=_DELIVERY_DAYS)
    if rng.random() < 0.95:
        extras["shipping_address"] = customer.address
        if rng.random() < 0.2:
            extras["billing_address"] = customer.address | {"company": f"{customer.address['name']} & Co."}
    if rng.random() < 0.04:
        extras["note"] = rng.choice(_NOTES)
    return extras


def _skewed(count: int) -> list[float]:
    """Cumulated weights of ranks by the law of Zipf and Mandelbrot, with a head that real sales have."""
    return list(accumulate((rank + 3) ** -0.8 for rank in range(count)))


def _draw(rng: Random, cumulated: list[float], count: int = 1) -> list[int]:
    return rng.choices(range(len(cumulated)), cum_weights=cumulated, k=count)
