// An order that stays current: the document, its events, and the stream of new ones.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { Problem, get, isAborted, isTemporary, pause, query, stream } from "./api";
import type { Order, OrderEvent } from "./types";

const HISTORY_PAGE = 100; // the most that the service returns at once
const RECONNECT = 2_000; // milliseconds

export interface Loaded {
  order: Order;
  etag: string;
}

export interface OrderState {
  loaded: Loaded | null;
  events: OrderEvent[]; // oldest first
  error: unknown;
  live: boolean;
  accept: (loaded: Loaded) => void;
  refresh: () => Promise<void>;
}

export function useOrder(id: string): OrderState {
  const [loaded, setLoaded] = useState<Loaded | null>(null);
  const [events, setEvents] = useState<OrderEvent[]>([]);
  const [error, setError] = useState<unknown>(null);
  const [live, setLive] = useState(false);
  const path = `/orders/${encodeURIComponent(id)}`;
  const version = useRef(0);
  const lastPage = useRef(""); // the cursor of the last page of the history that was read

  // Answers can overtake each other: an older version never replaces a newer one.
  const accept = useCallback((next: Loaded) => {
    if (next.order.version < version.current) return;
    version.current = next.order.version;
    setLoaded(next);
  }, []);

  const refresh = useCallback(async () => {
    const answer = await get<Order>(path);
    setError(null);
    accept({ order: answer.data, etag: answer.etag ?? "" });
  }, [path, accept]);

  // The last page anew, and all that follow.
  const readHistory = useCallback(async () => {
    for (;;) {
      const parameters = { limit: HISTORY_PAGE, cursor: lastPage.current };
      const { data } = await get<HistoryPage>(`${path}/history${query(parameters)}`);
      setEvents((known) => merged(known, data.events));
      if (data.next_cursor === null) return data.events.at(-1)?.version ?? 0;
      lastPage.current = data.next_cursor;
    }
  }, [path]);

  // The stream may be late, or closed: what led to a newer version is read at once.
  const newest = loaded?.order.version ?? 0;
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
    version.current = 0;
    lastPage.current = "";
    setLoaded(null);
    setEvents([]);
    follow(controller.signal).catch((reason: unknown) => {
      if (!isAborted(reason)) setError(reason);
    });
    return () => controller.abort();

    async function follow(signal: AbortSignal): Promise<void> {
      await whileTemporary(refresh, signal);
      let last = await whileTemporary(readHistory, signal);
      while (!signal.aborted) {
        try {
          for await (const message of stream(`${path}/events${query({ after: last })}`, signal, () => setLive(true))) {
            const event = JSON.parse(message.data) as OrderEvent;
            last = event.version;
            setEvents((known) => merged(known, [event]));
            if (event.version > version.current) await whileTemporary(refresh, signal);
          }
        } catch (reason) {
          if (signal.aborted) throw reason;
          if (reason instanceof Problem && !isTemporary(reason)) throw reason;
        }
        setLive(false);
        await pause(RECONNECT + Math.random() * RECONNECT, signal);
        await whileTemporary(refresh, signal);
      }
    }

    /** Call until it succeeds or fails for good, and show why it does not succeed yet. */
    async function whileTemporary<T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> {
      for (;;) {
        try {
          const result = await call();
          setError(null);
          return result;
        } catch (reason) {
          if (signal.aborted || !isTemporary(reason)) throw reason;
          setError(reason);
          await pause(RECONNECT, signal);
        }
      }
    }
  }, [path, refresh, readHistory]);

  return { loaded, events, error, live, accept, refresh };
}

interface HistoryPage {
  events: OrderEvent[];
  next_cursor: string | null;
}

/** All events, each once, by version. */
function merged(known: OrderEvent[], more: OrderEvent[]): OrderEvent[] {
  const versions = new Set(known.map((event) => event.version));
  const added = more.filter((event) => !versions.has(event.version));
  return added.length ? [...known, ...added].sort((one, other) => one.version - other.version) : known;
}
