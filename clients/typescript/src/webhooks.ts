/** Verification of webhooks (Standard Webhooks). */

import { webCrypto } from "#crypto";
import type { WebhookEvent } from "./types.js";

/** The request is not a webhook of the service, or is too old. Respond with 401. */
export class WebhookVerificationError extends Error {
  override readonly name = "WebhookVerificationError";
}

/** The headers of a request: those of the Fetch API, or those of Node.js, whose names are in lower case. */
export type RequestHeaders = Headers | Record<string, string | string[] | undefined>;

export interface VerificationOptions {
  /** Seconds that the timestamp may differ from the local clock: an old request may be an attacker's replay. */
  tolerance?: number;
}

/**
 * Returns the event of a webhook. Handle each `webhook-id` once: an event can be delivered more than once.
 *
 * `body` is the unchanged body, byte for byte; `secret` is the endpoint's, `whsec_…`. After a rotation of the secret, a
 * request has two signatures for a day, and one valid signature is enough. Throws WebhookVerificationError, and
 * TypeError for a secret that is empty or not in base64.
 */
export async function verifyWebhook(
  body: string | Uint8Array<ArrayBuffer>,
  headers: RequestHeaders,
  secret: string,
  { tolerance = 300 }: VerificationOptions = {},
): Promise<WebhookEvent> {
  const secretBytes = decodeBase64(secret.replace(/^whsec_/, ""));
  if (!secretBytes?.length) {
    throw new TypeError(
      "The secret is empty or not in base64. Use the `secret` of the response that created the webhook: whsec_….",
    );
  }
  const id = header(headers, "webhook-id");
  const timestamp = header(headers, "webhook-timestamp");
  if (!/^\d{1,12}$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > tolerance) {
    throw new WebhookVerificationError("The timestamp is missing, too old or in the future.");
  }
  const content = typeof body === "string" ? new TextEncoder().encode(body) : body;
  const signed = concatenate(new TextEncoder().encode(`${id}.${timestamp}.`), content);
  const key = await webCrypto.subtle.importKey(
    "raw",
    secretBytes,
    { name: "HMAC", hash: "SHA-256" },
    false,
    ["verify"],
  );
  for (const signature of signatures(header(headers, "webhook-signature"))) {
    // WebCrypto compares in constant time.
    if (await webCrypto.subtle.verify("HMAC", key, signature, signed)) {
      return JSON.parse(new TextDecoder().decode(content)) as WebhookEvent;
    }
  }
  throw new WebhookVerificationError("No signature is valid.");
}

function header(headers: RequestHeaders, name: string): string {
  const value = headers instanceof Headers ? headers.get(name) : headers[name];
  if (typeof value !== "string") throw new WebhookVerificationError(`The header ${name} is missing.`);
  return value;
}

/** The signatures of version 1 in the header, which may also have others. */
function signatures(text: string): Uint8Array<ArrayBuffer>[] {
  return text.split(" ").flatMap((one) => (one.startsWith("v1,") ? (decodeBase64(one.slice(3)) ?? []) : []));
}

function decodeBase64(text: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function concatenate(first: Uint8Array, second: Uint8Array): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(first.length + second.length);
  joined.set(first);
  joined.set(second, first.length);
  return joined;
}
