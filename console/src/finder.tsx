// Find an order: a search as you type, filters with counts, and the keyboard alone if you like.

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { query } from "./api";
import { ProblemBox, Status, Time, orderLink } from "./components";
import { type Counted, type Filters, countOrders, findOrders } from "./find";
import { shortcut } from "./keyboard";
import { money } from "./money";
import { usePolled } from "./polled";
import type { Order } from "./types";
import { capitalize, plural, words } from "./words";

const TYPING_PAUSE = 150; // milliseconds
const REFRESH = 10_000; // milliseconds
const RECOUNT = 30_000; // milliseconds

const GROUPS: [name: string, title: string, values: string[]][] = [
  ["status", "Order", ["pending", "confirmed", "completed", "cancelled"]],
  ["fulfillment_status", "Fulfillment", ["unfulfilled", "partial", "fulfilled", "delivered"]],
  ["payment_status", "Payment", ["unpaid", "authorized", "partially_paid", "paid", "partially_refunded", "refunded"]],
  ["return_status", "Returns", ["partial", "returned"]],
];

const NO_MORE = "none"; // in place of the cursor of the next page

interface Further {
  key: string; // the filters whose further pages these are
  orders: Order[];
  next: string;
}

export function Finder({ filters }: { filters: Filters }): JSX.Element {
  const key = JSON.stringify(filters);
  const { data, error, reload } = usePolled(key, REFRESH, (signal) => findOrders(filters, "", signal));
  const counted = usePolled(`count ${key}`, RECOUNT, (signal) => countOrders(filters, signal)).data;
  const [further, setFurther] = useState<Further>({ key, orders: [], next: "" });
  const [moreError, setMoreError] = useState<unknown>(null);
  const [text, setText] = useState(filters.q ?? "");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    document.title = "Orders · Order Service";
  }, []);
  useEffect(() => setText(filters.q ?? ""), [filters.q]);
  useEffect(() => {
    if (text === (filters.q ?? "")) return undefined;
    const timer = setTimeout(() => go({ ...filters, q: text }), TYPING_PAUSE);
    return () => clearTimeout(timer);
  }, [text]);
  useEffect(
    () =>
      shortcut((key) => {
        const rows = [...document.querySelectorAll<HTMLElement>(".results a.row-link")];
        const place = rows.findIndex((row) => row === document.activeElement);
        if (key === "/") {
          input.current?.focus();
          input.current?.select();
        } else if (key === "ArrowDown" && (place >= 0 || document.activeElement === input.current)) {
          rows[Math.min(place + 1, rows.length - 1)]?.focus();
        } else if (key === "ArrowUp" && place >= 0) (place ? rows[place - 1] : input.current)?.focus();
        else if (key === "Escape" && place >= 0) input.current?.focus();
        else if (key === "Escape" && document.activeElement === input.current && text) setText("");
        else return false;
        return true;
      }),
    [text],
  );

  const pages = further.key === key ? further : { key, orders: [], next: "" };
  const next = pages.next || data?.next_cursor;
  const first = new Set(data?.orders.map((order) => order.id));
  const orders = [...(data?.orders ?? []), ...pages.orders.filter((order) => !first.has(order.id))];

  async function more(): Promise<void> {
    if (!next) return;
    const page = await findOrders(filters, next);
    setFurther({ key, orders: [...pages.orders, ...page.orders], next: page.next_cursor ?? NO_MORE });
  }

  return (
    <div class="finder">
      <h1 class="visually-hidden">Orders</h1>
      <form
        role="search"
        class="search"
        onSubmit={(event) => {
          event.preventDefault();
          if (text !== (filters.q ?? "")) go({ ...filters, q: text });
          else if (orders.length === 1 && orders[0]) location.hash = orderLink(orders[0].id);
          else document.querySelector<HTMLElement>(".results a.row-link")?.focus();
        }}
      >
        <label for="search" class="visually-hidden">
          Search by number, customer, name or reference
        </label>
        <input
          id="search"
          ref={input}
          type="search"
          placeholder="Number, customer, name, e-mail, reference, item …"
          autocomplete="off"
          spellcheck={false}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
        <kbd aria-hidden="true">/</kbd>
      </form>
      <FilterList filters={filters} counted={counted} />
      <section class="results" aria-label="Orders found" aria-busy={!data && !error}>
        <p class="result-count" role="status">
          {data ? countText(orders.length, counted, Boolean(next) && next !== NO_MORE) : error ? "" : "Searching …"}
          {data && data.behind > 0 && ` · the newest ${plural(data.behind, "change")} may be missing`}
        </p>
        {(error ?? moreError) !== null && <ProblemBox error={error ?? moreError} retry={reload} />}
        {data && !orders.length && (
          <p class="empty">
            No order matches. Search for a part of the number, the customer’s id or name, or the reference
            {Object.keys(filters).length > 1 && (
              <>
                , or <a href="#/orders">remove all filters</a>
              </>
            )}
            .
          </p>
        )}
        {orders.length > 0 && <Table orders={orders} />}
        {next && next !== NO_MORE && (
          <button type="button" class="more" onClick={() => void more().catch(setMoreError)}>
            Show more
          </button>
        )}
      </section>
    </div>
  );
}

function countText(shown: number, counted: Counted | null, more: boolean): string {
  if (counted) return counted.complete ? plural(counted.total, "order") : `More than ${plural(counted.total, "order")}`;
  return more ? `The first ${shown} orders` : plural(shown, "order");
}

function Table({ orders }: { orders: Order[] }): JSX.Element {
  return (
    <table role="table">
      <thead>
        <tr role="row">
          {["Number", "Customer", "Status", "Total", "Placed"].map((title) => (
            <th key={title} role="columnheader" scope="col" class={title === "Total" ? "number" : ""}>
              {title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {orders.map((order) => (
          <tr role="row" key={order.id}>
            <th role="rowheader" scope="row">
              <a class="row-link" href={orderLink(order.id)}>
                {order.number}
              </a>
              {order.external_ref && <span class="code">{order.external_ref}</span>}
            </th>
            <td role="cell">
              {order.shipping_address?.name ?? order.customer_id}
              {order.shipping_address?.name && <span class="code">{order.customer_id}</span>}
            </td>
            <td role="cell" class="statuses">
              <Status code={order.status} />
              {order.status !== "cancelled" && <Status code={order.fulfillment_status} />}
              {order.totals && <Status code={order.payment_status} />}
              {order.late && <Status code="late" />}
              {order.holds.length > 0 && <Status code="held" label="on hold" />}
            </td>
            <td role="cell" class="number">
              {order.totals ? money(order.totals.total, order.currency) : "—"}
            </td>
            <td role="cell">
              <Time at={order.created_at} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function FilterList({ filters, counted }: { filters: Filters; counted: Counted | null }): JSX.Element {
  const counts = counted?.counts;
  const channels = Object.keys(counts?.channel ?? {}).filter((name) => name !== "null").sort();
  const groups = channels.length ? [...GROUPS, ["channel", "Channel", channels] as (typeof GROUPS)[number]] : GROUPS;
  const chosen = Object.keys(filters).filter((name) => name !== "q" && name !== "sort").length;
  return (
    <details class="filters" open={innerWidth >= 900}>
      <summary>
        Filters {chosen > 0 && <span class="badge">{chosen}</span>}
      </summary>
      {counts && (
        <fieldset>
          <legend>Attention</legend>
          {(["late", "held"] as const).map((name) => (
            <Choice
              key={name}
              label={name === "late" ? "Late" : "On hold"}
              checked={filters[name] === "true"}
              count={counts[name]?.true ?? 0}
              toggle={(on) => go({ ...filters, [name]: on ? "true" : "" })}
            />
          ))}
        </fieldset>
      )}
      {groups.map(([name, title, values]) => {
        const selected = new Set((filters[name] ?? "").split(",").filter(Boolean));
        return (
          <fieldset key={name}>
            <legend>{title}</legend>
            {values.map((value) => (
              <Choice
                key={value}
                label={name === "channel" ? value : capitalize(words(value))}
                checked={selected.has(value)}
                count={counts && (counts[name]?.[value] ?? 0)}
                toggle={(on) => {
                  if (on) selected.add(value);
                  else selected.delete(value);
                  go({ ...filters, [name]: [...selected].join(",") });
                }}
              />
            ))}
          </fieldset>
        );
      })}
      {chosen > 0 && <a href={`#/orders${query({ q: filters.q })}`}>Remove all filters</a>}
    </details>
  );
}

function Choice(props: {
  label: string;
  checked: boolean;
  count: number | undefined;
  toggle: (on: boolean) => void;
}): JSX.Element {
  return (
    <label class={`choice ${props.count === 0 ? "none" : ""}`}>
      <input type="checkbox" checked={props.checked} onChange={(event) => props.toggle(event.currentTarget.checked)} />
      <span>{props.label}</span>
      {props.count !== undefined && <span class="count">{props.count.toLocaleString("en")}</span>}
    </label>
  );
}

/** Show other filters, without another entry in the browser's history for each letter. */
function go(filters: Filters): void {
  history.replaceState(null, "", `#/orders${query(filters)}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
