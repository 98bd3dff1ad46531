"""Uses the client that openapi-python-client has generated: create, get, confirm, and a problem."""

import os
import uuid

from order_service_client import Client
from order_service_client.api.changes import confirm_order
from order_service_client.api.orders import create_order, get_order
from order_service_client.models import Action, ItemIn, Order, OrderIn, OrderStatus, Problem

client = Client(base_url=os.environ["BASE_URL"])

body = OrderIn(customer_id="c-123", items=[ItemIn(item_id="sku-1", quantity=2)])
key = str(uuid.uuid4())
order = create_order.sync(client=client, body=body, idempotency_key=key)
assert isinstance(order, Order), order
assert create_order.sync(client=client, body=body, idempotency_key=key) == order

confirmed = confirm_order.sync(order.id, client=client)
assert isinstance(confirmed, Order) and confirmed.status == OrderStatus.CONFIRMED
assert get_order.sync(order.id, client=client) == confirmed

refused = confirm_order.sync(order.id, client=client)
assert isinstance(refused, Problem) and refused.type_ == "/problems/illegal-action"
assert Action.FULFILL in refused.allowed_actions
print("used")
