// The progress of an order as a row of stages.

import type { JSX } from "preact";
import type { Order, OrderEvent } from "./types";
import { dateTime, isReversed } from "./words";

interface Stage {
  name: string;
  at: string | null; // when it was reached
  kind?: "stop";
}

export function Progress({ order, events }: { order: Order; events: OrderEvent[] }): JSX.Element {
  const stages = stagesOf(order, events);
  const current = stages.findLastIndex((stage) => stage.at !== null);
  return (
    <ol class="progress" aria-label="Progress of the order">
      {stages.map((stage, index) => (
        <li
          key={stage.name}
          class={`${stage.at ? "reached" : ""} ${stage.kind ?? ""}`}
          aria-current={index === current ? "step" : undefined}
        >
          <span class="stage">{stage.name}</span>
          <span class="faint">{stage.at ? dateTime(stage.at) : "not yet"}</span>
        </li>
      ))}
    </ol>
  );
}

function stagesOf(order: Order, events: OrderEvent[]): Stage[] {
  const last = (...types: string[]) => events.findLast((event) => types.includes(event.type))?.at ?? null;
  const delivered = order.fulfillments
    .flatMap((one) => one.events)
    .filter((event) => event.type === "delivered")
    .at(-1);
  const paid = ["paid", "partially_refunded", "refunded"].includes(order.payment_status)
    ? (order.payments.findLast((one) => one.type === "capture" && !isReversed(one, order))?.occurred_at ?? null)
    : null;
  const stages: Stage[] = [
    { name: "Placed", at: order.created_at },
    { name: "Confirmed", at: order.status === "pending" ? null : last("order.confirmed", "order.reopened") },
  ];
  if (order.totals) stages.push({ name: "Paid", at: paid });
  if (order.status === "cancelled") {
    return [
      ...stages.filter((stage) => stage.at),
      { name: "Cancelled", at: last("order.cancelled") ?? order.updated_at, kind: "stop" },
    ];
  }
  const sent = order.fulfillments.find((one) => one.status !== "cancelled");
  stages.push(
    { name: "Shipped", at: sent?.created_at ?? null },
    { name: "Delivered", at: order.fulfillment_status === "delivered" ? (delivered?.occurred_at ?? null) : null },
    { name: "Completed", at: order.status === "completed" ? last("order.completed", "order.fulfilled", "order.partially_cancelled") : null },
  );
  if (order.return_status !== "none") {
    stages.push({ name: "Returned", at: last("order.returned", "order.return_received"), kind: "stop" });
  }
  return stages;
}
