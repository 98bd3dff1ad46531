// The form of one action, with a preview, and both versions if somebody else has changed the order meanwhile.

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { ProblemError } from "../../clients/typescript/src/problems";
import { sleep } from "../../clients/typescript/src/transport";
import { ACTIONS, type Action, type ActionName, type Change, type Field, Incomplete, type Values } from "./actions";
import { isAborted, isTemporary, newIdempotencyKey, send } from "./api";
import { DifferenceTable, ChangedBy, ProblemBox } from "./components";
import { differences } from "./differences";
import { type FieldErrors, type FormErrors, formErrors } from "./form_errors";
import type { Order, OrderEvent } from "./types";
import { EVENTS, ORDER_STATUSES, capitalize, isAutomatic, named } from "./words";

const PREVIEW_DELAY = 250; // milliseconds without another input
const PREVIEW_RETRY = 2_000; // milliseconds
const RETRY_MAX = 15_000; // milliseconds between two attempts

interface Props {
  name: ActionName;
  order: Order; // as it is now
  events: OrderEvent[];
  refresh: () => Promise<void>;
  done: (order: Order, message: string) => void;
  close: () => void;
}

interface Preview {
  of: string; // the previewed change and version
  before: Order;
  values: Values; // of the form at that time
  after?: Order;
  error?: unknown;
}

export function ActionPanel({ name, order, events, refresh, done, close }: Props): JSX.Element {
  const action: Action = ACTIONS[name];
  const [base] = useState(order); // the order when the form was opened
  const [values, setValues] = useState<Values>(() => action.initial?.(order) ?? {});
  const [preview, setPreview] = useState<Preview | null>(null);
  const [problem, setProblem] = useState<unknown>(null);
  const [missing, setMissing] = useState<FieldErrors>({}); // errors that the browser reported on submit
  const [attempts, setAttempts] = useState(0); // to submit an invalid form
  const [sending, setSending] = useState<AbortController | null>(null);
  const [queued, setQueued] = useState<string | null>(null); // the change and version to send once the preview is loaded
  const [waiting, setWaiting] = useState(false);
  const [unanswered, setUnanswered] = useState(false); // whether a request without a known result was abandoned
  const heading = useRef<HTMLHeadingElement>(null);
  const form = useRef<HTMLFormElement>(null);
  // One idempotency key per intent: all attempts at the same change of the same version share it.
  const intent = useRef({ of: "", key: "" });
  const conflict = order.version !== base.version && !sending;
  const possible = order.allowed_actions.includes(name);

  const [change, incomplete] = useMemo(() => build(action, order, values, base), [action, order, values, base]);
  const target = change && JSON.stringify([change, order.version]);
  const ready = preview !== null && preview.of === target && preview.after !== undefined;
  const checking = target !== null && !ready && (preview?.of !== target || isTemporary(preview?.error));
  const isQueued = checking && queued === target;
  const fields = action.fields(order, values);
  const refusal = formErrors(preview?.error ?? problem, fields, change?.body);
  const errors: FieldErrors = { ...missing, ...unchanged(refusal.fields, preview?.values ?? values, values) };
  // An empty field is no error before the form is submitted.
  const isMarked = incomplete?.field !== undefined && (attempts > 0 || Boolean(values[incomplete.field]));
  if (incomplete?.field && isMarked) errors[incomplete.field] = incomplete.message;

  const label = fields.find((field) => field.name === incomplete?.field)?.label;
  // If a field must be corrected, the button moves the focus to it.
  const leadsToField = incomplete?.field !== undefined || Object.keys(errors).length > 0;

  useEffect(() => heading.current?.focus(), []);
  useEffect(() => () => sending?.abort(), [sending]); // a closed form stops its request
  useEffect(() => {
    if (attempts) form.current?.querySelector<HTMLElement>("[aria-invalid=true]")?.focus();
  }, [attempts]);
  useEffect(() => {
    if (conflict) heading.current?.scrollIntoView({ block: "nearest" });
  }, [conflict]);

  useEffect(() => {
    if (!change || !target || !possible || sending) return undefined;
    const controller = new AbortController();
    const { signal } = controller;
    const shown = { of: target, before: order, values };
    const run = async () => {
      for (let delay = PREVIEW_DELAY; ; delay = PREVIEW_RETRY) {
        await sleep(delay, signal);
        try {
          setPreview({ ...shown, after: await request(order, change, { query: "?dry_run=true", signal }) });
          return;
        } catch (error) {
          if (signal.aborted) return;
          if (isOutdated(error)) return refresh();
          setPreview({ ...shown, error });
          if (!isTemporary(error)) return;
        }
      }
    };
    run().catch((error: unknown) => {
      if (!signal.aborted) setPreview({ ...shown, error });
    });
    return () => controller.abort();
  }, [target, possible, sending !== null]);

  // A queued form is not sent if its values or the order's version have changed.
  useEffect(() => {
    if (queued === null || isQueued) return;
    setQueued(null);
    if (ready && queued === target) void submit();
    else if (queued === target) setAttempts((count) => count + 1);
  }, [queued, isQueued]);

  async function submit(): Promise<void> {
    if (!change || !target) return;
    if (intent.current.of !== target) intent.current = { of: target, key: newIdempotencyKey() };
    const controller = new AbortController();
    setSending(controller);
    setProblem(null);
    try {
      done(await untilAnswered(change, controller.signal), `${action.submit(order, values)}: done.`);
      return;
    } catch (error) {
      if (isOutdated(error)) await refresh().catch(setProblem);
      else if (isAborted(error)) setUnanswered(true);
      else setProblem(error);
    }
    setSending(null);
    setWaiting(false);
    setAttempts((count) => count + 1);
  }

  async function untilAnswered(change: Change, signal: AbortSignal): Promise<Order> {
    for (let attempts = 0; ; attempts += 1) {
      try {
        return await request(order, change, { key: intent.current.key, signal });
      } catch (error) {
        if (!isTemporary(error)) throw error;
        setWaiting(true);
        const seconds = error instanceof ProblemError ? error.retryAfter : null;
        await sleep(seconds ? seconds * 1_000 : Math.min(1_000 * 2 ** attempts, RETRY_MAX), signal);
      }
    }
  }

  const previewBox = (
    <PreviewBox
      order={order}
      preview={preview}
      target={target}
      incomplete={
        isMarked ? <p>{`${label}: ${incomplete?.message}`}</p> : <p class="faint">{incomplete?.message}</p>
      }
      refusal={refusal}
      conflict={conflict}
    />
  );
  return (
    <section class={`panel ${conflict ? "in-conflict" : ""}`} aria-labelledby="panel-title">
      <header>
        <h2 id="panel-title" ref={heading} tabIndex={-1}>
          {action.label}
        </h2>
        <button type="button" class="quiet" onClick={close} aria-label={`Close ${action.label}`}>
          <kbd>Esc</kbd> Close
        </button>
      </header>
      <p class="explanation">{action.explanation}</p>
      {conflict && <Conflict base={base} current={order} events={events} mayBeOwn={unanswered} />}
      {possible ? (
        <form
          ref={form}
          onInvalidCapture={(event) => {
            event.preventDefault();
            const { name, validity, validationMessage } = event.target as HTMLInputElement;
            setMissing((known) => ({ ...known, [name]: validity.valueMissing ? "Fill in this field." : validationMessage }));
            setAttempts((count) => count + 1);
          }}
          onSubmit={(event) => {
            event.preventDefault();
            if (sending || isQueued) return;
            if (ready) void submit();
            else if (checking) setQueued(target);
            else setAttempts((count) => count + 1);
          }}
        >
          {conflict && previewBox}
          <Fields
            fields={fields}
            values={values}
            errors={errors}
            set={(name, value) => {
              setValues((known) => ({ ...known, [name]: value }));
              setMissing(({ [name]: _, ...others }) => others);
            }}
          />
          {!conflict && previewBox}
          {problem !== null && preview?.error === undefined && <ProblemBox error={problem} formErrors={refusal} />}
          {waiting && sending && (
            <div class="waiting" role="status">
              <p>
                <strong>No response yet.</strong> The request is repeated until there is one, with the same idempotency
                key, so that it is carried out only once.
              </p>
              <button type="button" class="small" onClick={() => sending.abort()}>
                Stop trying
              </button>
            </div>
          )}
          <p class="buttons">
            <button
              type="submit"
              class={action.danger ? "primary danger" : "primary"}
              aria-disabled={sending !== null || isQueued || !(ready || checking || leadsToField)}
            >
              {sending ? "Sending …" : isQueued ? "Checking …" : action.submit(order, values)}
              {conflict && !sending && !isQueued && ` in version ${order.version}`}
            </button>
            <button type="button" onClick={close}>
              Discard
            </button>
          </p>
        </form>
      ) : (
        <>
          <p class="problem" role="alert">
            “{action.label}” is no longer possible: the order is{" "}
            {named(ORDER_STATUSES, order.status)}. You have changed nothing.
          </p>
          <p class="buttons">
            <button type="button" onClick={close}>
              Back to the order
            </button>
          </p>
        </>
      )}
    </section>
  );
}

/** The errors of fields whose values have not changed since. */
function unchanged(errors: FieldErrors, then: Values, now: Values): FieldErrors {
  return Object.fromEntries(Object.entries(errors).filter(([name]) => then[name] === now[name]));
}

function build(action: Action, order: Order, values: Values, base: Order): [Change | null, Incomplete | null] {
  try {
    return [action.change(order, values, base), null];
  } catch (error) {
    if (error instanceof Incomplete) return [null, error];
    throw error;
  }
}

function request(
  order: Order,
  change: Change,
  options: { key?: string; query?: string; signal: AbortSignal },
): Promise<Order> {
  const headers: Record<string, string> = { "If-Match": `"${order.version}"` };
  if (options.key) headers["Idempotency-Key"] = options.key;
  return send<Order>(change.method, `/orders/${order.id}${change.path}${options.query ?? ""}`, {
    body: change.body,
    headers,
    signal: options.signal,
  });
}

function isOutdated(error: unknown): boolean {
  return error instanceof ProblemError && error.slug === "version-mismatch";
}

/** Both versions side by side, and who made the changes between them. */
function Conflict(props: { base: Order; current: Order; events: OrderEvent[]; mayBeOwn: boolean }): JSX.Element {
  const { base, current, events, mayBeOwn } = props;
  const missed = events.filter((event) => event.version > base.version && event.version <= current.version);
  const who = missed.length > 0 && missed.every((event) => isAutomatic(event.actor)) ? "The service itself" : "Somebody else";
  return (
    <div class="conflict" role="alert">
      <h3>{mayBeOwn ? "This order has changed, perhaps by your own request" : `${who} changed this order meanwhile`}</h3>
      <ul class="missed">
        {missed.map((event) => (
          <li key={event.version}>
            <strong>{capitalize(named(EVENTS, event.type))}</strong> <ChangedBy by={event.actor} at={event.at} />
          </li>
        ))}
      </ul>
      <DifferenceTable
        caption="What is different now"
        before={`You saw: version ${base.version}`}
        after={`Now: version ${current.version}`}
        rows={differences(base, current)}
      />
      <p>
        {mayBeOwn
          ? "There was no response to your request. Check above whether it was carried out; below you see what it would do again."
          : "Your change has not been made yet. Below you see what it will do to the current order."}
      </p>
    </div>
  );
}

function PreviewBox(props: {
  order: Order;
  preview: Preview | null;
  target: string | null;
  incomplete: JSX.Element;
  refusal: FormErrors;
  conflict: boolean;
}): JSX.Element {
  const { order, preview, target } = props;
  const rows = preview?.after ? differences(preview.before, preview.after) : [];
  const current = preview !== null && preview.of === target;
  let content: JSX.Element;
  if (target === null) content = props.incomplete;
  else if (current && preview.error !== undefined) content = <ProblemBox error={preview.error} formErrors={props.refusal} />;
  else if (!preview?.after) content = <p class="faint">Checking …</p>;
  else if (!rows.length) content = <p>Nothing changes.</p>;
  else
    content = (
      <>
        <DifferenceTable rows={rows} caption="What this will do" before="Now" after="Afterwards" />
        <NextActions before={preview.before} after={preview.after} />
      </>
    );
  return (
    <div class={`preview ${current ? "" : "stale"}`} aria-live="polite" aria-busy={target !== null && !current}>
      <h3>{props.conflict ? `What this will do to version ${order.version}` : "What this will do"}</h3>
      {content}
    </div>
  );
}

function NextActions({ before, after }: { before: Order; after: Order }): JSX.Element | null {
  const label = (name: ActionName) => ACTIONS[name]?.label ?? capitalize(name);
  const gone = before.allowed_actions.filter((name) => !after.allowed_actions.includes(name)).map(label);
  const added = after.allowed_actions.filter((name) => !before.allowed_actions.includes(name)).map(label);
  if (!gone.length && !added.length) return null;
  return (
    <p class="next">
      {added.length > 0 && <>Newly possible: {added.join(", ")}. </>}
      {gone.length > 0 && <>No longer possible: {gone.join(", ")}.</>}
    </p>
  );
}

interface FieldsProps {
  fields: Field[];
  values: Values;
  errors: FieldErrors;
  set: (name: string, value: string) => void;
}

function Fields({ fields, values, errors, set }: FieldsProps): JSX.Element {
  const groups: [string, Field[]][] = [];
  for (const field of fields) {
    const last = groups.at(-1);
    if (last && last[0] === (field.group ?? "")) last[1].push(field);
    else groups.push([field.group ?? "", [field]]);
  }
  return (
    <>
      {groups.map(([title, members]) => {
        const inputs = members.map((field) => (
          <Input
            key={field.name}
            field={field}
            value={values[field.name] ?? ""}
            error={errors[field.name]}
            set={(value) => set(field.name, value)}
          />
        ));
        return title ? (
          <fieldset key={title}>
            <legend>{title}</legend>
            {inputs}
          </fieldset>
        ) : (
          inputs
        );
      })}
    </>
  );
}

interface InputProps {
  field: Field;
  value: string;
  error: string | undefined;
  set: (value: string) => void;
}

function Input({ field, value, error, set }: InputProps): JSX.Element {
  const id = `field-${field.name}`;
  const hint = field.hint ? `${id}-hint` : undefined;
  const described = {
    id,
    name: field.name,
    "aria-describedby": [error && `${id}-error`, hint].filter(Boolean).join(" ") || undefined,
    "aria-invalid": error !== undefined,
  } as const;
  const common = { ...described, value, required: field.required ?? false } as const;
  const changed = (event: Event) => set((event.currentTarget as HTMLInputElement).value);
  let input: JSX.Element;
  if (field.kind === "units") input = <Units field={field} attributes={described} value={Number(value) || 0} set={set} />;
  else if (field.kind === "select")
    input = (
      <select {...common} onChange={changed}>
        {field.options?.map(([code, label]) => (
          <option key={code} value={code}>
            {label}
          </option>
        ))}
      </select>
    );
  else if (field.kind === "multiline")
    input = <textarea {...common} rows={2} maxLength={field.max ?? 2_000} onInput={changed} />;
  else if (field.kind === "time") input = <input {...common} type="datetime-local" max="9999-12-31T23:59" onInput={changed} />;
  else if (field.kind === "amount")
    input = <input {...common} type="text" inputMode="decimal" autocomplete="off" onInput={changed} />;
  else input = <input {...common} type="text" maxLength={field.max ?? 200} autocomplete="off" onInput={changed} />;
  return (
    <div class={field.kind === "units" ? "units" : "field"}>
      <label for={id}>{field.label}</label>
      {input}
      {error && (
        <p id={`${id}-error`} class="field-error">
          {error}
        </p>
      )}
      {hint && (
        <p id={hint} class="hint">
          {field.hint}
        </p>
      )}
    </div>
  );
}

interface UnitsProps {
  field: Field;
  attributes: JSX.HTMLAttributes<HTMLInputElement>;
  value: number;
  set: (value: string) => void;
}

function Units({ field, attributes, value, set }: UnitsProps): JSX.Element {
  const max = field.max ?? 0;
  return (
    <span class="stepper">
      <button type="button" aria-label={`One less of ${field.label}`} disabled={value <= 0} onClick={() => set(`${value - 1}`)}>
        −
      </button>
      <input {...attributes} type="number" min={0} max={max} value={value} onInput={(event) => set(event.currentTarget.value)} />
      <button type="button" aria-label={`One more of ${field.label}`} disabled={value >= max} onClick={() => set(`${value + 1}`)}>
        +
      </button>
      <span class="faint">of {max}</span>
    </span>
  );
}
