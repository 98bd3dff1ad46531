import { createHmac } from "node:crypto";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { verifyWebhook, WebhookVerificationError } from "@order-service/client";
import { expect, onTestFinished, test } from "vitest";
import { connect, newCustomer, order } from "./service.js";

const client = connect();
const SECRET = `whsec_${Buffer.from("a secret of thirty-two characters").toString("base64")}`;
const BODY = JSON.stringify({ type: "order.created", data: { note: "ä" } });

interface Received {
  headers: IncomingHttpHeaders;
  body: string;
}

/** A receiver of webhooks, and a function that returns its next request. */
async function receiver(): Promise<{ url: string; next: () => Promise<Received> }> {
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
  onTestFinished(() => {
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

test("webhooks of the service are verified, even while the secret is rotated", async () => {
  const { url, next } = await receiver();
  const webhook = await client.createWebhook({ url, events: ["order.created"], payload: "order" });
  onTestFinished(() => client.deleteWebhook(webhook.id));
  const created = await client.createOrder(order(newCustomer()));

  const { headers, body } = await next();
  const event = await verifyWebhook(body, headers, webhook.secret!);
  expect(event.type).toBe("order.created");
  expect(headers["webhook-id"]).toBe(`${created.id}:1`);

  const rotated = await client.rotateSecret(webhook.id);
  await client.replayDeliveries(webhook.id, { event_id: `${created.id}:1` });
  const again = await next();
  await verifyWebhook(again.body, again.headers, webhook.secret!);
  await verifyWebhook(new TextEncoder().encode(again.body), new Headers(again.headers as HeadersInit), rotated.secret!);

  await client.testWebhook(webhook.id);
  expect((await verifyWebhook((await next()).body, again.headers, "").catch(() => null))).toBe(null);
  const deliveries = [];
  for await (const delivery of client.listDeliveries(webhook.id, { limit: 1 })) deliveries.push(delivery.type);
  expect(deliveries).toContain("order.created");
  expect((await client.updateWebhook(webhook.id, { description: "shop" })).description).toBe("shop");
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
    await expect(verifyWebhook(BODY, headers, SECRET)).rejects.toThrow(WebhookVerificationError);
  });
}

for (const secret of ["", "whsec_", "not base64!"]) {
  test(`the secret "${secret}" is reported as a mistake of the receiver`, async () => {
    const refused = expect(verifyWebhook(BODY, sign(BODY), secret)).rejects;

    await refused.toThrow(TypeError);
    await refused.toThrow("empty or not in base64");
  });
}

test("the tolerance of the timestamp can be set", async () => {
  await verifyWebhook(BODY, sign(BODY, { time: Date.now() / 1000 - 400 }), SECRET, { tolerance: 600 });
});
