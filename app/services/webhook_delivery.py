"""The delivery loop of a worker: claims what is due, sends it, and stores the results.

Requests are greenlets of one thread (`app.services.webhook_sender`); the loop uses the database meanwhile. An endpoint
has at most CONCURRENCY requests open in a worker, and one while it does not respond, so that a slow or dead endpoint
does not delay the others.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import gevent
import structlog
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from app.models.webhook import UNREACHABLE_AFTER
from app.services.webhook_claims import (
    ClaimedDelivery,
    DueEndpoint,
    any_due,
    claim,
    complete,
    due_endpoints,
    release,
)
from app.services.webhook_queue import fan_out
from app.services.webhook_sender import (
    REQUEST_SECONDS,
    Attempt,
    SecretStore,
    UnreadableSecret,
    WebhookSender,
    signed_headers,
)
from app.services.webhook_service import ENDPOINTS_MAX, end_impossible_pauses, prune_deliveries, webhook_rules
from app.services.worker import SEQUENCING, Task
from app.tracing import delivery_span, propagation_headers, record_response

log = structlog.get_logger()

Result = TypeVar("Result")

CONCURRENCY = 10  # open requests of one endpoint in a worker
# Deliveries claimed for a fast endpoint: more than can be sent at once, so that it need not wait for the database, but
# no more than it accepts in CLAIM_SECONDS. A delivery that has waited that long, because the endpoint has become
# slower, is released: within that time it may still be sent after an erasure, or after the endpoint is deleted or
# disabled.
CLAIMED_MAX = 150
CLAIM_SECONDS = 1.0
OPEN_MAX = 5_000  # claimed deliveries in a worker
# Results in one transaction. Each has up to 50 attempts with responses of a KiB: those of thousands would exceed the
# time limit of a statement at each attempt to store them.
RESULTS_MAX = 200
# Bytes of their bodies, some of which have a MiB. The sizes of the next bodies are known only once they are claimed: a
# claim assumes that each is as large as the largest one of the endpoint's last claim.
OPEN_BYTES_MAX = 64 * 1024**2
_CALL_SECONDS = 1.0
_IDLE_WAIT = 0.05  # seconds between two checks for new deliveries while requests are open
_COLLECT_SECONDS = 0.02  # seconds to wait for further results, so that they share a transaction


def webhook_tasks(config: Mapping[str, Any], observe: Callable[[Attempt], None]) -> tuple[Task, ...]:
    """The tasks of a worker: fill the queue, deliver, and delete old deliveries.

    `observe` is called after each request to an endpoint.
    """
    rules = webhook_rules(config)
    deliverer = WebhookDeliverer(WebhookSender(allow_private=rules.allow_private), rules.secrets, observe)
    return (
        Task("webhook queue", fan_out, idle_pause=1, woken_by=SEQUENCING),
        Task("webhooks", deliverer.run, idle_pause=0.5, woken_by="webhook queue", finish=deliverer.finish),
        Task("webhook pauses", end_impossible_pauses, idle_pause=600),
        Task("webhook retention", _Retention().run, idle_pause=3600),
    )


class _Retention:
    """Deletes old deliveries, a batch with each call."""

    def __init__(self) -> None:
        self._batches: Iterator[int] | None = None

    def run(self) -> bool:
        """Delete a batch, and return whether there may be more."""
        batches, self._batches = self._batches or prune_deliveries(), None  # after an error, the next call starts over
        if next(batches, None) is not None:
            self._batches = batches
        return self._batches is not None


@dataclass(slots=True)
class _EndpointState:
    """What a worker has claimed for one endpoint, and how the endpoint responds."""

    sending: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(CONCURRENCY))
    claimed: int = 0
    largest: int = 1  # bytes of a body of the last claim
    unstored: int = 0  # results
    milliseconds: int = round(1000 * CLAIM_SECONDS)  # of the last request; at first, a slow one is expected
    failing: bool = False  # the last request failed

    def capacity(self, endpoint: DueEndpoint) -> int:
        """How many more deliveries may be claimed for the endpoint."""
        if endpoint.consecutive_failures >= UNREACHABLE_AFTER:
            return 1 - self.claimed
        if self.failing or endpoint.consecutive_failures:
            # The results of its open requests may pause it once they are stored.
            return 0 if self.claimed or self.unstored else CONCURRENCY
        claimed_max = min(CLAIMED_MAX, int(CONCURRENCY * 1000 * CLAIM_SECONDS / max(self.milliseconds, 1)))
        if claimed_max <= CONCURRENCY:
            return CONCURRENCY - self.claimed
        return claimed_max - self.claimed if self.claimed < claimed_max / 2 else 0  # few large claims


class WebhookDeliverer:
    """Delivers webhooks in the thread that calls it."""

    def __init__(self, sender: WebhookSender, secrets: SecretStore, observe: Callable[[Attempt], None]) -> None:
        self._sender = sender
        self._secrets = secrets
        self._observe = observe
        self._endpoints: defaultdict[str, _EndpointState] = defaultdict(_EndpointState)
        self._open_bytes = 0  # of the bodies of what is claimed
        self._results: list[tuple[ClaimedDelivery, Attempt | None]] = []  # None: not sent
        self._finished = Event()
        self._stopping = False

    def run(self) -> bool:
        """Deliver due events for up to a second. Returns whether requests are open or more events are due.

        Open requests continue with the next call. Raises DATABASE_ERRORS; results that could not be stored are kept for
        the next call.
        """
        # First, not only when all is sent: one slow endpoint keeps the worker busy for as long as it has events.
        self._sender.close_idle()
        self._forget_idle()
        # Before a claim: while they cannot be stored, more would be sent without a limit, and those whose leases have
        # ended again.
        self._store_results()
        deadline = time.monotonic() + _CALL_SECONDS
        while time.monotonic() < deadline:
            claimed = self._claim()
            if not claimed and not self._is_busy():
                return False
            self._wait(_IDLE_WAIT)
            self._store_results()
        return True

    def finish(self) -> None:
        """Complete the open requests, and release deliveries that were claimed and not sent."""
        self._stopping = True
        deadline = time.monotonic() + REQUEST_SECONDS + 1
        while self._is_busy() and time.monotonic() < deadline:
            self._wait(_IDLE_WAIT)
            self._store_results()
        self._sender.close()

    def _claim(self) -> int:
        """Claim and begin to send what is due, and return its number."""
        if not _in_thread(any_due, datetime.now(UTC)):
            return 0
        total = 0
        endpoints = _in_thread(due_endpoints, datetime.now(UTC))
        random.shuffle(endpoints)  # the first ones may use all of the capacity: they must not be the same each time
        for endpoint in endpoints:
            state = self._endpoints[endpoint.id]
            limit = min(state.capacity(endpoint), OPEN_MAX - self._claimed(), self._fitting(state.largest))
            if limit <= 0:
                continue
            claimed_at, deliveries = time.monotonic(), _in_thread(claim, endpoint, limit)
            for delivery in deliveries:
                state.claimed += 1
                self._open_bytes += len(delivery.body)
                gevent.spawn(self._deliver, delivery, state, claimed_at)
            if deliveries:
                state.largest = max(len(delivery.body) for delivery in deliveries)
            total += len(deliveries)
        return total

    def _forget_idle(self) -> None:
        """Remove the states of endpoints without open requests, if some must be of endpoints that were deleted."""
        if len(self._endpoints) > ENDPOINTS_MAX:
            idle = [id for id, state in self._endpoints.items() if not state.claimed and not state.unstored]
            for endpoint_id in idle:
                del self._endpoints[endpoint_id]

    def _claimed(self) -> int:
        return sum(state.claimed for state in self._endpoints.values())

    def _is_busy(self) -> bool:
        return bool(self._claimed() or self._results)

    def _fitting(self, largest: int) -> int:
        """How many more bodies of the length `largest` fit into OPEN_BYTES_MAX; at least one if none is open."""
        fitting = (OPEN_BYTES_MAX - self._open_bytes) // largest
        return fitting if self._open_bytes else max(fitting, 1)

    def _deliver(self, delivery: ClaimedDelivery, state: _EndpointState, claimed_at: float) -> None:
        """Send a delivery as soon as the endpoint has fewer than CONCURRENCY open requests."""
        attempt = None
        try:
            with state.sending:
                if not self._stopping and time.monotonic() - claimed_at < CLAIM_SECONDS:
                    attempt = self._send(delivery)
                    self._observe(attempt)
                    state.milliseconds, state.failing = attempt.milliseconds, not attempt.succeeded
        finally:
            state.claimed -= 1
            self._open_bytes -= len(delivery.body)
            state.unstored += 1
            self._results.append((replace(delivery, body=b""), attempt))  # the body has been sent
            self._finished.set()

    def _send(self, delivery: ClaimedDelivery) -> Attempt:
        now = datetime.now(UTC)
        try:
            secrets = self._open(*delivery.endpoint.secrets)
        except UnreadableSecret:
            return Attempt(now, 0, error="Not sent: SECRET_KEY has changed, so the secret is lost. Rotate the secret.")
        headers = signed_headers(
            delivery.event_id, delivery.body, timestamp=int(now.timestamp()), secrets=secrets
        )  # a timestamp for each attempt: receivers refuse old ones
        try:
            with delivery_span(delivery.traceparent, _span_attributes(delivery)):
                attempt = self._sender.send(delivery.endpoint.url, delivery.body, headers | propagation_headers())
                record_response(attempt.status)
                return attempt
        except Exception as error:  # without an attempt, the delivery would be due again at once, endlessly
            log.error("webhook request failed", endpoint_id=delivery.endpoint.id, exc_info=error)
            return Attempt(now, 0, error="The request failed because of an error in the service. It is logged.")

    def _open(self, sealed: str, *previous: str) -> list[str]:
        """The secrets to sign with. Raises UnreadableSecret for the current one; an unreadable previous one is left
        out."""
        secrets = [self._secrets.open(sealed)]
        with suppress(UnreadableSecret):
            secrets += map(self._secrets.open, previous)
        return secrets

    def _wait(self, seconds: float) -> None:
        """Let the requests run for up to `seconds`, or until one, and others shortly after it, have finished."""
        if self._finished.wait(seconds):
            gevent.sleep(_COLLECT_SECONDS)
        self._finished.clear()

    def _store_results(self) -> None:
        for _ in range(0, len(self._results), RESULTS_MAX):  # what finishes meanwhile may be left to the next call
            self._store_page()

    def _store_page(self) -> None:
        results = self._results[:RESULTS_MAX]
        # Attempts last: after an error everything is repeated, and an endpoint would count its failures twice.
        unsent = [delivery for delivery, attempt in results if attempt is None]
        if unsent:
            _in_thread(release, unsent)
        sent = [(delivery, attempt) for delivery, attempt in results if attempt is not None]
        if sent:
            _in_thread(complete, sent)
        del self._results[: len(results)]
        for delivery, _ in results:
            self._endpoints[delivery.endpoint.id].unstored -= 1


def _span_attributes(delivery: ClaimedDelivery) -> dict[str, Any]:
    return {
        "http.request.method": "POST",
        "http.request.resend_count": delivery.attempt_count,
        "webhook_id": delivery.endpoint.id,
        "event_id": delivery.event_id,
    }


def _in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function that uses the database in a thread of gevent's pool, so that open requests continue meanwhile.

    It runs in a copy of this thread's context, which has the application's session. The caller waits, so that two
    threads never use the session at the same time.
    """
    result, error = gevent.get_hub().threadpool.apply(copy_context().run, (_outcome, function, *arguments))
    if error is not None:
        raise error
    return cast(Result, result)


def _outcome(function: Callable[..., Result], *arguments: Any) -> tuple[Result | None, Exception | None]:
    """The result or the error: gevent would print the traceback of an exception that leaves the thread."""
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error
