// Data that is polled while the page is visible.

import { useCallback, useEffect, useState } from "preact/hooks";
import { sleep } from "../../clients/typescript/src/transport";

export interface Polled<T> {
  data: T | null;
  error: unknown;
  reload: () => void;
}

/** `key` identifies the data: data of another key is discarded. `interval` is in milliseconds. */
export function usePolled<T>(key: string, interval: number, load: (signal: AbortSignal) => Promise<T>): Polled<T> {
  const [state, setState] = useState<{ key: string; data: T | null; error: unknown }>({ key, data: null, error: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    const controller = new AbortController();
    const poll = async () => {
      for (;;) {
        try {
          const data = await load(controller.signal);
          if (controller.signal.aborted) return;
          setState({ key, data, error: null });
        } catch (error) {
          if (controller.signal.aborted) return;
          setState((known) => ({ key, data: known.key === key ? known.data : null, error }));
        }
        do await sleep(interval, controller.signal);
        while (document.hidden);
      }
    };
    poll().catch(() => undefined); // aborted during the pause
    return () => controller.abort();
  }, [key, round]);
  const reload = useCallback(() => setRound((count) => count + 1), []);
  const current = state.key === key;
  return { data: current ? state.data : null, error: current ? state.error : null, reload };
}
