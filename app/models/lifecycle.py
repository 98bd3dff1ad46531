"""What may happen to an order when: one table for the guards, for `allowed_actions` and for the README's picture."""

from collections.abc import Iterator
from dataclasses import dataclass

STATUSES = ("pending", "confirmed", "completed", "cancelled")
FULFILLMENT_STATUSES = ("unfulfilled", "partial", "fulfilled")
OPEN = ("pending", "confirmed")


@dataclass(frozen=True, slots=True)
class Action:
    """A change of an order: the event it makes, the statuses it starts from, and where it leads.

    `to` is None where the status stays. A hold stops some actions; `needs` names the fact an action rests on.
    """

    event: str
    starts_from: tuple[str, ...]
    to: str | None = None
    stopped_by_hold: bool = False
    needs: str | None = None


ACTIONS = {
    "update": Action("order.updated", STATUSES),
    "confirm": Action("order.confirmed", ("pending",), "confirmed", stopped_by_hold=True),
    "cancel": Action("order.cancelled", OPEN, "cancelled", needs="nothing fulfilled"),
    "hold": Action("order.held", OPEN),
    "release": Action("order.released", OPEN, needs="a hold"),
    "fulfill": Action("order.fulfilled", ("confirmed",), stopped_by_hold=True),
    "complete": Action("order.completed", ("confirmed",), "completed", stopped_by_hold=True),
    "return": Action("order.returned", ("confirmed", "completed"), needs="units out"),
}
CREATED, IMPORTED, ERASED = "order.created", "order.imported", "order.erased"
EVENT_TYPES = (CREATED, IMPORTED, *(action.event for action in ACTIONS.values()), ERASED)


def allowed_actions(*, status: str, held: bool, fulfilled: bool, units_out: bool) -> list[str]:
    """The names of the actions that may come next, sorted.

    `fulfilled` says whether any unit was ever sent, `units_out` whether any of those has not come back.
    """
    facts = {None: True, "nothing fulfilled": not fulfilled, "a hold": held, "units out": units_out}
    return sorted(
        name
        for name, action in ACTIONS.items()
        if status in action.starts_from and facts[action.needs] and not (held and action.stopped_by_hold)
    )


NEW_ORDER_ACTIONS = allowed_actions(status="pending", held=False, fulfilled=False, units_out=False)


def lifecycle_diagram() -> str:
    """The statuses and the actions between them, as a Mermaid state diagram."""
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in _edges())])


def _edges() -> Iterator[str]:
    yield "[*] --> pending: create"
    for name, action in ACTIONS.items():
        for start in action.starts_from:
            if action.to:
                condition = f" ({action.needs})" if action.needs else ""
                yield f"{start} --> {action.to}: {name}{condition}"
    yield "confirmed --> completed: fulfill (last unit)"
    for status in STATUSES:
        if not any(action.to and status in action.starts_from for action in ACTIONS.values()):
            yield f"{status} --> [*]"
