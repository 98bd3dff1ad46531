"use strict";

// A separate file, so that the content security policy can forbid inline scripts. The URL is relative, so that it works
// under any URL_PREFIX.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true });
