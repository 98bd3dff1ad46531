"""The order lifecycle: statuses, actions and events. `allowed_actions` and the README's diagram are built from it."""

from collections.abc import Iterator
from dataclasses import dataclass

STATUSES = ("pending", "confirmed", "completed", "cancelled")
FULFILLMENT_STATUSES = ("unfulfilled", "partial", "fulfilled")
OPEN = ("pending", "confirmed")

# Conditions of actions, beside the status.
NOTHING_FULFILLED, ON_HOLD, UNITS_TO_RETURN = "nothing fulfilled", "on hold", "units to return"


@dataclass(frozen=True, slots=True)
class Action:
    """A change of an order: the event that records it, the statuses that allow it, and the status it leads to.

    `to_status` is None if the status does not change. `condition` is a further condition, if there is one.
    """

    event: str
    from_statuses: tuple[str, ...]
    to_status: str | None = None
    blocked_by_hold: bool = False
    condition: str | None = None


ACTIONS = {
    "update": Action("order.updated", STATUSES),
    "confirm": Action("order.confirmed", ("pending",), "confirmed", blocked_by_hold=True),
    "cancel": Action("order.cancelled", OPEN, "cancelled", condition=NOTHING_FULFILLED),
    "hold": Action("order.held", OPEN),
    "release": Action("order.released", OPEN, condition=ON_HOLD),
    "fulfill": Action("order.fulfilled", ("confirmed",), blocked_by_hold=True),
    "complete": Action("order.completed", ("confirmed",), "completed", blocked_by_hold=True),
    "return": Action("order.returned", ("confirmed", "completed"), condition=UNITS_TO_RETURN),
}
CREATED, IMPORTED, ERASED = "order.created", "order.imported", "order.erased"
EVENT_TYPES = (CREATED, IMPORTED, *(action.event for action in ACTIONS.values()), ERASED)


def allowed_actions(*, status: str, on_hold: bool, any_fulfilled: bool, any_returnable: bool) -> list[str]:
    """The names of the actions that are allowed next, sorted.

    `any_fulfilled`: at least one unit has been fulfilled. `any_returnable`: at least one of them has not been
    returned.
    """
    conditions = {
        None: True,
        NOTHING_FULFILLED: not any_fulfilled,
        ON_HOLD: on_hold,
        UNITS_TO_RETURN: any_returnable,
    }
    return sorted(
        name
        for name, action in ACTIONS.items()
        if status in action.from_statuses and conditions[action.condition] and not (on_hold and action.blocked_by_hold)
    )


NEW_ORDER_ACTIONS = allowed_actions(status="pending", on_hold=False, any_fulfilled=False, any_returnable=False)


def lifecycle_diagram() -> str:
    """The statuses and the transitions between them as a Mermaid state diagram."""
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in _edges())])


def _edges() -> Iterator[str]:
    yield "[*] --> pending: create"
    for name, action in ACTIONS.items():
        for start in action.from_statuses:
            if action.to_status:
                condition = f" ({action.condition})" if action.condition else ""
                yield f"{start} --> {action.to_status}: {name}{condition}"
    yield "confirmed --> completed: fulfill (last unit)"
    for status in STATUSES:
        if not any(action.to_status and status in action.from_statuses for action in ACTIONS.values()):
            yield f"{status} --> [*]"
