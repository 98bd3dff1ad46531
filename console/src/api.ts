// Requests to the public API of the same origin.

import { ProblemError, readProblem } from "../../clients/typescript/src/problems";
import { Limit, RETRY_POLICY, sleep } from "../../clients/typescript/src/transport";

const PREFIX = location.pathname.replace(/\/console\/?$/, "");
const KEY = "api-key";
export const UNAUTHENTICATED = "unauthenticated"; // a window event: the key is missing or invalid
const RETRY_DELAYS = [500, 1_500, 4_000]; // milliseconds, between attempts of a read

/** There was no response: the network or the service is unavailable. */
export class ConnectionError extends Error {}

export interface RequestOptions {
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export function problemPage(slug: string): string {
  return `${PREFIX}/problems/${slug}`;
}

export function apiKey(): string {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setApiKey(key: string): void {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** A new idempotency key. `crypto.randomUUID` exists in secure contexts only. */
export function newIdempotencyKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The query of a URL, without empty parameters. */
export function query(parameters: Record<string, string | number | undefined>): string {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}

/** Send a request, and return the response before its body has arrived. Throws ProblemError, ConnectionError, or AbortError. */
export async function open(method: string, path: string, options: RequestOptions = {}): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json", ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const init: RequestInit = { method, headers, credentials: "omit", signal: options.signal ?? null };
  if (options.body !== undefined) {
    headers["Content-Type"] = method === "PATCH" ? "application/merge-patch+json" : "application/json";
    init.body = JSON.stringify(options.body);
  }
  const response = await fetch(PREFIX + path, init).catch((error: unknown) => {
    throw isAborted(error) ? error : new ConnectionError("No response from the service.");
  });
  if (response.ok) return response;
  if (response.status === 401) dispatchEvent(new Event(UNAUTHENTICATED));
  throw await readProblem(response);
}

/** Send a request, and read the whole response. Throws the same errors as `open`. */
export async function send<T>(method: string, path: string, options: RequestOptions = {}): Promise<T> {
  const limit = new Limit(options.signal, RETRY_POLICY.timeout);
  try {
    const response = await open(method, path, { ...options, signal: limit.signal });
    const text = await response.text().catch((error: unknown) => {
      throw isAborted(error) ? error : new ConnectionError("The response was cut off.");
    });
    return (text ? JSON.parse(text) : null) as T;
  } finally {
    limit.end();
  }
}

/** Read a resource; temporary errors are retried. */
export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  for (const delay of RETRY_DELAYS) {
    try {
      return await send<T>("GET", path, signal ? { signal } : {});
    } catch (error) {
      if (!isTemporary(error)) throw error;
      await sleep(delay + Math.random() * delay, signal);
    }
  }
  return send<T>("GET", path, signal ? { signal } : {});
}

/** Whether the same request may succeed later. */
export function isTemporary(error: unknown): boolean {
  if (error instanceof ConnectionError) return true;
  return error instanceof ProblemError && (error.slug === "request-in-flight" || [429, 502, 503, 504].includes(error.status));
}

export function isAborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
