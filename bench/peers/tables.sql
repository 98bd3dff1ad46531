-- The service's own tables and indexes, as far as the peers need them.
CREATE TABLE IF NOT EXISTS orders (
    id uuid PRIMARY KEY,
    number varchar(15) NOT NULL UNIQUE,
    customer_id varchar(64) NOT NULL,
    external_ref varchar(64) UNIQUE,
    idempotency_key varchar(255) UNIQUE,
    fingerprint varchar(32) NOT NULL,
    status varchar(16) NOT NULL CHECK (status IN ('pending', 'confirmed', 'completed', 'cancelled')),
    fulfillment_status varchar(16) NOT NULL CHECK (fulfillment_status IN ('unfulfilled', 'partial', 'fulfilled')),
    currency varchar(3),
    adjustments json NOT NULL,
    items_total bigint,
    adjustments_total bigint,
    shipping_address json,
    billing_address json,
    note text,
    metadata json NOT NULL,
    version integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS orders_customer ON orders (customer_id, id);
CREATE INDEX IF NOT EXISTS orders_status ON orders (status, id);
CREATE INDEX IF NOT EXISTS orders_fulfillment_status ON orders (fulfillment_status, id);
CREATE TABLE IF NOT EXISTS order_items (
    order_id uuid NOT NULL,
    line integer NOT NULL,
    item_id varchar(64) NOT NULL,
    quantity integer NOT NULL,
    unit_price bigint,
    fulfilled integer NOT NULL,
    returned integer NOT NULL,
    PRIMARY KEY (order_id, line),
    CHECK (0 <= returned AND returned <= fulfilled AND fulfilled <= quantity)
);
CREATE INDEX IF NOT EXISTS order_items_item ON order_items (item_id, order_id);
CREATE TABLE IF NOT EXISTS order_events (
    order_id uuid NOT NULL,
    version integer NOT NULL,
    type varchar(32) NOT NULL,
    at timestamptz NOT NULL,
    snapshot json NOT NULL,
    PRIMARY KEY (order_id, version)
);
CREATE TABLE IF NOT EXISTS outbox (
    order_id uuid NOT NULL,
    version integer NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (order_id, version)
);
