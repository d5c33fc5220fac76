// Shows /openapi.json in Swagger UI. A file of its own, because the page's policy allows no inline script.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null, // the badge would send the description to another host
  tryItOutEnabled: true,
  supportedSubmitMethods: ["get", "put", "post", "delete", "options", "head", "patch", "trace"],
  persistAuthorization: false, // keys and tokens stay in memory, never in localStorage
});
