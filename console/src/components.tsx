// Small components that all views share.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ProblemError } from "../../clients/typescript/src/problems";
import { ConnectionError, get, isTemporary, problemPage } from "./api";
import type { Difference } from "./differences";
import { type FormErrors, formErrors } from "./form_errors";
import type { Order } from "./types";
import { FULFILLMENT_STATUSES, ORDER_STATUSES, PAYMENT_STATUSES, PROBLEMS, RETURN_STATUSES, ago, byActor, dateTime, named } from "./words";

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

export function Status({ code, label }: { code: string; label: string }): JSX.Element {
  return <span class={`status ${TONES[code] ?? "idle"}`}>{label}</span>;
}

/** The statuses of an order that are worth showing. */
export function Statuses({ order }: { order: Order }): JSX.Element {
  return (
    <>
      <Status code={order.status} label={named(ORDER_STATUSES, order.status)} />
      {order.status !== "cancelled" && (
        <Status code={order.fulfillment_status} label={named(FULFILLMENT_STATUSES, order.fulfillment_status)} />
      )}
      {order.totals && <Status code={order.payment_status} label={named(PAYMENT_STATUSES, order.payment_status)} />}
      {order.return_status !== "none" && (
        <Status code={order.return_status} label={named(RETURN_STATUSES, order.return_status)} />
      )}
      {order.late && <Status code="late" label="late" />}
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

/** "by warehouse · 5 minutes ago": who made a change, if identified, and when. */
export function ChangedBy({ by, at }: { by: string; at: string }): JSX.Element {
  const actor = byActor(by);
  return (
    <>
      {actor && `${actor} · `}
      <Time at={at} />
    </>
  );
}

export function orderLink(id: string): string {
  return `#/orders/${id}`;
}

const numbers = new Map<string, Promise<string>>(); // of orders, by id

/** A link to another order, with its number as soon as that is loaded. */
export function OrderNumber({ id }: { id: string }): JSX.Element {
  const [number, setNumber] = useState(`order …${id.slice(-8)}`);
  useEffect(() => {
    const reading = numbers.get(id) ?? get<Order>(`/orders/${id}`).then((order) => order.number);
    numbers.set(id, reading);
    reading.then(setNumber, () => numbers.delete(id)); // the next link to the order reads it again
  }, [id]);
  return <a href={orderLink(id)}>{number}</a>;
}

/** A table of differences: what changed, before, after. */
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

interface ProblemProps {
  error: unknown;
  formErrors?: FormErrors; // the errors of a form: those shown beside its fields are not repeated
  retry?: () => void;
}

/** A problem, and what to do about it. */
export function ProblemBox({ error, formErrors: sorted = formErrors(error, []), retry }: ProblemProps): JSX.Element {
  const problem = error instanceof ProblemError ? error.problem : null;
  const [title, detail, advice] = explain(error);
  return (
    <div class="problem" role="alert">
      <p class="problem-title">{title}</p>
      {detail && detail !== title && !Object.values(sorted.fields).includes(detail) && <p>{detail}</p>}
      {sorted.others.length > 0 && (
        <ul>
          {sorted.others.map((one) => (
            <li key={one}>{one}</li>
          ))}
        </ul>
      )}
      <p class="advice">{sorted.labels.length > 0 ? `Correct the marked fields: ${sorted.labels.join(", ")}.` : advice}</p>
      {!(sorted.labels.length > 0 && sorted.others.length === 0) && (
        <p class="problem-links">
          {retry && (isTemporary(error) || !problem) && (
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
      )}
    </div>
  );
}

/** What happened, the details, and what to do. */
function explain(error: unknown): [title: string, detail: string, advice: string] {
  if (error instanceof ConnectionError)
    return ["No connection to the service", error.message, "Check the network. The page reconnects automatically."];
  if (!(error instanceof ProblemError)) {
    const detail = error instanceof Error ? error.message : String(error);
    return ["Unexpected error", detail, "Reload the page. If the error persists, tell the operators of the service."];
  }
  const text = PROBLEMS[error.slug];
  const { title, detail } = error.problem;
  return [text?.title ?? title, text?.detail ?? detail ?? "", text?.advice ?? generalAdvice(error)];
}

function generalAdvice({ status, retryAfter }: ProblemError): string {
  if (status === 429) return retryAfter ? `Wait ${retryAfter} s, then try again.` : "Wait a moment, then try again.";
  return status >= 500 ? "Try again in a moment; nothing is done twice." : "Nothing was changed.";
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
