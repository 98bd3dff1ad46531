"""Requests as objects.

A change of an order gets its idempotency key when it is created: however often the same request is sent, it has one
effect. It takes the id of an order, or an order: in this case it is refused if the order has changed since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Self, TypeVar, cast
from urllib.parse import quote

from order_service_client.documents import Order

T = TypeVar("T")
Page = TypeVar("Page")
OrderRef = str | Order


@dataclass(frozen=True)
class Series(Generic[T]):
    """A request for items of the type T, in one or several responses.

    `order` is the order that a change is based on; `repeatable`: the request is safe to retry (RFC 9110 §9.2.2).
    """

    accept: ClassVar[str] = "application/json"
    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    order: OrderRef | None = None
    idempotency_key: str | None = None
    repeatable: bool = False

    @property
    def headers(self) -> dict[str, str]:
        key = {"Idempotency-Key": self.idempotency_key} if self.idempotency_key else {}
        if_match = {"If-Match": f'"{self.order["version"]}"'} if isinstance(self.order, dict) else {}
        return {"Accept": self.accept, **key, **if_match}

    def at(self, position: object, parameter: str = "after") -> Self:
        return replace(self, query={**self.query, parameter: position})

    def items(self, document: Any) -> Sequence[T]:
        return [document]

    def rest(self, document: Any) -> Self:
        """Return the request for what follows a document of an incomplete response."""
        return self

    def following(self, document: Any, *, has_link: bool) -> Self | None:
        """Return the request that follows a complete response with this document, or None."""
        return None


class Request(Series[T]):
    """A request for one document."""


@dataclass(frozen=True)
class Listing(Series[T], Generic[Page, T]):
    """A list that is read page by page. `member` has the items of a page."""

    member: str = ""
    cursor: str = "cursor"

    @property
    def page(self) -> Request[Page]:
        return Request(self.method, self.path, query=self.query, repeatable=True)

    def items(self, document: Any) -> Sequence[T]:
        return cast(Sequence[T], document[self.member])

    def following(self, document: Any, *, has_link: bool) -> Self | None:
        """The last page of the feed also has a cursor, but no link."""
        return self.at(document["next_cursor"], self.cursor) if has_link or self.query.get("wait") else None


class EventStream(Series[T]):
    """Events as they happen, endlessly. After a lost connection, the stream continues after the last event."""

    accept = "text/event-stream"


@dataclass(frozen=True)
class Export(Series[T]):
    """A line for each item. After a lost connection, an order whose lines are incomplete is received again."""

    accept = "application/x-ndjson"
    order_id: str | None = None  # the order whose lines are being received, if an order has several

    def rest(self, document: Any) -> Self:
        if "id" in document:
            return self.at(document["id"])
        if "order" not in document:
            return self
        order_id = document["order"]["id"]  # the previous order is complete, unless this one is repeated
        return replace(self.at(self.order_id) if self.order_id not in (None, order_id) else self, order_id=order_id)


def query_of(**parameters: Any) -> dict[str, Any]:
    """Return the parameters that are not None; several values are separated by commas.

    A filter without values is sent too, and the service refuses it: if it were omitted, all orders would match.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    return {name: value if isinstance(value, str | int) else ",".join(value) for name, value in given.items()}


def segment(part: str | int | Order) -> str:
    """Return a part of a path, percent-encoded; an order is its id.

    Raises ValueError for a dot segment, which httpx resolves: `/orders/../events` would be `/events`.
    """
    text = part["id"] if isinstance(part, dict) else str(part)
    if text in (".", ".."):
        raise ValueError(f'A part of a path must not be "{text}".')
    return quote(text, safe="")
