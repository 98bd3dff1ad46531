/** The client: one method for each operation of the API, named as in the API description. */

import createClient, { type Client, defaultPathSerializer } from "openapi-fetch";
import { webCrypto } from "#crypto";
import { eventStream, FinalError } from "./event-stream.js";
import { Paged } from "./paged.js";
import type { paths } from "./schema.js";
import { RETRY_POLICY, type RetryPolicy, type Token, Transport } from "./transport.js";
import type {
  Body,
  Delivery,
  Erasure,
  FeedEvent,
  FeedPage,
  NewOrder,
  Order,
  OrderEvent,
  OrderList,
  OrderRef,
  Query,
  Result,
  Webhook,
} from "./types.js";

export interface ClientOptions {
  /** Base URL of the service, including its URL prefix. */
  baseUrl: string;
  token?: Token;
  retry?: Partial<RetryPolicy>;
  /** Replaces the global `fetch`. */
  fetch?: typeof fetch;
}

export interface RequestOptions {
  /** Aborts the request, its pauses and its retries. */
  signal?: AbortSignal;
}

export interface ChangeOptions extends RequestOptions {
  /**
   * Identifies the intended change: all requests with the same key have one effect. By default, each call gets a new
   * key. To repeat a call after a crash, store a key (`newIdempotencyKey()`) before the call.
   */
  idempotencyKey?: string;
  /** Returns what the change would return, and stores nothing. */
  dryRun?: boolean;
}

/** Returns a new, random key. */
export function newIdempotencyKey(): string {
  const bytes = webCrypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class OrderServiceClient {
  /** Calls any operation by its path, with the same retries and errors as the methods. */
  readonly api: Client<paths>;
  readonly #transport: Transport;
  readonly #entityTags = new WeakMap<object, string>(); // of the orders that the service returned

  constructor({ baseUrl, token, retry, fetch = (...given) => globalThis.fetch(...given) }: ClientOptions) {
    this.#transport = new Transport(fetch, token, { ...RETRY_POLICY, ...retry });
    this.api = createClient<paths>({
      baseUrl,
      fetch: this.#transport.send,
      pathSerializer,
      querySerializer: { array: { style: "form", explode: false }, object: { style: "form", explode: true } },
    });
  }

  // Orders

  /** Creates an order. */
  createOrder(order: NewOrder, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders", { body: order, ...newOrder(options) }));
  }

  /** Creates up to 1,000 orders, each accepted or refused independently. Entries without a key get one. */
  createOrders(
    orders: Body<"createOrders">["orders"],
    { dryRun, signal }: Omit<ChangeOptions, "idempotencyKey"> = {},
  ): Promise<Result<"createOrders">> {
    const body = { orders: withKeys(orders) };
    const params = { query: dryRunQuery(dryRun) };
    return this.#document(
      this.api.POST("/orders/batch", { body, params, signal, fetch: this.#transport.sendRepeatable }),
    );
  }

  /** Executes up to 1,000 actions, each accepted or refused independently. Entries without a key get one. */
  actOnOrders(
    actions: Body<"actOnOrders">["actions"],
    { dryRun, signal }: Omit<ChangeOptions, "idempotencyKey"> = {},
  ): Promise<Result<"actOnOrders">> {
    const body = { actions: withKeys(actions) };
    const params = { query: dryRunQuery(dryRun) };
    return this.#document(
      this.api.POST("/orders/actions", { body, params, signal, fetch: this.#transport.sendRepeatable }),
    );
  }

  /** Reads an order. If an order is passed and has not changed, the same object is returned without a transfer. */
  async getOrder(order: OrderRef, { version, signal }: RequestOptions & { version?: number } = {}): Promise<Order> {
    const known = typeof order === "string" || version !== undefined ? undefined : this.#entityTags.get(order);
    const header = known === undefined ? {} : { "If-None-Match": known };
    const params = { path: { order_id: idOf(order) }, query: version === undefined ? {} : { version }, header };
    const sent = this.api.GET("/orders/{order_id}", { params, signal });
    return (await sent).response.status === 304 ? (order as Order) : this.#document(sent);
  }

  /** Reads an order by the caller's own reference. */
  getOrderByReference(externalRef: string, { signal }: RequestOptions = {}): Promise<Order> {
    const params = { path: { external_ref: externalRef } };
    return this.#document(this.api.GET("/orders/by-ref/{external_ref}", { params, signal }));
  }

  /** Lists orders. */
  listOrders(query: Query<"listOrders"> = {}, { signal }: RequestOptions = {}): Paged<Order, OrderList> {
    return this.#paged(
      (cursor) => this.api.GET("/orders", { params: { query: withCursor(query, cursor) }, signal }),
      (page) => page.orders,
    );
  }

  /**
   * Searches orders by words, filters and `metadata` (`{ gift: "yes" }`). With `facets`, the `pages()` contain their
   * counts.
   */
  searchOrders(
    { metadata, ...others }: Query<"searchOrders"> = {},
    { signal }: RequestOptions = {},
  ): Paged<Order, Result<"searchOrders">> {
    const pairs = Object.entries(metadata ?? {}).map(([key, value]) => [`metadata.${key}`, value]);
    const query: Query<"searchOrders"> = { ...others, ...(metadata && { metadata: Object.fromEntries(pairs) }) };
    return this.#paged(
      (cursor) => this.api.GET("/orders/search", { params: { query: withCursor(query, cursor) }, signal }),
      (page) => page.orders,
    );
  }

  /**
   * Iterates over all matching orders, one line of the export after another. If the connection is lost, it throws an
   * error: continue with `after`, the id of the last order.
   */
  exportOrders(
    query: Omit<Query<"exportOrders">, "format" | "bom"> = {},
    { signal }: RequestOptions = {},
  ): AsyncGenerator<Order, void> {
    return this.#lines<Order>((stream) => this.api.GET("/orders/export", { ...stream, params: { query } }), signal);
  }

  /** Lists the events of an order, each with the order after it. */
  listOrderHistory(
    order: OrderRef,
    query: Query<"listOrderHistory"> = {},
    { signal }: RequestOptions = {},
  ): Paged<OrderEvent, Result<"listOrderHistory">> {
    const path = { order_id: idOf(order) };
    return this.#paged(
      (cursor) =>
        this.api.GET("/orders/{order_id}/history", { params: { path, query: withCursor(query, cursor) }, signal }),
      (page) => page.events,
    );
  }

  // Changes

  /** Changes the content of an order by a JSON merge patch. */
  updateOrder(order: OrderRef, patch: Body<"updateOrder">, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.PATCH("/orders/{order_id}", { ...mergePatch(patch), ...change(order, options) }));
  }

  /** Confirms a pending order. */
  confirmOrder(order: OrderRef, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/confirm", change(order, options)));
  }

  /** Cancels all open units of an order, or some: `items`. */
  cancelOrder(order: OrderRef, body: Body<"cancelOrder">, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/cancel", { body, ...change(order, options) }));
  }

  /** Completes a confirmed order. */
  completeOrder(order: OrderRef, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/complete", change(order, options)));
  }

  /** Reopens a completed or cancelled order. */
  reopenOrder(order: OrderRef, body: Body<"reopenOrder">, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/reopen", { body, ...change(order, options) }));
  }

  /** Places a hold, or replaces the one with this handle. */
  placeHold(order: OrderRef, handle: string, body: Body<"placeHold">, options: ChangeOptions = {}): Promise<Order> {
    const request = change(order, options, { handle });
    return this.#document(this.api.PUT("/orders/{order_id}/holds/{handle}", { body, ...request }));
  }

  /** Releases a hold. */
  releaseHold(order: OrderRef, handle: string, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(
      this.api.DELETE("/orders/{order_id}/holds/{handle}", change(order, options, { handle })),
    );
  }

  /** Records a payment. Its type and reference identify it. */
  recordPayment(order: OrderRef, body: Body<"recordPayment">, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/payments", { body, ...change(order, options) }));
  }

  /** Records shipped units. */
  fulfillOrder(order: OrderRef, body: Body<"fulfillOrder">, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/fulfillments", { body, ...change(order, options) }));
  }

  /** Changes the tracking of a fulfillment by a JSON merge patch. */
  updateTracking(
    order: OrderRef,
    number: number,
    patch: Body<"updateTracking">,
    options: ChangeOptions = {},
  ): Promise<Order> {
    const request = { ...mergePatch(patch), ...change(order, options, { number }) };
    return this.#document(this.api.PATCH("/orders/{order_id}/fulfillments/{number}", request));
  }

  /** Records a delivery event of a fulfillment. */
  recordDeliveryEvent(
    order: OrderRef,
    number: number,
    body: Body<"recordDeliveryEvent">,
    options: ChangeOptions = {},
  ): Promise<Order> {
    const request = { body, ...change(order, options, { number }) };
    return this.#document(this.api.POST("/orders/{order_id}/fulfillments/{number}/events", request));
  }

  /** Records returned units, or units whose return is expected. */
  returnItems(order: OrderRef, body: Body<"returnItems">, options: ChangeOptions = {}): Promise<Order> {
    return this.#document(this.api.POST("/orders/{order_id}/returns", { body, ...change(order, options) }));
  }

  /** Receives an expected return. */
  receiveReturn(order: OrderRef, number: number, options: ChangeOptions = {}): Promise<Order> {
    const request = change(order, options, { number });
    return this.#document(this.api.POST("/orders/{order_id}/returns/{number}/receive", request));
  }

  /** Rejects an expected return. */
  rejectReturn(order: OrderRef, number: number, options: ChangeOptions = {}): Promise<Order> {
    const request = change(order, options, { number });
    return this.#document(this.api.POST("/orders/{order_id}/returns/{number}/reject", request));
  }

  // Events

  /**
   * Lists the events of all orders up to the end of the feed; with `wait`, it then waits for further events, endlessly.
   *
   * To continue later, store the `next_cursor` of each of the `pages()`, or the `seq` of the last event, and pass it as
   * `after`.
   */
  listFeedEvents(
    query: Query<"listFeedEvents"> = {},
    { signal }: RequestOptions = {},
  ): Paged<FeedEvent, FeedPage> {
    return this.#paged(
      (cursor) => this.api.GET("/events", { params: { query: { ...query, after: cursor ?? query.after } }, signal }),
      (page) => page.events,
      (query.wait ?? 0) > 0,
    );
  }

  /** Iterates over the events of all orders as they happen, after the event `after`, a `seq`. Endless. */
  streamEvents(
    { after, ...query }: Omit<Query<"listFeedEvents">, "limit" | "wait"> = {},
    { signal }: RequestOptions = {},
  ): AsyncGenerator<FeedEvent, void> {
    return this.#stream<FeedEvent>(
      (lastEventId, stream) =>
        this.api.GET("/events", { ...stream, params: { query: { ...query, after: lastEventId ?? after } } }),
      signal,
    );
  }

  /** Iterates over the events of an order as they happen, after the version `after`. Endless. */
  streamOrderEvents(
    order: OrderRef,
    { after = 0 }: { after?: number } = {},
    { signal }: RequestOptions = {},
  ): AsyncGenerator<OrderEvent, void> {
    const path = { order_id: idOf(order) };
    return this.#stream<OrderEvent>((lastEventId, stream) => {
      const query = { after: lastEventId === undefined ? after : Number(lastEventId) };
      return this.api.GET("/orders/{order_id}/events", { ...stream, params: { path, query } });
    }, signal);
  }

  // Webhooks

  /**
   * Creates a webhook. Its `secret` is not shown again. The request is not repeated: if its response is lost, the
   * webhook may exist.
   */
  createWebhook(body: Body<"createWebhook">, { signal }: RequestOptions = {}): Promise<Webhook> {
    return this.#document(this.api.POST("/webhooks", { body, signal }));
  }

  /** Lists all webhooks with their health. */
  async listWebhooks({ signal }: RequestOptions = {}): Promise<Webhook[]> {
    return (await this.#document(this.api.GET("/webhooks", { signal }))).webhooks;
  }

  /** Reads a webhook. */
  getWebhook(id: string, { signal }: RequestOptions = {}): Promise<Webhook> {
    return this.#document(this.api.GET("/webhooks/{webhook_id}", webhook(id, signal)));
  }

  /** Changes a webhook by a JSON merge patch. */
  updateWebhook(id: string, patch: Body<"updateWebhook">, { signal }: RequestOptions = {}): Promise<Webhook> {
    const request = { ...mergePatch(patch), ...webhook(id, signal) };
    return this.#document(this.api.PATCH("/webhooks/{webhook_id}", request));
  }

  /** Deletes a webhook with its deliveries. */
  async deleteWebhook(id: string, { signal }: RequestOptions = {}): Promise<void> {
    await this.api.DELETE("/webhooks/{webhook_id}", webhook(id, signal));
  }

  /** Gives a webhook a new secret; the previous one is valid for another 24 hours. */
  rotateSecret(id: string, { signal }: RequestOptions = {}): Promise<Webhook> {
    return this.#document(this.api.POST("/webhooks/{webhook_id}/rotate-secret", webhook(id, signal)));
  }

  /** Sends an event of the type `webhook.test`. */
  testWebhook(id: string, { signal }: RequestOptions = {}): Promise<Result<"testWebhook">> {
    return this.#document(this.api.POST("/webhooks/{webhook_id}/test", webhook(id, signal)));
  }

  /** Lists the deliveries of a webhook, newest first. */
  listDeliveries(
    id: string,
    query: Query<"listDeliveries"> = {},
    { signal }: RequestOptions = {},
  ): Paged<Delivery, Result<"listDeliveries">> {
    const path = { webhook_id: id };
    return this.#paged(
      (cursor) =>
        this.api.GET("/webhooks/{webhook_id}/deliveries", { params: { path, query: withCursor(query, cursor) }, signal }),
      (page) => page.deliveries,
    );
  }

  /** Sends events again: one, a range, or all failed ones. */
  replayDeliveries(
    id: string,
    body: Body<"replayDeliveries">,
    { signal }: RequestOptions = {},
  ): Promise<Result<"replayDeliveries">> {
    return this.#document(this.api.POST("/webhooks/{webhook_id}/replay", { body, ...webhook(id, signal) }));
  }

  // Personal data

  /**
   * Iterates over everything that is stored about a customer: `{ order }`, then each `{ event }` and `{ delivery }` of
   * that order, then the next order. If the connection is lost, it throws an error: continue with `after`, the id of the
   * last order whose events are complete.
   */
  exportCustomer(
    customerId: string,
    query: Query<"exportCustomer"> = {},
    { signal }: RequestOptions = {},
  ): AsyncGenerator<Record<string, unknown>, void> {
    const params = { path: { customer_id: customerId }, query };
    return this.#lines((stream) => this.api.GET("/customers/{customer_id}/personal-data", { ...stream, params }), signal);
  }

  /** Erases the personal data of a customer; then poll `readErasure` until its status is `done`. */
  eraseCustomer(customerId: string, { signal }: RequestOptions = {}): Promise<Erasure> {
    const params = { path: { customer_id: customerId } };
    return this.#document(this.api.DELETE("/customers/{customer_id}/personal-data", { params, signal }));
  }

  /** Reads the progress of an erasure. */
  readErasure(id: string, { signal }: RequestOptions = {}): Promise<Erasure> {
    return this.#document(this.api.GET("/erasures/{erasure_id}", { params: { path: { erasure_id: id } }, signal }));
  }

  async #document<Document>(sent: Promise<{ data?: Document; response: Response }>): Promise<Document> {
    const { data, response } = await sent;
    const tag = response.headers.get("ETag");
    if (tag !== null && typeof data === "object" && data !== null) this.#entityTags.set(data, tag);
    return data as Document; // the transport throws if there is no document
  }

  #paged<Item, Page extends { next_cursor: string | null }>(
    read: (cursor: string | undefined) => Promise<{ data?: unknown; response: Response }>,
    items: (page: Page) => Item[],
    endless = false,
  ): Paged<Item, Page> {
    return new Paged(async (cursor) => {
      const { data, response } = await read(cursor);
      const page = data as Page;
      // The last page of the feed also has a cursor, but no link.
      const hasNext = endless || (response.headers.get("Link") ?? "").includes('rel="next"');
      return { page, next: hasNext ? (page.next_cursor ?? undefined) : undefined };
    }, items);
  }

  /** The documents of an export, one a line (NDJSON). */
  async *#lines<Line>(
    get: (stream: StreamRequest) => Promise<{ response: Response }>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Line, void> {
    const headers = { Accept: "application/x-ndjson" };
    const { response } = await get({ headers, parseAs: "stream", fetch: this.#transport.open, ...(signal && { signal }) });
    const reader = response.body!.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    try {
      for (let read = await reader.read(); !read.done; read = await reader.read()) {
        const lines = (rest + decoder.decode(read.value, { stream: true })).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) yield JSON.parse(line) as Line;
      }
    } finally {
      await reader.cancel().catch(() => undefined);
    }
  }

  #stream<Event>(
    get: (
      lastEventId: string | undefined,
      stream: StreamRequest & { signal: AbortSignal },
    ) => Promise<{ response: Response }>,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Event, void> {
    const transport = this.#transport;
    const open = async (request: Request) => {
      const headers = await transport.headers(request).catch((cause: unknown) => Promise.reject(new FinalError(cause)));
      return transport.receive(request, headers);
    };
    const connect = async (lastEventId: string | undefined, signal: AbortSignal) => {
      const headers = { Accept: "text/event-stream", ...(lastEventId ? { "Last-Event-ID": lastEventId } : {}) };
      return (await get(lastEventId, { headers, parseAs: "stream", signal, fetch: open })).response;
    };
    return eventStream<Event>(connect, transport.policy, signal);
  }
}

interface StreamRequest {
  headers: Record<string, string>;
  parseAs: "stream";
  signal?: AbortSignal;
  fetch: Transport["open"];
}

/** Puts the parameters into a path. Throws URIError for a dot segment: `/orders/../events` is `/events` to a URL. */
function pathSerializer(path: string, parameters: Record<string, unknown>): string {
  for (const [name, value] of Object.entries(parameters)) {
    if (value === "." || value === "..") throw new URIError(`${name} must not be "." or "..".`);
  }
  return defaultPathSerializer(path, parameters);
}

function idOf(order: OrderRef): string {
  return typeof order === "string" ? order : order.id;
}

function dryRunQuery(dryRun: boolean | undefined): { dry_run?: "true" } {
  return dryRun ? { dry_run: "true" } : {};
}

function newOrder({ idempotencyKey = newIdempotencyKey(), dryRun, signal }: ChangeOptions) {
  return { params: { query: dryRunQuery(dryRun), header: { "Idempotency-Key": idempotencyKey } }, signal };
}

/** The parameters that all changes of an order share; `more` are further parts of the path. */
function change<Path extends object = object>(order: OrderRef, options: ChangeOptions, more?: Path) {
  const { params, signal } = newOrder(options);
  const ifMatch = typeof order === "string" ? {} : { "If-Match": `"${order.version}"` };
  const path = { order_id: idOf(order), ...(more as Path) };
  return { params: { ...params, path, header: { ...params.header, ...ifMatch } }, signal };
}

function webhook(id: string, signal: AbortSignal | undefined) {
  return { params: { path: { webhook_id: id } }, signal };
}

function mergePatch<Patch>(body: Patch) {
  return { body, headers: { "Content-Type": "application/merge-patch+json" } };
}

function withCursor<List extends object>(query: List, cursor: string | undefined): List {
  return cursor === undefined ? query : { ...query, cursor };
}

function withKeys<Entry extends { idempotency_key?: string | null }>(entries: Entry[]): Entry[] {
  return entries.map((entry) => ({ ...entry, idempotency_key: entry.idempotency_key ?? newIdempotencyKey() }));
}
