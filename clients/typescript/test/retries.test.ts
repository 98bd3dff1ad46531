import { newIdempotencyKey, NoResponseError, NotFoundError, ProblemError } from "@order-service/client";
import { expect, test } from "vitest";
import { connect, gateway, newCustomer, order, rejection } from "./service.js";

const retry = { baseDelay: 1 };

test("a create whose response is lost is repeated with the same key, and executed once", async () => {
  const customer = newCustomer();
  const { url, requests } = await gateway("drop", "drop");

  const created = await connect({ baseUrl: url, retry }).createOrder(order(customer));

  const keys = requests.map((request) => request.headers["idempotency-key"]);
  expect([keys.length, new Set(keys).size]).toStrictEqual([3, 1]);
  const orders = [];
  for await (const one of connect().listOrders({ customer_id: customer })) orders.push(one);
  expect(orders).toStrictEqual([created]);
});

test("a change whose response is lost is not refused because of its own version", async () => {
  const { url } = await gateway("forward", "drop");
  const client = connect({ baseUrl: url, retry });
  const created = await client.createOrder(order(newCustomer()));

  expect((await client.confirmOrder(created)).version).toBe(2);
});

test("a batch whose response is lost is repeated, and creates each order once", async () => {
  const customer = newCustomer();
  const { url } = await gateway("drop", "forward", "drop");
  const client = connect({ baseUrl: url, retry });

  const { results } = await client.createOrders([order(customer), order(customer)]);
  const orders = results.flatMap((result) => ("order" in result ? [result.order] : []));
  const actions = orders.map((one) => ({ order_id: one.id, action: "confirm" as const }));
  const confirmed = await client.actOnOrders(actions);

  expect(confirmed.results.map((result) => result.status)).toStrictEqual([200, 200]);
  const versions = [];
  for await (const one of connect().listOrders({ customer_id: customer })) versions.push(one.version);
  expect(versions).toStrictEqual([2, 2]);
});

for (const status of [408, 409, 429, 502, 503, 504]) {
  test(`status ${status} with Retry-After is repeated no earlier`, async () => {
    const { url, requests } = await gateway({ status, headers: { "Retry-After": "1" } });
    const start = performance.now();

    await connect({ baseUrl: url, retry }).createOrder(order(newCustomer()));

    expect(requests.length).toBe(2);
    expect(performance.now() - start).toBeGreaterThanOrEqual(990);
  });
}

test("Retry-After can be a date", async () => {
  const headers = { "Retry-After": new Date(Date.now() + 2_000).toUTCString() };
  const { url, requests } = await gateway({ status: 503, headers });
  const start = performance.now();

  await connect({ baseUrl: url, retry }).createOrder(order(newCustomer()));

  expect(requests.length).toBe(2);
  expect(performance.now() - start).toBeGreaterThanOrEqual(900);
});

test("a Retry-After above the longest pause is an error with its value", async () => {
  const { url, requests } = await gateway({ status: 503, headers: { "Retry-After": "3600" } });
  const refused = connect({ baseUrl: url }).createOrder(order(newCustomer()));

  expect(await rejection(refused, ProblemError)).toMatchObject({ retryAfter: 3600, slug: "about:blank" });
  expect(requests.length).toBe(1);
});

for (const status of [400, 404, 409, 422, 500]) {
  test(`status ${status} is final`, async () => {
    const { url, requests } = await gateway({ status });
    const refused = connect({ baseUrl: url }).createOrder(order(newCustomer()));

    expect(await rejection(refused, ProblemError)).toMatchObject({ status });
    expect(requests.length).toBe(1);
  });
}

test("without a response, the error has the idempotency key", async () => {
  const customer = newCustomer();
  const { url } = await gateway("drop", "drop");
  const client = connect({ baseUrl: url, retry: { ...retry, attempts: 2 } });

  const error = await rejection(client.createOrder(order(customer)), NoResponseError);

  expect(error.attempts).toBe(2);
  expect(error.message).not.toContain("fetch failed"); // but the reason
  const found = await connect().createOrder(order(customer), { idempotencyKey: error.idempotencyKey! });
  const orders = [];
  for await (const one of connect().listOrders({ customer_id: customer })) orders.push(one);
  expect(orders).toStrictEqual([found]);
});

test("a request without a key is not repeated if it may have been executed", async () => {
  const { url, requests } = await gateway("drop");
  const lost = connect({ baseUrl: url, retry }).createWebhook({ url: "http://127.0.0.1:9/" });

  const error = await rejection(lost, NoResponseError);
  expect(error).toMatchObject({ attempts: 1, idempotencyKey: undefined });
  expect(error.message).toMatch(/^No response after 1 attempt: /);
  expect(requests.length).toBe(1);
  for (const webhook of await connect().listWebhooks()) await connect().deleteWebhook(webhook.id);
});

test("a request without a key is repeated if it was not executed", async () => {
  const { url, requests } = await gateway({ status: 429 });
  const client = connect({ baseUrl: url, retry });

  const webhook = await client.createWebhook({ url: "http://127.0.0.1:9/" });

  expect(requests.length).toBe(2);
  await client.deleteWebhook(webhook.id);
});

test("a deletion whose response is lost succeeds when the webhook is not found", async () => {
  const { url, requests } = await gateway("forward", "drop", { status: 503 });
  const client = connect({ baseUrl: url, retry });
  const webhook = await client.createWebhook({ url: "http://127.0.0.1:9/" });

  await client.deleteWebhook(webhook.id);

  expect(requests.map((request) => request.method)).toStrictEqual(["POST", "DELETE", "DELETE", "DELETE"]);
  await expect(client.deleteWebhook(webhook.id)).rejects.toThrow(NotFoundError);
});

for (const status of [429, 503]) {
  test(`a webhook that is not found after status ${status} was not deleted by this request`, async () => {
    const { url, requests } = await gateway({ status });
    const deleted = connect({ baseUrl: url, retry }).deleteWebhook("00000000-0000-7000-8000-000000000000");

    await expect(deleted).rejects.toThrow(NotFoundError);
    expect(requests.length).toBe(2);
  });
}

test("a hold whose order is not found is not released, even if a response is lost", async () => {
  const { url } = await gateway("drop");
  const released = connect({ baseUrl: url, retry }).releaseHold("00000000-0000-7000-8000-000000000000", "fraud");

  await expect(released).rejects.toThrow(NotFoundError);
});

const FAILING: Record<string, () => Promise<string>> = {
  throws: () => {
    throw new TypeError("Signed out.");
  },
  rejects: () => Promise.reject(new TypeError("Signed out.")),
};

for (const [how, token] of Object.entries(FAILING)) {
  test(`a token function that ${how} ends the request at once`, async () => {
    const { url, requests } = await gateway();
    const client = connect({ baseUrl: url, token, retry: { attempts: 2 } });
    const stream = client.streamOrderEvents("00000000-0000-7000-8000-000000000000");

    await expect(client.createOrder(order(newCustomer()))).rejects.toThrow(new TypeError("Signed out."));
    await expect(client.exportOrders().next()).rejects.toThrow(new TypeError("Signed out."));
    await expect(stream.next()).rejects.toThrow(new TypeError("Signed out."));
    expect(requests.length).toBe(0);
  });
}

test("an attempt that takes too long is repeated", async () => {
  let attempts = 0;
  const slow: typeof fetch = (input, init) => {
    if (++attempts > 1) return fetch(input, init);
    return new Promise((_, reject) => init!.signal!.addEventListener("abort", () => reject(init!.signal!.reason)));
  };

  await connect({ fetch: slow, retry: { ...retry, timeout: 500 } }).createOrder(order(newCustomer()));

  expect(attempts).toBe(2);
});

test("the signal of the caller aborts the pauses", async () => {
  const { url, requests } = await gateway({ status: 503, headers: { "Retry-After": "10" } });
  const options = { signal: AbortSignal.timeout(200), idempotencyKey: newIdempotencyKey() };
  const ended = connect({ baseUrl: url }).createOrder(order(newCustomer()), options);

  expect(await rejection(ended, DOMException)).toMatchObject({ name: "TimeoutError" });
  expect(requests.length).toBe(1);
});
