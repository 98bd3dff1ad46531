// The list of orders: search as you type, filters with counts, usable with the keyboard alone.

import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { query } from "./api";
import { ProblemBox, Statuses, Time, orderLink } from "./components";
import { type Filters, type SearchCounts, countOrders, findOrders } from "./find";
import { type FieldErrors, formErrors } from "./form_errors";
import { shortcut } from "./keyboard";
import { money, parseAmount } from "./money";
import { usePolled } from "./polled";
import type { Order } from "./types";
import { FULFILLMENT_STATUSES, ORDER_STATUSES, PAYMENT_STATUSES, RETURN_STATUSES, capitalize, choices, customerName, plural } from "./words";

const TYPING_PAUSE = 150; // milliseconds
const REFRESH = 10_000; // milliseconds
const BEHIND = 10; // events that the search may be behind before the page says so
const RECOUNT = 30_000; // milliseconds

const GROUPS: [name: string, title: string, statuses: [value: string, label: string][]][] = [
  ["status", "Order", choices(ORDER_STATUSES)],
  ["fulfillment_status", "Fulfillment", choices(FULFILLMENT_STATUSES)],
  ["payment_status", "Payment", choices(PAYMENT_STATUSES)],
  ["return_status", "Returns", choices(RETURN_STATUSES).filter(([value]) => value !== "none")],
];

const SORTS: [value: string, label: string][] = [
  ["", "Newest first"],
  ["created_at", "Oldest first"],
  ["-updated_at", "Last changed"],
  ["-total", "Largest total"],
];
// The filters with a field that can show an error.
const FIELDS = [
  { name: "q", label: "Search" },
  { name: "created_from", label: "Placed from" },
  { name: "created_to", label: "Placed to" },
  { name: "tag", label: "Tag" },
  { name: "total_from", label: "Total from" },
  { name: "total_to", label: "Total to" },
];
const NO_MORE = "none"; // in place of the cursor of the next page

interface Further {
  key: string; // the filters of these pages
  orders: Order[]; // all orders shown so far: a new order removes none of them from the list
  next: string;
  error: unknown;
}

let shownFilters: Filters = {};

/** A link to the last search. */
export function finderLink(): string {
  return `#/orders${query(shownFilters)}`;
}

export function Finder({ filters }: { filters: Filters }): JSX.Element {
  const key = JSON.stringify(filters);
  const { data, error, reload } = usePolled(key, REFRESH, (signal) => findOrders(filters, "", signal));
  const counted = usePolled(`count ${key}`, RECOUNT, (signal) => countOrders(filters, signal)).data;
  const [further, setFurther] = useState<Further | null>(null);
  const [text, setText] = useState(filters.q ?? "");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    document.title = "Orders · Order Service";
  }, []);
  useEffect(() => {
    shownFilters = filters;
  }, [filters]);
  // Text that is typed while the page searches for an earlier text is kept; a link or the Back button replaces it.
  const searched = useRef(filters.q ?? "");
  useEffect(() => {
    if ((filters.q ?? "") !== searched.current) setText(filters.q ?? "");
    searched.current = filters.q ?? "";
  }, [filters.q]);
  useEffect(() => {
    if (text === (filters.q ?? "")) return undefined;
    // The filters at the end of the pause, not at its start: one may have been chosen meanwhile.
    const timer = setTimeout(() => {
      searched.current = text;
      if (isShown()) go({ ...currentFilters(), q: text });
    }, TYPING_PAUSE);
    return () => clearTimeout(timer);
  }, [text]);
  useLayoutEffect(
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

  const errors = formErrors(error, FIELDS);
  const pages = further?.key === key ? further : { key, orders: [], next: "", error: null };
  const next = pages.next || data?.next_cursor;
  const first = new Set(data?.orders.map((order) => order.id));
  const orders = [...(data?.orders ?? []), ...pages.orders.filter((order) => !first.has(order.id))];

  async function more(): Promise<void> {
    if (!next) return;
    try {
      const page = await findOrders(filters, next);
      setFurther({ key, orders: [...orders, ...page.orders], next: page.next_cursor ?? NO_MORE, error: null });
    } catch (reason) {
      setFurther({ ...pages, error: reason });
    }
  }

  return (
    <div class="finder">
      <h1 class="visually-hidden">Orders</h1>
      <form
        role="search"
        class="search"
        onSubmit={(event) => {
          event.preventDefault();
          if (text !== (filters.q ?? "")) go({ ...currentFilters(), q: text });
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
          {...invalid("q", errors.fields.q)}
          onInput={(event) => setText(event.currentTarget.value)}
        />
        <kbd aria-hidden="true">/</kbd>
        <FilterError name="q" error={errors.fields.q} />
      </form>
      <FilterList filters={filters} counted={counted} errors={errors.fields} />
      <section class="results" aria-label="Matching orders" aria-busy={!data && !error}>
        <div class="result-head">
          <p class="result-count" role="status">
            {data ? countText(orders.length, counted, Boolean(next) && next !== NO_MORE) : error ? "" : "Searching …"}
            {data && data.behind > BEHIND && ` · the newest ${plural(data.behind, "change")} may be missing`}
          </p>
          <label>
            <span class="visually-hidden">Sort by</span>
            <select value={filters.sort ?? ""} onChange={(event) => go({ ...currentFilters(), sort: event.currentTarget.value })}>
              {SORTS.map(([value, label]) => (
                <option key={value} value={value}>
                  {label}
                </option>
              ))}
            </select>
          </label>
        </div>
        {error !== null && <ProblemBox error={error} formErrors={errors} retry={reload} />}
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
        {pages.error !== null && <ProblemBox error={pages.error} />}
        {next && next !== NO_MORE && (
          <button type="button" class="more" onClick={() => void more()}>
            Show more
          </button>
        )}
      </section>
    </div>
  );
}

function countText(shown: number, counted: SearchCounts | null, more: boolean): string {
  if (counted) return capitalize(foundText(counted));
  return more ? `The first ${plural(shown, "order")}` : plural(shown, "order");
}

function foundText({ total, complete }: SearchCounts): string {
  return complete ? plural(total, "order") : `more than ${plural(total, "order")}`;
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
              {order.shipping_address?.name ?? customerName(order.customer_id)}
              {order.shipping_address?.name && <span class="code">{customerName(order.customer_id)}</span>}
            </td>
            <td role="cell" class="statuses">
              <Statuses order={order} />
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

/** Close the filters, which are above the orders on a narrow screen. */
function fold(filters: HTMLDetailsElement | null): void {
  filters?.removeAttribute("open");
  filters?.querySelector("summary")?.focus();
}

interface FilterProps {
  filters: Filters;
  counted: SearchCounts | null;
  errors: FieldErrors;
}

function FilterList({ filters, counted, errors }: FilterProps): JSX.Element {
  const counts = counted?.counts;
  const values = (name: string) =>
    [...new Set([...Object.keys(counts?.[name] ?? {}), filters[name] ?? ""])].filter((one) => one && one !== "null").sort();
  const amountError = (name: string) =>
    filters[name] && parseAmount(filters[name], filters.currency ?? null) === null ? `Enter an amount in ${filters.currency}.` : undefined;
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
              toggle={(on) => go({ ...currentFilters(), [name]: on ? "true" : "" })}
            />
          ))}
        </fieldset>
      )}
      {GROUPS.map(([name, title, statuses]) => {
        const selected = new Set((filters[name] ?? "").split(",").filter(Boolean));
        return (
          <fieldset key={name}>
            <legend>{title}</legend>
            {statuses.map(([value, label]) => (
              <Choice
                key={value}
                label={label}
                checked={selected.has(value)}
                count={counts && (counts[name]?.[value] ?? 0)}
                toggle={(on) => {
                  const current = currentFilters();
                  const chosen = (current[name] ?? "").split(",").filter((other) => other && other !== value);
                  go({ ...current, [name]: (on ? [...chosen, value] : chosen).join(",") });
                }}
              />
            ))}
          </fieldset>
        );
      })}
      <fieldset>
        <legend>Placed</legend>
        <Limit label="From" name="created_from" type="date" filters={filters} error={errors.created_from} />
        <Limit label="To" name="created_to" type="date" filters={filters} error={errors.created_to} />
      </fieldset>
      <fieldset>
        <legend>Channel and tag</legend>
        <Select label="Channel" name="channel" any="Any channel" values={values("channel")} filters={filters} />
        <Limit label="Tag" name="tag" type="text" filters={filters} error={errors.tag} />
      </fieldset>
      <fieldset>
        <legend>Total</legend>
        <Select label="Currency" name="currency" any="Any currency" values={values("currency")} filters={filters} />
        {filters.currency && (
          <>
            <Limit label="From" name="total_from" type="text" filters={filters} error={errors.total_from ?? amountError("total_from")} />
            <Limit label="To" name="total_to" type="text" filters={filters} error={errors.total_to ?? amountError("total_to")} />
          </>
        )}
      </fieldset>
      {chosen > 0 && <a href={`#/orders${query({ q: filters.q })}`}>Remove all filters</a>}
      <button type="button" class="show-results" onClick={(event) => fold(event.currentTarget.closest("details"))}>
        {counted ? `Show ${foundText(counted)}` : "Show orders"}
      </button>
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

/** The attributes of a field, and the error that describes it. */
function invalid(name: string, error: string | undefined): JSX.HTMLAttributes<HTMLInputElement> {
  return error === undefined ? {} : { "aria-invalid": true, "aria-describedby": `${name}-error` };
}

function FilterError({ name, error }: { name: string; error: string | undefined }): JSX.Element | null {
  return error === undefined ? null : (
    <span class="field-error" id={`${name}-error`}>
      {error}
    </span>
  );
}

interface LimitProps {
  label: string;
  name: string;
  type: "date" | "text";
  filters: Filters;
  error: string | undefined;
}

function Limit({ label, name, type, filters, error }: LimitProps): JSX.Element {
  const stored = filters[name] ?? "";
  const [text, setText] = useState(stored); // what is being typed survives a new search result
  useEffect(() => setText(stored), [stored]);
  return (
    <label class="limit">
      <span>{label}</span>
      <input
        type={type}
        max={type === "date" ? "9999-12-31" : undefined}
        value={text}
        {...invalid(name, error)}
        onInput={(event) => setText(event.currentTarget.value)}
        onChange={(event) => go({ ...currentFilters(), [name]: event.currentTarget.value.trim() })}
      />
      <FilterError name={name} error={error} />
    </label>
  );
}

function Select(props: { label: string; name: string; any: string; values: string[]; filters: Filters }): JSX.Element {
  const { label, name, any, values, filters } = props;
  return (
    <label class="limit">
      <span>{label}</span>
      <select value={filters[name] ?? ""} onChange={(event) => go({ ...currentFilters(), [name]: event.currentTarget.value })}>
        <option value="">{any}</option>
        {values.map((value) => (
          <option key={value} value={value}>
            {value}
          </option>
        ))}
      </select>
    </label>
  );
}

/** Whether the URL is still that of the list: a link may have been followed since the last render. */
function isShown(): boolean {
  return ["", "#", "#/orders"].includes(location.hash.split("?", 1)[0] ?? "");
}

function currentFilters(): Filters {
  return Object.fromEntries(new URLSearchParams(location.hash.split("?", 2)[1]));
}

/** Change the filters, without an entry in the browser's history for each letter. */
function go(filters: Filters): void {
  history.replaceState(null, "", `#/orders${query(filters)}`);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
