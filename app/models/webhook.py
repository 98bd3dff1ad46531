"""Webhooks: the endpoints that events are sent to, and one delivery for each event and endpoint.

The rules at the end, which URLs and addresses an endpoint may have, protect against server-side request forgery (SSRF).
The grammar is far narrower than a URL's: what parsers read differently, such as user names, backslashes, numbers in
other notations than dotted decimal, or characters beyond ASCII, is refused instead of interpreted.
"""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ColumnElement, Index, Integer, String, Text, literal_column, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.engine import JSON_VALUE, UUID, Base, Timestamp
from app.models.principal import PRINCIPAL_MAX

URL_MAX = 2_048  # characters
DESCRIPTION_MAX = 200  # characters
PAYLOADS = THIN, WITH_ORDER = ("thin", "order")

# A deleted endpoint stays, invisible, until a worker has deleted its deliveries.
ENABLED, DISABLED, DELETED = "enabled", "disabled", "deleted"
# Why an endpoint is disabled: a request disabled it, it answered 410, or it failed for days.
PAUSED, GONE, FAILING = "paused", "gone", "failing"
PENDING, SUCCEEDED, FAILED = "pending", "succeeded", "failed"
DELIVERY_STATUSES = (PENDING, SUCCEEDED, FAILED)

# Literals, because partial indexes serve no condition with a parameter, which could have any value.
STATUS_LITERALS: dict[str, ColumnElement[str]] = {name: literal_column(f"'{name}'") for name in DELIVERY_STATUSES}
PENDING_LITERAL, FAILED_LITERAL = STATUS_LITERALS[PENDING], STATUS_LITERALS[FAILED]
_IS_PENDING, _IS_FAILED = text("status = 'pending'"), text("status = 'failed'")
# Every pending delivery has a time. The condition keeps the planner from searching the deliveries of an order in the
# index of these times, which is small, because deliveries that are queued together share a time.
_IS_TIMED = text("status = 'pending' AND next_attempt_at IS NOT NULL")

REPLAY_MAX = 10_000  # events or deliveries that one request queues again

# Events of endpoints instead of orders. An endpoint receives them only if it names them in `events`.
TEST, ENDPOINT_FAILING, ENDPOINT_DISABLED = "webhook.test", "endpoint.failing", "endpoint.disabled"
ENDPOINT_EVENT_TYPES = (ENDPOINT_FAILING, ENDPOINT_DISABLED)

RETRY_FIRST, RETRY_MAX = timedelta(seconds=5), timedelta(hours=12)  # upper limit of the first pause, and of any
GIVE_UP_AFTER = timedelta(hours=72)  # from the first attempt until the delivery fails for good
DISABLE_AFTER_FAILURES = 15  # failures in a row that disable an endpoint, if they last for GIVE_UP_AFTER
# An endpoint that fails this often in a row receives one request at a time, with pauses, until one succeeds.
UNREACHABLE_AFTER = 5
REPORT_EVERY = timedelta(hours=1)  # at least this long between two reports about one endpoint
SUCCESS_RECORDED_EVERY = timedelta(minutes=1)  # most deliveries then leave the endpoint's row unchanged
_OVERLOADED = (429, 503)  # statuses whose Retry-After is about the endpoint and not about one event


class WebhookEndpoint(Base):
    """A URL that events are sent to.

    `events` and `channels` are filters; None means all events of orders and all channels. `secret` signs the requests;
    `previous_secret` signs them too until `previous_secret_until`. Both are sealed by `SecretStore` of
    `app.services.credentials`. Events up to `last_seq` of the feed have a delivery if they match the filters. The
    endpoint receives no request before `retry_at`.
    """

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    events: Mapped[list[str] | None] = mapped_column(JSON_VALUE)
    channels: Mapped[list[str] | None] = mapped_column(JSON_VALUE)
    payload: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    disabled_reason: Mapped[str | None] = mapped_column(String(16))
    secret: Mapped[str] = mapped_column(Text)
    previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_until: Mapped[datetime | None] = mapped_column(Timestamp)
    created_by: Mapped[str] = mapped_column(String(PRINCIPAL_MAX))
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    updated_at: Mapped[datetime] = mapped_column(Timestamp)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    consecutive_failures: Mapped[int] = mapped_column(Integer)
    failing_since: Mapped[datetime | None] = mapped_column(Timestamp)
    reported_at: Mapped[datetime | None] = mapped_column(Timestamp)
    retry_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_success_at: Mapped[datetime | None] = mapped_column(Timestamp)
    last_failure_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (CheckConstraint("status IN ('enabled', 'disabled', 'deleted')", name="status"),)

    def enable(self) -> None:
        """Enable the endpoint and forget its failures."""
        self.status, self.disabled_reason = ENABLED, None
        self.reset_failures()

    def disable(self, reason: str) -> None:
        """Send nothing more. Pending deliveries stay pending, and are sent when the endpoint is enabled."""
        self.status, self.disabled_reason = DISABLED, reason

    def reset_failures(self) -> None:
        """Reset the health of the endpoint to that of a new one."""
        self.consecutive_failures, self.failing_since, self.retry_at = 0, None, None

    def record_success(self, at: datetime) -> None:
        """Record that the endpoint has accepted an event."""
        self.reset_failures()
        self.last_success_at = at

    def record_failure(self, at: datetime, *, status: int | None, retry_after: float | None) -> str | None:
        """Record a failed attempt, and return the type of the event that reports it to operators, or None.

        The first failure of a series is reported. The endpoint is disabled if it answered 410, or if it has failed at
        least DISABLE_AFTER_FAILURES times in a row and for GIVE_UP_AFTER.
        """
        self.consecutive_failures += 1
        self.failing_since = self.failing_since or at
        self.last_failure_at = at
        if self.consecutive_failures >= UNREACHABLE_AFTER:
            self.retry_at = at + retry_pause(self.consecutive_failures - UNREACHABLE_AFTER + 1, retry_after=retry_after)
        elif retry_after is not None and status in _OVERLOADED:
            self.retry_at = at + min(RETRY_MAX, timedelta(seconds=retry_after))
        if self.status != ENABLED:
            return None
        is_lasting = self.consecutive_failures >= DISABLE_AFTER_FAILURES and at - self.failing_since >= GIVE_UP_AFTER
        if status == HTTPStatus.GONE or is_lasting:
            self.disable(GONE if status == HTTPStatus.GONE else FAILING)
            return ENDPOINT_DISABLED
        if self.reported_at is not None and at - self.reported_at < REPORT_EVERY:
            return None
        self.reported_at = at
        return ENDPOINT_FAILING


def retry_pause(failures: int, *, retry_after: float | None) -> timedelta:
    """The pause before the next attempt after `failures` in a row: a random part of a limit that doubles each time.

    The full jitter spreads the retries of many deliveries
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The pause is not shorter than
    `retry_after`, in seconds, and not longer than RETRY_MAX.
    """
    limit = min(RETRY_MAX, RETRY_FIRST * 2.0 ** min(failures - 1, 30))
    pause = limit * random.random()  # nosec B311
    return min(RETRY_MAX, max(pause, timedelta(seconds=retry_after or 0)))


class WebhookDelivery(Base):
    """One event for one endpoint. It contains no payload: that is rendered from the event's snapshot when it is sent.

    `order_id`, `version` and `seq` are None for events of endpoints, whose payload is `data`. A worker that sends the
    delivery holds its `lease` until `next_attempt_at`, so that the delivery is due again after a crash. `attempts` are
    the latest ones. Attempts are made for a limited time after `first_attempt_at`.
    """

    __tablename__ = "webhook_deliveries"

    endpoint_id: Mapped[str] = mapped_column(UUID, primary_key=True)
    id: Mapped[str] = mapped_column(UUID, primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    order_id: Mapped[str | None] = mapped_column(UUID)
    version: Mapped[int | None] = mapped_column(Integer)
    seq: Mapped[int | None] = mapped_column(BigInteger)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON_VALUE)
    status: Mapped[str] = mapped_column(String(16))
    attempt_count: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSON_VALUE)
    lease: Mapped[str | None] = mapped_column(String(32))
    next_attempt_at: Mapped[datetime | None] = mapped_column(Timestamp)
    first_attempt_at: Mapped[datetime | None] = mapped_column(Timestamp)
    created_at: Mapped[datetime] = mapped_column(Timestamp)
    finished_at: Mapped[datetime | None] = mapped_column(Timestamp)

    __table_args__ = (
        Index("uq_webhook_deliveries_order_id_version_endpoint_id", order_id, version, endpoint_id, unique=True),
        # What is due, the earlier deliveries of an order that a delivery waits for, and what can be sent again.
        Index(
            "ix_webhook_deliveries_endpoint_id_next_attempt_at",
            endpoint_id,
            next_attempt_at,
            postgresql_where=_IS_TIMED,
            sqlite_where=_IS_TIMED,
        ),
        Index(
            "ix_webhook_deliveries_pending",
            endpoint_id,
            order_id,
            version,
            postgresql_where=_IS_PENDING,
            sqlite_where=_IS_PENDING,
        ),
        Index(
            "ix_webhook_deliveries_endpoint_id_finished_at",
            endpoint_id,
            finished_at,
            postgresql_where=_IS_FAILED,
            sqlite_where=_IS_FAILED,
        ),
        CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name="status"),
    )


def includes_channels(channels: Collection[str] | None, others: Collection[str] | None) -> bool:
    """Whether all of the others are among the channels; None stands for every channel."""
    return channels is None or (others is not None and set(channels).issuperset(others))


def event_id(order_id: str | None, version: int | None, delivery_id: str) -> str:
    """The id of an event of an order; an event of an endpoint has the id of its delivery."""
    return delivery_id if order_id is None else f"{order_id}:{version}"


# RFC 3986 without user name and fragment, in ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<target>[/?][!$-;=?-Z_a-z~]*)?"
)
_NOT_AN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST_NAME_MAX = 253  # characters of a host name (RFC 1035 §2.3.4)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_UNPRIVILEGED_PORT = 1024  # ports below it are those of mail, SSH, DNS and other protocols

# Names that never resolve to a host on the public internet: RFC 6761, RFC 6762, RFC 7686, RFC 8375, RFC 9476, ICANN's
# .internal, and those that clouds give to their metadata services.
_PRIVATE_DOMAINS = (
    "localhost", "localdomain", "local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa",
    "in-addr.arpa", "ip6.arpa", "onion", "alt", "test", "invalid", "example",
)  # fmt: skip

# Beyond what `is_global` of the standard library refuses: its list depends on the version of Python.
# https://www.iana.org/assignments/iana-ipv4-special-registry, …/iana-ipv6-special-registry
_REFUSED_NETWORKS = [
    ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's platform, which answers inside every virtual network
        "2001::/23",  # Teredo, ORCHID and other protocols' own addresses
        "2001:db8::/32", "2002::/16", "3fff::/20",
    )
]  # fmt: skip
# All unicast addresses of the internet. Outside are loopback, link-local, private and multicast addresses, and those
# that contain an IPv4 address: mapped, compatible, NAT64.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_PRIVATE_NETWORKS = [ip_network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")]
# Among them, the metadata services of AWS, Google Cloud and Oracle Cloud.
_METADATA_NETWORKS = [ip_network(network) for network in ("fd00:ec2::/32", "fd20:ce::/32", "fd00:c1::/32")]


class RefusedURL(ValueError):
    """The URL or one of its addresses is refused. The message says what is allowed."""


@dataclass(frozen=True, slots=True)
class WebhookURL:
    """A URL that `parse_webhook_url` accepts. `host` is a name in lower case or an address, without brackets.

    `target` is the path with the query. `netloc` is the host as the Host header names it (RFC 9110 §7.2).
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_webhook_url(text: str, *, allow_private: bool) -> WebhookURL:
    """Parse the URL of an endpoint. Raises RefusedURL.

    It is https, without user name and fragment, with a port of 443 or at least 1024. Its host is a domain name in
    ASCII or a public address. With `allow_private`, which is for development, also http, any port, loopback and private
    addresses, and names without a dot.
    """
    match = _URL.fullmatch(text)
    if match is None or _NOT_AN_ESCAPE.search(text):
        schemes = "http:// or https://" if allow_private else "https://"
        raise RefusedURL(
            f"This must be an {schemes} URL in ASCII with a host name, without user name, password and fragment; "
            "international domain names in their xn-- form."
        )
    scheme = match["scheme"]
    port = int(match["port"] or _DEFAULT_PORTS[scheme])
    if scheme == "http" and not allow_private:
        raise RefusedURL("This must be an https:// URL.")
    if port > 65_535 or not (allow_private or port == 443 or port >= _FIRST_UNPRIVILEGED_PORT):
        raise RefusedURL("The port must be 443, or from 1024 to 65535.")
    host = _literal_address(match["host"])
    if host is not None:
        check_addresses([host], allow_private=allow_private)
    else:
        host = match["host"].lower()
        _check_host_name(host, allow_private=allow_private)
    target = match["target"] or "/"
    return WebhookURL(scheme, host, port, target if target.startswith("/") else f"/{target}")


def _literal_address(host: str) -> str | None:
    """The address that the host of a URL is, or None for a name. Raises RefusedURL for another notation of one.

    A name whose last part is a number is an IPv4 address for browsers and for the C library: 127.1, 0x7f000001, 017…
    (https://url.spec.whatwg.org/#concept-ipv4-parser).
    """
    bare = host.strip("[]")
    try:
        address = IPv6Address(bare) if host.startswith("[") else IPv4Address(bare)
    except ValueError:
        last = bare.removesuffix(".").rpartition(".")[2].lower()
        if host.startswith("[") or last.isdigit() or re.fullmatch("0x[0-9a-f]*", last):
            raise RefusedURL("The host is not an address: write IPv4 as four decimal numbers.") from None
        return None
    return str(address)


def _check_host_name(name: str, *, allow_private: bool) -> None:
    labels = name.split(".")
    if len(name) > _HOST_NAME_MAX or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise RefusedURL("The host is not a domain name: labels of letters, digits and hyphens, separated by dots.")
    if allow_private:
        return
    if len(labels) == 1 or name.endswith(tuple(f".{domain}" for domain in _PRIVATE_DOMAINS)):
        raise RefusedURL("The host must be a name in the public domain name system.")


def check_addresses(addresses: Sequence[str], *, allow_private: bool) -> None:
    """Raise RefusedURL unless there are addresses and all of them are public unicast addresses of the internet.

    One address that is not is enough: a name with a public and a private one leads to either. With `allow_private`,
    also loopback and private addresses (RFC 1918, RFC 4193), but no others: cloud metadata stays out of reach.
    """
    if not addresses:
        raise RefusedURL("The host name has no address.")
    if not all(_is_address_allowed(address, allow_private=allow_private) for address in addresses):
        raise RefusedURL("The host must have public addresses only.")


def _is_address_allowed(text: str, *, allow_private: bool) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if any(address in network for network in _METADATA_NETWORKS):
        return False
    if allow_private and (address.is_loopback or any(address in network for network in _PRIVATE_NETWORKS)):
        return True
    if isinstance(address, IPv6Address) and (address.scope_id or address not in _GLOBAL_UNICAST):
        return False
    return address.is_global and not any(address in network for network in _REFUSED_NETWORKS)
