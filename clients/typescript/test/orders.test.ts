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
import { expect, test } from "vitest";
import { API_KEY, connect, CUSTOMER_TOKEN, newCustomer, order, rejection, SERVICE_URL } from "./service.js";

const client = connect();

test("an order is created, changed and read", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const confirmed = await client.confirmOrder(created);
  const cancelled = await client.cancelOrder(confirmed, { reason: "customer", items: [{ line: 1, quantity: 1 }] });

  expect([created.status, confirmed.status, cancelled.items[0]?.cancelled]).toStrictEqual(["pending", "confirmed", 1]);
  expect(await client.getOrder(created.id)).toStrictEqual(cancelled);
  expect(await client.getOrder(created.id, { version: 1 })).toStrictEqual(created);
});

test("every operation has a method with the name of the description", async () => {
  const description = await (await fetch(`${SERVICE_URL}/openapi.json`)).json();
  const paths = Object.values(description.paths) as Record<string, { operationId?: string; security?: unknown[] }>[];
  const operations = paths.flatMap((path) => Object.values(path)).filter((one) => one.security?.length);

  const missing = operations.map((one) => one.operationId!).filter((name) => !(name in OrderServiceClient.prototype));

  expect(missing).toStrictEqual([]);
});

test("the same key returns the same order, and each call without a key creates another one", async () => {
  const [customer, idempotencyKey] = [newCustomer(), newIdempotencyKey()];
  const first = await client.createOrder(order(customer), { idempotencyKey });

  expect(await client.createOrder(order(customer), { idempotencyKey })).toStrictEqual(first);
  expect((await client.createOrder(order(customer))).id).not.toBe(first.id);
  const reused = client.createOrder({ ...order(customer), note: "other" }, { idempotencyKey });
  expect(await rejection(reused, ProblemError)).toMatchObject({ status: 422, slug: "idempotency-key-reused" });
});

test("a change of an order that has changed meanwhile is refused with its current version", async () => {
  const read = await client.createOrder(order(newCustomer()));
  await client.updateOrder(read, { note: "Somebody else was first." });

  const error = await rejection(client.confirmOrder(read), VersionMismatchError);

  expect(error).toBeInstanceOf(ConflictError);
  expect(error).toMatchObject({ status: 412, currentVersion: 2 });
  expect((await client.confirmOrder(read.id)).version).toBe(3);
});

test("an action that the status does not allow is refused with the allowed actions", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const cancelled = await client.cancelOrder(created, { reason: "customer" });

  const error = await rejection(client.confirmOrder(cancelled), IllegalActionError);

  expect(error).toMatchObject({ orderStatus: "cancelled", currentVersion: 2 });
  expect(error.allowedActions).toContain("reopen");
});

test("an invalid order is refused with all errors", async () => {
  const invalid = { customer_id: "", items: [{ item_id: "sku-1", quantity: 0 }] };

  const error = await rejection(client.createOrder(invalid), InvalidRequestError);

  expect(error.requestId).toBeTruthy();
  expect(error.errors.map((one) => one.pointer).sort()).toStrictEqual(["#/customer_id", "#/items/0/quantity"]);
});

test("an unknown order is not found", async () => {
  await expect(client.getOrder("00000000-0000-7000-8000-000000000000")).rejects.toThrow(NotFoundError);
  await expect(client.getWebhook("00000000-0000-7000-8000-000000000000")).rejects.toThrow(NotFoundError);
});

test("an unchanged order is not transferred again", async () => {
  const created = await client.createOrder(order(newCustomer()));

  expect(await client.getOrder(created)).toBe(created);
  await client.confirmOrder(created);
  expect((await client.getOrder(created)).version).toBe(2);
});

test("a customer's view of an order is revalidated too", async () => {
  const held = await client.createOrder(order("c-1"));
  await client.placeHold(held, "review", { kind: "review", reason: "internal" });
  const customer = connect({ token: () => Promise.resolve(CUSTOMER_TOKEN) });

  const seen = await customer.getOrder(held.id);

  expect(await customer.getOrder(seen)).toBe(seen);
  expect((await customer.cancelOrder(seen, { reason: "customer" })).status).toBe("cancelled");
});

test("a dry run returns the order as it would be", async () => {
  const customer = newCustomer();
  const created = await client.createOrder(order(customer));

  expect((await client.confirmOrder(created, { dryRun: true })).status).toBe("confirmed");
  expect((await client.createOrder(order(customer), { dryRun: true })).customer_id).toBe(customer);
  expect(await list(customer)).toStrictEqual([created]);
});

test.each([".", ".."])("an id of dots, which would lead to another path, is refused: %s", async (dots) => {
  await rejection(client.getOrder(dots), URIError);
  await rejection(client.streamOrderEvents(dots).next(), URIError);
});

test("an order is found by a reference with any characters", async () => {
  const reference = `shop/1?x=ä #${newIdempotencyKey()}`;
  const created = await client.createOrder({ ...order(newCustomer()), external_ref: reference });

  expect(await client.getOrderByReference(reference)).toStrictEqual(created);
  const duplicate = client.createOrder({ ...order(newCustomer()), external_ref: reference });
  expect(await rejection(duplicate, ConflictError)).toMatchObject({ orderId: created.id });
});

test("an order is changed by all actions", async () => {
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
  expect(current).toMatchObject({ status: "confirmed", return_status: "partial", payment_status: "paid" });
  expect(history.map((event) => event.version)).toStrictEqual(Array.from({ length: 15 }, (_, index) => index + 1));
  expect(history.at(-1)?.data).toStrictEqual(current);
});

test("batches are accepted entry by entry", async () => {
  const customer = newCustomer();
  const idempotency_key = newIdempotencyKey();
  const entries = [order(customer), { ...order(customer), idempotency_key }, { customer_id: customer, items: [] }];

  const first = await client.createOrders(entries);
  const second = await client.createOrders(entries.slice(1, 2));
  const [created] = await list(customer);
  const actions = await client.actOnOrders([{ order_id: created!.id, action: "confirm" }]);

  expect(first.results.map((result) => result.status)).toStrictEqual([201, 201, 400]);
  expect(second.results.map((result) => result.status)).toStrictEqual([201]);
  expect(actions.results.map((result) => result.status)).toStrictEqual([200]);
  expect((await list(customer)).length).toBe(2);
});

test("a list is iterated over its pages", async () => {
  const customer = newCustomer();
  await client.createOrders(Array.from({ length: 7 }, () => order(customer)));
  await client.cancelOrder((await list(customer))[0]!, { reason: "customer" });

  const sizes = [];
  for await (const page of client.listOrders({ customer_id: customer, limit: 3 }).pages()) sizes.push(page.orders.length);
  const open = await list(customer, { status: ["pending", "confirmed"] });

  expect([sizes, open.length]).toStrictEqual([[3, 3, 1], 6]);
  expect(new Set((await list(customer)).map((one) => one.id)).size).toBe(7);
});

test("orders are searched", async () => {
  const customer = newCustomer();
  const { id } = await client.createOrder({ ...order(customer), metadata: { gift: "yes, please" } });

  let found: Order[] = [];
  while (!found.length) {
    for await (const page of client.searchOrders({ q: customer, metadata: { gift: "yes, please" }, facets: ["status"] }).pages()) {
      found = page.orders;
      expect(page.facets?.status).toStrictEqual(found.length ? [{ value: "pending", count: 1 }] : []);
    }
  }

  expect(found.map((one) => one.id)).toStrictEqual([id]);
});

test("an erasure is followed to its end", async () => {
  const customer = newCustomer();
  const created = await client.createOrder({ ...order(customer), note: "private" });
  await client.cancelOrder(created, { reason: "customer" });

  let erasure = await client.eraseCustomer(customer);
  while (erasure.status === "running") erasure = await client.readErasure(erasure.id);

  expect(erasure.orders).toBe(1);
  expect((await client.getOrder(created.id)).note).toBe(null);
});

test("any operation can be called by its path", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const query = { customer_id: created.customer_id, format: "ndjson" } as const;

  const { data } = await client.api.GET("/orders/export", { params: { query }, parseAs: "text" });

  expect(JSON.parse(data!)).toStrictEqual(created);
});

test("exports are read line by line", async () => {
  const created = await client.createOrder(order(newCustomer()));
  const orders: Order[] = [];
  const kinds: string[] = [];

  for await (const one of client.exportOrders({ customer_id: created.customer_id })) orders.push(one);
  for await (const line of client.exportCustomer(created.customer_id)) kinds.push(...Object.keys(line));

  expect(orders).toStrictEqual([created]);
  expect(kinds).toStrictEqual(["order", "event"]);
});

test("wrong credentials are refused", async () => {
  const refused = connect({ token: `${API_KEY}x` }).createOrder(order(newCustomer()));

  expect(await rejection(refused, ProblemError)).toMatchObject({ slug: "unauthenticated" });
});

async function list(customer: string, query: { status?: Order["status"][] } = {}): Promise<Order[]> {
  const orders = [];
  for await (const one of client.listOrders({ customer_id: customer, limit: 5, ...query })) orders.push(one);
  return orders;
}
