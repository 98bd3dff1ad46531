"""What can go wrong, in the domain's words: a status, a slug, a sentence. No Flask here.

Every class below `ServiceError` is one problem type (RFC 9457). Its docstring is the text of the page
`/problems/{slug}`: what happened, and what to do.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self


class ServiceError(Exception):
    """Base of every problem a client can be shown.

    `retry_after` is a number of seconds; `members` are extension members of the problem document.
    """

    status: ClassVar[int]
    slug: ClassVar[str]
    title: ClassVar[str]
    retry_after: ClassVar[int | None] = None

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.headers: dict[str, str] = {}
        self.reason: str | None = None  # what the log says where the detail tells the client less

    def with_headers(self, **headers: str) -> Self:
        """The same error, told with more headers; underscores in their names stand for hyphens."""
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self


class BadRequest(ServiceError):
    """The request could not be understood as HTTP. Compare it with the API description and send it corrected."""

    status, slug, title = 400, "bad-request", "Bad request"


class MalformedJSON(ServiceError):
    """The body is not one JSON text as the service reads it: UTF-8 without a byte order mark, nested at most 32 deep,
    no member twice in one object, no NaN or Infinity. The detail names the place; nothing was stored."""

    status, slug, title = 400, "malformed-json", "The body is not valid JSON"


class InvalidRequest(ServiceError):
    """The request was read, but breaks rules of the API. `errors` lists every fault at once: the JSON pointer into the
    body, or the name of the query parameter, and what is expected there. Correct them all and send it again; nothing
    was stored."""

    status, slug, title = 400, "invalid-request", "The request is not valid"


class InvalidCursor(ServiceError):
    """The cursor was not made by this service, or for a list with other filters. A cursor goes with the filters and the
    sort of the page it came from. Start again without one, or follow the `Link` header as it is."""

    status, slug, title = 400, "invalid-cursor", "The cursor does not fit this list"


class InvalidIdempotencyKey(ServiceError):
    """The Idempotency-Key header is malformed. Send 1 to 255 printable ASCII characters, bare (without spaces, commas
    or quotes) or as a quoted string; a UUID is a good choice."""

    status, slug, title = 400, "invalid-idempotency-key", "The Idempotency-Key is malformed"


class Unauthenticated(ServiceError):
    """The request carries no credentials, or none that are worth anything (any more): unknown, malformed, expired or
    revoked. Send `Authorization: Bearer` with an API key or a token of the configured issuer."""

    status, slug, title = 401, "unauthenticated", "Valid credentials are required"


class Forbidden(ServiceError):
    """You are known, but may not do this. The detail names the scope that is missing, or the rule; ask the operators
    of the service for a key or a token that has it."""

    status, slug, title = 403, "forbidden", "Not allowed"


class NotFound(ServiceError):
    """There is nothing at this address. The paths that exist are listed in the API description."""

    status, slug, title = 404, "not-found", "No such resource"


class OrderNotFound(ServiceError):
    """There is no such order, no such version of it, or it is not yours to see; the answer is the same in all cases.
    Check the id, and the credentials it is asked for with."""

    status, slug, title = 404, "order-not-found", "No such order"


class ErasureNotFound(ServiceError):
    """There is no such erasure, or it is not yours to see; the answer is the same in both cases. The `Location` of the
    answer that started one is its address."""

    status, slug, title = 404, "erasure-not-found", "No such erasure"


class MethodNotAllowed(ServiceError):
    """The resource exists but does not know this method. The `Allow` header lists those it does."""

    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class NotAcceptable(ServiceError):
    """The resource has none of the media types that `Accept` names; the detail lists those it has. Send one of them, or
    `*/*`, or no `Accept` at all."""

    status, slug, title = 406, "not-acceptable", "None of the media types is available"


class IllegalAction(ServiceError):
    """The order's status does not allow this. The problem names the `order_status` and the `allowed_actions`: read the
    order again, and choose one of them. An order whose customer was erased takes no personal data any more: send the
    change without the members that the detail names."""

    status, slug, title = 409, "illegal-action", "The order does not allow this now"


class TooManyVersions(ServiceError):
    """An order has at most 10,000 versions. This one can still be ended (cancel, complete, release a hold) and its
    personal data can be erased; nothing else can be changed any more. Whatever changes an order that often is better
    kept elsewhere."""

    status, slug, title = 409, "too-many-versions", "The order has too many versions"


class QuantityExceeded(ServiceError):
    """More units than there are: a fulfillment can send only what was ordered and not sent yet, a return only what was
    sent and has not come back. `errors` names each line and what remains."""

    status, slug, title = 409, "quantity-exceeded", "More units than there are"


class DuplicateExternalRef(ServiceError):
    """You already have an order with this `external_ref`; `order_id` names it. Read that order, or choose another
    reference. To make a retry safe, send an Idempotency-Key: it answers with the order instead of this problem."""

    status, slug, title = 409, "duplicate-external-ref", "The external reference is taken"


class RequestInFlight(ServiceError):
    """A request with the same Idempotency-Key or external reference is still being worked on. Send the same request
    again after `Retry-After` seconds: it will be answered with the first one's result."""

    status, slug, title = 409, "request-in-flight", "The same request is in progress"
    retry_after = 1


class OpenOrders(ServiceError):
    """The customer has orders that are not ended: personal data is still needed to fulfill them. Complete or cancel
    them first; `order_id` names one."""

    status, slug, title = 409, "open-orders", "The customer has open orders"


class VersionMismatch(ServiceError):
    """The order is no longer at the version that `If-Match` names; somebody changed it in between. Read it again
    (`current_version` tells its version), look whether your change still makes sense, and send it with the new entity
    tag. Where `If-Match` has a weak tag (`W/"1"`), which never matches, the detail says so. Nothing was changed."""

    status, slug, title = 412, "version-mismatch", "The order has changed"


class PreconditionRequired(ServiceError):
    """This service takes changes only with `If-Match`: send the `ETag` of the order as you read it, so that nobody's
    change is lost."""

    status, slug, title = 428, "precondition-required", "If-Match is required"


class RequestTimeout(ServiceError):
    """The request did not arrive in time: a head has 10 seconds, a body 10 seconds and another for each 64 KiB. Nothing
    was stored; send it again on a new connection."""

    status, slug, title = 408, "request-timeout", "Request timeout"


class ContentTooLarge(ServiceError):
    """The body is larger than this resource takes. Split the work into several requests."""

    status, slug, title = 413, "content-too-large", "The body is too large"


class UnsupportedMediaType(ServiceError):
    """The body must be JSON in UTF-8, without a content coding: send `Content-Type: application/json` and no
    `Content-Encoding`."""

    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class IdempotencyKeyReused(ServiceError):
    """This Idempotency-Key was used for another request body. A key belongs to one request for good: use a new key for
    a new request, and the same body for a retry."""

    status, slug, title = 422, "idempotency-key-reused", "The Idempotency-Key belongs to another request"


class TooManyRequests(ServiceError):
    """You have sent more requests than your share, where each order of a batch counts as one, or are reading as many
    exports at once as you may. Wait for `Retry-After` seconds; the `RateLimit` headers tell how many requests are left.
    A batch larger than the whole share is taken while all of it is left, and paid off before anything else."""

    status, slug, title = 429, "too-many-requests", "Too many requests"
    retry_after = 1


class InternalError(ServiceError):
    """Something failed that should not have. It has been logged under `request_id`; tell the operators that id. A retry
    with the same Idempotency-Key is safe."""

    status, slug, title = 500, "internal-error", "Internal error"


class ServiceUnavailable(ServiceError):
    """The service cannot answer just now, usually because the database is away or too busy. Send the request again
    after `Retry-After` seconds; with the same Idempotency-Key that is safe."""

    status, slug, title = 503, "service-unavailable", "Temporarily unavailable"
    retry_after = 1


def problem_types() -> Iterator[type[ServiceError]]:
    """Every problem type there is; a class without a slug only groups those below it."""
    families = [ServiceError]
    while families:
        for kind in families.pop().__subclasses__():
            families.append(kind)
            if "slug" in vars(kind):
                yield kind
