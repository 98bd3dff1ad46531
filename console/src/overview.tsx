// The overview: orders per minute, orders by status, and orders that need attention.

import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { get, query } from "./api";
import { ProblemBox, Status, Time, orderLink } from "./components";
import { type OrderList, countOrders, findOrders } from "./find";
import { usePolled } from "./polled";
import type { Order } from "./types";
import { ORDER_STATUSES, choices, itemName, named, openUnits, plural, timeOfDay } from "./words";

const MINUTE = 60_000; // milliseconds
const MINUTES = 60;
const INTERVAL = 10_000; // milliseconds
const PAGE = 100;
const PAGES = 10; // at most, of recent orders

interface Rate {
  counts: number[]; // orders of each minute, oldest first
  start: Date;
  complete: boolean; // whether all orders of the hour were read
}

export function Overview(): JSX.Element {
  const rate = useRate();
  const counted = usePolled("counts", INTERVAL, (signal) => countOrders({}, signal));
  const late = usePolled("late", INTERVAL, (signal) => findOrders({ late: "true", status: "pending,confirmed" }, "", signal));
  useEffect(() => {
    document.title = "Overview · Order Service";
  }, []);
  const counts = counted.data?.counts ?? {};
  return (
    <>
      <h1>Overview</h1>
      <div class="overview">
        <figure class="card wide">
          <figcaption>
            <h2>Orders a minute</h2>
          </figcaption>
          {rate.data ? <RateChart rate={rate.data} /> : <Waiting error={rate.error} />}
        </figure>
        <figure class="card">
          <figcaption>
            <h2>Orders by status</h2>
          </figcaption>
          {counted.data ? <StatusBars counts={counts.status ?? {}} /> : <Waiting error={counted.error} />}
        </figure>
        <figure class="card">
          <figcaption>
            <h2>Need attention</h2>
          </figcaption>
          {counted.data ? (
            <dl class="tiles">
              {[
                ["Late", "late", counts.late?.true ?? 0],
                ["On hold", "held", counts.held?.true ?? 0],
              ].map(([label, name, count]) => (
                <div key={label}>
                  <dt>{label}</dt>
                  <dd>
                    <a href={`#/orders?${name}=true`}>{Number(count).toLocaleString("en")}</a>
                  </dd>
                </div>
              ))}
            </dl>
          ) : (
            <Waiting error={counted.error} />
          )}
          {late.data ? <LateOrders found={late.data} /> : <Waiting error={late.error} />}
        </figure>
      </div>
    </>
  );
}

function Waiting({ error }: { error: unknown }): JSX.Element {
  return error ? <ProblemBox error={error} /> : <p class="faint">Loading …</p>;
}

/** The orders of the last hour by minute. The first request reads all of them, each further one only new orders. */
function useRate(): ReturnType<typeof usePolled<Rate>> {
  const known = useRef(new Map<string, number>()); // the minute of each order
  const since = useRef(0);
  return usePolled("rate", INTERVAL, async (signal) => {
    const now = Math.floor(Date.now() / MINUTE);
    const first = now - MINUTES + 1;
    let [cursor, complete]: [string | null, boolean] = ["", true];
    for (let pages = 0; cursor !== null; pages += 1) {
      if (pages === PAGES) {
        complete = false;
        break;
      }
      const from = new Date(Math.max(first, since.current) * MINUTE).toISOString();
      const page: OrderList = await get<OrderList>(`/orders${query({ created_from: from, limit: PAGE, cursor })}`, signal);
      for (const order of page.orders) known.current.set(order.id, Math.floor(Date.parse(order.created_at) / MINUTE));
      cursor = page.next_cursor;
    }
    since.current = now - 2; // an order can be stored shortly after its created_at
    const counts = new Array<number>(MINUTES).fill(0);
    for (const [id, minute] of known.current) {
      if (minute < first) known.current.delete(id);
      else if (minute <= now) counts[minute - first] = (counts[minute - first] ?? 0) + 1;
    }
    return { counts, start: new Date(first * MINUTE), complete };
  });
}

function RateChart({ rate: { counts, start, complete } }: { rate: Rate }): JSX.Element {
  const [chart, width] = useWidth();
  const [height, left, bottom] = [190, 34, 22];
  const top = niceTop(Math.max(...counts));
  const step = (width - left) / MINUTES;
  const y = (count: number) => 8 + (height - bottom - 8) * (1 - count / top);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const minute = (index: number) => timeOfDay(new Date(start.getTime() + index * MINUTE));
  return (
    <>
      <p class="faint">
        {complete ? plural(total, "order") : `More than ${plural(total, "order")}`} in the last hour, {counts.at(-1)} in
        this minute
      </p>
      <svg ref={chart} class="chart" viewBox={`0 0 ${width} ${height}`} height={height} role="img" aria-label={`Orders a minute, at most ${Math.max(...counts)}`}>
        {[0, top / 2, top].map((value) => (
          <g key={value}>
            <line x1={left} x2={width} y1={y(value)} y2={y(value)} />
            <text x={left - 8} y={y(value) + 4} text-anchor="end">
              {value}
            </text>
          </g>
        ))}
        {counts.map((count, index) =>
          count ? (
            <rect key={index} x={left + index * step + 1} width={step - 2} y={y(count)} height={y(0) - y(count)} rx={1.5}>
              <title>{`${minute(index)}: ${plural(count, "order")}`}</title>
            </rect>
          ) : null,
        )}
        {(width > 480 ? [0, 15, 30, 45, 59] : [0, 30, 59]).map((index) => (
          <text key={index} x={left + (index + 0.5) * step} y={height - 4} text-anchor={index === 59 ? "end" : index ? "middle" : "start"}>
            {minute(index)}
          </text>
        ))}
      </svg>
      <table class="visually-hidden">
        <caption>Orders a minute</caption>
        <tbody>
          {counts.map((count, index) =>
            count ? (
              <tr key={index}>
                <th scope="row">{minute(index)}</th>
                <td>{count}</td>
              </tr>
            ) : null,
          )}
        </tbody>
      </table>
    </>
  );
}

/** The width of an element in pixels, so that the text of a chart keeps its size. */
function useWidth(): [ref: (element: SVGSVGElement | null) => void, width: number] {
  const [element, setElement] = useState<SVGSVGElement | null>(null);
  const [width, setWidth] = useState(720);
  useEffect(() => {
    if (!element) return undefined;
    const observer = new ResizeObserver(() => setWidth(Math.max(200, element.clientWidth)));
    observer.observe(element);
    return () => observer.disconnect();
  }, [element]);
  return [setElement, width];
}

/** A round, even number for the top of the axis. */
function niceTop(largest: number): number {
  const size = 10 ** Math.floor(Math.log10(Math.max(largest, 2)));
  const top = [1, 2, 4, 6, 8, 10].find((factor) => factor * size >= largest) ?? 10;
  return Math.max(2, top * size);
}

function StatusBars({ counts }: { counts: Record<string, number> }): JSX.Element {
  const largest = Math.max(1, ...Object.values(counts));
  return (
    <ul class="bars">
      {choices(ORDER_STATUSES).map(([status, label]) => {
        const count = counts[status] ?? 0;
        return (
          <li key={status}>
            <a href={`#/orders${query({ status })}`}>{label}</a>
            <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
              <rect class={status} width={(100 * count) / largest} height="10" />
            </svg>
            <span class="number">{count.toLocaleString("en")}</span>
          </li>
        );
      })}
    </ul>
  );
}

function LateOrders({ found }: { found: OrderList }): JSX.Element {
  if (!found.orders.length) return <p class="faint">No open order is late.</p>;
  return (
    <ul class="records">
      {found.orders.slice(0, 10).map((order) => (
        <li key={order.id}>
          <a href={orderLink(order.id)}>{order.number}</a>
          <span>
            <Status code={order.status} label={named(ORDER_STATUSES, order.status)} /> {openText(order)}
            <span class="code">was due to ship {order.ship_by && <Time at={order.ship_by} />}</span>
          </span>
        </li>
      ))}
    </ul>
  );
}

function openText(order: Order): string {
  const open = order.items.filter((item) => openUnits(item) > 0);
  return open
    .slice(0, 3)
    .map((item) => `${openUnits(item)} × ${itemName(item)}`)
    .concat(open.length > 3 ? [`and ${plural(open.length - 3, "more line")}`] : [])
    .join(", ");
}
