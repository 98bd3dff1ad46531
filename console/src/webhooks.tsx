// Webhook endpoints: their health and deliveries, and sending deliveries again.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { get, query, send } from "./api";
import { OrderNumber, ProblemBox, Status, Time } from "./components";
import { usePolled } from "./polled";
import type { Delivery, Webhook } from "./types";
import { DISABLED_REASONS, EVENTS, WEBHOOK_DELIVERY_STATUSES, capitalize, choices, dateTime, named, plural } from "./words";

const INTERVAL = 5_000; // milliseconds
const PAGE = 50;
const SINCE: [hours: number, label: string][] = [
  [1, "in the last hour"],
  [24, "in the last day"],
  [24 * 7, "in the last week"],
  [24 * 30, "in the last 30 days"],
];

export function Webhooks({ id }: { id: string }): JSX.Element {
  const { data, error, reload } = usePolled("webhooks", INTERVAL, async (signal) => {
    return (await get<{ webhooks: Webhook[] }>("/webhooks", signal)).webhooks;
  });
  useEffect(() => {
    document.title = "Webhooks · Order Service";
  }, []);
  if (!data) return error ? <ProblemBox error={error} retry={reload} /> : <p class="loading">Loading the webhooks …</p>;
  const selected = data.find((one) => one.id === id) ?? data[0];
  return (
    <>
      <h1>Webhooks</h1>
      {error !== null && <ProblemBox error={error} />}
      {selected ? (
        <div class="webhooks">
          <nav class="endpoints" aria-label="Endpoints">
            {data.map((one) => (
              <a key={one.id} href={`#/webhooks/${one.id}`} aria-current={one === selected ? "true" : undefined}>
                <Health webhook={one} />
                <span class="endpoint-url">{one.url}</span>
                <span class="faint">{one.description}</span>
              </a>
            ))}
          </nav>
          <Endpoint key={selected.id} webhook={selected} changed={reload} />
        </div>
      ) : (
        <p class="empty">There are no webhooks. The operators of the service create them with the API.</p>
      )}
    </>
  );
}

function Health({ webhook }: { webhook: Webhook }): JSX.Element {
  if (webhook.status === "disabled") return <Status code="disabled" label="switched off" />;
  const failures = webhook.health.consecutive_failures;
  return failures ? <Status code="failing" label={`${plural(failures, "failure")} in a row`} /> : <Status code="enabled" label="healthy" />;
}

function Endpoint({ webhook, changed }: { webhook: Webhook; changed: () => void }): JSX.Element {
  const [status, setStatus] = useState("");
  const [hours, setHours] = useState(24);
  const [message, setMessage] = useState("");
  const [problem, setProblem] = useState<unknown>(null);
  const { id, health } = webhook;
  const path = `/webhooks/${id}`;
  const { data, error, reload } = usePolled(`${id} ${status}`, INTERVAL, async (signal) => {
    const parameters = query({ status, limit: PAGE });
    return (await get<{ deliveries: Delivery[] }>(`${path}/deliveries${parameters}`, signal)).deliveries;
  });

  async function call(method: string, address: string, body: unknown, done: (count: number) => string): Promise<void> {
    setProblem(null);
    setMessage("");
    try {
      const answer = await send<{ deliveries?: number }>(method, address, body === undefined ? {} : { body });
      setMessage(done(answer.deliveries ?? 0));
      reload();
      changed();
    } catch (reason) {
      setProblem(reason);
    }
  }
  const queued = (count: number) => `${plural(count, "delivery", "deliveries")} queued.`;
  const enabled = webhook.status === "enabled";

  return (
    <section class="endpoint" aria-label={webhook.url}>
      <div class="card">
        <h2 class="endpoint-url">{webhook.url}</h2>
        <dl class="facts">
          <Fact label="Status">
            <Health webhook={webhook} /> {webhook.disabled_reason && named(DISABLED_REASONS, webhook.disabled_reason)}
          </Fact>
          <Fact label="Last success">{health.last_success_at ? <Time at={health.last_success_at} /> : "none yet"}</Fact>
          <Fact label="Last failure">{health.last_failure_at ? <Time at={health.last_failure_at} /> : "none"}</Fact>
          {health.failing_since && <Fact label="Failing since">{dateTime(health.failing_since)}</Fact>}
          {health.retry_at && <Fact label="Next attempt"><Time at={health.retry_at} /></Fact>}
          <Fact label="Events">{webhook.events?.map((type) => capitalize(named(EVENTS, type as Delivery["type"]))).join(", ") ?? "all events of orders"}</Fact>
          {webhook.channels && <Fact label="Channels">{webhook.channels.join(", ")}</Fact>}
          <Fact label="Content">{webhook.payload === "order" ? "the whole order" : "ids and statuses"}</Fact>
        </dl>
        {data && data.length > 0 && !status && <Strip deliveries={data} />}
        <div class="buttons">
          <button type="button" onClick={() => void call("POST", `${path}/test`, undefined, () => "A test is queued.")}>
            Send a test
          </button>
          <button
            type="button"
            onClick={() =>
              void call("PATCH", path, { status: enabled ? "disabled" : "enabled" }, () =>
                enabled ? "Switched off: events wait until it is switched on again." : "Switched on: missed events are being sent.",
              )
            }
          >
            {enabled ? "Switch off" : "Switch on"}
          </button>
          <span class="with-select">
            <button
              type="button"
              onClick={() => {
                const since = new Date(Date.now() - hours * 3_600_000).toISOString();
                void call("POST", `${path}/replay`, { failed_since: since }, queued);
              }}
            >
              Send failed deliveries again
            </button>
            <select aria-label="Failed" value={hours} onChange={(event) => setHours(Number(event.currentTarget.value))}>
              {SINCE.map(([value, label]) => (
                <option key={value} value={value}>
                  {label}
                </option>
              ))}
            </select>
          </span>
        </div>
        <p class="message" role="status">
          {message}
        </p>
        {problem !== null && <ProblemBox error={problem} />}
      </div>
      <div class="card deliveries">
        <div class="card-head">
          <h2>Deliveries</h2>
          <select aria-label="Status" value={status} onChange={(event) => setStatus(event.currentTarget.value)}>
            <option value="">All</option>
            {choices(WEBHOOK_DELIVERY_STATUSES).map(([value, label]) => (
              <option key={value} value={value}>
                {label}
              </option>
            ))}
          </select>
        </div>
        {error !== null && <ProblemBox error={error} />}
        {data?.length === 0 && <p class="faint">No deliveries.</p>}
        <ul class="records">
          {data?.map((one) => (
            <DeliveryRow
              key={one.id}
              delivery={one}
              again={() => void call("POST", `${path}/replay`, { event_id: one.event_id }, queued)}
            />
          ))}
        </ul>
      </div>
    </section>
  );
}

function Fact({ label, children }: { label: string; children: ComponentChildren }): JSX.Element {
  return (
    <div>
      <dt>{label}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** The latest deliveries, one bar each: its height is the duration of the last attempt; failed ones are hollow. */
function Strip({ deliveries }: { deliveries: Delivery[] }): JSX.Element {
  const shown = deliveries.toReversed();
  const failed = shown.filter((one) => one.status === "failed").length;
  const slowest = Math.max(...shown.map((one) => one.attempts.at(-1)?.milliseconds ?? 0));
  const scale = 26 / Math.max(50, slowest);
  return (
    <figure class="strip">
      <figcaption class="faint">
        The last {plural(shown.length, "delivery", "deliveries")}: {failed || "none"} failed, the slowest response took{" "}
        {slowest.toLocaleString("en")} ms
      </figcaption>
      <svg viewBox={`0 0 ${PAGE * 8} 32`} aria-hidden="true">
        {shown.map((one, index) => {
          const height = 5 + scale * (one.attempts.at(-1)?.milliseconds ?? 0);
          return <rect key={one.id} class={one.status} x={index * 8 + 1} y={31 - height} width={5} height={height} rx={1} />;
        })}
      </svg>
    </figure>
  );
}

/** Whether an endpoint accepted a request, which it does with a status from 200 to 299. */
function answerText(status: number): string {
  return `${status >= 200 && status < 300 ? "accepted" : "refused"} (${status})`;
}

function DeliveryRow({ delivery, again }: { delivery: Delivery; again: () => void }): JSX.Element {
  const { attempts, order_id } = delivery;
  const lastStatus = attempts.at(-1)?.status;
  return (
    <li>
      <Status code={delivery.status} label={named(WEBHOOK_DELIVERY_STATUSES, delivery.status)} />
      <div>
        <p class="delivery-head">
          <span>
            <strong>{capitalize(named(EVENTS, delivery.type))}</strong>{" "}
            {order_id && (
              <>
                <OrderNumber id={order_id} /> version {delivery.version}
              </>
            )}{" "}
            <span class="faint">
              <Time at={delivery.created_at} />
              {delivery.next_attempt_at && (
                <>
                  , next attempt <Time at={delivery.next_attempt_at} />
                </>
              )}
            </span>
          </span>
          {order_id && delivery.status !== "pending" && (
            <button type="button" class="small" onClick={again}>
              Send again
            </button>
          )}
        </p>
        {attempts.length > 0 && (
          <details>
            <summary>
              {plural(delivery.attempt_count, "attempt")}
              {lastStatus && `${attempts.length > 1 ? ", the last one" : ":"} ${answerText(lastStatus)}`}
            </summary>
            <ol class="delivery">
              {attempts.map((attempt) => (
                <li key={attempt.at}>
                  {attempt.status === null ? (attempt.error ?? "No response") : capitalize(answerText(attempt.status))}{" "}
                  <span class="faint">
                    after {attempt.milliseconds} ms, {dateTime(attempt.at)}
                  </span>
                  {attempt.response && (
                    <pre tabIndex={0} aria-label="Response">
                      {attempt.response}
                    </pre>
                  )}
                </li>
              ))}
            </ol>
          </details>
        )}
      </div>
    </li>
  );
}
