// Small parts that all views share.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ProblemError } from "../../clients/typescript/src/problems";
import { ConnectionError, problemPage } from "./api";
import type { Difference } from "./differences";
import type { Order } from "./types";
import { ago, dateTime, statusName, words } from "./words";

const TONES: Record<string, string> = {
  pending: "wait", confirmed: "go", completed: "done", cancelled: "stop",
  unfulfilled: "idle", partial: "wait", fulfilled: "go", delivered: "done",
  unpaid: "idle", authorized: "go", partially_paid: "wait", paid: "done", partially_refunded: "wait", refunded: "stop",
  none: "idle", returned: "stop",
  late: "alarm", held: "alarm",
  shipped: "go", in_transit: "go", out_for_delivery: "go", ready_for_pickup: "go", failed_attempt: "alarm",
  returned_to_sender: "stop", expected: "wait", received: "done", rejected: "stop",
  enabled: "done", disabled: "stop", failing: "alarm", succeeded: "done", failed: "alarm",
};

export function Status({ code, label }: { code: string; label?: string }): JSX.Element {
  return <span class={`status ${TONES[code] ?? "idle"}`}>{label ?? words(code)}</span>;
}

/** All statuses of an order, those that say something. */
export function Statuses({ order }: { order: Order }): JSX.Element {
  return (
    <>
      <Status code={order.status} />
      {order.status !== "cancelled" && (
        <Status code={order.fulfillment_status} label={statusName(order.fulfillment_status, "fulfilled")} />
      )}
      {order.totals && <Status code={order.payment_status} />}
      {order.return_status !== "none" && (
        <Status code={order.return_status} label={statusName(order.return_status, "returned")} />
      )}
      {order.late && <Status code="late" />}
      {order.holds.length > 0 && <Status code="held" label="on hold" />}
    </>
  );
}

const AGE_INTERVAL = 30_000; // milliseconds

export function Time({ at }: { at: string }): JSX.Element {
  const [age, setAge] = useState(() => ago(at));
  useEffect(() => {
    setAge(ago(at));
    const timer = setInterval(() => setAge(ago(at)), AGE_INTERVAL);
    return () => clearInterval(timer);
  }, [at]);
  return (
    <time dateTime={at} title={dateTime(at)}>
      {age}
    </time>
  );
}

export function orderLink(id: string): string {
  return `#/orders/${id}`;
}

/** What is different, as a table: what, before, after. */
export function DifferenceTable(props: {
  rows: Difference[];
  caption: string;
  before: string;
  after: string;
}): JSX.Element {
  return (
    <table class="differences">
      <caption class="visually-hidden">{props.caption}</caption>
      <thead>
        <tr>
          <th scope="col">What</th>
          <th scope="col">{props.before}</th>
          <th scope="col">{props.after}</th>
        </tr>
      </thead>
      <tbody>
        {props.rows.map((row) => (
          <tr key={row.label}>
            <th scope="row">{row.label}</th>
            <td class="old">{row.before}</td>
            <td class="new">{row.after}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** A problem, and what to do about it. */
export function ProblemBox({ error, retry }: { error: unknown; retry?: () => void }): JSX.Element {
  const problem = error instanceof ProblemError ? error.problem : null;
  const title = problem?.title ?? (error instanceof ConnectionError ? "No connection to the service" : "Unexpected error");
  const detail = problem?.detail ?? (error instanceof Error ? error.message : String(error));
  return (
    <div class="problem" role="alert">
      <p class="problem-title">{title}</p>
      {detail !== title && <p>{detail}</p>}
      {problem?.errors && (
        <ul>
          {problem.errors.map((one) => (
            <li key={one.pointer ?? one.parameter}>
              {(one.pointer ?? one.parameter) && <code>{one.pointer ?? one.parameter}</code>} {one.detail}
            </li>
          ))}
        </ul>
      )}
      <p class="advice">{advice(error)}</p>
      <p class="problem-links">
        {retry && (
          <button type="button" class="small" onClick={retry}>
            Try again
          </button>
        )}
        {error instanceof ProblemError && error.problem.type !== "about:blank" && (
          <a href={problemPage(error.slug)} target="_blank" rel="noreferrer">
            About this problem
          </a>
        )}
        {problem?.request_id && <span class="faint">Request {problem.request_id}</span>}
      </p>
    </div>
  );
}

function advice(error: unknown): string {
  if (error instanceof ConnectionError) return "Check the network. The page connects again by itself.";
  if (!(error instanceof ProblemError)) return "Load the page again. If it stays, tell the operators of the service.";
  switch (error.slug) {
    case "forbidden":
      return "Your API key does not allow this. Ask the operators for one that does, and paste it under “API key”.";
    case "order-not-found":
      return "Check the number, and whether your API key is bound to another channel.";
    case "illegal-action":
      return "Look at the order as it is now: the buttons show what is possible.";
    case "quantity-exceeded":
      return "Enter no more units than the lines have left.";
    case "amount-exceeded":
      return "Look at the payments of the order, and enter a smaller amount.";
    case "version-mismatch":
      return "Somebody else changed the order. Compare the versions, then go on with the current one.";
    case "too-many-requests":
      return error.retryAfter ? `Wait ${error.retryAfter} s, then try again.` : "Wait a moment, then try again.";
    default:
      if (error.status >= 500) return "Try again in a moment; nothing is done twice.";
      return error.status === 400 ? "Correct what is named above." : "Nothing was changed.";
  }
}

/** A dialog that is opened as modal, and closes on Escape. */
export function Dialog(props: { title: string; close: () => void; children: ComponentChildren }): JSX.Element {
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => ref.current?.showModal(), []);
  return (
    <dialog ref={ref} aria-labelledby="dialog-title" onClose={props.close}>
      <h2 id="dialog-title">{props.title}</h2>
      {props.children}
      <button type="button" onClick={() => ref.current?.close()}>
        Close
      </button>
    </dialog>
  );
}
