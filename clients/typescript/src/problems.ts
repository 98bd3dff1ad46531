/** Errors that the client throws: problem documents of the service (RFC 9457), and requests without a response. */

import type { components } from "./schema.js";
import type { Action, OrderStatus } from "./types.js";

export type Problem = components["schemas"]["Problem"];

/** The service refused the request. `slug` identifies the type of the problem; `problem` is the whole document. */
export class ProblemError extends Error {
  override readonly name: string = "ProblemError";
  readonly status: number;
  /** The last part of the problem's `type`, for example `order-not-found`; the page at `type` says what to do. */
  readonly slug: string;
  readonly requestId: string | undefined;

  constructor(
    readonly problem: Problem,
    /** Seconds to wait before the next attempt, if the service says so. */
    readonly retryAfter?: number,
  ) {
    super(problem.detail || problem.title);
    this.status = problem.status;
    this.slug = problem.type.replace(/^.*\//, "");
    this.requestId = problem.request_id ?? undefined;
  }
}

/** 400: `errors` lists all errors, each with a JSON pointer or the name of the parameter. */
export class InvalidRequestError extends ProblemError {
  override readonly name = "InvalidRequestError";
  readonly errors = this.problem.errors ?? [];
}

/** 404: the order, webhook, … does not exist, or belongs to somebody else. */
export class NotFoundError extends ProblemError {
  override readonly name = "NotFoundError";
}

/** 409 or 412: the state of the order does not allow the request. Read the order again and decide what to do. */
export class ConflictError extends ProblemError {
  override readonly name: string = "ConflictError";
  /** The current version of the order, if the conflict is about an order. */
  readonly currentVersion = member<number>(this.problem, "current_version");
  readonly orderStatus = member<OrderStatus>(this.problem, "order_status");
  readonly allowedActions = member<Action[]>(this.problem, "allowed_actions");
  /** The id of the other order, if two orders are in conflict. */
  readonly orderId = member<string>(this.problem, "order_id");
}

/** 412: the order has changed since the version that the request was based on. Nothing was changed. */
export class VersionMismatchError extends ConflictError {
  override readonly name = "VersionMismatchError";
  declare readonly currentVersion: number;
}

/** 409: the order's status does not allow the action; `allowedActions` lists the possible ones. */
export class IllegalActionError extends ConflictError {
  override readonly name = "IllegalActionError";
  declare readonly orderStatus: OrderStatus;
  declare readonly allowedActions: Action[];
}

/**
 * No attempt got a response, so it is unknown whether the request was executed. Call the method again with the same
 * `idempotencyKey`: it is executed at most once.
 */
export class NoResponseError extends Error {
  override readonly name = "NoResponseError";

  constructor(
    readonly attempts: number,
    readonly idempotencyKey: string | undefined,
    override readonly cause: unknown,
  ) {
    // The message of Node.js is "fetch failed"; its cause has the reason.
    const reason = cause instanceof Error && cause.cause instanceof Error ? cause.cause : cause;
    const count = attempts === 1 ? "1 attempt" : `${attempts} attempts`;
    super(`No response after ${count}: ${reason instanceof Error ? reason.message : String(reason)}`);
  }
}

/** Reads a response with a status of 400 or more, and returns it as an error. */
export async function readProblem(response: Response): Promise<ProblemError> {
  const problem = await readDocument(response);
  const retryAfter = retryAfterSeconds(response);
  const slug = problem.type.replace(/^.*\//, "");
  if (slug === "version-mismatch") return new VersionMismatchError(problem, retryAfter);
  if (slug === "illegal-action") return new IllegalActionError(problem, retryAfter);
  if (problem.status === 409 || problem.status === 412) return new ConflictError(problem, retryAfter);
  if (problem.status === 404) return new NotFoundError(problem, retryAfter);
  if (problem.status === 400) return new InvalidRequestError(problem, retryAfter);
  return new ProblemError(problem, retryAfter);
}

/** Seconds of `Retry-After`, which is a number or a date (RFC 9110 §10.2.3). */
export function retryAfterSeconds(response: Response): number | undefined {
  const text = response.headers.get("Retry-After");
  if (text === null) return undefined;
  const seconds = /^\d+$/.test(text) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds);
}

async function readDocument(response: Response): Promise<Problem> {
  try {
    const document: unknown = await response.json();
    if (isProblem(document)) return document;
  } catch {
    // A proxy's page.
  }
  const title = response.statusText || `Status ${response.status}`;
  return { type: "about:blank", title, status: response.status, detail: title } as Problem;
}

function isProblem(document: unknown): document is Problem {
  const problem = document as Partial<Problem> | null;
  return typeof problem === "object" && typeof problem?.type === "string" && typeof problem.status === "number";
}

function member<T>(problem: Problem, name: string): T | undefined {
  return (problem as Record<string, unknown>)[name] as T | undefined;
}
