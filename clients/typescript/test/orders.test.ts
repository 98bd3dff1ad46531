import assert from "node:assert/strict";
import {
  ConflictError,
  IllegalActionError,
  InvalidRequestError,
  newIdempotencyKey,
  NotFoundError,
  type Order,
  OrderServiceClient,
  ProblemError,
  VersionMismatchError,
} from "@order-service/client";
import { API_KEY, connect, CUSTOMER_TOKEN, newCustomer, order, SERVICE_URL, test } from "./service.js";

const client = connect();

test("an order is created, changed and read", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const confirmed = await client.confirmOrder(created);
  const cancelled = await client.cancelOrder(confirmed, { reason: "customer", items: [{ line: 1, quantity: 1 }] });

  assert.deepEqual([created.status, confirmed.status, cancelled.items[0]?.cancelled], ["pending", "confirmed", 1]);
  assert.deepEqual(await client.getOrder(created.id), cancelled);
  assert.deepEqual(await client.getOrder(created.id, { version: 1 }), created);
});

test("every operation has a method with the name of the description", async () => {
  const description = await (await fetch(`${SERVICE_URL}/openapi.json`)).json();
  const paths = Object.values(description.paths) as Record<string, { operationId?: string; security?: unknown[] }>[];
  const operations = paths.flatMap((path) => Object.values(path)).filter((one) => one.security?.length);

  const missing = operations.map((one) => one.operationId!).filter((name) => !(name in OrderServiceClient.prototype));

  assert.deepEqual(missing, []);
});

test("the same key returns the same order, and each call without a key makes another one", async () => {
  const [customer, idempotencyKey] = [newCustomer(), newIdempotencyKey()];
  const first = await client.createOrder(order(customer), { idempotencyKey });

  assert.deepEqual(await client.createOrder(order(customer), { idempotencyKey }), first);
  assert.notEqual((await client.createOrder(order(customer))).id, first.id);
  await assert.rejects(
    client.createOrder({ ...order(customer), note: "other" }, { idempotencyKey }),
    (error) => error instanceof ProblemError && error.status === 422 && error.slug === "idempotency-key-reused",
  );
});

test("a change of an order that somebody else has changed is refused with its present version", async () => {
  const read = await client.createOrder(order(newCustomer()));
  await client.updateOrder(read, { note: "Somebody else was first." });

  await assert.rejects(client.confirmOrder(read), (error) => {
    assert.ok(error instanceof VersionMismatchError && error instanceof ConflictError);
    return error.currentVersion === 2 && error.status === 412;
  });
  assert.equal((await client.confirmOrder(read.id)).version, 3);
});

test("an action that the status does not allow is refused with those that it allows", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const cancelled = await client.cancelOrder(created, { reason: "customer" });

  await assert.rejects(client.confirmOrder(cancelled), (error) => {
    assert.ok(error instanceof IllegalActionError);
    assert.deepEqual([error.orderStatus, error.currentVersion], ["cancelled", 2]);
    return error.allowedActions.includes("reopen");
  });
});

test("an invalid order is refused with everything that is wrong", async () => {
  const invalid = { customer_id: "", items: [{ item_id: "sku-1", quantity: 0 }] };

  await assert.rejects(client.createOrder(invalid), (error) => {
    assert.ok(error instanceof InvalidRequestError && error.requestId);
    assert.deepEqual(error.errors.map((one) => one.pointer).sort(), ["#/customer_id", "#/items/0/quantity"]);
    return true;
  });
});

test("what does not exist is not found", async () => {
  await assert.rejects(client.getOrder("00000000-0000-7000-8000-000000000000"), NotFoundError);
  await assert.rejects(client.getWebhook("00000000-0000-7000-8000-000000000000"), NotFoundError);
});

test("an order that has not changed is not sent again", async () => {
  const created = await client.createOrder(order(newCustomer()));

  assert.equal(await client.getOrder(created), created);
  await client.confirmOrder(created);
  assert.equal((await client.getOrder(created)).version, 2);
});

test("a customer's view of an order is revalidated, too", async () => {
  const held = await client.createOrder(order("c-1"));
  await client.placeHold(held, "review", { kind: "review", reason: "internal" });
  const customer = connect({ token: () => Promise.resolve(CUSTOMER_TOKEN) });

  const seen = await customer.getOrder(held.id);

  assert.equal(await customer.getOrder(seen), seen);
  assert.equal((await customer.cancelOrder(seen, { reason: "customer" })).status, "cancelled");
});

test("a dry run returns the order as it would be", async () => {
  const customer = newCustomer();
  const created = await client.createOrder(order(customer));

  assert.equal((await client.confirmOrder(created, { dryRun: true })).status, "confirmed");
  assert.equal((await client.createOrder(order(customer), { dryRun: true })).customer_id, customer);
  assert.deepEqual(await list(customer), [created]);
});

test("an order is found by a reference with any characters", async () => {
  const reference = `shop/1?x=ä #${newIdempotencyKey()}`;
  const created = await client.createOrder({ ...order(newCustomer()), external_ref: reference });

  assert.deepEqual(await client.getOrderByReference(reference), created);
  await assert.rejects(
    client.createOrder({ ...order(newCustomer()), external_ref: reference }),
    (error) => error instanceof ConflictError && error.orderId === created.id,
  );
});

test("the life of an order", async () => {
  let current = await client.createOrder({ ...order(newCustomer()), note: "Ring twice." });
  const { id } = current;
  current = await client.placeHold(current, "fraud", { kind: "fraud" });
  current = await client.releaseHold(current, "fraud");
  current = await client.updateOrder(current, { note: null });
  current = await client.recordPayment(current, { type: "capture", amount: 3750, reference: "p-1" });
  current = await client.confirmOrder(current);
  current = await client.fulfillOrder(current, { items: [{ line: 1, quantity: 2 }] });
  current = await client.updateTracking(current, 1, { tracking: { number: "123" } });
  current = await client.recordDeliveryEvent(current, 1, { type: "delivered" });
  current = await client.returnItems(current, { items: [{ line: 1, quantity: 1 }], status: "expected" });
  current = await client.returnItems(current, { items: [{ line: 1, quantity: 1 }], status: "expected" });
  current = await client.receiveReturn(current, 1);
  current = await client.rejectReturn(current, 2);
  current = await client.completeOrder(current);
  current = await client.reopenOrder(current, { reason: "A unit is missing." });

  const history = [];
  for await (const event of client.listOrderHistory(id, { limit: 4 })) history.push(event);
  assert.deepEqual([current.status, current.return_status, current.payment_status], ["confirmed", "partial", "paid"]);
  assert.deepEqual(history.map((event) => event.version), Array.from({ length: 15 }, (_, index) => index + 1));
  assert.deepEqual(history.at(-1)?.data, current);
});

test("batches are accepted entry by entry", async () => {
  const customer = newCustomer();
  const idempotency_key = newIdempotencyKey();
  const entries = [order(customer), { ...order(customer), idempotency_key }, { customer_id: customer, items: [] }];

  const first = await client.createOrders(entries);
  const second = await client.createOrders(entries.slice(1, 2));
  const [created] = await list(customer);
  const actions = await client.actOnOrders([{ order_id: created!.id, action: "confirm" }]);

  assert.deepEqual(first.results.map((result) => result.status), [201, 201, 400]);
  assert.deepEqual(second.results.map((result) => result.status), [201]);
  assert.deepEqual(actions.results.map((result) => result.status), [200]);
  assert.equal((await list(customer)).length, 2);
});

test("a list is iterated over its pages", async () => {
  const customer = newCustomer();
  await client.createOrders(Array.from({ length: 7 }, () => order(customer)));
  await client.cancelOrder((await list(customer))[0]!, { reason: "customer" });

  const sizes = [];
  for await (const page of client.listOrders({ customer_id: customer, limit: 3 }).pages()) sizes.push(page.orders.length);
  const open = await list(customer, { status: ["pending", "confirmed"] });

  assert.deepEqual([sizes, open.length], [[3, 3, 1], 6]);
  assert.equal(new Set((await list(customer)).map((one) => one.id)).size, 7);
});

test("orders are searched", async () => {
  const customer = newCustomer();
  const { id } = await client.createOrder({ ...order(customer), metadata: { gift: "yes, please" } });

  let found: Order[] = [];
  while (!found.length) {
    for await (const page of client.searchOrders({ q: customer, metadata: { gift: "yes, please" }, facets: ["status"] }).pages()) {
      found = page.orders;
      assert.deepEqual(page.facets?.status, found.length ? [{ value: "pending", count: 1 }] : []);
    }
  }

  assert.deepEqual(found.map((one) => one.id), [id]);
});

test("an erasure is followed to its end", async () => {
  const customer = newCustomer();
  const created = await client.createOrder({ ...order(customer), note: "private" });
  await client.cancelOrder(created, { reason: "customer" });

  let erasure = await client.eraseCustomer(customer);
  while (erasure.status === "running") erasure = await client.readErasure(erasure.id);

  assert.equal(erasure.orders, 1);
  assert.equal((await client.getOrder(created.id)).note, null);
});

test("any operation can be called by its path", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const query = { customer_id: created.customer_id, format: "ndjson" } as const;

  const { data } = await client.api.GET("/orders/export", { params: { query }, parseAs: "text" });

  assert.deepEqual(JSON.parse(data!), created);
});

test("exports are read line by line", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const orders: Order[] = [];
  const kinds: string[] = [];

  for await (const one of client.exportOrders({ customer_id: created.customer_id })) orders.push(one);
  for await (const line of client.exportCustomer(created.customer_id)) kinds.push(...Object.keys(line));

  assert.deepEqual(orders, [created]);
  assert.deepEqual(kinds, ["order", "event"]);
});

test("wrong credentials are refused", async () => {
  const refused = connect({ token: `${API_KEY}x` }).createOrder(order(newCustomer()));

  await assert.rejects(refused, (error) => error instanceof ProblemError && error.slug === "unauthenticated");
});

async function list(customer: string, query: { status?: Order["status"][] } = {}): Promise<Order[]> {
  const orders = [];
  for await (const one of client.listOrders({ customer_id: customer, limit: 5, ...query })) orders.push(one);
  return orders;
}
