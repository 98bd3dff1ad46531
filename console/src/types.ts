// What the service answers (components of /openapi.json), as far as the console shows it.

export interface LineQuantity {
  line: number;
  quantity: number;
}

export interface Item {
  line: number;
  item_id: string;
  title: string | null;
  quantity: number;
  unit_price: number | null;
  subtotal: number | null;
  discount: number;
  total: number | null;
  cancelled: number;
  fulfilled: number;
  returned: number;
}

export interface Adjustment {
  type: string;
  label: string | null;
  amount: number;
  line: number | null;
}

export interface Totals {
  items: number;
  adjustments: number;
  cancelled: number;
  total: number;
  paid: number;
  refunded: number;
  due: number;
}

export interface Hold {
  handle: string;
  kind: string;
  reason?: string | null;
  until: string | null;
  placed_by: string;
  placed_at: string;
}

export interface Payment {
  type: string;
  amount: number;
  reference?: string;
  method: string | null;
  occurred_at: string;
  note?: string | null;
}

export interface Tracking {
  carrier?: string;
  number?: string;
  url?: string;
}

export interface DeliveryEvent {
  type: string;
  occurred_at: string;
  description: string | null;
}

export interface Fulfillment {
  number: number;
  items: LineQuantity[];
  status: string;
  tracking: Tracking | null;
  events: DeliveryEvent[];
  created_at: string;
}

export interface Return {
  number: number;
  items: LineQuantity[];
  status: string;
  reason: string | null;
  created_at: string;
}

export interface Cancellation {
  number: number;
  items: LineQuantity[];
  reason: string;
  note: string | null;
  created_at: string;
  reopened_at: string | null;
}

export type Address = Partial<
  Record<
    "name" | "company" | "line1" | "line2" | "postal_code" | "city" | "region" | "country" | "phone" | "email",
    string
  >
>;

export interface Order {
  id: string;
  number: string;
  customer_id: string;
  external_ref: string | null;
  channel: string | null;
  status: string;
  fulfillment_status: string;
  payment_status: string;
  return_status: string;
  currency: string | null;
  items: Item[];
  adjustments: Adjustment[];
  totals: Totals | null;
  holds: Hold[];
  payments: Payment[];
  fulfillments: Fulfillment[];
  returns: Return[];
  cancellations: Cancellation[];
  reopening: { from_status: string; reason?: string | null; at: string } | null;
  ship_by: string | null;
  deliver_by: string | null;
  late: boolean;
  related_orders: { order_id: string; relation: string }[];
  tags: string[];
  metadata: Record<string, string>;
  shipping_address: Address | null;
  billing_address: Address | null;
  note: string | null;
  version: number;
  allowed_actions: string[];
  created_at: string;
  updated_at: string;
}

export interface PatchOperation {
  op: string;
  path: string;
  value?: unknown;
}

export interface OrderEvent {
  id: string;
  type: string;
  order_id: string;
  version: number;
  actor: string;
  request_id: string | null;
  at: string;
  changes: PatchOperation[] | null;
  data: Order;
}

export interface Webhook {
  id: string;
  url: string;
  description: string | null;
  events: string[] | null;
  channels: string[] | null;
  payload: string;
  status: string;
  disabled_reason: string | null;
  health: {
    consecutive_failures: number;
    failing_since: string | null;
    retry_at: string | null;
    last_success_at: string | null;
    last_failure_at: string | null;
  };
}

export interface Attempt {
  at: string;
  status: number | null;
  milliseconds: number;
  error: string | null;
  response: string | null;
}

export interface Delivery {
  id: string;
  event_id: string;
  type: string;
  order_id: string | null;
  version: number | null;
  seq: number | null;
  status: string;
  attempt_count: number;
  attempts: Attempt[];
  next_attempt_at: string | null;
  created_at: string;
  finished_at: string | null;
}
