import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import type { TestContext } from "node:test";
import { verifyWebhook, WebhookVerificationError } from "@order-service/client";
import { connect, newCustomer, order, test } from "./service.js";

const client = connect();
const SECRET = `whsec_${Buffer.from("a secret of thirty-two characters").toString("base64")}`;
const BODY = JSON.stringify({ type: "order.created", data: { note: "ä" } });

interface Received {
  headers: IncomingHttpHeaders;
  body: string;
}

/** A receiver of webhooks, and a function that returns its next request. */
async function receiver(context: TestContext): Promise<{ url: string; next: () => Promise<Received> }> {
  const received: Received[] = [];
  let wake: () => void = () => undefined;
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request.setEncoding("utf8")) body += chunk;
    received.push({ headers: request.headers, body });
    response.writeHead(204).end();
    wake();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const next = async () => {
    while (!received.length) await new Promise<void>((resolve) => (wake = resolve));
    return received.shift()!;
  };
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`, next };
}

function sign(body: string, { secret = SECRET, id = "e:1", time = Date.now() / 1000, versions = ["v1"] } = {}) {
  const timestamp = String(Math.floor(time));
  const key = Buffer.from(secret.slice(6), "base64");
  const signature = createHmac("sha256", key).update(`${id}.${timestamp}.${body}`).digest("base64");
  const signatures = versions.map((version) => `${version},${signature}`).join(" ");
  return { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures };
}

test("what the service sends is verified, also while the secret is rotated", async (context) => {
  const { url, next } = await receiver(context);
  const webhook = await client.createWebhook({ url, events: ["order.created"], payload: "order" });
  context.after(() => client.deleteWebhook(webhook.id));
  const created = await client.createOrder(order(newCustomer()));

  const { headers, body } = await next();
  const event = await verifyWebhook(body, headers, webhook.secret!);
  assert.equal(event.type, "order.created");
  assert.equal(headers["webhook-id"], `${created.id}:1`);

  const rotated = await client.rotateSecret(webhook.id);
  await client.replayDeliveries(webhook.id, { event_id: `${created.id}:1` });
  const again = await next();
  await verifyWebhook(again.body, again.headers, webhook.secret!);
  await verifyWebhook(new TextEncoder().encode(again.body), new Headers(again.headers as HeadersInit), rotated.secret!);

  await client.testWebhook(webhook.id);
  assert.equal((await verifyWebhook((await next()).body, again.headers, "").catch(() => null)), null);
  const deliveries = [];
  for await (const delivery of client.listDeliveries(webhook.id, { limit: 1 })) deliveries.push(delivery.type);
  assert.ok(deliveries.includes("order.created"));
  assert.equal((await client.updateWebhook(webhook.id, { description: "shop" })).description, "shop");
});

test("one valid signature among several is enough", async () => {
  const headers = sign(BODY);
  const several = `v1a,AAAA v1,AAAA v1,! ${headers["webhook-signature"]} v2,AAAA`;

  await verifyWebhook(BODY, { ...headers, "webhook-signature": several }, SECRET);
});

const FORGED: Record<string, Record<string, string | undefined>> = {
  "no headers": {},
  "no id": { ...sign(BODY), "webhook-id": undefined },
  "no signature": { ...sign(BODY), "webhook-signature": undefined },
  "another id": { ...sign(BODY), "webhook-id": "e:2" },
  "another secret": sign(BODY, { secret: "whsec_AAAA" }),
  "another body": sign(`${BODY} `),
  "another version": sign(BODY, { versions: ["v2", "v1a"] }),
  "an old timestamp": sign(BODY, { time: Date.now() / 1000 - 400 }),
  "a timestamp of the future": sign(BODY, { time: Date.now() / 1000 + 400 }),
  "another timestamp": { ...sign(BODY), "webhook-timestamp": String(Math.floor(Date.now() / 1000) - 10) },
  "a timestamp that is none": { ...sign(BODY), "webhook-timestamp": "1e9" },
  "an empty signature": { ...sign(BODY), "webhook-signature": "" },
  "a signature that is not base64": { ...sign(BODY), "webhook-signature": "v1,ä" },
};

for (const [what, headers] of Object.entries(FORGED)) {
  test(`a webhook with ${what} is refused`, async () => {
    await assert.rejects(verifyWebhook(BODY, headers, SECRET), WebhookVerificationError);
  });
}

test("the tolerance of the timestamp can be set", async () => {
  await verifyWebhook(BODY, sign(BODY, { time: Date.now() / 1000 - 400 }), SECRET, { tolerance: 600 });
});
