// Finding orders.

import { Problem, get, query } from "./api";
import type { Order } from "./types";

export type Facets = Record<string, Record<string, number>>;

export interface Found {
  orders: Order[];
  next_cursor: string | null;
  facets?: Facets;
}

export type Filters = Record<string, string>;

export const FACETS = ["status", "fulfillment_status", "payment_status", "return_status", "channel", "tag", "held", "late"];
const PAGE = 50;

export async function findOrders(filters: Filters, cursor: string, signal: AbortSignal): Promise<Found> {
  const parameters = { ...filters, limit: PAGE, cursor, ...(cursor ? {} : { facets: FACETS.join(",") }) };
  try {
    return (await get<Found>(`/orders/search${query(parameters)}`, signal)).data;
  } catch (error) {
    if (error instanceof Problem && ["order-not-found", "invalid-request"].includes(error.slug)) return listOrders(filters, cursor, signal);
    throw error;
  }
}

async function listOrders({ q = "", ...filters }: Filters, cursor: string, signal: AbortSignal): Promise<Found> {
  const list = async (named: Filters) =>
    (await get<Found>(`/orders${query({ ...filters, ...named, limit: PAGE, cursor })}`, signal)).data;
  if (!q) return list({});
  const pages = await Promise.all(["number", "customer_id", "external_ref"].map((name) => list({ [name]: q })));
  const orders = new Map(pages.flatMap((page) => page.orders).map((order) => [order.id, order]));
  return { orders: [...orders.values()], next_cursor: null };
}
