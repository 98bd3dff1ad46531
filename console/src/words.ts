// Names and times for people.

import type { Item, LineQuantity, Order } from "./types";

const EVENTS: Record<string, string> = {
  "order.created": "Created",
  "order.imported": "Imported",
  "order.updated": "Updated",
  "order.confirmed": "Confirmed",
  "order.cancelled": "Cancelled",
  "order.partially_cancelled": "Partly cancelled",
  "order.held": "Put on hold",
  "order.released": "Released from a hold",
  "order.fulfilled": "Fulfilled",
  "order.fulfillment_updated": "Delivery updated",
  "order.completed": "Completed",
  "order.returned": "Returned",
  "order.return_expected": "Return expected",
  "order.return_received": "Return received",
  "order.return_rejected": "Return rejected",
  "order.payment_recorded": "Payment recorded",
  "order.reopened": "Reopened",
  "order.late": "Late",
  "order.erased": "Personal data erased",
};

export function eventName(type: string): string {
  return EVENTS[type] ?? capitalize(words(type.replace(/^order\./, "")));
}

/** "by service:warehouse", or nothing where authentication is off and nobody is known. */
export function byPrincipal(id: string): string {
  return id === "anonymous" ? "" : `by ${id}`;
}

/** Why units were cancelled. */
export const CANCELLATION_REASONS: Record<string, string> = {
  customer: "The customer changed their mind",
  inventory: "Not in stock",
  fraud: "Suspected fraud",
  declined: "Payment declined",
  staff: "Our mistake",
  other: "Other",
};

/** partially_paid → "partially paid". */
export function words(code: string): string {
  return code.replaceAll("_", " ");
}

/** A fulfillment or return status in words: "partial" alone does not say of what. */
export function statusName(status: string, complete: "fulfilled" | "returned"): string {
  return status === "partial" ? `partly ${complete}` : words(status);
}

export function capitalize(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

export function itemName(item: Item): string {
  return item.title ?? item.item_id;
}

export function openUnits(item: Item): number {
  return item.quantity - item.cancelled - item.fulfilled;
}

/** "2 × Mug, 1 × Plate". */
export function units(entries: LineQuantity[], order: Order): string {
  const names = new Map(order.items.map((item) => [item.line, itemName(item)]));
  return entries.map(({ line, quantity }) => `${quantity} × ${names.get(line) ?? `line ${line}`}`).join(", ");
}

const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const STEPS: [Intl.RelativeTimeFormatUnit, number][] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];

export function dateTime(time: string | null): string {
  return time === null ? "—" : absolute.format(new Date(time));
}

export function timeOfDay(time: Date): string {
  return clock.format(time);
}

/** "5 minutes ago", or the date when it is more than a month away. */
export function ago(time: string): string {
  const seconds = (Date.parse(time) - Date.now()) / 1_000;
  if (Math.abs(seconds) > 30 * 86_400) return dateTime(time);
  for (const [unit, size] of STEPS) {
    if (Math.abs(seconds) >= size) return relative.format(Math.round(seconds / size), unit);
  }
  return seconds > 0 ? "in a moment" : "just now";
}

/** RFC 3339 → the value of an input of the type datetime-local. */
export function localInput(time: string | null): string {
  if (time === null) return "";
  const date = new Date(time);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/** The value of an input of the type datetime-local → RFC 3339. */
export function fromLocalInput(value: string): string | null {
  return value ? new Date(value).toISOString() : null;
}
