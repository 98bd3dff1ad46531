/** Sends requests, and retries them where that is safe: with full jitter, `Retry-After`, and a timeout per attempt. */

import { NoResponseError, readProblem, retryAfterSeconds } from "./problems.js";

/** How often and when a request is retried. */
export interface RetryPolicy {
  /** Total number of attempts, at least 1. Default: 6. */
  attempts: number;
  /** Milliseconds. The n-th pause is a random time up to 2ⁿ⁻¹ times this ("full jitter"). Default: 200. */
  baseDelay: number;
  /** Milliseconds. The longest pause; a response with a longer `Retry-After` is not retried. Default: 20,000. */
  maxDelay: number;
  /** Milliseconds for one attempt, until its response is complete. Default: 30,000. */
  timeout: number;
}

export const RETRY_POLICY: RetryPolicy = { attempts: 6, baseDelay: 200, maxDelay: 20_000, timeout: 30_000 };

/**
 * An API key or a customer's token, or a function that returns one. The function is called for each attempt; if it
 * throws, the request fails with its error.
 */
export type Token = string | (() => string | Promise<string>);

const SAFE_TO_REPEAT = new Set(["GET", "HEAD", "PUT", "DELETE"]); // RFC 9110 §9.2.2
const UNPROCESSED = new Set([408, 429]); // the service did nothing
const TRANSIENT = new Set([...UNPROCESSED, 502, 503, 504]);
const DELETED = "webhook-not-found"; // only webhooks are deleted by a DELETE without a key

export class Transport {
  constructor(
    private readonly fetcher: typeof fetch,
    private readonly token: Token | undefined,
    readonly policy: RetryPolicy,
  ) {}

  /** Sends a request; retries it only if its method or its Idempotency-Key makes that safe. Throws ProblemError. */
  readonly send = (request: Request): Promise<Response> =>
    this.retry(request, SAFE_TO_REPEAT.has(request.method) || request.headers.has("Idempotency-Key"));

  /** Sends a request that is safe to repeat because its entries have idempotency keys. Throws ProblemError. */
  readonly sendRepeatable = (request: Request): Promise<Response> => this.retry(request, true);

  /** Sends a request whose response is read as it arrives. Throws ProblemError. */
  readonly open = async (request: Request): Promise<Response> => this.receive(request, await this.headers(request));

  /** Sends a request with these headers. Throws ProblemError. */
  async receive(request: Request, headers: Headers): Promise<Response> {
    const response = await this.fetcher(new Request(request, { headers }));
    if (!response.ok) throw await readProblem(response);
    return response;
  }

  /** The headers of a request, with a token. Throws what the token function throws. */
  async headers(request: Request): Promise<Headers> {
    const headers = new Headers(request.headers);
    const token = typeof this.token === "function" ? await this.token() : this.token;
    if (token !== undefined) headers.set("Authorization", `Bearer ${token}`);
    return headers;
  }

  private async retry(request: Request, repeatable: boolean): Promise<Response> {
    const body = await request.arrayBuffer(); // read once, sent with each attempt
    let mayBeDone = false; // an attempt without a response may have been executed
    for (let attempt = 1; ; attempt++) {
      const outcome = await this.attempt(request, await this.headers(request), body);
      request.signal.throwIfAborted();
      mayBeDone ||= !(outcome instanceof Response);
      const pause = attempt < this.policy.attempts ? this.pause(outcome, attempt, repeatable) : undefined;
      if (pause !== undefined) {
        await sleep(pause, request.signal);
      } else if (outcome instanceof Response) {
        if (outcome.ok || outcome.status === 304) return outcome;
        const problem = await readProblem(outcome);
        if (!(mayBeDone && request.method === "DELETE" && problem.slug === DELETED)) throw problem;
        return new Response(null, { status: 204 });
      } else {
        throw new NoResponseError(attempt, request.headers.get("Idempotency-Key") ?? undefined, outcome.cause);
      }
    }
  }

  /** Makes one attempt and reads the whole response, since a connection can also be lost within the body. */
  private async attempt(
    request: Request,
    headers: Headers,
    body: ArrayBuffer,
  ): Promise<Response | { cause: unknown }> {
    const limit = new Limit(request.signal, this.policy.timeout);
    try {
      const init = { method: request.method, headers, signal: limit.signal };
      const response = await this.fetcher(request.url, body.byteLength ? { ...init, body } : init);
      const content = await response.arrayBuffer();
      return new Response(content.byteLength ? content : null, response);
    } catch (cause) {
      return { cause };
    } finally {
      limit.end();
    }
  }

  /** Milliseconds until the next attempt, or undefined if this was the last one. */
  private pause(outcome: Response | { cause: unknown }, attempt: number, repeatable: boolean): number | undefined {
    const { baseDelay, maxDelay } = this.policy;
    const jitter = Math.random() * Math.min(maxDelay, baseDelay * 2 ** (attempt - 1));
    if (!(outcome instanceof Response)) return repeatable ? jitter : undefined;
    const retryAfter = retryAfterSeconds(outcome);
    const isTransient = TRANSIENT.has(outcome.status) || (outcome.status === 409 && retryAfter !== undefined);
    if (!isTransient || !(repeatable || UNPROCESSED.has(outcome.status))) return undefined;
    const wait = (retryAfter ?? 0) * 1000;
    return wait > maxDelay ? undefined : Math.min(maxDelay, wait + jitter);
  }
}

/** A signal that aborts when its parent does, or when it has not been renewed for some time. */
export class Limit {
  private readonly controller = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly parent: AbortSignal | undefined,
    private readonly milliseconds: number,
  ) {
    if (parent?.aborted) this.abort();
    parent?.addEventListener("abort", this.abort);
    this.renew();
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  renew(): void {
    clearTimeout(this.timer);
    const expired = () => this.controller.abort(new DOMException("The time limit has passed.", "TimeoutError"));
    this.timer = setTimeout(expired, this.milliseconds);
  }

  /** Releases the timer and the parent. */
  end(): void {
    clearTimeout(this.timer);
    this.parent?.removeEventListener("abort", this.abort);
  }

  private readonly abort = (): void => this.controller.abort(this.parent?.reason);
}

/** Resolves after the time, or as soon as the browser is online again; rejects if the signal aborts before. */
export function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      globalThis.removeEventListener?.("online", end);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal?.addEventListener("abort", end);
    globalThis.addEventListener?.("online", end); // Node.js has no such event
    if (signal?.aborted) end();
  });
}
