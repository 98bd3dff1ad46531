// The differences between two versions of an order, as texts.

import { money } from "./money";
import type { Address, DeliveryEvent, Fulfillment, Hold, Item, Order, Payment, Return } from "./types";
import {
  DELIVERY_EVENTS,
  FULFILLMENT_STATUSES,
  HOLD_KINDS,
  ORDER_STATUSES,
  PAYMENT_STATUSES,
  PAYMENT_TYPES,
  RELATIONS,
  RETURN_RECORD_STATUSES,
  RETURN_STATUSES,
  capitalize,
  customerName,
  dateTime,
  itemName,
  named,
  openUnits,
  units,
} from "./words";

export interface Difference {
  label: string;
  before: string;
  after: string;
}

export const NOTHING = "—";

export function differences(before: Order, after: Order): Difference[] {
  const found: Difference[] = [];
  const compare = (label: string, old: string, now: string) => {
    if (old !== now) found.push({ label, before: old || NOTHING, after: now || NOTHING });
  };
  const each = <T>(label: (one: T) => string, key: (one: T) => string | number, show: (one: T, order: Order) => string) =>
    (olds: T[], nows: T[]) => {
      const [old, now] = [new Map(olds.map((one) => [key(one), one])), new Map(nows.map((one) => [key(one), one]))];
      for (const id of new Set([...old.keys(), ...now.keys()])) {
        const [was, is] = [old.get(id), now.get(id)];
        const named = is ?? was;
        if (named) compare(label(named), was ? show(was, before) : "", is ? show(is, after) : "");
      }
    };

  const status = <Code extends string>(label: string, names: Record<Code, string>, old: Code, now: Code) =>
    compare(label, named(names, old), named(names, now));
  // How each member is compared, in this sequence; null where its changes are not shown, or are those of other members.
  // A member without an entry does not compile.
  const members: Record<keyof Order, (() => void) | null> = {
    status: () => status("Order", ORDER_STATUSES, before.status, after.status),
    fulfillment_status: () =>
      status("Fulfillment", FULFILLMENT_STATUSES, before.fulfillment_status, after.fulfillment_status),
    payment_status: () => status("Payment", PAYMENT_STATUSES, before.payment_status, after.payment_status),
    return_status: () => status("Returns", RETURN_STATUSES, before.return_status, after.return_status),
    late: () => compare("Late", before.late ? "yes" : "no", after.late ? "yes" : "no"),
    items: () => {
      each<Item>((item) => `Line ${item.line} · ${itemName(item)}`, (item) => item.line, lineState)(before.items, after.items);
      each<Item>(
        (item) => `Price of line ${item.line}`,
        (item) => item.line,
        (item, order) => (item.total === null ? "" : money(item.total, order.currency)),
      )(before.items, after.items);
    },
    totals: () => {
      for (const name of ["items", "adjustments", "cancelled", "total", "paid", "refunded", "due"] as const) {
        const label = name === "items" ? "Items" : name === "cancelled" ? "Cancelled amount" : capitalize(name);
        compare(label, total(before, name), total(after, name));
      }
    },
    holds: () => each<Hold>((hold) => `Hold ${hold.handle}`, (hold) => hold.handle, holdText)(before.holds, after.holds),
    payments: () =>
      each<Payment>(
        (payment) => `Payment ${payment.reference ?? ""}`.trim(),
        (payment) => `${payment.type} ${payment.reference ?? payment.occurred_at}`,
        paymentText,
      )(before.payments, after.payments),
    fulfillments: () => {
      each<Fulfillment>((one) => `Fulfillment ${one.number}`, (one) => one.number, fulfillmentText)(
        before.fulfillments,
        after.fulfillments,
      );
      each<NumberedEvent>((event) => `Fulfillment ${event.number}`, (event) => event.number, eventText)(
        deliveryEvents(before),
        deliveryEvents(after),
      );
    },
    returns: () =>
      each<Return>((one) => `Return ${one.number}`, (one) => one.number, (one, order) => `${units(one.items, order)}, ${named(RETURN_RECORD_STATUSES, one.status)}`)(
        before.returns,
        after.returns,
      ),
    ship_by: () => compare("Ship by", date(before.ship_by), date(after.ship_by)),
    deliver_by: () => compare("Deliver by", date(before.deliver_by), date(after.deliver_by)),
    currency: () => compare("Currency", before.currency ?? "", after.currency ?? ""),
    customer_id: () => compare("Customer", customerName(before.customer_id), customerName(after.customer_id)),
    external_ref: () => compare("Reference", before.external_ref ?? "", after.external_ref ?? ""),
    note: () => compare("Note", before.note ?? "", after.note ?? ""),
    tags: () => compare("Tags", before.tags.join(", "), after.tags.join(", ")),
    metadata: () => compare("Metadata", pairs(before.metadata), pairs(after.metadata)),
    shipping_address: () =>
      compare("Shipping address", addressText(before.shipping_address), addressText(after.shipping_address)),
    billing_address: () =>
      compare("Billing address", addressText(before.billing_address), addressText(after.billing_address)),
    related_orders: () => compare("Related orders", related(before), related(after)),
    adjustments: null, // the totals
    cancellations: null, // the items and the totals
    reopening: null, // the status
    channel: null, // never changes, as the next three
    id: null,
    number: null,
    created_at: null,
    updated_at: null,
    version: null,
    allowed_actions: null,
  };
  for (const show of Object.values(members)) show?.();
  return found;
}

/** "1 open, 1 cancelled". */
export function lineState(item: Item): string {
  const counts: [number, string][] = [
    [openUnits(item), "open"],
    [item.cancelled, "cancelled"],
    [item.fulfilled, "fulfilled"],
    [item.returned, "returned"],
  ];
  return counts.flatMap(([count, name]) => (count ? [`${count} ${name}`] : [])).join(", ");
}

export function addressText(address: Address | null): string {
  return addressLines(address).join(", ");
}

export function addressLines(address: Address | null): string[] {
  if (!address) return [];
  const { name, company, line1, line2, postal_code, city, region, country, phone, email } = address;
  const town = [postal_code, city].filter(Boolean).join(" ");
  return [name, company, line1, line2, town, region, country, phone, email].flatMap((line) => (line ? [line] : []));
}

function total(order: Order, name: keyof NonNullable<Order["totals"]>): string {
  if (!order.totals) return "";
  const value = order.totals[name];
  return name === "due" && value < 0 ? `${money(-value, order.currency)} to refund` : money(value, order.currency);
}

function holdText(hold: Hold): string {
  return [named(HOLD_KINDS, hold.kind), hold.reason, hold.until && `until ${dateTime(hold.until)}`].filter(Boolean).join(", ");
}

function paymentText(payment: Payment, order: Order): string {
  return `${named(PAYMENT_TYPES, payment.type)} of ${money(payment.amount, order.currency)}`;
}

function fulfillmentText(one: Fulfillment, order: Order): string {
  const tracking = [one.tracking?.carrier, one.tracking?.number, one.tracking?.url].filter(Boolean).join(" ");
  return [units(one.items, order), named(DELIVERY_EVENTS, one.status), tracking].filter(Boolean).join(", ");
}

/** A delivery event; `number` is "1, event 2". */
type NumberedEvent = DeliveryEvent & { number: string };

function deliveryEvents(order: Order): NumberedEvent[] {
  return order.fulfillments.flatMap((one) =>
    one.events.map((event, index) => ({ ...event, number: `${one.number}, event ${index + 1}` })),
  );
}

function eventText({ type, occurred_at, description }: DeliveryEvent): string {
  return [named(DELIVERY_EVENTS, type), dateTime(occurred_at), description].filter(Boolean).join(", ");
}

function date(time: string | null): string {
  return time === null ? "" : dateTime(time);
}

function pairs(metadata: Record<string, string>): string {
  return Object.entries(metadata).map(([name, value]) => `${name}: ${value}`).join(", ");
}

function related(order: Order): string {
  return order.related_orders.map((one) => `${named(RELATIONS, one.relation)}: ${one.order_id}`).join(", ");
}
