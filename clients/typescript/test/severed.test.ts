import type { FeedEvent, Order } from "@order-service/client";
import { expect, test } from "vitest";
import { connect, newCustomer, order } from "./service.js";

const INTENTS = Number(process.env.INTENTS);
const CLIENTS = 8;
const PATIENT = { attempts: 100, baseDelay: 1, maxDelay: 5 };

const severed = connect({ baseUrl: process.env.PROXY_URL!, retry: PATIENT });
const direct = connect();

/** Creates, confirms and partly cancels an order over severed connections. */
async function act(customer: string, intent: number): Promise<Order> {
  const created = await severed.createOrder({ ...order(customer), metadata: { intent: String(intent) } });
  const confirmed = await severed.confirmOrder(await severed.getOrder(created));
  return severed.cancelOrder(confirmed, { reason: "customer", items: [{ line: 1, quantity: 1 }] });
}

/** The events of a stream over severed connections. */
async function follow(after: string, customer: string): Promise<FeedEvent[]> {
  const events: FeedEvent[] = [];
  for await (const event of severed.streamEvents({ after })) {
    if (event.data.customer_id === customer) events.push(event);
    if (events.length === 3 * INTENTS) break;
  }
  return events;
}

test("severed connections neither duplicate nor lose anything", { timeout: 600_000 }, async () => {
  const customer = newCustomer();
  const acknowledged: Order[] = [];
  const intents = Array.from({ length: INTENTS }, (_, intent) => intent);
  const work = async () => {
    for (let intent = intents.pop(); intent !== undefined; intent = intents.pop()) {
      acknowledged.push(await act(customer, intent));
    }
  };

  const { next_cursor: after } = (await direct.listFeedEvents({ after: "latest" }).pages().next()).value!;
  const [events] = await Promise.all([follow(after, customer), ...Array.from({ length: CLIENTS }, work)]);

  const listed: Order[] = [];
  for await (const one of severed.listOrders({ customer_id: customer, limit: 20 })) listed.push(one);
  const stored: Order[] = [];
  for await (const one of direct.listOrders({ customer_id: customer, limit: 100 })) stored.push(one);

  const byId = (orders: Order[]) => Object.fromEntries(orders.map((one) => [one.id, one]));
  expect(stored.length).toBe(INTENTS);
  expect(new Set(stored.map((one) => one.metadata.intent)).size).toBe(INTENTS);
  expect(byId(acknowledged)).toStrictEqual(byId(stored)); // each is at version 3: no change was executed twice
  expect(listed).toStrictEqual(stored);
  expect(new Set(stored.map((one) => one.version))).toStrictEqual(new Set([3]));
  expect(new Set(events.map((event) => event.id)).size).toBe(3 * INTENTS);
  expect(events.map((event) => event.seq)).toStrictEqual(events.map((event) => event.seq).sort((a, b) => a - b));
});
