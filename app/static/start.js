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
});

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
