// What is different between two versions of an order, in words.

import { money } from "./money";
import type { Address, Fulfillment, Hold, Item, Order, Payment, Return } from "./types";
import { capitalize, dateTime, itemName, openUnits, statusName, units, words } from "./words";

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

  compare("Order", words(before.status), words(after.status));
  compare("Fulfillment", statusName(before.fulfillment_status, "fulfilled"), statusName(after.fulfillment_status, "fulfilled"));
  compare("Payment", words(before.payment_status), words(after.payment_status));
  compare("Returns", statusName(before.return_status, "returned"), statusName(after.return_status, "returned"));
  compare("Timing", before.late ? "late" : "in time", after.late ? "late" : "in time");

  each<Item>((item) => `Line ${item.line} · ${itemName(item)}`, (item) => item.line, lineState)(before.items, after.items);
  each<Item>(
    (item) => `Price of line ${item.line}`,
    (item) => item.line,
    (item, order) => (item.total === null ? "" : money(item.total, order.currency)),
  )(before.items, after.items);

  for (const name of ["items", "adjustments", "cancelled", "total", "paid", "refunded", "due"] as const) {
    const label = name === "items" ? "Items" : name === "cancelled" ? "Cancelled amount" : capitalize(name);
    compare(label, total(before, name), total(after, name));
  }

  each<Hold>((hold) => `Hold ${hold.handle}`, (hold) => hold.handle, holdText)(before.holds, after.holds);
  each<Payment>(
    (payment) => `Payment ${payment.reference ?? ""}`.trim(),
    (payment) => `${payment.type} ${payment.reference ?? payment.occurred_at}`,
    paymentText,
  )(before.payments, after.payments);
  each<Fulfillment>((one) => `Fulfillment ${one.number}`, (one) => one.number, fulfillmentText)(
    before.fulfillments,
    after.fulfillments,
  );
  each<Return>((one) => `Return ${one.number}`, (one) => one.number, (one, order) => `${units(one.items, order)}, ${one.status}`)(
    before.returns,
    after.returns,
  );

  compare("Ship by", date(before.ship_by), date(after.ship_by));
  compare("Deliver by", date(before.deliver_by), date(after.deliver_by));
  compare("Customer", before.customer_id, after.customer_id);
  compare("Reference", before.external_ref ?? "", after.external_ref ?? "");
  compare("Note", before.note ?? "", after.note ?? "");
  compare("Tags", before.tags.join(", "), after.tags.join(", "));
  compare("Metadata", pairs(before.metadata), pairs(after.metadata));
  compare("Shipping address", addressText(before.shipping_address), addressText(after.shipping_address));
  compare("Billing address", addressText(before.billing_address), addressText(after.billing_address));
  compare("Related orders", related(before), related(after));
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
  if (!address) return "";
  const { name, company, line1, line2, postal_code, city, region, country, phone, email } = address;
  const town = [postal_code, city].filter(Boolean).join(" ");
  return [name, company, line1, line2, town, region, country, phone, email].filter(Boolean).join(", ");
}

function total(order: Order, name: keyof NonNullable<Order["totals"]>): string {
  if (!order.totals) return "";
  const value = order.totals[name];
  return name === "due" && value < 0 ? `${money(-value, order.currency)} to pay back` : money(value, order.currency);
}

function holdText(hold: Hold): string {
  return [words(hold.kind), hold.reason, hold.until && `until ${dateTime(hold.until)}`].filter(Boolean).join(", ");
}

function paymentText(payment: Payment, order: Order): string {
  return `${words(payment.type)} of ${money(payment.amount, order.currency)}`;
}

function fulfillmentText(one: Fulfillment, order: Order): string {
  const tracking = [one.tracking?.carrier, one.tracking?.number].filter(Boolean).join(" ");
  return [units(one.items, order), words(one.status), tracking].filter(Boolean).join(", ");
}

function date(time: string | null): string {
  return time === null ? "" : dateTime(time);
}

function pairs(metadata: Record<string, string>): string {
  return Object.entries(metadata).map(([name, value]) => `${name}: ${value}`).join(", ");
}

function related(order: Order): string {
  return order.related_orders.map((one) => `${one.relation} of ${one.order_id}`).join(", ");
}
