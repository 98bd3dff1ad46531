// Uses the client that orval has generated: create, get, confirm, and a problem.
import assert from "node:assert/strict";
import { actOnOrders, confirmOrder, createOrder, getOrder } from "./orval";

const headers = { "Idempotency-Key": crypto.randomUUID() };
const created = await createOrder({ customer_id: "c-123", items: [{ item_id: "sku-1", quantity: 2 }] }, {}, { headers });
assert(created.status === 201, JSON.stringify(created));
const order = created.data;
assert.equal(order.status, "pending");

const confirmed = await confirmOrder(order.id, {}, {});
assert(confirmed.status === 200);
const read = await getOrder(order.id);
assert.deepEqual(read.data, confirmed.data);

const refused = await confirmOrder(order.id, {}, {});
assert(refused.status === 409);
assert.equal(refused.data.order_status, "confirmed");

// The result of an entry is told apart by its status.
const batch = await actOnOrders({ actions: [{ action: "cancel", order_id: order.id, reason: "customer" }] });
assert(batch.status === 200);
for (const result of batch.data.results) {
  assert.equal(result.status === 200 ? result.order.status : result.problem.title, "cancelled");
}
console.log("used");
