"""The latency of searches among many orders: `python -m tests.support.postgres python -m bench.search`.

It fills the database at DATABASE_URL, unless it has orders already, and prints percentiles for each kind of search,
from the request to the response, without a network. Words are drawn from the orders. Of a million orders the newest
30,000 are confirmed and the oldest 25,000 partly fulfilled, so that these filters have most of their orders on one side
of a sort; a few per cent have other statuses, 2,000 are held, 500 are late.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import cycle, islice, repeat
from random import Random
from statistics import quantiles
from typing import Any

import flask_migrate
from flask.testing import FlaskClient
from sqlalchemy import func, select, text

from app import create_app
from app.cli.seed import sample_orders
from app.config import ROOT
from app.db.engine import db
from app.models import SEARCH
from app.services.order_storage import insert_orders
from app.services.search_projection import search_row, store_rows

UNTIL = datetime(2026, 11, 1, tzinfo=UTC)
BATCH = 500
SORTS = ("-created_at", "created_at", "-updated_at", "updated_at", "-total", "total")
FACETS = "status,payment_status,channel,currency"

Query = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=200, help="requests of each kind")
    options = parser.parse_args()
    app = create_app({"AUTH": "off", "TESTING": True})
    with app.app_context():
        flask_migrate.upgrade(directory=str(ROOT / "migrations"))
        with db.engine.connect() as connection:
            count = connection.scalar(select(func.count()).select_from(SEARCH)) or 0
        if not count:
            fill(options.orders)
    client = app.test_client()
    documents = sample_documents(client, Random(1))
    print(f"load average {os.getloadavg()[0]:.1f}, {count or options.orders:,} orders")
    print("| search | p50 ms | p99 ms | orders on the page | pages not full |\n|---|---|---|---|---|")
    for name, queries in kinds(documents).items():
        print(row(name, [measure(client, query) for query in islice(queries, options.requests)]), flush=True)


def fill(count: int) -> None:
    """Store sample orders, and fill the search with them."""
    rng, orders, position = Random(2), sample_orders(count, seed=1, until=UNTIL), 0
    while batch := list(islice(orders, BATCH)):
        insert_orders(batch)
        rows = []
        for order in batch:
            rows.append(search_row(json.loads(order.document)) | variation(position / count, rng))
            position += 1
        with db.engine.begin() as connection:
            store_rows(connection, rows)
        if position % 50_000 == 0:
            print(f"{position:,} orders", flush=True)
    if db.engine.dialect.name == "postgresql":
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE"))


def variation(age: float, rng: Random) -> dict[str, Any]:
    """The statuses of an order; `age` is its place among all, from 0 to 1, the newest."""
    values: dict[str, Any] = {"held": rng.random() < 0.002, "late": rng.random() < 0.0005}
    if age >= 0.97:
        values["status"] = "confirmed"
    elif rng.random() < 0.008:
        values["status"] = "cancelled"
    if age < 0.025:
        values["fulfillment_status"] = "partial"
    if rng.random() < 0.03:
        values["payment_status"] = "paid"
    if rng.random() < 0.001:
        values["return_status"] = "partial"
    return values


def sample_documents(client: FlaskClient, rng: Random) -> list[dict[str, Any]]:
    """Yield orders of all ages."""
    year = UNTIL.timestamp() - 365 * 86400
    times = (datetime.fromtimestamp(year + rng.random() * 364 * 86400, UTC) for _ in range(300))
    pages = (
        client.get("/orders", query_string={"created_from": t.isoformat(), "limit": 1, "sort": "created_at"})
        for t in times
    )
    return [order for page in pages for order in page.json["orders"]]


def kinds(documents: list[dict[str, Any]]) -> dict[str, Iterator[Query]]:
    """Return endless iterators over the queries of each kind."""

    def of_orders(query: Callable[[dict[str, Any]], Query | None]) -> Iterator[Query]:
        return cycle(list(filter(None, map(query, documents))))

    def address(member: str, convert: Callable[[str], str] = str) -> Iterator[Query]:
        def query(order: dict[str, Any]) -> Query | None:
            value = (order["shipping_address"] or {}).get(member)
            return {"q": convert(value)} if value else None

        return of_orders(query)

    found = {
        "`q`: number": of_orders(lambda order: {"q": order["number"]}),
        "`q`: 5 characters of a number": of_orders(lambda order: {"q": order["number"][7:12]}),
        "`q`: date of a number": of_orders(lambda order: {"q": order["number"][:6]}),
        "`q`: customer": of_orders(lambda order: {"q": order["customer_id"]}),
        "`q`: first and last name": address("name"),
        "`q`: first name": address("name", lambda name: name.split()[0]),
        "`q`: last name": address("name", lambda name: name.split()[-1]),
        "`q`: last name, by total": address("name", lambda name: name.split()[-1]),
        "`q`: 3 letters of a last name": address("name", lambda name: name.split()[-1][:3]),
        "`q`: one letter": address("name", lambda name: name[0]),
        "`q`: e-mail address": address("email"),
        "`q`: postal code": address("postal_code"),
        "`q`: item": of_orders(lambda order: {"q": order["items"][0]["item_id"]}),
        "`q`: title": of_orders(lambda order: {"q": order["items"][0]["title"] or "x"}),
        "`q`: last name, confirmed": address("name", lambda name: name.split()[-1]),
    }
    more = {"`q`: last name, by total": {"sort": "-total"}, "`q`: last name, confirmed": {"status": "confirmed"}}
    queries = {name: combined(each, more.get(name, {})) for name, each in found.items()}
    first = documents[0]
    filters: dict[str, Query] = {
        "no filter": {},
        "`channel`": {"channel": next((order["channel"] for order in documents if order["channel"]), "web")},
        "`status`, newest orders": {"status": "confirmed"},
        "`status`, few orders": {"status": "cancelled"},
        "`status`, two": {"status": "confirmed,cancelled"},
        "`fulfillment_status`, oldest orders": {"fulfillment_status": "partial"},
        "`payment_status`": {"payment_status": "paid"},
        "`return_status`": {"return_status": "partial"},
        "`held`": {"held": "true"},
        "`late`": {"late": "true"},
        "`currency`": {"currency": first["currency"] or "EUR"},
        "`created`, a day": {"created_from": "2026-06-01T00:00:00Z", "created_to": "2026-06-02T00:00:00Z"},
        "`created`, three months": {"created_from": "2026-03-01T00:00:00Z", "created_to": "2026-06-01T00:00:00Z"},
        "`updated`, a day": {"updated_from": "2026-06-01T00:00:00Z", "updated_to": "2026-06-02T00:00:00Z"},
        "`total`, few orders": {"total_from": "100000"},
        "`total`, many orders": {"total_from": "1000", "total_to": "5000"},
        "`tag`": {"tag": next((order["tags"][0] for order in documents if order["tags"]), "gift")},
        "status and channel and payment": {"status": "pending", "channel": "web", "payment_status": "unpaid"},
    }
    for name, query in filters.items():
        queries[f"{name}, each sort"] = combined(cycle([{"sort": sort} for sort in SORTS]), query)
    for name, query in {"all": {}, "confirmed": {"status": "confirmed"}, "a letter": {"q": "m"}}.items():
        queries[f"`facets`: {name}"] = combined(repeat({"facets": FACETS, "limit": "1"}), query)
    return queries


def combined(queries: Iterator[Query], more: Query) -> Iterator[Query]:
    """The queries, each with more parameters."""
    return (query | more for query in queries)


def measure(client: FlaskClient, query: Query) -> tuple[float, int, bool]:
    """Return the milliseconds of a search, the orders on its page, and whether the page lacks matching orders."""
    started = time.perf_counter()
    response = client.get("/orders/search", query_string=query)
    milliseconds = 1000 * (time.perf_counter() - started)
    assert response.status_code == 200, response.text
    page = response.json
    return (
        milliseconds,
        len(page["orders"]),
        bool(page["next_cursor"]) and len(page["orders"]) < int(query.get("limit", 20)),
    )


def row(name: str, measured: list[tuple[float, int, bool]]) -> str:
    times = quantiles([milliseconds for milliseconds, _, _ in measured], n=100)
    orders = sum(count for _, count, _ in measured) / len(measured)
    short = sum(is_short for _, _, is_short in measured)
    return f"| {name} | {times[49]:.1f} | {times[98]:.1f} | {orders:.1f} | {short or ''} |"


if __name__ == "__main__":
    main()
