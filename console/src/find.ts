// Finding orders.

import { Problem, get, query } from "./api";
import type { Order } from "./types";

export type Filters = Record<string, string>;

/** How many of the orders found have each value of a facet. */
export type Counts = Record<string, Record<string, number>>;

export interface Found {
  orders: Order[];
  next_cursor: string | null;
  behind: number; // events that the search does not have yet
}

export interface Counted {
  counts: Counts;
  total: number;
  complete: boolean; // false if there are more orders than the service counts
}

interface SearchPage extends Found {
  facets?: Record<string, { value: string | boolean | null; count: number }[]>;
  facets_complete?: boolean;
}

const FACETS = ["status", "fulfillment_status", "payment_status", "return_status", "channel", "held", "late"];
const PAGE = 50;

export async function findOrders(filters: Filters, cursor: string, signal?: AbortSignal): Promise<Found> {
  try {
    return await search({ ...filters, limit: String(PAGE), cursor }, signal);
  } catch (error) {
    if (error instanceof Problem && ["order-not-found", "invalid-request"].includes(error.slug))
      return listOrders(filters, cursor, signal);
    throw error;
  }
}

/** Count the orders found by facet. The counts of a filter that is set are those without it: what else could be chosen. */
export async function countOrders(filters: Filters, signal: AbortSignal): Promise<Counted> {
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

async function search(parameters: Filters, signal?: AbortSignal): Promise<SearchPage> {
  return (await get<SearchPage>(`/orders/search${query(parameters)}`, signal)).data;
}

function countsOf(page: SearchPage): Counts {
  const facets = Object.entries(page.facets ?? {});
  return Object.fromEntries(
    facets.map(([name, values]) => [name, Object.fromEntries(values.map(({ value, count }) => [String(value), count]))]),
  );
}

async function listOrders({ q = "", ...filters }: Filters, cursor: string, signal?: AbortSignal): Promise<Found> {
  const list = async (named: Filters) =>
    (await get<Found>(`/orders${query({ ...filters, ...named, limit: PAGE, cursor })}`, signal)).data;
  if (!q) return list({});
  const pages = await Promise.all(["number", "customer_id", "external_ref"].map((name) => list({ [name]: q })));
  const orders = new Map(pages.flatMap((page) => page.orders).map((order) => [order.id, order]));
  return { orders: [...orders.values()], next_cursor: null, behind: 0 };
}
