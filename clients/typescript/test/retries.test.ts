import assert from "node:assert/strict";
import { newIdempotencyKey, NoResponseError, ProblemError } from "@order-service/client";
import { connect, gateway, newCustomer, order, test } from "./service.js";

const retry = { baseDelay: 1 };

test("a create whose response is lost is sent again with the same key, and happens once", async (context) => {
  const customer = newCustomer();
  const { url, requests } = await gateway(context, "drop", "drop");

  const created = await connect({ baseUrl: url, retry }).createOrder(order(customer));

  const keys = requests.map((request) => request.headers["idempotency-key"]);
  assert.deepEqual([keys.length, new Set(keys).size], [3, 1]);
  const orders = [];
  for await (const one of connect().listOrders({ customer_id: customer })) orders.push(one);
  assert.deepEqual(orders, [created]);
});

test("a change whose response is lost is not refused for the version that it has made itself", async (context) => {
  const { url } = await gateway(context, "forward", "drop");
  const client = connect({ baseUrl: url, retry });
  const created = await client.createOrder(order(newCustomer()));

  assert.equal((await client.confirmOrder(created)).version, 2);
});

test("a batch whose response is lost is sent again, and makes each order once", async (context) => {
  const customer = newCustomer();
  const { url } = await gateway(context, "drop", "forward", "drop");
  const client = connect({ baseUrl: url, retry });

  const { results } = await client.createOrders([order(customer), order(customer)]);
  const orders = results.flatMap((result) => ("order" in result ? [result.order] : []));
  const actions = orders.map((one) => ({ order_id: one.id, action: "confirm" as const }));
  const confirmed = await client.actOnOrders(actions);

  assert.deepEqual(confirmed.results.map((result) => result.status), [200, 200]);
  const versions = [];
  for await (const one of connect().listOrders({ customer_id: customer })) versions.push(one.version);
  assert.deepEqual(versions, [2, 2]);
});

for (const status of [408, 409, 429, 502, 503, 504]) {
  test(`status ${status} with Retry-After is repeated no earlier`, async (context) => {
    const { url, requests } = await gateway(context, { status, headers: { "Retry-After": "1" } });
    const start = performance.now();

    await connect({ baseUrl: url, retry }).createOrder(order(newCustomer()));

    assert.equal(requests.length, 2);
    assert.ok(performance.now() - start >= 990);
  });
}

test("Retry-After can be a date", async (context) => {
  const headers = { "Retry-After": new Date(Date.now() + 2_000).toUTCString() };
  const { url, requests } = await gateway(context, { status: 503, headers });
  const start = performance.now();

  await connect({ baseUrl: url, retry }).createOrder(order(newCustomer()));

  assert.equal(requests.length, 2);
  assert.ok(performance.now() - start >= 900);
});

test("a longer Retry-After than the longest pause is an error that tells it", async (context) => {
  const { url, requests } = await gateway(context, { status: 503, headers: { "Retry-After": "3600" } });

  await assert.rejects(
    connect({ baseUrl: url }).createOrder(order(newCustomer())),
    (error) => error instanceof ProblemError && error.retryAfter === 3600 && error.slug === "about:blank",
  );
  assert.equal(requests.length, 1);
});

for (const status of [400, 404, 409, 422, 500]) {
  test(`status ${status} is final`, async (context) => {
    const { url, requests } = await gateway(context, { status });

    await assert.rejects(
      connect({ baseUrl: url }).createOrder(order(newCustomer())),
      (error) => error instanceof ProblemError && error.status === status,
    );
    assert.equal(requests.length, 1);
  });
}

test("without a response, the error has the key to find out what happened", async (context) => {
  const customer = newCustomer();
  const { url } = await gateway(context, "drop", "drop");
  let key: string | undefined;

  await assert.rejects(connect({ baseUrl: url, retry: { ...retry, attempts: 2 } }).createOrder(order(customer)), (error) => {
    assert.ok(error instanceof NoResponseError && error.attempts === 2);
    key = error.idempotencyKey;
    return true;
  });

  const found = await connect().createOrder(order(customer), { idempotencyKey: key! });
  const orders = [];
  for await (const one of connect().listOrders({ customer_id: customer })) orders.push(one);
  assert.deepEqual(orders, [found]);
});

test("a request without a key is not sent again if it may have had an effect", async (context) => {
  const { url, requests } = await gateway(context, "drop");

  await assert.rejects(
    connect({ baseUrl: url, retry }).createWebhook({ url: "http://127.0.0.1:9/" }),
    (error) => error instanceof NoResponseError && error.idempotencyKey === undefined,
  );
  assert.equal(requests.length, 1);
  for (const webhook of await connect().listWebhooks()) await connect().deleteWebhook(webhook.id);
});

test("a request without a key is sent again if it had none", async (context) => {
  const { url, requests } = await gateway(context, { status: 429 });
  const client = connect({ baseUrl: url, retry });

  const webhook = await client.createWebhook({ url: "http://127.0.0.1:9/" });

  assert.equal(requests.length, 2);
  await client.deleteWebhook(webhook.id);
});

test("an attempt that takes too long is repeated", async () => {
  let attempts = 0;
  const slow: typeof fetch = (input, init) => {
    if (++attempts > 1) return fetch(input, init);
    return new Promise((_, reject) => init!.signal!.addEventListener("abort", () => reject(init!.signal!.reason)));
  };

  await connect({ fetch: slow, retry: { ...retry, timeout: 500 } }).createOrder(order(newCustomer()));

  assert.equal(attempts, 2);
});

test("the signal of the caller ends the pauses", async (context) => {
  const { url, requests } = await gateway(context, { status: 503, headers: { "Retry-After": "10" } });
  const options = { signal: AbortSignal.timeout(200), idempotencyKey: newIdempotencyKey() };

  await assert.rejects(
    connect({ baseUrl: url }).createOrder(order(newCustomer()), options),
    (error) => error instanceof DOMException && error.name === "TimeoutError",
  );
  assert.equal(requests.length, 1);
});
