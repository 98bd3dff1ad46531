"""The requests of the API, by the names of its description. A request is a value; a client sends it.

A request that changes something has its idempotency key from the start: however often the same request is sent, it has
one effect. To send it again after a crash, store `idempotency_key` and make the request with it.

A change of an order takes its id, or the order as it was read: then it is refused if the order has changed since.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from order_service_client import documents as d

T = TypeVar("T")
OrderRef = str | d.Order
Parameter = str | int | Sequence[str]


class ChangeOptions(TypedDict, total=False):
    """`dry_run`: return what the change would return, and store nothing."""

    idempotency_key: str
    dry_run: bool


@dataclass(frozen=True)
class Request(Generic[T]):
    """A request whose response is a document of the type T.

    `repeatable`: the body makes it safe to send the request again, without an idempotency key of its own.
    """

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


@dataclass(frozen=True)
class Listing(Generic[T]):
    """A list that a client reads page by page. `member` has a page's items; `cursor` is the parameter of the next."""

    request: Request[Any]
    member: str
    cursor: str = "cursor"

    def next(self, page: Mapping[str, Any], *, has_link: bool) -> "Listing[T] | None":
        """The rest of the list, after a page. The feed has a cursor on its last page, too, but no link."""
        if page["next_cursor"] is None or not (has_link or self.request.query.get("wait")):
            return None
        query = {**self.request.query, self.cursor: page["next_cursor"]}
        return replace(self, request=replace(self.request, query=query))


@dataclass(frozen=True)
class Stream(Generic[T]):
    """An event stream, which a client keeps open."""

    request: Request[Any]


def new_key() -> str:
    """Return a key that no other request has."""
    return secrets.token_hex(16)


def _change(method: str, path: str, body: Any, options: ChangeOptions, **headers: str) -> Request[Any]:
    sent = {"Idempotency-Key": options.get("idempotency_key") or new_key(), **headers}
    return Request(method, path, body, {"dry_run": "true"} if options.get("dry_run") else {}, sent)


def _id(order: OrderRef) -> str:
    return order if isinstance(order, str) else order["id"]


@dataclass(frozen=True)
class Action:
    """A change of an order without a body. Call it with the order, and what the path has behind it."""

    method: str
    path: str

    def __call__(self, order: OrderRef, *place: str | int, **options: Unpack[ChangeOptions]) -> Request[d.Order]:
        return self._request(order, place, None, options)

    def _request(
        self, order: OrderRef, place: tuple[str | int, ...], body: Any, options: ChangeOptions
    ) -> Request[d.Order]:
        if_match = {} if isinstance(order, str) else {"If-Match": f'"{order["version"]}"'}
        path = self.path.format(*(quote(str(part), safe="") for part in place))
        return _change(self.method, f"/orders/{_id(order)}{path}", body, options, **if_match)


class ActionWithBody(Action, Generic[T]):
    """A change of an order by a body of the type T."""

    def __call__(  # type: ignore[override]
        self, order: OrderRef, *place: str | int, body: T, **options: Unpack[ChangeOptions]
    ) -> Request[d.Order]:
        return self._request(order, place, body, options)


update_order = ActionWithBody[d.OrderPatch]("PATCH", "")
confirm_order = Action("POST", "/confirm")
cancel_order = ActionWithBody[d.CancellationIn]("POST", "/cancel")
complete_order = Action("POST", "/complete")
reopen_order = ActionWithBody[d.ReopeningIn]("POST", "/reopen")
place_hold = ActionWithBody[d.HoldIn]("PUT", "/holds/{}")
release_hold = Action("DELETE", "/holds/{}")
record_payment = ActionWithBody[d.PaymentIn]("POST", "/payments")
fulfill_order = ActionWithBody[d.FulfillmentIn]("POST", "/fulfillments")
update_tracking = ActionWithBody[d.FulfillmentPatch]("PATCH", "/fulfillments/{}")
record_delivery_event = ActionWithBody[d.DeliveryEventIn]("POST", "/fulfillments/{}/events")
return_items = ActionWithBody[d.ReturnIn]("POST", "/returns")
receive_return = Action("POST", "/returns/{}/receive")
reject_return = Action("POST", "/returns/{}/reject")


def create_order(order: d.OrderIn, **options: Unpack[ChangeOptions]) -> Request[d.Order]:
    return _change("POST", "/orders", order, options)


def create_orders(orders: Sequence[d.BatchEntryIn]) -> Request[d.BatchResults]:
    entries = [{"idempotency_key": new_key(), **order} for order in orders]
    return Request("POST", "/orders/batch", {"orders": entries}, repeatable=True)


def act_on_orders(actions: Sequence[d.BulkActionIn]) -> Request[d.ActionResults]:
    entries = [{"idempotency_key": new_key(), **action} for action in actions]
    return Request("POST", "/orders/actions", {"actions": entries}, repeatable=True)


def get_order(order: OrderRef, *, version: int | None = None) -> Request[d.Order]:
    return Request("GET", f"/orders/{_id(order)}", query={} if version is None else {"version": version})


def get_order_by_reference(external_ref: str) -> Request[d.Order]:
    return Request("GET", f"/orders/by-ref/{quote(external_ref, safe='')}")


def list_orders(**query: Parameter) -> Listing[d.Order]:
    return Listing(Request("GET", "/orders", query=query), "orders")


def search_orders(**query: Parameter) -> Listing[d.Order]:
    """Orders by words (`q`) and filters. `**{"metadata.gift": "yes"}` finds those with this pair."""
    return Listing(Request("GET", "/orders/search", query=query), "orders")


def list_order_history(order: OrderRef, **query: Parameter) -> Listing[d.Event]:
    return Listing(Request("GET", f"/orders/{_id(order)}/history", query=query), "events")


def list_feed_events(**query: Parameter) -> Listing[d.FeedEvent]:
    """The events of all orders, to the end of the feed; with `wait` also those to come, without end."""
    return Listing(Request("GET", "/events", query=query), "events", cursor="after")


def stream_events(**query: Parameter) -> Stream[d.FeedEvent]:
    """The events of all orders as they happen, after the event `after`, a `seq`."""
    return Stream(Request("GET", "/events", query=query))


def stream_order_events(order: OrderRef, *, after: int = 0) -> Stream[d.Event]:
    """The events of an order as they happen, after the version `after`."""
    return Stream(Request("GET", f"/orders/{_id(order)}/events", query={"after": after}))


def list_deliveries(webhook_id: str, **query: Parameter) -> Listing[d.Delivery]:
    return Listing(Request("GET", f"/webhooks/{webhook_id}/deliveries", query=query), "deliveries")


def create_webhook(body: d.WebhookIn) -> Request[d.Webhook]:
    """Sent once: a lost response may leave a webhook behind."""
    return Request("POST", "/webhooks", body)


def delete_webhook(webhook_id: str) -> Request[None]:
    return Request("DELETE", f"/webhooks/{webhook_id}")


def rotate_secret(webhook_id: str) -> Request[d.Webhook]:
    return Request("POST", f"/webhooks/{webhook_id}/rotate-secret")
