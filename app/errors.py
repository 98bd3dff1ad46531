"""The errors that clients receive as problem documents. This module does not depend on Flask.

Every subclass of `ServiceError` that has a slug is a problem type (RFC 9457). Its docstring is the text of its page,
`/problems/{slug}`: what is wrong and, in a second paragraph, what to do.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self


class ServiceError(Exception):
    """Base of all problems.

    `retry_after` is in seconds; `members` are extension members of the problem document (RFC 9457 §3.2).
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    retry_after: ClassVar[int | None] = None

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        self.reason: str | None = None  # for the log, if it must not be in the response

    def with_headers(self, **headers: str) -> Self:
        """Add response headers and return the error. Underscores in the names stand for hyphens."""
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self


class BadRequest(ServiceError):
    """The request is not valid HTTP, or its query is not percent-encoded UTF-8.

    Correct what the detail names, compare the request with the API description, and send it again.
    """

    status, slug, title = 400, "bad-request", "Bad request"


class MalformedJSON(ServiceError):
    """The body is not valid JSON. It must be UTF-8 without a byte order mark, nested at most 32 levels deep, without
    duplicate members, NaN or Infinity.

    The detail names the error and its place. Correct it and send the request again. Nothing was stored.
    """

    status, slug, title = 400, "malformed-json", "The body is not valid JSON"


class InvalidRequest(ServiceError):
    """The body or the parameters are not valid. `errors` lists every error: a JSON pointer into the body, or the name
    of the parameter, and what is allowed there.

    Correct them and send the request again. Nothing was stored.
    """

    status, slug, title = 400, "invalid-request", "The request is not valid"


class InvalidCursor(ServiceError):
    """The cursor is damaged, or belongs to another list. A cursor is valid only with the filters and the sort order of
    the page that returned it.

    Start again without a cursor, or follow the `Link` header unchanged.
    """

    status, slug, title = 400, "invalid-cursor", "The cursor is not valid for this list"


class InvalidIdempotencyKey(ServiceError):
    """The Idempotency-Key header is malformed.

    Send one key of 1 to 255 printable ASCII characters: bare, without spaces, commas or quotes, or as a quoted string.
    A UUID is a good key.
    """

    status, slug, title = 400, "invalid-idempotency-key", "The Idempotency-Key is malformed"


class Unauthenticated(ServiceError):
    """The request has no credentials, or they are malformed, unknown, expired or revoked.

    Send `Authorization: Bearer` with an API key of this service, or with a token of the configured issuer.
    """

    status, slug, title = 401, "unauthenticated", "Valid credentials are required"


class Forbidden(ServiceError):
    """The credentials are valid, but do not allow this request. The detail names the missing scope or the rule.

    Ask the operators of the service for an API key or a token with that scope.
    """

    status, slug, title = 403, "forbidden", "Not allowed"


class NotFound(ServiceError):
    """No resource has this path.

    Check its spelling; the API description at `/docs` lists all paths.
    """

    status, slug, title = 404, "not-found", "Not found"


class OrderNotFound(ServiceError):
    """The order, or the requested version of it, does not exist, or belongs to another customer or to a channel that
    your API key is not bound to; the response does not reveal which.

    Check the order id, the version and the credentials. `GET /orders?number=` finds an order by its number.
    """

    status, slug, title = 404, "order-not-found", "Order not found"


class ErasureNotFound(ServiceError):
    """The erasure does not exist, or belongs to another customer; the response does not reveal which.

    Use the address in the `Location` header of the response that started the erasure.
    """

    status, slug, title = 404, "erasure-not-found", "Erasure not found"


class WebhookNotFound(ServiceError):
    """The webhook does not exist, or sends events of channels that your API key is not bound to.

    `GET /webhooks` lists those that you can manage.
    """

    status, slug, title = 404, "webhook-not-found", "Webhook not found"


class EventNotFound(ServiceError):
    """No event has this id, or the webhook does not send events of its channel.

    The id of an event is the order's id, a colon and the version: the `webhook-id` of a delivery.
    """

    status, slug, title = 404, "event-not-found", "Event not found"


class FulfillmentNotFound(ServiceError):
    """The order has no fulfillment with this number.

    Read the order: its `fulfillments` state their numbers.
    """

    status, slug, title = 404, "fulfillment-not-found", "Fulfillment not found"


class ReturnNotFound(ServiceError):
    """The order has no return with this number.

    Read the order: its `returns` state their numbers.
    """

    status, slug, title = 404, "return-not-found", "Return not found"


class MethodNotAllowed(ServiceError):
    """The resource exists, but does not support this method.

    Use one of the methods in the `Allow` header.
    """

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(ServiceError):
    """The resource has no representation of a media type in `Accept`. The detail lists the available media types.

    Send one of them in `Accept`, or `*/*`, or no `Accept` header.
    """

    status, slug, title = 406, "not-acceptable", "No acceptable media type"


class IllegalAction(ServiceError):
    """The state of the order does not allow this action. `order_status` is the order's status, `current_version` its
    version, and `allowed_actions` lists what is possible now.

    Read the order, and decide whether another action is what you need. An order whose customer was erased accepts no
    personal data: send the change without the members that the detail names.
    """

    status, slug, title = 409, "illegal-action", "The order does not allow this action"


class TooManyVersions(ServiceError):
    """The order has 10,000 versions, the maximum. It can still be cancelled, completed or released from a hold, and its
    personal data can be erased; every other change is refused.

    Store frequently changing values outside the order.
    """

    status, slug, title = 409, "too-many-versions", "The order has too many versions"


class OrderTooLarge(ServiceError):
    """With this change, the order's JSON document would have more than 1,048,576 characters, the maximum. It can still
    be cancelled, completed or released from a hold, and its personal data can be erased.

    Store long texts outside the order.
    """

    status, slug, title = 409, "order-too-large", "The order is too large"


class TooManyIdempotencyKeys(ServiceError):
    """20,000 idempotency keys have been used for changes of this order, the maximum, and this request would change
    nothing.

    Read the order. To repeat the request anyway, send it without an `Idempotency-Key`. Find out why a client sends the
    same change again and again under new keys.
    """

    status, slug, title = 409, "too-many-idempotency-keys", "The order has too many idempotency keys"


class QuantityExceeded(ServiceError):
    """A line has fewer units left than requested. Only open units, neither cancelled nor fulfilled, can be cancelled or
    fulfilled; only fulfilled units that are neither returned nor expected back can be returned. `errors` names each
    such line and the units it has left.

    Read the order and reduce the quantities.
    """

    status, slug, title = 409, "quantity-exceeded", "Not enough units remain"


class AmountExceeded(ServiceError):
    """Refunds and chargebacks together must not exceed what was captured, and voids must not exceed what was
    authorized.

    Read the order: `payments` has every entry, `totals` their sums. Record the missing capture first, or a smaller
    amount. Before you reverse a capture that was refunded, record the right capture, or reverse the refund.
    """

    status, slug, title = 409, "amount-exceeded", "The amount is too large"


class DuplicatePayment(ServiceError):
    """The order has a payment of this type and reference with another amount. A payment is recorded once and does not
    change.

    Read the order's `payments`; record another payment under a reference of its own. If the recorded amount is wrong,
    record its reversal too.
    """

    status, slug, title = 409, "duplicate-payment", "The payment is recorded with another amount"


class DuplicateExternalRef(ServiceError):
    """You already have an order with this `external_ref`; `order_id` is its id, unless it belongs to a channel that
    your API key has no access to.

    Read that order, or use another reference. To retry safely, send an Idempotency-Key: a retry then returns the order
    instead of this problem.
    """

    status, slug, title = 409, "duplicate-external-ref", "The external reference is already in use"


class RequestInFlight(ServiceError):
    """A request with the same Idempotency-Key or external reference is still being processed.

    Send this request again after `Retry-After` seconds; it then returns the result of the first one.
    """

    status, slug, title = 409, "request-in-flight", "The same request is in progress"
    retry_after = 1


class OpenOrders(ServiceError):
    """The customer has pending or confirmed orders, which still need the personal data.

    Complete or cancel them and send the request again; `order_id` is the id of one of them.
    """

    status, slug, title = 409, "open-orders", "The customer has open orders"


class TooManyWebhooks(ServiceError):
    """There are 200 webhooks, the maximum.

    Delete those that are no longer used, or let one endpoint pass events on to several systems.
    """

    status, slug, title = 409, "too-many-webhooks", "There are too many webhooks"


class CursorExpired(ServiceError):
    """Events after this cursor are no longer in the feed, because the feed does not reach back that far; or the feed
    ends before the cursor, because the database has been restored from a backup. The events in between cannot be read
    one by one.

    List the orders to know their current state (`GET /orders`, or the history of those that you know), and continue
    with `after` as the detail says; `oldest_after` is the lowest `after` with which the feed can be read.
    """

    status, slug, title = 410, "cursor-expired", "The feed does not reach back to the cursor"


class VersionMismatch(ServiceError):
    """The order has changed since the version in `If-Match`. Nothing was changed by this request.

    Read the order again, check that your change still makes sense, and send it with the new entity tag;
    `current_version` is the order's version. If `If-Match` has a weak entity tag (`W/"1"`), which never matches, the
    detail says so.
    """

    status, slug, title = 412, "version-mismatch", "The order has changed"


class PreconditionFailed(ServiceError):
    """A condition of the request does not hold: `If-None-Match` names the current entity tag, or is `*` in a change of
    an existing resource; or `If-Match` names an entity tag that the resource does not have. Nothing was changed.

    The conditions of a change refer to the order, even on paths below it. Send the request without the header, or read
    the resource again and send its current `ETag`.
    """

    status, slug, title = 412, "precondition-failed", "A condition of the request does not hold"


class PreconditionRequired(ServiceError):
    """This service requires `If-Match` on every change, so that no client overwrites the change of another.

    Read the order and send its `ETag` in `If-Match`.
    """

    status, slug, title = 428, "precondition-required", "If-Match is required"


class RequestTimeout(ServiceError):
    """The request did not arrive in time. The limit is 10 seconds for the head, and for the body 10 seconds plus one
    second per 64 KiB. Nothing was stored.

    Send the request again on a new connection.
    """

    status, slug, title = 408, "request-timeout", "Request timeout"


class ContentTooLarge(ServiceError):
    """The body is larger than this resource accepts; the detail names the limit.

    Split the body into several requests.
    """

    status, slug, title = 413, "content-too-large", "The body is too large"


class UnsupportedMediaType(ServiceError):
    """The body must be JSON in UTF-8.

    Send `Content-Type: application/json`, without a `Content-Encoding`.
    """

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class IdempotencyKeyReused(ServiceError):
    """The Idempotency-Key was already used with a different body.

    Use a new key for a new request, and the same key and body for a retry.
    """

    status, slug, title = 422, "idempotency-key-reused", "The Idempotency-Key was used with a different body"


class TooManyRequests(ServiceError):
    """You have sent more requests than your rate limit allows, or have too many requests, exports or event streams open
    at the same time.

    Wait for `Retry-After` seconds; the `RateLimit` header states how many requests remain. Each order of a batch counts
    as one request; a batch that is refused or not valid counts as one for each 64 KiB. A batch larger than the limit is
    accepted only if the limit is unused; later requests are then refused until the excess has been made up.
    """

    status, slug, title = 429, "too-many-requests", "Too many requests"
    retry_after = 1


class InternalError(ServiceError):
    """The service failed unexpectedly, and has logged the error under `request_id`.

    Report that id to the operators. With the same Idempotency-Key the request can be retried safely.
    """

    status, slug, title = 500, "internal-error", "Internal error"


class ServiceUnavailable(ServiceError):
    """The service is temporarily unavailable, usually because the database is unreachable or overloaded.

    Send the request again after `Retry-After` seconds; with the same Idempotency-Key that is safe. Without a key, read
    `detail` first: it says when the order may have been created or changed.
    """

    status, slug, title = 503, "service-unavailable", "Temporarily unavailable"
    retry_after = 1


def problem_types() -> Iterator[type[ServiceError]]:
    """Yield every problem type: each subclass that has a slug of its own."""
    pending = [ServiceError]
    while pending:
        for subclass in pending.pop().__subclasses__():
            pending.append(subclass)
            if "slug" in vars(subclass):
                yield subclass


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """The number with the noun: 1 event, 2,000 events. `plural` is the noun with an s by default."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
