/** Event streams (Server-Sent Events, WHATWG HTML §9.2) that reconnect and continue after the last event. */

import { ProblemError } from "./problems.js";
import { Limit, type RetryPolicy, sleep } from "./transport.js";

const SILENCE = 45_000; // milliseconds: three heartbeats of the service

interface Message {
  id: string | undefined;
  data: string | undefined;
  retry: number | undefined;
}

/** Ends a stream: its iterator throws the cause. */
export class FinalError extends Error {
  constructor(override readonly cause: unknown) {
    super("The stream cannot be opened.");
  }
}

/** Opens the stream after an event. Throws FinalError if trying again would not help. */
export type Connect = (lastEventId: string | undefined, signal: AbortSignal) => Promise<Response>;

/**
 * Iterates over the documents of a stream until the loop is left or the signal aborts. After a lost connection it
 * reconnects; no event is missed or repeated. Throws ProblemError if the service refuses the stream.
 */
export async function* eventStream<Event>(
  connect: Connect,
  policy: RetryPolicy,
  signal?: AbortSignal,
): AsyncGenerator<Event, void> {
  let lastEventId: string | undefined;
  let delay = policy.baseDelay;
  for (let failures = 0; !signal?.aborted; failures++) {
    const limit = new Limit(signal, SILENCE);
    try {
      const response = await connect(lastEventId, limit.signal);
      for await (const message of readMessages(response.body!, limit)) {
        failures = 0;
        lastEventId = message.id ?? lastEventId;
        delay = message.retry ?? delay;
        if (message.data !== undefined) yield JSON.parse(message.data) as Event;
      }
    } catch (error) {
      if (error instanceof FinalError) throw error.cause;
      if (isFinal(error)) throw error;
    } finally {
      limit.end();
    }
    const pause = Math.min(policy.maxDelay, Math.random() * delay * 2 ** Math.min(failures, 16));
    await sleep(pause, signal).catch(() => undefined);
  }
}

/** The messages of one connection, until it ends. An incomplete message at the end is dropped, and sent again. */
async function* readMessages(body: ReadableStream<Uint8Array>, limit: Limit): AsyncGenerator<Message, void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let fields: Record<string, string | undefined> = {};
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      limit.renew();
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line) {
          addField(fields, line);
        } else {
          yield { id: fields.id, data: fields.data, retry: fields.retry ? Number(fields.retry) : undefined };
          fields = {};
        }
      }
    }
  } finally {
    // Closes the connection even if the loop is left early.
    await reader.cancel().catch(() => undefined);
  }
}

function addField(fields: Record<string, string | undefined>, line: string): void {
  const [, name = "", value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
  fields[name] = name === "data" && fields.data !== undefined ? `${fields.data}\n${value}` : value;
}

function isFinal(error: unknown): boolean {
  if (error instanceof ProblemError) return error.status < 500 && error.status !== 429 && error.status !== 408;
  return error instanceof SyntaxError || error instanceof URIError;
}
