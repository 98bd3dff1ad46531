// Find an order: a search as you type, filters with counts, and the keyboard alone if you like.

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { isAborted, pause, query } from "./api";
import { ProblemBox, Status, Time, orderLink } from "./components";
import { type Facets, type Filters, type Found, findOrders } from "./find";
import { shortcut } from "./keyboard";
import { money } from "./money";
import type { Order } from "./types";
import { capitalize, plural, words } from "./words";

const TYPING_PAUSE = 150; // milliseconds
const REFRESH = 10_000; // milliseconds

const GROUPS: [name: string, title: string, values: string[]][] = [
  ["status", "Order", ["pending", "confirmed", "completed", "cancelled"]],
  ["fulfillment_status", "Fulfillment", ["unfulfilled", "partial", "fulfilled", "delivered"]],
  ["payment_status", "Payment", ["unpaid", "authorized", "partially_paid", "paid", "partially_refunded", "refunded"]],
  ["return_status", "Returns", ["partial", "returned"]],
];

export function Finder({ filters }: { filters: Filters }): JSX.Element {
  const [found, setFound] = useState<Found | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const [text, setText] = useState(filters.q ?? "");
  const input = useRef<HTMLInputElement>(null);
  const asked = JSON.stringify(filters);

  useEffect(() => {
    document.title = "Orders · Order Service";
  }, []);
  useEffect(() => setText(filters.q ?? ""), [filters.q]);
  useEffect(() => {
    const controller = new AbortController();
    setBusy(true);
    const keepCurrent = async () => {
      for (;;) {
        const page = await findOrders(filters, "", controller.signal);
        setFound((known) => (known && known.orders.length > page.orders.length ? withFirst(known, page) : page));
        setError(null);
        setBusy(false);
        do await pause(REFRESH, controller.signal);
        while (document.hidden);
      }
    };
    setFound(null);
    keepCurrent().catch((reason: unknown) => {
      if (isAborted(reason)) return;
      setError(reason);
      setBusy(false);
    });
    return () => controller.abort();
  }, [asked]);
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

  async function more(): Promise<void> {
    if (!found?.next_cursor) return;
    const page = await findOrders(filters, found.next_cursor, new AbortController().signal);
    setFound({ ...found, orders: [...found.orders, ...page.orders], next_cursor: page.next_cursor });
  }

  const orders = found?.orders ?? [];
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
          placeholder="Number, customer, name, reference …"
          autocomplete="off"
          spellcheck={false}
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
        <kbd aria-hidden="true">/</kbd>
      </form>
      <FilterList filters={filters} facets={found?.facets} />
      <section class="results" aria-label="Orders found" aria-busy={busy}>
        <p class="result-count" role="status">
          {found ? countText(found) : busy ? "Searching …" : ""}
        </p>
        {error !== null && <ProblemBox error={error} retry={() => go({ ...filters })} />}
        {found && !orders.length && (
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
        {found?.next_cursor && (
          <button type="button" class="more" onClick={() => void more().catch(setError)}>
            Show more
          </button>
        )}
      </section>
    </div>
  );
}

/** The first page anew, and the further pages that were opened already. */
function withFirst(known: Found, page: Found): Found {
  const first = new Set(page.orders.map((order) => order.id));
  return { ...known, ...page, orders: [...page.orders, ...known.orders.filter((order) => !first.has(order.id))], next_cursor: known.next_cursor };
}

function countText(found: Found): string {
  const statuses = found.facets?.status;
  if (statuses) {
    return plural(Object.values(statuses).reduce((sum, count) => sum + count, 0), "order");
  }
  return found.next_cursor ? `The first ${found.orders.length} orders` : plural(found.orders.length, "order");
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

function FilterList({ filters, facets }: { filters: Filters; facets: Facets | undefined }): JSX.Element {
  const channels = Object.keys(facets?.channel ?? {});
  const groups = channels.length ? [...GROUPS, ["channel", "Channel", channels] as (typeof GROUPS)[number]] : GROUPS;
  const chosen = Object.keys(filters).filter((name) => name !== "q" && name !== "sort").length;
  return (
    <details class="filters" open={innerWidth >= 900}>
      <summary>
        Filters {chosen > 0 && <span class="badge">{chosen}</span>}
      </summary>
      {facets && (
        <fieldset>
          <legend>Attention</legend>
          {(["late", "held"] as const).map((name) => (
            <Choice
              key={name}
              label={name === "late" ? "Late" : "On hold"}
              checked={filters[name] === "true"}
              count={facets[name]?.true ?? 0}
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
                count={facets && (facets[name]?.[value] ?? 0)}
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
