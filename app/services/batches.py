"""Many orders in one request: to create, or to act on. Each entry succeeds or fails independently."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from app.db.engine import DATABASE_ERRORS, is_unavailable
from app.errors import Forbidden, InternalError, InvalidRequest, PreconditionRequired, ServiceError, ServiceUnavailable
from app.models.lifecycle import RECEIVED, REJECTED
from app.models.order_aggregate import StoredOrder, visible_order
from app.models.order_id import fingerprint
from app.models.principal import Principal
from app.schemas.base import StrictSchema, load_body
from app.schemas.order import (
    BatchEntryInSchema,
    BulkActionInSchema,
    BulkHoldSchema,
    BulkReleaseSchema,
    BulkReturnSchema,
    BulkTrackSchema,
    BulkUpdateSchema,
    CancellationInSchema,
    EmptySchema,
    FulfillmentInSchema,
    PaymentInSchema,
    ReopeningInSchema,
    ReturnInSchema,
)
from app.services import order_actions
from app.services.order_actions import ChangeRequest
from app.services.order_service import CreateRequest, Outcome, authorize, create_orders

Loaded = TypeVar("Loaded")

ERRORS_MAX = 1_000  # errors that one response lists; entries after them are only reported as invalid
CONCURRENCY = 20  # orders that are changed at the same time: they share statements, see app/db/batching.py
DEADLINE = 8.0  # seconds for all actions: below the 10 s in which every request is answered
# Characters of the orders in one response, after which no further action begins: otherwise, the response to a thousand
# actions on one large order would have gigabytes. A thousand typical orders have 2 to 4 MiB. The response is in memory
# until a slow client has read it.
RESULTS_MAX = 8 * 1024 * 1024
# The same of a batch of new orders, after which no replay follows. New orders and their usual replays have 20 MiB at
# most, since the body has 8 MiB; but of an erased order any body is a replay, and the order may be large.
REPLAYS_MAX = 24 * 1024 * 1024


@dataclass(slots=True)
class Budget:
    """The limits that the actions of one request share: no action begins after `deadline` (time.monotonic()), or once
    the orders in the response have RESULTS_MAX characters."""

    deadline: float
    size: int = 0

    def require(self) -> None:
        """Raise ServiceUnavailable if no further action may begin."""
        if time.monotonic() > self.deadline:
            raise ServiceUnavailable("The request ran out of time before this action. Send the action again.")
        if self.size >= RESULTS_MAX:
            raise ServiceUnavailable("The orders before this action fill the response. Send the action again.")


@dataclass(frozen=True, slots=True)
class BulkAction:
    """How an action is executed: the schema of its members, the scope of its route, and the service.

    `path_members` are those that the action's route has in its path: they do not belong to the fingerprint of the body.
    """

    schema: StrictSchema
    scope: str
    service: Callable[..., StoredOrder]
    path_members: frozenset[str] = frozenset()


_HANDLE, _NUMBER = frozenset({"handle"}), frozenset({"number"})
BULK_ACTIONS = {
    "update": BulkAction(BulkUpdateSchema(), "orders:write", order_actions.update_order),
    "cancel": BulkAction(CancellationInSchema(), "orders:write", order_actions.cancel_order),
    "confirm": BulkAction(EmptySchema(), "orders:manage", order_actions.confirm_order),
    "complete": BulkAction(EmptySchema(), "orders:manage", order_actions.complete_order),
    "reopen": BulkAction(ReopeningInSchema(), "orders:manage", order_actions.reopen_order),
    "hold": BulkAction(BulkHoldSchema(), "orders:manage", order_actions.place_hold, _HANDLE),
    "release": BulkAction(BulkReleaseSchema(), "orders:manage", order_actions.release_hold, _HANDLE),
    "fulfill": BulkAction(FulfillmentInSchema(), "orders:manage", order_actions.fulfill_order),
    "track": BulkAction(BulkTrackSchema(), "orders:manage", order_actions.record_delivery_event, _NUMBER),
    "return": BulkAction(ReturnInSchema(), "orders:manage", order_actions.return_items),
    "receive": BulkAction(
        BulkReturnSchema(), "orders:manage", partial(order_actions.settle_return, status=RECEIVED), _NUMBER
    ),
    "reject": BulkAction(
        BulkReturnSchema(), "orders:manage", partial(order_actions.settle_return, status=REJECTED), _NUMBER
    ),
    "pay": BulkAction(PaymentInSchema(), "payments:write", order_actions.record_payment),
}
_NEW_ORDER = BatchEntryInSchema()
_COMMON = BulkActionInSchema()
_COMMON_MEMBERS = frozenset(_COMMON.fields)


class PreparedAction(NamedTuple):
    """An action that is ready to be executed, and the JSON pointer to the members that the service gets."""

    order_id: str
    pointer: str
    execute: Callable[[], StoredOrder]


def create_batch(
    entries: Iterable[Any], *, principal: Principal, request_id: str | None = None, dry_run: bool = False
) -> list[Outcome]:
    """Validate and create the orders, each independently; their outcomes in the same order."""
    load = partial(_load_order, principal=principal, request_id=request_id)
    requests, outcomes = _load_entries(entries, "orders", load)
    outcomes |= zip(requests, create_orders(list(requests.values()), dry_run=dry_run), strict=True)
    results: list[Outcome] = []
    size = 0
    for i in range(len(outcomes)):
        outcome = outcomes[i]
        if isinstance(outcome, StoredOrder):
            if outcome.replayed and size >= REPLAYS_MAX:
                outcome = ServiceUnavailable("The orders before this entry fill the response. Send the entry again.")
            else:
                outcome = visible_order(outcome, principal)
                size += len(outcome.document)
        results.append(outcome)
    return results


def _load_order(
    entry: Any, pointer: str, *, brief: bool, principal: Principal, request_id: str | None
) -> CreateRequest:
    if brief and not _NEW_ORDER.has_valid_members(entry):
        raise _invalid_entry(pointer)
    data = load_body(_NEW_ORDER, entry, pointer=pointer)
    key = data.pop("idempotency_key", None)
    return authorize(CreateRequest(data, principal, idempotency_key=key, reference_as_key=True, request_id=request_id))


def _load_entries(
    entries: Iterable[Any], member: str, load: Callable[..., Loaded]
) -> tuple[dict[int, Loaded], dict[int, Outcome]]:
    """The entries of the body's `member` as `load` returns them, and the errors of invalid ones, by position.

    `load` is called with an entry, the JSON pointer to it, and `brief`: report only that it is invalid, and not why.
    """
    loaded, outcomes, error_count = dict[int, Loaded](), dict[int, Outcome](), 0
    for i, entry in enumerate(entries):
        try:
            loaded[i] = load(entry, f"#/{member}/{i}", brief=error_count >= ERRORS_MAX)
        except ServiceError as error:
            outcomes[i] = error.with_traceback(None)  # its frames refer to the outcomes and the entry: a cycle
            error_count += len(error.members.get("errors", ()))
    return loaded, outcomes


def _invalid_entry(pointer: str) -> InvalidRequest:
    """The error of an invalid entry after ERRORS_MAX errors: it does not say why the entry is invalid."""
    detail = f"This entry is not valid. Only the first {ERRORS_MAX:,} errors of a batch are listed."
    return InvalidRequest(detail, errors=[{"pointer": pointer, "detail": "This entry is not valid."}])


def act_on_orders(entries: Iterable[Any], *, request: ChangeRequest, version_required: bool) -> list[Outcome]:
    """Execute the actions, and return their outcomes in the same order. Each commits by itself; in a dry run each is
    applied to the stored order, without the actions before it.

    Actions on different orders are executed concurrently, those on one order in the order of the entries. An action
    that has not begun within DEADLINE seconds, or before the orders in the response have RESULTS_MAX characters, is not
    executed. `request` has what the changes share. With `version_required`, an action without `if_match` fails with
    PreconditionRequired.
    """
    load = partial(_load_action, request=request, version_required=version_required)
    actions, outcomes = _load_entries(entries, "actions", load)
    by_order: dict[str, dict[int, PreparedAction]] = {}
    for i, action in actions.items():
        by_order.setdefault(action.order_id.lower(), {})[i] = action
    budget = Budget(time.monotonic() + DEADLINE)
    with ThreadPoolExecutor(min(CONCURRENCY, max(1, len(by_order)))) as threads:
        running = [threads.submit(copy_context().run, _execute_actions, tasks, budget) for tasks in by_order.values()]
        for future in running:
            outcomes |= future.result()
    return [outcomes[i] for i in range(len(outcomes))]


def _load_action(
    entry: Any, pointer: str, *, brief: bool, request: ChangeRequest, version_required: bool
) -> PreparedAction:
    if not isinstance(entry, dict):
        errors = [{"pointer": pointer, "detail": "This must be an object."}]
        raise InvalidRequest("The action is not valid. Correct what `errors` lists.", errors=errors)
    common_members = {name: value for name, value in entry.items() if name in _COMMON_MEMBERS}
    own_members = {name: value for name, value in entry.items() if name not in _COMMON_MEMBERS}
    if brief and not _has_valid_members(common_members, own_members):
        raise _invalid_entry(pointer)
    common = load_body(_COMMON, common_members, pointer=pointer)
    action = BULK_ACTIONS[common["action"]]
    body = load_body(action.schema, own_members, pointer=pointer)
    if action.scope not in request.principal.scopes:
        raise Forbidden(f"The scope {action.scope} is missing.")
    key, version = common.get("idempotency_key"), common.get("if_match")
    if version is None and version_required:
        raise PreconditionRequired("if_match is missing. Send the version of the order in it.")
    request = replace(
        request,
        expected_versions=None if version is None else frozenset({version}),
        idempotency_key=key,
        fingerprint=None if key is None else fingerprint(_body_of_route(action, body)),
    )
    execute = partial(action.service, common["order_id"], **body, request=request)
    return PreparedAction(common["order_id"], f"{pointer}/patch" if "patch" in body else pointer, execute)


def _has_valid_members(common: dict[str, Any], own: dict[str, Any]) -> bool:
    return _COMMON.has_valid_members(common) and BULK_ACTIONS[common["action"]].schema.has_valid_members(own)


def _body_of_route(action: BulkAction, body: dict[str, Any]) -> Any:
    """The body of a request to the action's own route, so that both have the same fingerprint."""
    if "patch" in body:
        return body["patch"]
    return {name: value for name, value in body.items() if name not in action.path_members}


def _execute_actions(actions: dict[int, PreparedAction], budget: Budget) -> dict[int, Outcome]:
    """The outcomes of the actions on one order, by their positions."""
    return {i: _outcome(action, budget) for i, action in actions.items()}


def _outcome(action: PreparedAction, budget: Budget) -> Outcome:
    try:
        budget.require()
        order = action.execute()
        budget.size += len(order.document)
        return order
    except ServiceError as error:
        if errors := error.members.get("errors"):  # of the service, so their pointers are those of the action's route
            error.members["errors"] = [{**one, "pointer": action.pointer + one["pointer"][1:]} for one in errors]
        return error.with_traceback(None)
    except Exception as error:  # the other actions are committed, and their results must be returned
        outcome: ServiceError = (
            ServiceUnavailable("The database is temporarily unavailable. Send the action again.")
            if isinstance(error, DATABASE_ERRORS) and is_unavailable(error)
            else InternalError("The action failed. The error is logged under the request id.")
        )
        outcome.__cause__ = error
        return outcome
