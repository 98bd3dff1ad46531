"use strict";

// A file of its own, so that the content security policy need not allow scripts in the page. The description stands
// beside the page, under whatever prefix.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true });
