"use strict";

// A separate file, so that the content security policy can forbid inline scripts. The URL is relative, so that it works
// under any URL_PREFIX.

const dark = matchMedia("(prefers-color-scheme: dark)");
const followTheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followTheme);
followTheme();

// crypto.randomUUID exists only on pages from https or this machine.
const freshKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join("-");

const ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  requestInterceptor: addKey,
  responseInterceptor: rememberOrder,
  plugins: [() => ({ wrapComponents: { DeepLink: plainText } })],
});

// Swagger UI places a link into the button that opens an operation. The address follows the button without it.
function plainText(_DeepLink, { React }) {
  return ({ text }) => React.createElement("span", null, text);
}

// Names for screen readers, levels of headings, and scrolling by keyboard, which Swagger UI leaves out.
const ATTRIBUTES = {
  ".information-container": { role: "region", "aria-label": "About the API" },
  ".scheme-container": { role: "region", "aria-label": "Server and authorization" },
  ".opblock-tag, .models h4": { "aria-level": "2" },
  ".opblock h4": { "aria-level": "3" },
  ".opblock h5": { "aria-level": "4" },
  "#servers": { "aria-label": "Server" },
  ".examples-select-element": { "aria-label": "Example" },
  "textarea.body-param__text": { "aria-label": "Body of the request" },
  pre: { tabindex: "0" },
};

function addAttributes() {
  for (const [selector, attributes] of Object.entries(ATTRIBUTES)) {
    for (const element of document.querySelectorAll(`#swagger-ui :is(${selector})`)) {
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    }
  }
  for (const row of document.querySelectorAll("tr[data-param-name]")) {
    row.querySelector("select, textarea")?.setAttribute("aria-label", row.dataset.paramName);
  }
}

new MutationObserver(addAttributes).observe(document.getElementById("swagger-ui"), { childList: true, subtree: true });

// Each click is a request of its own; one key for all would answer the second with 422.
function addKey(request) {
  if (request.method && request.method !== "GET" && !request.headers["Idempotency-Key"]) {
    request.headers["Idempotency-Key"] = freshKey();
  }
  return request;
}

// The order that was created last is the one that the other operations are tried on.
function rememberOrder(response) {
  if (response.status === 201 && new URL(response.url).pathname.endsWith("/orders")) {
    const { paths } = ui.specSelectors.specJson().toJS();
    for (const [path, operations] of Object.entries(paths).filter(([path]) => path.includes("{order_id}"))) {
      for (const method of Object.keys(operations).filter((name) => name !== "parameters")) {
        ui.specActions.changeParam([path, method], "order_id", "path", response.body.id);
      }
    }
  }
  return response;
}
