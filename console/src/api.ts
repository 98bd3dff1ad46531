// Requests to the public API of the same origin.

const PREFIX = location.pathname.replace(/\/console\/?$/, "");
const KEY = "api-key";
export const UNAUTHENTICATED = "unauthenticated"; // an event of the window: the key is missing, or no longer valid
const RETRY_DELAYS = [500, 1_500, 4_000]; // milliseconds, between attempts of a read

export interface RequestError {
  pointer?: string;
  parameter?: string;
  detail: string;
}

/** A problem document (RFC 9457). */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly slug: string,
    readonly errors: RequestError[],
    readonly requestId: string | null,
    readonly retryAfter: number | null,
  ) {
    super(detail);
  }
}

/** There was no answer: the network, or the service, is away. */
export class ConnectionError extends Error {}

export interface Answer<T> {
  data: T;
  etag: string | null;
  status: number;
}

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

/** Send one request. Throws Problem, ConnectionError, or AbortError. */
export async function send<T>(method: string, path: string, options: RequestOptions = {}): Promise<Answer<T>> {
  const response = await attempt(method, path, options);
  const text = await readText(response, options.signal);
  if (!response.ok) throw problemOf(response, text);
  return { data: (text ? JSON.parse(text) : null) as T, etag: response.headers.get("ETag"), status: response.status };
}

/** Read a resource, and try again when that may help. */
export async function get<T>(path: string, signal?: AbortSignal): Promise<Answer<T>> {
  for (const delay of RETRY_DELAYS) {
    try {
      return await send<T>("GET", path, signal ? { signal } : {});
    } catch (error) {
      if (!isTemporary(error)) throw error;
      await pause(delay + Math.random() * delay, signal);
    }
  }
  return send<T>("GET", path, signal ? { signal } : {});
}

/** Whether the same request may succeed later. */
export function isTemporary(error: unknown): boolean {
  if (error instanceof ConnectionError) return true;
  return error instanceof Problem && (error.slug === "request-in-flight" || [429, 502, 503, 504].includes(error.status));
}

export function isAborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Wait, but no longer than until the browser is online again or the signal aborts, which throws. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) reject(new DOMException("aborted", "AbortError"));
      else resolve();
    };
    const timer = setTimeout(end, milliseconds);
    addEventListener("online", end);
    signal?.addEventListener("abort", end);
    if (signal?.aborted) end();
  });
}

export interface ServerEvent {
  id: string;
  data: string;
}

/** The events of a stream (Server-Sent Events), until it ends. EventSource could not send the API key. */
export async function* stream(path: string, signal: AbortSignal, opened: () => void): AsyncGenerator<ServerEvent> {
  const response = await attempt("GET", path, { headers: { Accept: "text/event-stream" }, signal });
  if (!response.ok || !response.body) throw problemOf(response, await readText(response, signal));
  opened();
  // A reader, since Safari does not iterate over streams.
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    let buffer = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (buffer + value).split("\n\n");
      buffer = blocks.pop() ?? "";
      for (const block of blocks) {
        const values = new Map(block.split("\n").map((line) => [line.split(":", 1)[0] ?? "", line.replace(/^\w*: ?/, "")]));
        const data = values.get("data");
        if (data !== undefined) yield { id: values.get("id") ?? "", data };
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

async function attempt(method: string, path: string, options: RequestOptions): Promise<Response> {
  const headers: Record<string, string> = { Accept: "application/json", ...options.headers };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const init: RequestInit = { method, headers, credentials: "omit", signal: options.signal ?? null };
  if (options.body !== undefined) {
    headers["Content-Type"] = method === "PATCH" ? "application/merge-patch+json" : "application/json";
    init.body = JSON.stringify(options.body);
  }
  try {
    return await fetch(PREFIX + path, init);
  } catch (error) {
    throw isAborted(error) ? error : new ConnectionError("No answer from the service.");
  }
}

async function readText(response: Response, signal?: AbortSignal): Promise<string> {
  try {
    return await response.text();
  } catch (error) {
    throw signal?.aborted || isAborted(error) ? error : new ConnectionError("The answer was cut off.");
  }
}

function problemOf(response: Response, text: string): Problem {
  if (response.status === 401) dispatchEvent(new Event(UNAUTHENTICATED));
  let document: Record<string, unknown> = {};
  try {
    document = JSON.parse(text) as Record<string, unknown>;
  } catch {
    // A proxy's own page: the status says all there is to know.
  }
  return new Problem(
    response.status,
    String(document.title ?? `Status ${response.status}`),
    String(document.detail ?? "The service gave no further explanation."),
    String(document.type ?? "").split("/").pop() ?? "",
    (document.errors as RequestError[] | undefined) ?? [],
    (document.request_id as string | null | undefined) ?? null,
    Number(response.headers.get("Retry-After")) || null,
  );
}
