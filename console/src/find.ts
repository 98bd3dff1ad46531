// Searching for orders.

import { get, query } from "./api";
import { parseAmount } from "./money";
import type { Order } from "./types";

export type Filters = Record<string, string>;

/** The number of matching orders for each value of each facet. */
export type Counts = Record<string, Record<string, number>>;

export interface OrderList {
  orders: Order[];
  next_cursor: string | null;
  behind: number; // events that the search does not include yet
}

export interface SearchCounts {
  counts: Counts;
  total: number;
  complete: boolean; // false if there are more orders than the service counts
}

interface SearchPage extends OrderList {
  facets?: Record<string, { value: string | boolean | null; count: number }[]>;
  facets_complete?: boolean;
}

const FACETS = ["status", "fulfillment_status", "payment_status", "return_status", "channel", "currency", "held", "late"];
const PAGE = 50;
const EMPTY_PAGES = 5; // that are skipped: a page can be empty although others follow

export async function findOrders(filters: Filters, cursor: string, signal?: AbortSignal): Promise<OrderList> {
  let page = await search({ ...filters, limit: String(PAGE), cursor }, signal);
  for (let pages = 0; !page.orders.length && page.next_cursor && pages < EMPTY_PAGES; pages += 1) {
    page = await search({ ...filters, limit: String(PAGE), cursor: page.next_cursor }, signal);
  }
  return page;
}

/** Count the matching orders by facet. The counts of a filter that is set are computed without it, for the other choices. */
export async function countOrders(filters: Filters, signal: AbortSignal): Promise<SearchCounts> {
  const set = FACETS.filter((name) => filters[name]);
  const [page, ...others] = await Promise.all([
    search({ ...filters, limit: "1", facets: FACETS.join(",") }, signal),
    ...set.map((name) => search({ ...filters, [name]: "", limit: "1", facets: name }, signal)),
  ]);
  const counts = countsOf(page);
  const total = Object.values(counts.status ?? {}).reduce((sum, count) => sum + count, 0);
  for (const other of others) Object.assign(counts, countsOf(other));
  return { counts, total, complete: page.facets_complete ?? true };
}

/** `created_from` and `created_to` are days here, both included; totals are as users type them. */
async function search({ total_from = "", total_to = "", ...filters }: Filters, signal?: AbortSignal): Promise<SearchPage> {
  const parameters: Record<string, string | number> = { ...filters };
  if (filters.created_from) parameters.created_from = startOfDay(filters.created_from, 0);
  if (filters.created_to) parameters.created_to = startOfDay(filters.created_to, 1);
  if (filters.currency) {
    parameters.total_from = parseAmount(total_from, filters.currency) ?? "";
    parameters.total_to = parseAmount(total_to, filters.currency) ?? "";
  }
  return get<SearchPage>(`/orders/search${query(parameters)}`, signal);
}

function startOfDay(day: string, later: number): string {
  const date = new Date(`${day}T00:00`);
  date.setDate(date.getDate() + later);
  return Number.isNaN(date.getTime()) ? day : date.toISOString(); // the service refuses an invalid day
}

function countsOf(page: SearchPage): Counts {
  const facets = Object.entries(page.facets ?? {});
  return Object.fromEntries(
    facets.map(([name, values]) => [name, Object.fromEntries(values.map(({ value, count }) => [String(value), count]))]),
  );
}
