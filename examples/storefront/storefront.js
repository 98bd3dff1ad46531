// A shop's page: its cart becomes exactly one order, and the page shows the progress of the order live.
import { NoResponseError, OrderServiceClient, ProblemError, VersionMismatchError, newIdempotencyKey } from "./order-service-client.js";

const PRODUCTS = [
  { item_id: "mug-blue", title: "Blue mug", unit_price: 1250 },
  { item_id: "mug-red", title: "Red mug", unit_price: 1250 },
  { item_id: "teapot", title: "Teapot", unit_price: 3900 },
];
const EVENTS = {
  "order.created": "We have your order.",
  "order.confirmed": "Your order is confirmed.",
  "order.fulfilled": "Your order is on its way.",
  "order.fulfillment_updated": "There is news about the delivery.",
  "order.partially_cancelled": "Part of your order is cancelled.",
  "order.cancelled": "Your order is cancelled.",
  "order.completed": "Your order is complete.",
};

// A shop's server would put the customer's id and token into the page. The fragment stays in the browser.
const given = new URLSearchParams(location.hash.slice(1));
// A link to the page sets all of the settings or none, so that a stored token is not sent to another service.
const settings = {
  service: "http://127.0.0.1:8000",
  customer: "c-123",
  ...(location.hash ? Object.fromEntries(given) : load("settings")),
};
save("settings", settings);
history.replaceState(null, "", location.pathname);

const client = new OrderServiceClient({ baseUrl: settings.service, token: settings.token });
const element = (id) => document.getElementById(id);
const price = (amount) => (amount / 100).toLocaleString("en", { style: "currency", currency: "EUR" });
const REFUSALS = [400, 413, 415, 422]; // the request is invalid: repeating it does not help
let order; // the latest version received
let following; // the AbortController of the event stream

function load(name) {
  return JSON.parse(sessionStorage.getItem(name) ?? "null");
}

function save(name, value) {
  if (value === undefined) sessionStorage.removeItem(name);
  else sessionStorage.setItem(name, JSON.stringify(value));
}

function showMessage(message, { retry = false } = {}) {
  element("message").textContent = message;
  element("retry").hidden = !retry;
}

function cartItems() {
  return PRODUCTS.map((product) => ({ ...product, quantity: element(product.item_id).valueAsNumber || 0 })).filter(
    (item) => item.quantity > 0,
  );
}

function showCart() {
  const total = cartItems().reduce((sum, item) => sum + item.quantity * item.unit_price, 0);
  element("total").textContent = price(total);
  element("buy").disabled = total === 0;
}

/** Orders the cart. The order and its key are stored first, so that a reload sends the same request again. */
async function checkOut() {
  const checkout = load("checkout") ?? {
    idempotencyKey: newIdempotencyKey(),
    order: { customer_id: settings.customer, currency: "EUR", items: cartItems() },
  };
  save("checkout", checkout);
  for (const input of element("cart").elements) input.disabled = true;
  showMessage("We are sending your order …");
  try {
    const created = await client.createOrder(checkout.order, { idempotencyKey: checkout.idempotencyKey });
    save("order", created.id);
    save("checkout", undefined);
    await follow(created.id);
  } catch (error) {
    if (error instanceof ProblemError && REFUSALS.includes(error.status)) {
      save("checkout", undefined); // the next order gets a new key
      for (const input of element("cart").elements) input.disabled = false;
      showMessage(error.message);
    } else if (error instanceof ProblemError || error instanceof NoResponseError) {
      // After a 401 or 409 too: an earlier attempt whose response was lost may have created the order.
      showMessage("We have no response yet. Your order will not be placed twice.", { retry: true });
    } else throw error;
  }
}

/** Shows an order and its events as they happen. */
async function follow(id) {
  following?.abort();
  following = new AbortController();
  element("cart").hidden = true;
  element("order").hidden = false;
  element("events").replaceChildren();
  showMessage("");
  try {
    for await (const event of client.streamOrderEvents(id, {}, { signal: following.signal })) {
      const entry = document.createElement("li");
      entry.textContent = EVENTS[event.type] ?? "Your order has changed.";
      element("events").append(entry);
      showOrder(event.data);
    }
  } catch (error) {
    showMessage(error.message);
  }
}

function showOrder(current) {
  order = current;
  element("number").textContent = order.number;
  element("status").textContent = `${order.status}, ${order.fulfillment_status}`;
  element("cancel").hidden = !order.allowed_actions.includes("cancel");
}

/** Cancels the order that is shown. If it has changed since, the customer is asked again. */
async function cancel() {
  element("cancel").disabled = true; // a second click would fail, because the first one has changed the order
  try {
    showOrder(await client.cancelOrder(order, { reason: "customer" }));
    showMessage("");
  } catch (error) {
    if (error instanceof VersionMismatchError) await showChange();
    else if (error instanceof NoResponseError) {
      showMessage("We have no response. The list shows whether the order is cancelled.");
    } else showMessage(error.message);
  }
  element("cancel").disabled = false;
}

async function showChange() {
  try {
    showOrder(await client.getOrder(order.id));
    const isPossible = order.allowed_actions.includes("cancel");
    const advice = isPossible ? "Do you still want to cancel it?" : "It can no longer be cancelled.";
    showMessage(`Your order has just changed. ${advice}`);
  } catch (error) {
    showMessage(error.message);
  }
}

function startAgain() {
  following?.abort();
  save("order", undefined);
  location.reload();
}

element("products").append(
  ...PRODUCTS.map((product) => {
    const [entry, label, input] = ["li", "label", "input"].map((name) => document.createElement(name));
    Object.assign(input, { id: product.item_id, type: "number", min: 0, max: 99, value: 0 });
    label.append(`${product.title}, ${price(product.unit_price)} `, input);
    entry.append(label);
    return entry;
  }),
);
element("cart").addEventListener("input", showCart);
element("cart").addEventListener("submit", (event) => {
  event.preventDefault();
  void checkOut();
});
element("retry").addEventListener("click", checkOut);
element("cancel").addEventListener("click", cancel);
element("again").addEventListener("click", startAgain);
addEventListener("online", () => element("retry").hidden || checkOut());

showCart();
if (load("order")) void follow(load("order"));
else if (load("checkout")) void checkOut(); // the page was reloaded before the response came
