"use strict";
// Shows /openapi.json. The usual viewers load scripts from a CDN; this page works offline.

const element = (name, className, ...children) => {
  const node = document.createElement(name);
  node.className = className;
  node.append(...children);
  return node;
};

fetch("/openapi.json")
  .then((response) => response.json())
  .then((api) => {
    const main = document.getElementById("endpoints");
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, operation] of Object.entries(methods)) main.append(endpoint(api, path, method, operation));
    }
  })
  .catch(() => {
    document.getElementById("endpoints").textContent = "The description of the API cannot be loaded; reload the page.";
  });

function endpoint(api, path, method, operation) {
  const name = element("span", "method", method.toUpperCase());
  const node = element("section", "endpoint", element("h2", "", name, element("code", "", path)));
  for (const paragraph of (operation.description ?? "").split("\n\n")) {
    // the odd pieces, between backticks, are code
    const pieces = paragraph.split("`").map((piece, i) => (i % 2 ? element("code", "", piece) : piece));
    node.append(element("p", "", ...pieces));
  }
  const body = operation.requestBody?.content["application/json"].schema;
  if (body) node.append(fields(api, resolve(api, body)));
  const example = body ? ` -H 'Content-Type: application/json' -d '${JSON.stringify(sample(api, body))}'` : "";
  node.append(element("pre", "", `curl ${location.origin}${path}${example}`));
  return node;
}

function fields(api, schema) {
  const table = element("table", "");
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const note = schema.required?.includes(name) ? "required" : `default ${JSON.stringify(field.default ?? null)}`;
    const cells = [element("code", "", name), typeOf(api, field), note].map((cell) => element("td", "", cell));
    table.append(element("tr", "", ...cells));
  }
  return table;
}

function typeOf(api, schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((part) => typeOf(api, part)).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `[${typeOf(api, schema.items ?? {})}]`;
  const bounds = [[">=", schema.minimum], [">", schema.exclusiveMinimum], ["<=", schema.maximum]];
  const limits = bounds.filter(([, value]) => value !== undefined).map(([sign, value]) => ` ${sign} ${value}`);
  return (schema.type ?? "any") + limits.join(",");
}

const resolve = (api, schema) => (schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema);

// The smallest valid request: required fields only.
function sample(api, schema) {
  schema = resolve(api, schema);
  if (schema.anyOf) return sample(api, schema.anyOf[0]);
  if (schema.enum) return schema.enum[0];
  if ("const" in schema) return schema.const;
  if (schema.type === "array") return [sample(api, schema.items)];
  if (schema.type !== "object") return { integer: 1, number: 1, boolean: false }[schema.type] ?? "…";
  return Object.fromEntries((schema.required ?? []).map((name) => [name, sample(api, schema.properties[name])]));
}
