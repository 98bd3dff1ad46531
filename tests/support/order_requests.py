"""Random bodies, keys and conditions of the requests that `test_order_model.py` sends."""

from typing import Any

from hypothesis import strategies as st

# Few values of everything: what may collide shall collide.
texts = st.sampled_from(["", "a", "Ring twice.\n🛎"])
channels = st.sampled_from([None, "web", "app"])
references = st.none() | st.sampled_from(["r-1", "r-2", "r-3"])
keys = st.none() | st.sampled_from(["k-1", "k-2", "k-3"])
metadata = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "x"]))
countries = st.sampled_from(["DE", "GB"])
addresses = st.one_of(
    st.fixed_dictionaries({"country": countries}, optional={"city": st.just("Ulm"), "name": st.just("Ada")}),
    st.just({"city": "Ulm"}),  # lacks the country
)
items = st.lists(
    st.fixed_dictionaries(
        {"item_id": st.sampled_from(["sku-1", "sku-2"]), "quantity": st.integers(1, 3)},
        optional={"unit_price": st.sampled_from([250, None])},
    ),
    min_size=1,
    max_size=3,
)
adjustments = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["discount", "tax"]), "amount": st.sampled_from([19, -100])},
        optional={"label": st.none() | st.just("WELCOME10")},
    ),
    max_size=2,
)
currencies = st.sampled_from(["EUR", "EUR", "EUR", "JPY", None])
ADDRESSES = dict.fromkeys(("shipping_address", "billing_address"), st.none() | addresses)
orders = st.fixed_dictionaries(
    {"customer_id": st.sampled_from(["c-1", "c-2"]), "items": items, "currency": currencies},
    optional={
        "external_ref": references,
        "channel": channels,
        "adjustments": adjustments,
        "note": texts,
        "metadata": metadata,
    }
    | ADDRESSES,
)
PATCHES: dict[str, st.SearchStrategy[Any]] = {
    "external_ref": references,
    "note": st.none() | texts,
    "metadata": st.none() | st.dictionaries(st.sampled_from(["a", "b"]), st.none() | st.sampled_from(["", "x"])),
    "items": items,
    "adjustments": st.none() | adjustments,
    "currency": currencies,
    "shipping_address": st.sampled_from([None, {}, {"country": None}, {"country": "FR"}, {"city": None, "name": "E"}]),
    "billing_address": ADDRESSES["billing_address"],
    "customer_id": st.just("c-9"),  # cannot be patched
    "channel": channels,  # nor can this
}
# A patch with many faults is refused for the first, and tells little.
patches = st.lists(st.sampled_from(sorted(PATCHES)), min_size=0, max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: PATCHES[name] for name in names})
)

THE_REST = "the rest"  # all units that are left: otherwise few orders are ever sent whole
some_units = st.fixed_dictionaries({"line": st.sampled_from([1, 1, 2, 3]), "quantity": st.sampled_from([1, 1, 2])})
quantities = st.one_of(st.just(THE_REST), some_units.map(lambda one: [one]), st.lists(some_units, max_size=3))
tracking = st.none() | st.fixed_dictionaries({}, optional={"carrier": st.just("DHL"), "number": st.just("1")})
BODIES: dict[str, st.SearchStrategy[Any]] = {
    "confirm": st.none(),
    "complete": st.none(),
    "release": st.none(),
    "cancel": st.fixed_dictionaries(
        {"reason": st.sampled_from(["fraud", "other", "staff", "mood"])}, optional={"note": texts}
    ),
    "hold": st.fixed_dictionaries({"reason": st.sampled_from(["fraud?", "address?"])}),
    "fulfill": st.fixed_dictionaries({"items": quantities}, optional={"tracking": tracking}),
    "return": st.fixed_dictionaries({"items": quantities}, optional={"reason": texts}),
    "update": patches,
}


def change_by(*names: str) -> st.SearchStrategy[tuple[str, Any]]:
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), BODIES[name]))


changes = change_by(*BODIES, "update")
conditions = st.sampled_from(["absent"] * 6 + ["right", "right", "*", "several", "stale", "weak", "unknown"])
filters = st.fixed_dictionaries(
    {},
    optional={
        "customer_id": st.sampled_from(["c-1", "c-2"]),
        "status": st.sampled_from(["pending", "confirmed", "completed", "cancelled"]),
        "fulfillment_status": st.sampled_from(["unfulfilled", "partial", "fulfilled"]),
        "external_ref": st.sampled_from(["r-1", "r-2"]),
        "item_id": st.sampled_from(["sku-1", "sku-2"]),
    },
)
