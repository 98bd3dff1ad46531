// Texts, names and times as users see them.

import type { Item, LineQuantity, Order, Payment, Schemas } from "./types";

// Texts for the codes of the API. The type of each table comes from the API description: a code without a text does not
// compile.

export const ORDER_STATUSES: Record<Schemas["OrderStatus"], string> = {
  pending: "pending",
  confirmed: "confirmed",
  completed: "completed",
  cancelled: "cancelled",
};

export const FULFILLMENT_STATUSES: Record<Schemas["FulfillmentStatus"], string> = {
  unfulfilled: "unfulfilled",
  partial: "partly fulfilled",
  fulfilled: "fulfilled",
  delivered: "delivered",
};

export const PAYMENT_STATUSES: Record<Schemas["PaymentStatus"], string> = {
  unpaid: "unpaid",
  authorized: "authorized",
  partially_paid: "partly paid",
  paid: "paid",
  partially_refunded: "partly refunded",
  refunded: "refunded",
};

export const RETURN_STATUSES: Record<Schemas["ReturnStatus"], string> = {
  none: "none",
  partial: "partly returned",
  returned: "returned",
};

/** Statuses of one return. */
export const RETURN_RECORD_STATUSES: Record<Schemas["ReturnRecordStatus"], string> = {
  expected: "expected",
  received: "received",
  rejected: "rejected",
};

/** What happened to a fulfillment: its events, and its status. */
export const DELIVERY_EVENTS: Record<Schemas["DeliveryEventType"], string> = {
  shipped: "shipped",
  in_transit: "in transit",
  out_for_delivery: "out for delivery",
  ready_for_pickup: "ready for pickup",
  delivered: "delivered",
  failed_attempt: "delivery attempt failed",
  returned_to_sender: "returned to sender",
  cancelled: "cancelled",
};

export const PAYMENT_TYPES: Record<Schemas["PaymentType"], string> = {
  authorization: "authorization",
  capture: "capture",
  refund: "refund",
  void: "void",
  chargeback: "chargeback",
  capture_reversal: "reversal of a capture",
  refund_reversal: "reversal of a refund",
  chargeback_reversal: "reversal of a chargeback",
};

/** What the types of payments mean, for users who choose one. */
export const PAYMENT_MEANINGS: Record<Schemas["PaymentType"], string> = {
  authorization: "money is reserved",
  capture: "money was received",
  refund: "money was returned",
  void: "the authorization was released",
  chargeback: "the bank reversed the payment",
  capture_reversal: "it was a mistake",
  refund_reversal: "it failed, or was a mistake",
  chargeback_reversal: "the dispute was won, or it was a mistake",
};

/** Whether the payment was reversed. Customers see no references, so for them none is. */
export function isReversed(payment: Payment, order: Order): boolean {
  return order.payments.some(
    (one) => one.reference !== undefined && one.reference === payment.reference && one.type === `${payment.type}_reversal`,
  );
}

export const HOLD_KINDS: Record<Schemas["HoldKind"], string> = {
  fraud: "suspected fraud",
  payment: "payment needs checking",
  address: "address needs checking",
  inventory: "not in stock",
  review: "needs review",
  other: "other",
};

export const CANCELLATION_REASONS: Record<Schemas["CancellationReason"], string> = {
  customer: "the customer changed their mind",
  inventory: "not in stock",
  fraud: "suspected fraud",
  declined: "payment declined",
  staff: "our mistake",
  expired: "not confirmed in time",
  other: "other",
};

export const ADJUSTMENT_TYPES: Record<Schemas["AdjustmentType"], string> = {
  discount: "discount",
  tax: "tax",
  shipping: "shipping",
  fee: "fee",
  other: "other",
};

/** How another order is related to this one. */
export const RELATIONS: Record<Schemas["Relation"], string> = {
  replacement: "replacement",
  exchange: "exchange",
  split: "split",
  reorder: "reorder",
  subscription: "subscription",
  other: "related",
};

export const EVENTS: Record<Schemas["DeliveredEventType"], string> = {
  "order.created": "created",
  "order.imported": "imported",
  "order.updated": "edited",
  "order.confirmed": "confirmed",
  "order.cancelled": "cancelled",
  "order.partially_cancelled": "partly cancelled",
  "order.held": "put on hold",
  "order.released": "released from a hold",
  "order.fulfilled": "fulfilled",
  "order.fulfillment_updated": "delivery updated",
  "order.completed": "completed",
  "order.returned": "returned",
  "order.return_expected": "return expected",
  "order.return_received": "return received",
  "order.return_rejected": "return rejected",
  "order.payment_recorded": "payment recorded",
  "order.reopened": "reopened",
  "order.late": "became late",
  "order.erased": "personal data erased",
  "endpoint.failing": "another webhook is failing",
  "endpoint.disabled": "another webhook was switched off",
  "webhook.test": "test",
};

/** Statuses of the delivery of an event to a webhook. */
export const WEBHOOK_DELIVERY_STATUSES: Record<Schemas["DeliveryStatus"], string> = {
  pending: "pending",
  succeeded: "succeeded",
  failed: "failed",
};

/** Why a webhook is switched off. */
export const DISABLED_REASONS: Record<NonNullable<Schemas["Webhook"]["disabled_reason"]>, string> = {
  paused: "It was switched off.",
  gone: "It responded with 410 (gone).",
  failing: "It kept failing for 72 hours.",
};

// Who made a change, by the id of the principal. The other ids have a kind, a colon and a name.
const ACTORS: Record<string, string> = {
  anonymous: "", // authentication is off, so nobody is identified
  seed: "by the sample data",
  "system:schedule": "automatically, as scheduled",
  "system:expiry": "automatically, not confirmed in time",
  "system:privacy": "by the operators",
  "system:webhooks": "by the operators",
  staff: "by staff", // to a customer
  service: "by the shop", // to a customer
};

/** "by warehouse", "automatically, as scheduled", or nothing if the actor is not identified. */
export function byActor(id: string): string {
  const known = ACTORS[id];
  if (known !== undefined) return known;
  if (id.startsWith("customer:")) return "by the customer";
  return `by ${id.replace(/^(service|token):/, "")}`;
}

/** Whether the service itself made a change. */
export function isAutomatic(id: string): boolean {
  return byActor(id).startsWith("automatically");
}

// Names of members in errors, if the name in the API is not clear enough.
const MEMBERS: Record<string, string> = {
  external_ref: "reference",
  items: "line",
  q: "search",
};

/** ["billing_address", "country"] → "Billing address, country: "; ["items", "0", "quantity"] → "Line 1, quantity: ". */
export function memberName(parts: string[]): string {
  const names = parts.map((part) => (/^\d+$/.test(part) ? ` ${Number(part) + 1}` : `, ${MEMBERS[part] ?? words(part)}`));
  const name = capitalize(names.join("").slice(2));
  return name && `${name}: `;
}

/** The parts of a JSON pointer in URI fragment representation (RFC 6901 §6). */
export function pointerParts(pointer: string): string[] {
  const parts = decodeURIComponent(pointer).split("/").slice(1);
  return parts.map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
}

interface ProblemText {
  title?: string; // replaces the service's
  detail?: string; // replaces the service's, which can name members, or amounts in minor units
  member?: string; // the member that the problem is about
  advice: string;
}

/** Problem types in words for support staff. */
export const PROBLEMS: Record<string, ProblemText> = {
  "invalid-request": { title: "Not accepted", detail: "", advice: "Nothing was changed." },
  forbidden: {
    advice: "Your API key does not allow this. Ask the operators for a key that does; “Forget key” lets you enter it.",
  },
  "order-not-found": { detail: "", advice: "Check the link, and whether your API key is bound to another channel." },
  "webhook-not-found": { advice: "Somebody else may have deleted it." },
  "illegal-action": { advice: "Check the current order: its buttons show the possible actions." },
  "quantity-exceeded": { detail: "", advice: "Enter at most the number of units that are left in each line." },
  "amount-exceeded": {
    detail: "You cannot refund more than was received, or void more than is authorized.",
    member: "amount",
    advice: "Look at the payments of the order, and enter a smaller amount. Reverse the refunds of a capture before it.",
  },
  "duplicate-payment": {
    detail: "A payment of this type with this reference is already recorded with a different amount.",
    member: "reference",
    advice: "Look at the payments of the order. A different payment needs its own reference.",
  },
  "duplicate-external-ref": {
    title: "The reference is taken",
    detail: "Another order has this reference.",
    member: "external_ref",
    advice: "Search for the reference to find that order.",
  },
  "version-mismatch": {
    advice: "Somebody else changed the order. Compare the versions, then continue with the current one.",
  },
};

/** The text for a code. A page that was opened before a deployment may get codes that it does not know. */
export function named<Code extends string>(names: Record<Code, string>, code: Code): string {
  return names[code] ?? words(code);
}

/** The codes with their texts, for a select element. */
export function choices(names: Record<string, string>): [code: string, label: string][] {
  return Object.entries(names).map(([code, label]) => [code, capitalize(label)]);
}

function words(code: string): string {
  return code.replaceAll("_", " ");
}

export function capitalize(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** The id of a customer; after an erasure it is random, so it is not shown. */
export function customerName(id: string): string {
  return id.startsWith("erased-") ? "erased customer" : id;
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
  if (!value) return null;
  const date = new Date(value);
  return Number.isNaN(date.getTime()) ? value : date.toISOString(); // the service refuses an invalid time
}
