// One order: its content, its history, and its actions.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { ActionPanel } from "./action_panel";
import { ACTIONS, type ActionName, possibleActions } from "./actions";
import { OrderNumber, ProblemBox, Status, Statuses, Time } from "./components";
import { addressLines } from "./differences";
import { finderLink } from "./finder";
import { shortcut } from "./keyboard";
import { Progress } from "./progress";
import { amount, money, remainingTotal } from "./money";
import { useOrder } from "./order_state";
import { Timeline } from "./timeline";
import type { Address, Item, Order } from "./types";
import {
  ADJUSTMENT_TYPES,
  CANCELLATION_REASONS,
  DELIVERY_EVENTS,
  HOLD_KINDS,
  ORDER_STATUSES,
  PAYMENT_MEANINGS,
  PAYMENT_TYPES,
  RELATIONS,
  RETURN_RECORD_STATUSES,
  byActor,
  capitalize,
  customerName,
  dateTime,
  isReversed,
  itemName,
  named,
  openUnits,
  units,
} from "./words";

export function OrderPage({ id }: { id: string }): JSX.Element {
  const { order, events, error, live, accept, refresh } = useOrder(id);
  const [action, setAction] = useState<ActionName | null>(null);
  const [message, setMessage] = useState("");

  const choose = (name: ActionName) => {
    setAction(name);
    setMessage("");
  };
  const close = () => {
    setAction(null);
    const button = document.querySelector<HTMLElement>(`[data-action="${action}"]`);
    (button ?? document.getElementById("order-number"))?.focus();
  };
  useEffect(() => {
    if (!order) return;
    document.title = `${order.number} · Order Service`;
    // The link that was followed had the focus, and has been removed.
    if (document.activeElement === document.body) document.getElementById("order-number")?.focus();
  }, [order?.number]);
  // A layout effect, so that Escape right after the form was removed does not call the handler that closes the form.
  useLayoutEffect(
    () =>
      shortcut((key) => {
        if (key === "Escape" && action) close();
        else if (key === "Escape") location.hash = finderLink();
        else if (key === "a") document.querySelector<HTMLElement>(".actions button")?.focus();
        else return false;
        return true;
      }),
    [action],
  );

  if (!order && !error) return <p class="loading">Loading the order …</p>;
  if (!order)
    return (
      <>
        <p class="crumb">
          <a href={finderLink()}>Orders</a>
        </p>
        <ProblemBox error={error} />
      </>
    );
  const done = (next: Order, text: string) => {
    accept(next);
    setAction(null);
    setMessage(text);
    document.getElementById("order-number")?.focus();
  };
  return (
    <article class="order">
      <header class="order-head">
        <div>
          <p class="crumb">
            <a href={finderLink()}>Orders</a>
          </p>
          <div class="order-title">
            <h1 id="order-number" tabIndex={-1}>
              {order.number}
            </h1>
            <p>{order.shipping_address?.name}</p>
          </div>
          <p class="statuses">
            <Statuses order={order} />
          </p>
          <p class="live-state">
            <span class={live ? "live" : "live off"} aria-hidden="true" />
            {live ? "Live" : "Connecting"} · version {order.version}, changed <Time at={order.updated_at} />
          </p>
        </div>
        <div class="actions" role="group" aria-label="Actions">
          {possibleActions(order).map((name) => (
            <button
              type="button"
              key={name}
              data-action={name}
              class={ACTIONS[name]?.danger ? "danger" : ""}
              aria-pressed={action === name}
              onClick={() => choose(name)}
            >
              {ACTIONS[name]?.label}
            </button>
          ))}
        </div>
      </header>
      <p class="message" role="status">
        {message}
      </p>
      {error !== null && <ProblemBox error={error} />}
      <div class="order-body">
        <div class="order-main">
          <Progress order={order} events={events} />
          <Holds order={order} release={() => choose("release")} />
          <Lines order={order} />
          <div class="pair">
            <Totals order={order} />
            <Facts order={order} />
          </div>
          <Payments order={order} />
          <Fulfillments order={order} />
          <Returns order={order} />
          <Cancellations order={order} />
        </div>
        <div class="order-side">
          {action && (
            <ActionPanel
              key={action}
              name={action}
              order={order}
              events={events}
              refresh={refresh}
              done={done}
              close={close}
            />
          )}
          <Timeline events={events} />
        </div>
      </div>
    </article>
  );
}

function Section({ title, children }: { title: string; children: ComponentChildren }): JSX.Element {
  return (
    <section class="card">
      <h2>{title}</h2>
      {children}
    </section>
  );
}

function Lines({ order }: { order: Order }): JSX.Element {
  const { currency } = order;
  const priced = order.items.some((item) => item.total !== null);
  const count = (value: number) => (value ? <span>{value}</span> : <span class="zero">0</span>);
  return (
    <section class="card lines">
      <h2>Lines</h2>
      <table class="stack" role="table">
        <thead>
          <tr role="row">
            <th role="columnheader" scope="col">Item</th>
            <th role="columnheader" scope="col" class="number">Units</th>
            <th role="columnheader" scope="col" class="number">Open</th>
            <th role="columnheader" scope="col" class="number">Cancelled</th>
            <th role="columnheader" scope="col" class="number">Fulfilled</th>
            <th role="columnheader" scope="col" class="number">Returned</th>
            {priced && <th role="columnheader" scope="col" class="number">Price</th>}
            {priced && <th role="columnheader" scope="col" class="number">Total {currency}</th>}
          </tr>
        </thead>
        <tbody>
          {order.items.map((item) => (
            <tr role="row" key={item.line}>
              <th role="rowheader" scope="row">
                <div class="line">
                  <span class="faint">{item.line}</span>
                  <span>
                    {itemName(item)}
                    {item.title && <span class="code">{item.item_id}</span>}
                  </span>
                </div>
              </th>
              <td role="cell" class="number" data-label="Units">{item.quantity}</td>
              <td role="cell" class="number" data-label="Open">{count(openUnits(item))}</td>
              <td role="cell" class="number" data-label="Cancelled">{count(item.cancelled)}</td>
              <td role="cell" class="number" data-label="Fulfilled">{count(item.fulfilled)}</td>
              <td role="cell" class="number" data-label="Returned">{count(item.returned)}</td>
              {priced && (
                <td role="cell" class="number" data-label="Price">
                  {item.unit_price === null ? "—" : amount(item.unit_price, currency)}
                </td>
              )}
              {priced && (
                <td role="cell" class="number" data-label="Total">
                  <LineTotal item={item} currency={currency} />
                </td>
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function LineTotal({ item, currency }: { item: Item; currency: Order["currency"] }): JSX.Element {
  const remaining = remainingTotal(item);
  if (item.total === null || remaining === null) return <>—</>;
  const discount = item.discount !== 0 && `incl. discount ${amount(item.discount, currency)}`;
  return (
    <>
      {amount(remaining, currency)}
      {item.cancelled > 0 ? (
        <span class="code">
          <span class="visually-hidden">before the cancellation: </span>
          <s>{amount(item.total, currency)}</s> {discount}
        </span>
      ) : (
        discount && <span class="code">{discount}</span>
      )}
    </>
  );
}

function Totals({ order }: { order: Order }): JSX.Element | null {
  const { totals, currency } = order;
  if (!totals) return null;
  const row = (label: string, value: number, kind = "") => (
    <div class={kind} key={label}>
      <dt>{label}</dt>
      <dd>{amount(value, currency)}</dd>
    </div>
  );
  return (
    <Section title={`Amounts in ${currency}`}>
      <dl class="sums">
        {row("Items", totals.items)}
        {order.adjustments.map((one, index) => (
          <div key={index}>
            <dt>
              {capitalize(named(ADJUSTMENT_TYPES, one.type))} {one.label && <span class="faint">{one.label}</span>}
            </dt>
            <dd>{amount(one.amount, currency)}</dd>
          </div>
        ))}
        {totals.cancelled !== 0 && row("Cancelled", totals.cancelled)}
        {row("Total", totals.total, "sum")}
        {row("Paid", totals.paid)}
        {totals.refunded !== 0 && row("Refunded", totals.refunded)}
        {row(totals.due < 0 ? "To refund" : "Due", Math.abs(totals.due), totals.due ? "sum" : "")}
      </dl>
    </Section>
  );
}

function Facts({ order }: { order: Order }): JSX.Element {
  const fact = (label: string, value: ComponentChildren) =>
    value ? (
      <div key={label}>
        <dt>{label}</dt>
        <dd>{value}</dd>
      </div>
    ) : null;
  const address = (one: Address | null) => one && addressLines(one).map((line, index) => <div key={index}>{line}</div>);
  return (
    <Section title="Details">
      <dl class="facts">
        {fact("Customer", <a href={`#/orders?q=${encodeURIComponent(order.customer_id)}`}>{customerName(order.customer_id)}</a>)}
        {fact("Reference", order.external_ref)}
        {fact("Channel", order.channel)}
        {fact("Placed", dateTime(order.created_at))}
        {fact("Ship by", order.ship_by && dateTime(order.ship_by))}
        {fact("Deliver by", order.deliver_by && dateTime(order.deliver_by))}
        {fact("Ship to", address(order.shipping_address))}
        {fact("Bill to", address(order.billing_address))}
        {fact("Note", order.note)}
        {fact("Tags", order.tags.length > 0 && order.tags.map((tag) => <span class="tag" key={tag}>{tag}</span>))}
        {Object.entries(order.metadata).map(([name, value]) => fact(name, value))}
        {order.related_orders.map((one) =>
          fact(capitalize(named(RELATIONS, one.relation)), <OrderNumber id={one.order_id} />),
        )}
        {order.reopening && fact("Reopened", [`It was ${named(ORDER_STATUSES, order.reopening.from_status)}`, order.reopening.reason].filter(Boolean).join(": "))}
      </dl>
    </Section>
  );
}

function Holds({ order, release }: { order: Order; release: () => void }): JSX.Element | null {
  if (!order.holds.length) return null;
  return (
    <Section title="Holds">
      <p class="faint">Until they are released, the order cannot be confirmed, fulfilled or completed.</p>
      <ul class="records">
        {order.holds.map((hold) => (
          <li key={hold.handle}>
            <Status code="held" label={named(HOLD_KINDS, hold.kind)} />
            <span>
              <strong>{hold.handle}</strong> {hold.reason}
              <span class="code">
                {byActor(hold.placed_by)} {dateTime(hold.placed_at)}
                {hold.until && `, until ${dateTime(hold.until)}`}
              </span>
            </span>
          </li>
        ))}
      </ul>
      {order.allowed_actions.includes("release") && (
        <button type="button" class="small" onClick={release}>
          Release a hold
        </button>
      )}
    </Section>
  );
}

function Payments({ order }: { order: Order }): JSX.Element | null {
  if (!order.payments.length) return null;
  return (
    <Section title="Payments">
      <ul class="records">
        {order.payments.map((payment) => (
          <li key={`${payment.type} ${payment.reference}`}>
            <span class="record-amount">{money(payment.amount, order.currency)}</span>
            <span>
              <strong>{capitalize(named(PAYMENT_TYPES, payment.type))}</strong>{" "}
              <span class="faint">{isReversed(payment, order) ? "reversed" : named(PAYMENT_MEANINGS, payment.type)}</span>{" "}
              {payment.note}
              <span class="code">
                {[payment.reference, payment.method, dateTime(payment.occurred_at)].filter(Boolean).join(" · ")}
              </span>
            </span>
          </li>
        ))}
      </ul>
    </Section>
  );
}

function Fulfillments({ order }: { order: Order }): JSX.Element | null {
  if (!order.fulfillments.length) return null;
  return (
    <Section title="Fulfillments">
      <ul class="records">
        {order.fulfillments.map((one) => (
          <li key={one.number}>
            <Status code={one.status} label={named(DELIVERY_EVENTS, one.status)} />
            <div>
              <strong>{units(one.items, order)}</strong>
              {one.tracking && (
                <span>
                  {" "}
                  {one.tracking.carrier}{" "}
                  {one.tracking.url ? (
                    <a href={one.tracking.url} target="_blank" rel="noreferrer">
                      {one.tracking.number ?? "Tracking"}
                    </a>
                  ) : (
                    one.tracking.number
                  )}
                </span>
              )}
              <ol class="delivery">
                <li>
                  Recorded <span class="faint">{dateTime(one.created_at)}</span>
                </li>
                {one.events.map((event, index) => (
                  <li key={index}>
                    {capitalize(named(DELIVERY_EVENTS, event.type))} {event.description}{" "}
                    <span class="faint">{dateTime(event.occurred_at)}</span>
                  </li>
                ))}
              </ol>
            </div>
          </li>
        ))}
      </ul>
    </Section>
  );
}

function Returns({ order }: { order: Order }): JSX.Element | null {
  if (!order.returns.length) return null;
  return (
    <Section title="Returns">
      <ul class="records">
        {order.returns.map((one) => (
          <li key={one.number}>
            <Status code={one.status} label={named(RETURN_RECORD_STATUSES, one.status)} />
            <span>
              <strong>{units(one.items, order)}</strong> {one.reason}
              <span class="code">{dateTime(one.created_at)}</span>
            </span>
          </li>
        ))}
      </ul>
    </Section>
  );
}

function Cancellations({ order }: { order: Order }): JSX.Element | null {
  if (!order.cancellations.length) return null;
  return (
    <Section title="Cancellations">
      <ul class="records">
        {order.cancellations.map((one) => (
          <li key={one.number}>
            <Status code="cancelled" label="cancelled" />
            <span>
              <strong>{units(one.items, order)}</strong> {capitalize(named(CANCELLATION_REASONS, one.reason))}. {one.note}
              <span class="code">
                {dateTime(one.created_at)}
                {one.reopened_at && `, reopened ${dateTime(one.reopened_at)}`}
              </span>
            </span>
          </li>
        ))}
      </ul>
    </Section>
  );
}
