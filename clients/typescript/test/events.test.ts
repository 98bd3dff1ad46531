import { type FeedEvent, NotFoundError, type OrderEvent, ProblemError } from "@order-service/client";
import { expect, test } from "vitest";
import { connect, CUSTOMER_TOKEN, newCustomer, order, rejection } from "./service.js";

const client = connect();

/** The first events of a stream; leaving the loop closes it. */
async function first<Event>(count: number, events: AsyncIterable<Event>): Promise<Event[]> {
  const received: Event[] = [];
  for await (const event of events) {
    received.push(event);
    if (received.length === count) return received;
  }
  return received;
}

test("the events of an order are streamed as they happen", async () => {
  const created = await client.createOrder(order("c-1"));
  const stream = connect({ token: CUSTOMER_TOKEN }).streamOrderEvents(created);
  const types: string[] = [];

  for await (const event of stream) {
    types.push(event.type);
    if (event.version === 1) await client.confirmOrder(created);
    if (event.version === 2) await client.cancelOrder(created.id, { reason: "customer" });
    if (event.data.status === "cancelled") break;
  }

  expect(types).toStrictEqual(["order.created", "order.confirmed", "order.cancelled"]);
  const rest = await first<OrderEvent>(1, client.streamOrderEvents(created, { after: 2 }));
  expect(rest.map((event) => event.version)).toStrictEqual([3]);
});

test("the events of all orders are streamed, and continue after the last received event", async () => {
  const [{ id }, other] = [await client.createOrder(order(newCustomer())), await client.createOrder(order("c-1"))];
  await client.confirmOrder(id);
  await client.completeOrder(id);

  const [created] = await first<FeedEvent>(1, client.streamEvents({ order_id: id }));
  const rest = await first<FeedEvent>(2, client.streamEvents({ order_id: id, after: String(created!.seq) }));
  const types = { types: ["order.completed"] as FeedEvent["type"][], after: String(created!.seq) };
  const [completed] = await first<FeedEvent>(1, client.streamEvents(types));

  expect(other.id).not.toBe(id);
  expect(rest.map((event) => event.type)).toStrictEqual(["order.confirmed", "order.completed"]);
  expect(completed).toStrictEqual(rest[1]);
});

test("the feed is listed to its end, and continues from the cursor of its last page", async () => {
  const { id } = await client.createOrder(order(newCustomer()));
  const [{ seq }] = (await first<FeedEvent>(1, client.streamEvents({ order_id: id }))) as [FeedEvent];
  await client.confirmOrder(id);
  await client.completeOrder(id);
  await first<FeedEvent>(3, client.streamEvents({ order_id: id })); // the worker has numbered them

  let after = String(seq);
  const types = [];
  for await (const page of client.listFeedEvents({ order_id: id, after, limit: 1 }).pages()) {
    types.push(...page.events.map((event) => event.type));
    after = page.next_cursor;
  }

  expect(types).toStrictEqual(["order.confirmed", "order.completed"]);
  const feed = client.listFeedEvents({ order_id: id, after, wait: 20 });
  const [next] = await Promise.all([first<FeedEvent>(1, feed), client.reopenOrder(id, { reason: "A unit is missing." })]);
  expect(next.map((event) => event.type)).toStrictEqual(["order.reopened"]);
});

test("a stream that is refused is an error", async () => {
  const unknown = first(1, client.streamOrderEvents("00000000-0000-7000-8000-000000000000"));
  await expect(unknown).rejects.toThrow(NotFoundError);
  const forbidden = first(1, connect({ token: CUSTOMER_TOKEN }).streamEvents());
  expect(await rejection(forbidden, ProblemError)).toMatchObject({ slug: "forbidden" });
  const expired = first(1, client.streamEvents({ after: "999999999" }));
  expect(await rejection(expired, ProblemError)).toMatchObject({ slug: "cursor-expired" });
});

test("the signal ends a stream that waits", async () => {
  const { id } = await client.createOrder(order(newCustomer()));
  const controller = new AbortController();
  const received = [];

  for await (const event of client.streamOrderEvents(id, {}, { signal: controller.signal })) {
    received.push(event);
    setTimeout(() => controller.abort(), 100);
  }

  expect(received.length).toBe(1);
});
