"""Requests as values.

A change of an order has its idempotency key from the start: however often the same request is sent, it has one effect.
It takes the id of an order, or the order as it was read: then it is refused if the order has changed since.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Self, TypeVar
from urllib.parse import quote

from order_service_client import documents as d

T = TypeVar("T")
Page = TypeVar("Page")
OrderRef = str | d.Order


@dataclass(frozen=True)
class Series(Generic[T]):
    """A request for items of the type T, in one or several responses.

    `repeatable`: the body makes it safe to send the request again, without an idempotency key of its own.
    """

    accept: ClassVar[str] = "application/json"
    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("Idempotency-Key")

    @property
    def may_repeat(self) -> bool:
        """Whether it is safe to send the request again (RFC 9110 §9.2.2)."""
        return self.repeatable or self.method in {"GET", "PUT", "DELETE"} or self.idempotency_key is not None

    def items(self, document: Any) -> Sequence[T]:
        return [document]

    def rest(self, document: Any, *, has_link: bool) -> Self | None:
        """Return the request for what comes after a document, or None if nothing does."""
        return self

    def at(self, position: object, parameter: str = "after") -> Self:
        return replace(self, query={**self.query, parameter: position})


class Request(Series[T]):
    """A request for one document."""

    def rest(self, document: Any, *, has_link: bool) -> Self | None:
        return None


@dataclass(frozen=True)
class Listing(Series[T], Generic[Page, T]):
    """A list that is read page by page. `member` has the items of a page."""

    member: str = ""
    cursor: str = "cursor"

    @property
    def page(self) -> Request[Page]:
        return Request(self.method, self.path, query=self.query)

    def items(self, document: Any) -> Sequence[T]:
        items: Sequence[T] = document[self.member]
        return items

    def rest(self, document: Any, *, has_link: bool) -> Self | None:
        """The feed has a cursor on its last page, too, but no link."""
        return self.at(document["next_cursor"], self.cursor) if has_link or self.query.get("wait") else None


class EventStream(Series[T]):
    """Events as they happen, without end. A lost connection is opened again after the last event."""

    accept = "text/event-stream"


@dataclass(frozen=True)
class Export(Series[T]):
    """A line for each item. After a lost connection, an order of which not all lines were received comes again."""

    accept = "application/x-ndjson"
    order_id: str | None = None  # whose lines are being received, where an order has several

    def rest(self, document: Any, *, has_link: bool) -> Self | None:
        if "id" in document:
            return self.at(document["id"])
        if "order" not in document:
            return self
        return replace(self.at(self.order_id) if self.order_id else self, order_id=document["order"]["id"])


def path_of(template: str, *parts: str | int | d.Order) -> str:
    """Return a path with its variable parts, percent-encoded; an order is its id."""
    texts = (part["id"] if isinstance(part, dict) else str(part) for part in parts)
    return template.format(*(quote(text, safe="") for text in texts))


def query_of(metadata: Mapping[str, str] | None = None, **parameters: Any) -> dict[str, Any]:
    """Return the parameters that have a value; several values are separated by commas."""
    pairs = {f"metadata.{key}": text for key, text in (metadata or {}).items()}
    given = {name: each for name, each in parameters.items() if each is not None}
    return pairs | {name: each if isinstance(each, str | int) else ",".join(each) for name, each in given.items()}


def change_headers(order: OrderRef | None, idempotency_key: str | None) -> dict[str, str]:
    if_match = {"If-Match": f'"{order["version"]}"'} if isinstance(order, dict) else {}
    return {"Idempotency-Key": idempotency_key or secrets.token_hex(16), **if_match}


def with_keys(body: Any) -> Any:
    """Return the body of a batch with an idempotency key for each entry that has none."""
    return {
        name: [{**each, "idempotency_key": each.get("idempotency_key") or secrets.token_hex(16)} for each in entries]
        for name, entries in body.items()
    }
