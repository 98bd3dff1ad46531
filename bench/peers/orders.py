"""Limits, ids, totals and the document of an order, for peers whose models do not define them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from uuid_utils.compat import uuid7

ID_MAX, NOTE_MAX, KEY_MAX = 64, 2_000, 255
ITEMS_MAX, ADJUSTMENTS_MAX, BATCH_MAX, PAGE_MAX = 100, 100, 1_000, 100
QUANTITY_MAX, PRICE_MAX, LARGEST_TOTAL = 1_000_000, 10**12, 2**53 - 1
TEXT = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
PROSE = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*\Z"
COUNTRY = r"^[A-Z]{2}\Z"
ADJUSTMENT_TYPES = ("discount", "tax", "shipping", "fee", "other")
CURRENCIES = tuple(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP
    CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR
    IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU
    MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG
    SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV
    WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()
)
ALLOWED_ACTIONS = {
    "pending": ["cancel", "confirm", "hold", "update"],
    "confirmed": ["cancel", "complete", "fulfill", "hold", "update"],
}
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

REPLAYED = {"Idempotent-Replayed": "true"}


class IdempotencyKeyReused(Exception):
    """The key was used with another body."""


class DuplicateExternalRef(Exception):
    """Another order has this reference."""


@dataclass(slots=True)
class NewOrder:
    """An order ready to be stored."""

    document: dict[str, Any]
    idempotency_key: str | None
    fingerprint: str
    snapshot: str


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> UUID:
    """Sorts by time, so that the primary key serves the list."""
    return uuid7()


def order_number(order_id: UUID, at: datetime) -> str:
    bits = order_id.int
    return f"{at:%y%m%d}-" + "".join(_CROCKFORD[bits >> shift & 31] for shift in range(35, -1, -5))


def fingerprint(body: Any) -> str:
    """A hash of a validated body."""
    return hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def sums(
    items: Sequence[Mapping[str, Any]], adjustments: Sequence[Mapping[str, Any]]
) -> tuple[int, int] | tuple[None, None]:
    """The totals of the items and of the adjustments; None without prices."""
    prices = [item["quantity"] * item["unit_price"] for item in items if item.get("unit_price") is not None]
    if not prices and not adjustments:
        return None, None
    return sum(prices), sum(adjustment["amount"] for adjustment in adjustments)


def check_sums(
    currency: str | None, items: Sequence[Mapping[str, Any]], adjustments: Sequence[Mapping[str, Any]]
) -> None:
    """Raise ValueError for prices without currency and for totals out of range."""
    items_total, adjustments_total = sums(items, adjustments)
    if items_total is None or adjustments_total is None:
        return
    if currency is None:
        raise ValueError("currency is required where there are prices or adjustments")
    if items_total > LARGEST_TOTAL:
        raise ValueError("the items come to more than can be stored")
    if items_total + adjustments_total < 0:
        raise ValueError("the adjustments take off more than the items come to")


def totals(items_total: int | None, adjustments_total: int | None) -> dict[str, int] | None:
    if items_total is None or adjustments_total is None:
        return None
    return {"items": items_total, "adjustments": adjustments_total, "total": items_total + adjustments_total}


def new_order(body: Mapping[str, Any], *, idempotency_key: str | None, encode: Callable[[Any], bytes]) -> NewOrder:
    """Return a new pending order from a validated body."""
    order_id, at = new_id(), now()
    items, adjustments = body["items"], body.get("adjustments") or []
    document = {
        "id": str(order_id),
        "number": order_number(order_id, at),
        "customer_id": body["customer_id"],
        "external_ref": body.get("external_ref"),
        "status": "pending",
        "fulfillment_status": "unfulfilled",
        "holds": [],
        "currency": body.get("currency"),
        "items": [
            {
                "line": line,
                "item_id": item["item_id"],
                "quantity": item["quantity"],
                "unit_price": item.get("unit_price"),
                "fulfilled": 0,
                "returned": 0,
            }
            for line, item in enumerate(items, start=1)
        ],
        "adjustments": [
            {"type": adjustment["type"], "label": adjustment.get("label"), "amount": adjustment["amount"]}
            for adjustment in adjustments
        ],
        "totals": totals(*sums(items, adjustments)),
        "shipping_address": body.get("shipping_address"),
        "billing_address": body.get("billing_address"),
        "note": body.get("note"),
        "metadata": body.get("metadata") or {},
        "cancellations": [],
        "fulfillments": [],
        "returns": [],
        "version": 1,
        "allowed_actions": ALLOWED_ACTIONS["pending"],
        "created_at": at,
        "updated_at": at,
    }
    return NewOrder(document, idempotency_key, fingerprint(body), encode(document).decode())


def stored_order(row: Mapping[str, Any], *, raw: Callable[[str], Any]) -> dict[str, Any]:
    """Return the document of a stored row; `raw` makes the encoder copy the text of JSON columns unchanged."""

    def json(name: str) -> Any:
        return None if row[name] is None else raw(row[name])

    return {
        "id": row["id"],
        "number": row["number"],
        "customer_id": row["customer_id"],
        "external_ref": row["external_ref"],
        "status": row["status"],
        "fulfillment_status": row["fulfillment_status"],
        "holds": [],
        "currency": row["currency"],
        "items": json("items"),
        "adjustments": json("adjustments"),
        "totals": totals(row["items_total"], row["adjustments_total"]),
        "shipping_address": json("shipping_address"),
        "billing_address": json("billing_address"),
        "note": row["note"],
        "metadata": json("metadata"),
        "cancellations": [],
        "fulfillments": [],
        "returns": [],
        "version": row["version"],
        "allowed_actions": ALLOWED_ACTIONS[row["status"]],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
