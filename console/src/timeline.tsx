// The history of an order, newest event first, with the changes of each event.

import type { JSX } from "preact";
import { ChangedBy } from "./components";
import { type Difference, NOTHING, differences } from "./differences";
import { money } from "./money";
import type { OrderEvent } from "./types";
import { EVENTS, capitalize, named, plural } from "./words";

const SHOWN = 6; // changes of one event that are visible at once

export function Timeline({ events }: { events: OrderEvent[] }): JSX.Element {
  return (
    <section class="card timeline" aria-labelledby="timeline-title">
      <h2 id="timeline-title">History</h2>
      <ol>
        {events
          .map((event, index) => <Entry key={event.version} event={event} before={events[index - 1]} />)
          .toReversed()}
      </ol>
    </section>
  );
}

function Entry({ event, before }: { event: OrderEvent; before: OrderEvent | undefined }): JSX.Element {
  const rows = before ? differences(before.data, event.data) : [];
  const { totals, currency, items } = event.data;
  return (
    <li>
      <p class="entry-head">
        <strong>{capitalize(named(EVENTS, event.type))}</strong>{" "}
        <span class="faint">
          <ChangedBy by={event.actor} at={event.at} /> · <span class="version">version {event.version}</span>
        </span>
      </p>
      {!before && (
        <p class="entry-text">
          {plural(items.length, "line")}
          {totals && `, ${money(totals.total, currency)}`}
        </p>
      )}
      {rows.length > 0 && <Changes rows={rows.slice(0, SHOWN)} />}
      {rows.length > SHOWN && (
        <details>
          <summary>{plural(rows.length - SHOWN, "more change")}</summary>
          <Changes rows={rows.slice(SHOWN)} />
        </details>
      )}
      {event.changes && (
        <details>
          <summary>For developers: JSON Patch</summary>
          <pre tabIndex={0} aria-label={`JSON Patch of version ${event.version}`}>
            {event.changes.map((one) => JSON.stringify(one)).join("\n")}
          </pre>
        </details>
      )}
    </li>
  );
}

function Changes({ rows }: { rows: Difference[] }): JSX.Element {
  return (
    <ul class="entry-changes">
      {rows.map(({ label, before, after }) => (
        <li key={label}>
          <span class="what">{label}: </span>
          {before !== NOTHING && after === NOTHING && <del>{before}</del>}
          {before !== NOTHING && after !== NOTHING && (
            <>
              <span class="old">{before}</span> <span aria-hidden="true">→</span>
              <span class="visually-hidden">becomes</span>{" "}
            </>
          )}
          {after !== NOTHING && <span class="new">{after}</span>}
        </li>
      ))}
    </ul>
  );
}
