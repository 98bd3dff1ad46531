// Uses the client that @hey-api/openapi-ts has generated: create, get, confirm, and a problem.
import assert from "node:assert/strict";
import { confirmOrder, createOrder, getOrder, type Order, type Problem } from "./hey-api";
import { createClient } from "./hey-api/client";

const client = createClient({ baseUrl: process.env.BASE_URL });

const headers = { "Idempotency-Key": crypto.randomUUID() };
const body = { customer_id: "c-123", items: [{ item_id: "sku-1", quantity: 2, unit_price: 1250 }], currency: "EUR" as const };
const created = await createOrder({ client, body, headers });
assert(created.data, JSON.stringify(created.error));
const order: Order = created.data;
assert.equal(order.totals?.total, 2500);
const replay = await createOrder({ client, body, headers });
assert.equal(replay.data?.id, order.id);

const path = { order_id: order.id };
const confirmed = await confirmOrder({ client, path, headers: { "If-Match": created.response?.headers.get("ETag") ?? "" } });
assert.equal(confirmed.data?.status, "confirmed");
const read = await getOrder({ client, path });
assert.deepEqual(read.data, confirmed.data);

const refused = await confirmOrder({ client, path });
const problem: Problem | undefined = refused.error;
assert.equal(problem?.type, "/problems/illegal-action");
assert(problem.allowed_actions?.includes("fulfill"));
console.log("used");
