// The actions on an order as forms: their fields, and the request that they send.

import { editableAmount, exponent, money, parseAmount } from "./money";
import type { Address, Item, Order, Payment, Schemas } from "./types";
import {
  CANCELLATION_REASONS,
  DELIVERY_EVENTS,
  HOLD_KINDS,
  PAYMENT_MEANINGS,
  PAYMENT_TYPES,
  choices,
  fromLocalInput,
  isReversed,
  itemName,
  localInput,
  named,
  openUnits,
  plural,
  units,
} from "./words";

export type ActionName = Schemas["Action"];
export type Values = Record<string, string>;

export interface Field {
  name: string;
  pointer?: string; // to its member of the body, if that has another name
  label: string;
  kind: "text" | "multiline" | "select" | "time" | "units" | "amount";
  options?: [value: string, label: string][];
  hint?: string;
  required?: boolean;
  max?: number; // characters, or units
  group?: string;
}

export interface Change {
  method: "POST" | "PUT" | "PATCH" | "DELETE";
  path: string; // below the order
  body?: unknown;
}

/** Why a form cannot be sent yet, and the field with the problem. */
export class Incomplete extends Error {
  constructor(
    message: string,
    readonly field?: string,
  ) {
    super(message);
  }
}

export interface Action {
  label: string;
  explanation: string;
  fields: (order: Order, values: Values) => Field[];
  initial?: (order: Order) => Values;
  /** `base` is the order as it was when the form was opened. */
  change: (order: Order, values: Values, base: Order) => Change;
  submit: (order: Order, values: Values) => string;
  danger?: boolean;
}

const NOTE: Field = { name: "note", label: "Note", kind: "multiline", max: 2_000, hint: "Optional." };

export const ACTIONS: Record<Schemas["Action"], Action> = {
  confirm: {
    label: "Confirm",
    explanation: "The order is accepted and can be fulfilled.",
    fields: () => [],
    change: () => ({ method: "POST", path: "/confirm", body: {} }),
    submit: () => "Confirm the order",
  },
  fulfill: {
    label: "Fulfill",
    explanation: "Records shipped units. The last open unit completes the order.",
    fields: (order, values) => [...unitFields(order, values, openUnits), ...TRACKING],
    initial: (order) => allUnits(order, openUnits),
    change: (order, values) => ({
      method: "POST",
      path: "/fulfillments",
      body: { items: chosenUnits(order, values, openUnits), ...tracking(values) },
    }),
    submit: (order, values) => `Fulfill ${countUnits(order, values)}`,
  },
  cancel: {
    label: "Cancel",
    explanation: "Cancels open units: all of them, or those that you choose. Fulfilled units are not affected.",
    danger: true,
    fields: (order, values) => [
      select("scope", "What", [
        ["some", "Some units"],
        ["all", "All open units"],
      ]),
      ...(values.scope === "all" ? [] : unitFields(order, values, openUnits)),
      select("reason", "Reason", choices(CANCELLATION_REASONS).filter(([reason]) => reason !== "expired")),
      NOTE,
    ],
    initial: () => ({ scope: "some", reason: "customer" }),
    change: (order, values) => ({
      method: "POST",
      path: "/cancel",
      body: {
        reason: values.reason,
        ...(values.scope === "all" ? {} : { items: chosenUnits(order, values, openUnits) }),
        ...optional(values, "note"),
      },
    }),
    submit: (order, values) =>
      values.scope === "all" ? "Cancel all open units" : `Cancel ${countUnits(order, values)}`,
  },
  hold: {
    label: "Hold",
    explanation: "Until the hold is released, the order cannot be confirmed, fulfilled or completed.",
    fields: () => [
      select("kind", "Kind", choices(HOLD_KINDS)),
      { name: "handle", label: "Name of the hold", kind: "text", required: true, max: 64,
        hint: "Short, such as address-check. A hold with the same name is replaced." },
      { name: "reason", label: "Reason", kind: "text", max: 200, hint: "Optional. Customers do not see it." },
      { name: "until", label: "Until", kind: "time", hint: "Optional: when the hold ends automatically." },
    ],
    initial: () => ({ kind: "review", handle: "support" }),
    change: (_, values) => {
      const handle = (values.handle ?? "").trim().toLowerCase().replace(/\s+/g, "-");
      if (!/^[a-z0-9_-]{1,64}$/.test(handle))
        throw new Incomplete("Use only the letters a to z, digits, _ and -.", "handle");
      return {
        method: "PUT",
        path: `/holds/${handle}`,
        body: { kind: values.kind, ...optional(values, "reason"), ...optionalTime(values, "until") },
      };
    },
    submit: () => "Put on hold",
  },
  release: {
    label: "Release",
    explanation: "Removes a hold. Once none is left, the order can proceed.",
    fields: (order) => [
      select("handle", "Hold", order.holds.map((hold) => [hold.handle, `${hold.handle} (${named(HOLD_KINDS, hold.kind)})`])),
    ],
    initial: (order) => ({ handle: order.holds[0]?.handle ?? "" }),
    change: (_, values) => ({ method: "DELETE", path: `/holds/${values.handle}` }),
    submit: (_, values) => `Release ${values.handle}`,
  },
  pay: {
    label: "Payment",
    explanation: "Records a payment that was made elsewhere. The service itself moves no money. A recorded payment cannot be removed, but reversed.",
    fields: (order, values) => [
      select("type", "Type", choices(PAYMENT_TYPES)
        .filter(([type]) => !type.endsWith(REVERSAL) || reversiblePayments(order, type).length)
        .map(([type, label]): [string, string] => [type, `${label}: ${PAYMENT_MEANINGS[type as PaymentType]}`])),
      ...(values.type?.endsWith(REVERSAL)
        ? [
            { ...select("reversed", "Payment to reverse", [
                ["", "Choose a payment"],
                ...reversiblePayments(order, values.type).map((one): [string, string] => [
                  one.reference ?? "", [money(one.amount, order.currency), one.reference, one.note].filter(Boolean).join(" · "),
                ]),
              ]), pointer: "#/amount" },
          ]
        : [
            { name: "amount", label: `Amount in ${order.currency}`, kind: "amount", required: true,
              hint: exponent(order.currency) ? `Up to ${exponent(order.currency)} decimals.` : "No decimals." } as Field,
            { name: "reference", label: "Reference", kind: "text", required: true, max: 128,
              hint: "The payment provider’s number for it, such as pi_3Nd81b." } as Field,
            { name: "method", label: "Method", kind: "text", max: 64, hint: "Optional, such as card." } as Field,
          ]),
      NOTE,
    ],
    initial: (order) => ({
      type: order.totals && order.totals.due <= 0 && order.totals.paid > 0 ? "refund" : "capture",
      amount: order.totals && order.totals.due ? editableAmount(Math.abs(order.totals.due), order.currency) : "",
    }),
    change: (order, values) => {
      if (values.type?.endsWith(REVERSAL)) {
        const { amount, reference } = chosenPayment(order, values);
        return { method: "POST", path: "/payments", body: { type: values.type, amount, reference, ...optional(values, "note") } };
      }
      const amount = parseAmount(values.amount ?? "", order.currency);
      if (amount === null || amount < 1) throw new Incomplete(`Enter an amount in ${order.currency}.`, "amount");
      if (amount > AMOUNT_MAX) throw new Incomplete(`Enter at most ${money(AMOUNT_MAX, order.currency)}.`, "amount");
      if (!values.reference) throw new Incomplete("Enter the reference of the payment.", "reference");
      return {
        method: "POST",
        path: "/payments",
        body: { type: values.type, amount, reference: values.reference, ...optional(values, "method", "note") },
      };
    },
    submit: (order, values) => {
      const label = `Record ${named(PAYMENT_TYPES, values.type as PaymentType)}`;
      return values.type?.endsWith(REVERSAL) ? label : `${label} of ${values.amount || "…"} ${order.currency}`;
    },
  },
  track: {
    label: "Delivery",
    explanation: "Records a delivery event of a fulfillment, or its tracking.",
    fields: (order, values) => [
      select("number", "Fulfillment", order.fulfillments
        .filter((one) => one.status !== "cancelled")
        .map((one) => [String(one.number), `${one.number}: ${units(one.items, order)} (${named(DELIVERY_EVENTS, one.status)})`])),
      select("mode", "What", [
        ["event", "A delivery event"],
        ["tracking", "Its tracking"],
      ]),
      ...(values.mode === "tracking"
        ? TRACKING
        : [
            select("type", "Event", choices(DELIVERY_EVENTS).filter(([type]) => type !== "shipped")),
            { name: "occurred_at", label: "When", kind: "time", hint: "Now, if left empty." } as Field,
            { name: "description", label: "Description", kind: "text", max: 500, hint: "Optional." } as Field,
          ]),
    ],
    initial: (order) => ({
      number: String(order.fulfillments.findLast((one) => one.status !== "cancelled")?.number ?? ""),
      mode: "event",
      type: "delivered",
    }),
    change: (_, values) =>
      values.mode === "tracking"
        ? {
            method: "PATCH",
            path: `/fulfillments/${values.number}`,
            body: tracking(values).tracking ? tracking(values) : { tracking: null },
          }
        : {
            method: "POST",
            path: `/fulfillments/${values.number}/events`,
            body: { type: values.type, ...optional(values, "description"), ...optionalTime(values, "occurred_at") },
          },
    submit: (_, values) => (values.mode === "tracking" ? "Set the tracking" : `Record “${named(DELIVERY_EVENTS, values.type as DeliveryEvent)}”`),
  },
  return: {
    label: "Return",
    explanation: "Records units that were returned, or that are expected back.",
    fields: (order, values) => [
      ...unitFields(order, values, (item) => returnableUnits(item, order)),
      select("status", "These units", [
        ["received", "Were returned"],
        ["expected", "Are expected back"],
      ]),
      { name: "reason", label: "Reason", kind: "multiline", max: 2_000, hint: "Optional." },
    ],
    initial: () => ({ status: "received" }),
    change: (order, values) => ({
      method: "POST",
      path: "/returns",
      body: {
        items: chosenUnits(order, values, (item) => returnableUnits(item, order)),
        status: values.status,
        ...optional(values, "reason"),
      },
    }),
    submit: (order, values) => `Return ${countUnits(order, values)}`,
  },
  receive: {
    label: "Receive return",
    explanation: "The expected units have arrived.",
    fields: expectedReturns,
    initial: firstExpectedReturn,
    change: (_, values) => ({ method: "POST", path: `/returns/${values.number}/receive`, body: {} }),
    submit: (_, values) => `Receive return ${values.number}`,
  },
  reject: {
    label: "Reject return",
    explanation: "The expected units did not arrive, or are not accepted.",
    danger: true,
    fields: expectedReturns,
    initial: firstExpectedReturn,
    change: (_, values) => ({ method: "POST", path: `/returns/${values.number}/reject`, body: {} }),
    submit: (_, values) => `Reject return ${values.number}`,
  },
  complete: {
    label: "Complete",
    explanation: "Ends the order, even if units are still open.",
    fields: () => [],
    change: () => ({ method: "POST", path: "/complete", body: {} }),
    submit: () => "Complete the order",
  },
  reopen: {
    label: "Reopen",
    explanation: "A completed order becomes confirmed again; a cancelled order becomes pending, with its cancelled units open.",
    fields: () => [
      { name: "reason", label: "Reason", kind: "multiline", required: true, max: 2_000, hint: "Customers do not see it." },
    ],
    change: (_, values) => {
      if (!values.reason) throw new Incomplete("Enter a reason.", "reason");
      return { method: "POST", path: "/reopen", body: { reason: values.reason } };
    },
    submit: () => "Reopen the order",
  },
  update: {
    label: "Edit",
    explanation: "Changes the note, tags, dates, reference and addresses.",
    fields: () => EDITABLE,
    initial: editable,
    change: (_, values, base) => ({ method: "PATCH", path: "", body: patch(base, values) }),
    submit: () => "Save the changes",
  },
};

type PaymentType = Schemas["PaymentType"];
type DeliveryEvent = Schemas["DeliveryEventType"];

const AMOUNT_MAX = 10 ** 12; // minor units: the most that the service accepts for one payment
const ADDRESS: [keyof Address, string, number][] = [
  ["name", "Name", 200], ["company", "Company", 200], ["line1", "Street", 200], ["line2", "Street, second line", 200],
  ["postal_code", "Postal code", 20], ["city", "City", 100], ["region", "Region", 100],
  ["country", "Country", 2], ["phone", "Phone", 40], ["email", "E-mail", 254],
];
const TRACKING: Field[] = [
  { name: "carrier", pointer: "#/tracking/carrier", label: "Carrier", kind: "text", max: 100, group: "Tracking, optional" },
  { name: "tracking_number", pointer: "#/tracking/number", label: "Tracking number", kind: "text", max: 100, group: "Tracking, optional" },
  { name: "url", pointer: "#/tracking/url", label: "Tracking page", kind: "text", max: 2_000, group: "Tracking, optional" },
];

// The fields of each member that PATCH can change, with dots in the names of those of an object; none where the console
// does not edit it. A member without an entry does not compile.
const FIELDS: Record<keyof Schemas["OrderPatch"], Field[]> = {
  note: [{ name: "note", label: "Note", kind: "multiline", max: 2_000 }],
  tags: [{ name: "tags", label: "Tags", kind: "text", max: 50 * (64 + 2), hint: "Separated by commas." }],
  external_ref: [{ name: "external_ref", label: "Reference", kind: "text", max: 64 }],
  ship_by: [{ name: "ship_by", label: "Ship by", kind: "time" }],
  deliver_by: [{ name: "deliver_by", label: "Deliver by", kind: "time" }],
  shipping_address: addressFields("shipping_address", "Shipping address"),
  billing_address: addressFields("billing_address", "Billing address"),
  metadata: [],
  related_orders: [],
  items: [],
  adjustments: [],
  currency: [],
};
const EDITABLE: Field[] = Object.values(FIELDS).flat();

/** The allowed actions of the order that the console has a form for, in the order of ACTIONS. */
export function possibleActions(order: Order): ActionName[] {
  return (Object.keys(ACTIONS) as ActionName[]).filter((name) => order.allowed_actions.includes(name));
}

function select(name: string, label: string, options: [string, string][]): Field {
  return { name, label, kind: "select", options, required: true };
}

const REVERSAL = "_reversal"; // how the types of reversals end

function reversiblePayments(order: Order, reversal: string | undefined): Payment[] {
  return order.payments.filter((one) => `${one.type}${REVERSAL}` === reversal && !isReversed(one, order));
}

/** The payment that the user has chosen to reverse. There is no default: it might change when somebody else reverses it. */
function chosenPayment(order: Order, values: Values): Payment {
  const payment = reversiblePayments(order, values.type).find((one) => one.reference === values.reversed);
  if (!payment) throw new Incomplete("Choose the payment to reverse.", "reversed");
  return payment;
}

type Available = (item: Item) => number;

function returnableUnits(item: Item, order: Order): number {
  const expected = order.returns
    .filter((one) => one.status === "expected")
    .flatMap((one) => one.items)
    .reduce((sum, entry) => sum + (entry.line === item.line ? entry.quantity : 0), 0);
  return item.fulfilled - item.returned - expected;
}

/** A line whose units were chosen stays in the form, even if somebody else has taken them meanwhile. */
function unitFields(order: Order, values: Values, available: Available): Field[] {
  return order.items
    .filter((item) => available(item) > 0 || `line.${item.line}` in values)
    .map((item) => ({
      name: `line.${item.line}`, label: itemName(item), kind: "units", max: available(item), group: "Units",
    }));
}

function chosenQuantity(item: Item, values: Values): number {
  return Number(values[`line.${item.line}`] ?? 0);
}

function allUnits(order: Order, available: Available): Values {
  const lines = order.items.filter((item) => available(item) > 0);
  return Object.fromEntries(lines.map((item) => [`line.${item.line}`, String(available(item))]));
}

function chosenUnits(order: Order, values: Values, available: Available): { line: number; quantity: number }[] {
  const chosen = order.items.filter((item) => chosenQuantity(item, values) > 0);
  for (const item of chosen) {
    if (chosenQuantity(item, values) <= available(item)) continue;
    const left = available(item) ? `Only ${plural(available(item), "unit")} left` : "No unit left";
    throw new Incomplete(`${left}. Enter a smaller number.`, `line.${item.line}`);
  }
  if (!chosen.length) {
    const first = order.items.find((item) => available(item) > 0);
    throw new Incomplete("Choose at least one unit.", first && `line.${first.line}`);
  }
  return chosen.map((item) => ({ line: item.line, quantity: chosenQuantity(item, values) }));
}

function countUnits(order: Order, values: Values): string {
  const count = order.items.reduce((sum, item) => sum + chosenQuantity(item, values), 0);
  return count ? plural(count, "unit") : "units";
}

function expectedReturns(order: Order): Field[] {
  const expected = order.returns.filter((one) => one.status === "expected");
  return [
    select("number", "Return", expected.map((one) => [String(one.number), `${one.number}: ${units(one.items, order)}`])),
  ];
}

function firstExpectedReturn(order: Order): Values {
  return { number: String(order.returns.find((one) => one.status === "expected")?.number ?? "") };
}

function optional(values: Values, ...names: string[]): Values {
  return Object.fromEntries(names.flatMap((name) => (values[name] ? [[name, values[name]]] : [])));
}

function optionalTime(values: Values, name: string): Values {
  const time = fromLocalInput(values[name] ?? "");
  return time ? { [name]: time } : {};
}

function tracking(values: Values): { tracking?: Values } {
  const { tracking_number, ...others } = optional(values, "carrier", "tracking_number", "url");
  const members = { ...others, ...(tracking_number ? { number: tracking_number } : {}) } as Values;
  return Object.keys(members).length ? { tracking: members } : {};
}

function addressFields(member: string, group: string): Field[] {
  return ADDRESS.map(([name, label, max]): Field => ({
    ...(name === "country" ? { hint: "Two letters, such as DE." } : {}),
    name: `${member}.${name}`, pointer: `#/${member}/${name}`, label, kind: "text", max, group,
  }));
}

function editable(order: Order): Values {
  return Object.fromEntries(EDITABLE.map((field) => [field.name, editableText(valueOf(order, field), field)]));
}

function valueOf(order: Order, field: Field): unknown {
  return field.name.split(".").reduce<unknown>((value, name) => (value as Record<string, unknown> | null)?.[name], order);
}

function editableText(value: unknown, { kind }: Field): string {
  if (kind === "time") return localInput(value as string | null);
  return Array.isArray(value) ? value.join(", ") : ((value as string | null | undefined) ?? "");
}

/**
 * A JSON merge patch of the user's changes; an emptied member is removed.
 *
 * The comparison is with the order as the form showed it: compared with the current order, the patch would revert members
 * that somebody else has changed meanwhile.
 */
function patch(base: Order, values: Values): Record<string, unknown> {
  const before = editable(base);
  const result: Record<string, unknown> = {};
  for (const [member, fields] of Object.entries(FIELDS)) {
    const changed = fields.filter(({ name }) => (values[name] ?? "") !== before[name]);
    if (!changed.length) continue;
    const entered = changed.map((field) => [field.name.slice(member.length + 1), enteredValue(base, field, values)]);
    const [[part, value]] = entered as [[string, unknown]];
    const isEmpty = fields.every(({ name }) => !values[name]);
    result[member] = part === "" ? value : isEmpty ? null : Object.fromEntries(entered);
  }
  if (!Object.keys(result).length) throw new Incomplete("Change something first.");
  return result;
}

function enteredValue(base: Order, field: Field, values: Values): unknown {
  const text = values[field.name] ?? "";
  if (field.kind === "time") return fromLocalInput(text);
  if (Array.isArray(valueOf(base, field))) return text.split(",").map((part) => part.trim()).filter(Boolean);
  return (field.name.endsWith(".country") ? text.toUpperCase() : text) || null;
}
