// An order that is kept up to date: the document, its events, and the stream of new events.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { eventStream } from "../../clients/typescript/src/event-stream";
import { RETRY_POLICY, sleep } from "../../clients/typescript/src/transport";
import { get, isAborted, isTemporary, open, query } from "./api";
import type { Order, OrderEvent } from "./types";

const HISTORY_PAGE = 100; // the most that the service returns at once
const RETRY_DELAY = 2_000; // milliseconds

export interface OrderState {
  order: Order | null;
  events: OrderEvent[]; // oldest first
  error: unknown;
  live: boolean;
  accept: (order: Order) => void;
  refresh: () => Promise<void>;
}

export function useOrder(id: string): OrderState {
  const [order, setOrder] = useState<Order | null>(null);
  const [events, setEvents] = useState<OrderEvent[]>([]);
  const [error, setError] = useState<unknown>(null);
  const [live, setLive] = useState(false);
  const path = `/orders/${encodeURIComponent(id)}`;
  const version = useRef(0);
  const lastPage = useRef(""); // the cursor of the last page of the history that was read

  // Responses can arrive out of order: an older version never replaces a newer one.
  const accept = useCallback((next: Order) => {
    if (next.version < version.current) return;
    version.current = next.version;
    setOrder(next);
  }, []);

  const refresh = useCallback(async () => {
    accept(await get<Order>(path));
    setError(null);
  }, [path, accept]);

  // Reads the last known page again, and all following ones.
  const readHistory = useCallback(async () => {
    for (;;) {
      const parameters = { limit: HISTORY_PAGE, cursor: lastPage.current };
      const page = await get<HistoryPage>(`${path}/history${query(parameters)}`);
      setEvents((known) => merged(known, page.events));
      if (page.next_cursor === null) return page.events.at(-1)?.version ?? 0;
      lastPage.current = page.next_cursor;
    }
  }, [path]);

  // The stream may be late or closed, so the events up to a newer version are read at once.
  const newest = order?.version ?? 0;
  useEffect(() => {
    if (newest > (events.at(-1)?.version ?? newest)) readHistory().catch(() => undefined);
  }, [newest]);
  useEffect(() => {
    const focused = () => void refresh().catch(() => undefined);
    addEventListener("focus", focused);
    return () => removeEventListener("focus", focused);
  }, [refresh]);

  useEffect(() => {
    const controller = new AbortController();
    follow(controller.signal).catch((reason: unknown) => {
      if (!isAborted(reason)) setError(reason);
    });
    return () => controller.abort();

    async function follow(signal: AbortSignal): Promise<void> {
      await whileTemporary(refresh, signal);
      const last = await whileTemporary(readHistory, signal);
      const connect = async (lastEventId: string | undefined, signal: AbortSignal) => {
        setLive(false);
        try {
          const headers = { Accept: "text/event-stream" };
          const response = await open("GET", `${path}/events${query({ after: lastEventId ?? last })}`, { headers, signal });
          setLive(true);
          setError(null);
          return response;
        } catch (reason) {
          setError(reason);
          throw reason;
        }
      };
      for await (const event of eventStream<OrderEvent>(connect, RETRY_POLICY, signal)) {
        setEvents((known) => merged(known, [event]));
        accept(event.data);
      }
    }

    /** Repeat the call until it succeeds or fails permanently; meanwhile, show its temporary error. */
    async function whileTemporary<T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> {
      for (;;) {
        try {
          const result = await call();
          setError(null);
          return result;
        } catch (reason) {
          if (signal.aborted || !isTemporary(reason)) throw reason;
          setError(reason);
          await sleep(RETRY_DELAY, signal);
        }
      }
    }
  }, [path, refresh, readHistory]);

  return { order, events, error, live, accept, refresh };
}

interface HistoryPage {
  events: OrderEvent[];
  next_cursor: string | null;
}

/** All events by version, without duplicates. */
function merged(known: OrderEvent[], more: OrderEvent[]): OrderEvent[] {
  const versions = new Set(known.map((event) => event.version));
  const added = more.filter((event) => !versions.has(event.version));
  return added.length ? [...known, ...added].sort((one, other) => one.version - other.version) : known;
}
