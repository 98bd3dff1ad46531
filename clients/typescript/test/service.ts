/** The running service that the tests use (tests/clients starts it), and a gateway in front of it. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type ClientOptions, newIdempotencyKey, type NewOrder, OrderServiceClient } from "@order-service/client";
import { expect, onTestFinished } from "vitest";

export const SERVICE_URL = process.env.SERVICE_URL!;
export const API_KEY = process.env.API_KEY!;
export const CUSTOMER_TOKEN = process.env.CUSTOMER_TOKEN!;

export function connect(options: Partial<ClientOptions> = {}): OrderServiceClient {
  return new OrderServiceClient({ baseUrl: SERVICE_URL, token: API_KEY, ...options });
}

/** A customer that no other test uses. */
export function newCustomer(): string {
  return `c-${newIdempotencyKey()}`;
}

export function order(customer: string): NewOrder {
  return { customer_id: customer, currency: "EUR", items: [{ item_id: "sku-1", quantity: 3, unit_price: 1250 }] };
}

/** Returns the error of a promise, which must be one of this class. */
export async function rejection<Rejection extends Error>(
  promise: Promise<unknown>,
  type: new (...parameters: never[]) => Rejection,
): Promise<Rejection> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(type);
  return error as Rejection;
}

/** What a gateway does with a request: forward it, respond itself, or drop the service's response. */
export type Fault = "forward" | "drop" | { status: number; headers?: Record<string, string> };

export interface Gateway {
  url: string;
  requests: { method: string; path: string; headers: IncomingMessage["headers"] }[];
}

/** A gateway that applies one fault to each request, in order, and forwards all further ones, until the test ends. */
export async function gateway(...faults: Fault[]): Promise<Gateway> {
  const requests: Gateway["requests"] = [];
  const server = createServer((request, response) => {
    requests.push({ method: request.method!, path: request.url!, headers: request.headers });
    void answer(request, response, faults.shift() ?? "forward");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, requests };
}

async function answer(request: IncomingMessage, response: ServerResponse, fault: Fault): Promise<void> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  if (typeof fault === "object") {
    response.writeHead(fault.status, fault.headers).end();
    return;
  }
  const { host: _, connection: __, ...headers } = request.headers;
  const forwarded = await fetch(SERVICE_URL + request.url!, {
    method: request.method!,
    headers: headers as Record<string, string>,
    ...(chunks.length ? { body: Buffer.concat(chunks) } : {}),
  });
  if (fault === "drop") {
    await forwarded.arrayBuffer();
    request.socket.destroy();
    return;
  }
  const { "content-encoding": ___, "content-length": ____, ...kept } = Object.fromEntries(forwarded.headers);
  response.writeHead(forwarded.status, kept);
  response.end(Buffer.from(await forwarded.arrayBuffer()));
}
