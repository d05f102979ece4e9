// The facts: header, warnings, layers, costs.

function showFacts(report) {
  byId("model-name").textContent = visible(report.model.name);
  const { model, machine } = report;
  const versions = [`regard ${report.regard}`, `torch ${machine.torch}`, `Python ${machine.python}`];
  if (machine.transformers) versions.splice(2, 0, `transformers ${machine.transformers}`);
  const facts = [
    ["factClass", model.class],
    ["factParameters", model.parameters.toLocaleString("en")],
    ["factDtype", model.dtype],
    ["factImplementation", model.implementation],
    ["factMachine", `${machine.cpu}, ${say("factThreads", { threads: machine.threads })}`],
    ["factVersions", versions.join(", ")],
  ];
  byId("facts").replaceChildren(...facts.map(([key, value]) => element("div", {}, [
    element("dt", { text: say(key) }), element("dd", { text: visible(String(value)) }),
  ])));
}

function showWarnings(report, chooseLayer) {
  const items = report.warnings.map((warning) => warningItem(warning, chooseLayer));
  if (items.length === 0) items.push(element("li", { text: say("noWarnings"), className: "quiet" }));
  byId("warnings").replaceChildren(...items);
}

// The engine gives some sentences twice: `reason` and `reason_zh`.
function inLanguage(entry, field) {
  return (language === "zh" && entry[`${field}_zh`]) || entry[field];
}

function warningItem(warning, chooseLayer) {
  const message = inLanguage(warning, "message");
  const item = element("li", {}, [element("span", { text: visible(message) }), " ", element("code", { text: warning.code })]);
  if (warning.layer !== null && warning.layer !== undefined) {
    const button = element("button", { text: say("warningLayer", { layer: warning.layer }), attributes: { type: "button" } });
    button.addEventListener("click", () => chooseLayer(warning.layer));
    item.prepend(button, " ");
  }
  return item;
}

const LAYER_COLUMNS = ["columnLayer", "columnKind", "columnHeads", "columnDim", "columnLengths", "columnMask",
  "columnPadding", "columnBackend", "columnFastest", "columnEntropy", "columnSink", "columnLogit"];

function showLayers(report, chosen, chooseLayer) {
  const rows = report.layers.map((layer) => layerRow(layer, layer.index === chosen, chooseLayer));
  byId("layers").replaceChildren(tableHead(LAYER_COLUMNS), element("tbody", {}, rows));
}

function layerRow(layer, isChosen, chooseLayer) {
  const button = element("button", { text: String(layer.index), className: "row-button",
    attributes: { type: "button", "aria-pressed": String(isChosen) } });
  const first = element("th", { attributes: { scope: "row" } }, [
    button, element("span", { text: visible(layer.name), className: "second name", attributes: { title: visible(layer.name) } }),
  ]);
  const row = element("tr", { className: isChosen ? "chosen" : "" }, [first, ...shapeCells(layer), ...foundCells(layer)]);
  row.addEventListener("click", () => chooseLayer(layer.index));
  return row;
}

function shapeCells(layer) {
  const size = layer.value_dim === layer.head_dim ? `${layer.head_dim}` : `${layer.head_dim} / ${layer.value_dim}`;
  return [
    twoLines(say(layer.kind), visible(layer.stack)),
    numberCell(`${layer.heads} / ${layer.kv_heads}`),
    numberCell(size),
    numberCell(`${layer.q_len} × ${layer.kv_len}`),
  ];
}

function foundCells(layer) {
  const { found, declared, padding } = layer.mask;
  const differs = declared !== null && declared !== found;
  const fastest = fastestCost(layer.costs);
  const measure = fastest && `${formatTime(fastest.milliseconds)}, ${formatBytes(fastest.peak_bytes)}`;
  return [
    twoLines(sayMask(found), declared === null ? "" : say("declared", { mask: sayMask(declared) }), differs ? "alarm" : ""),
    element("td", { text: sayPadding(padding), className: padding === "attended" ? "alarm" : "" }),
    twoLines(layer.backend.now, visible(inLanguage(layer.backend, "why")), "why"),
    fastest ? twoLines(fastest.backend, measure) : element("td", { text: say("unknown") }),
    numberCell(formatNumber(layer.entropy.mean)),
    numberCell(formatNumber(layer.sink_share.mean)),
    numberCell(formatNumber(layer.max_logit.max)),
  ];
}

function fastestCost(costs) {
  const timed = costs.filter((cost) => cost.supported && cost.milliseconds !== null);
  return timed.reduce((best, cost) => (best === null || cost.milliseconds < best.milliseconds ? cost : best), null);
}

function showCosts(layer) {
  byId("costs-title").textContent = say("costs", { layer: layer.index });
  byId("backend").textContent = say("backendNow", { backend: layer.backend.now, why: visible(inLanguage(layer.backend, "why")) });
  const head = tableHead(["columnBackend", "columnAnswer", "columnTime", "columnPeak", "columnReason"]);
  const fastest = fastestCost(layer.costs);
  const rows = layer.costs.map((cost) => costRow(cost, cost === fastest));
  byId("costs").replaceChildren(head, element("tbody", {}, rows));
  if (rows.length === 0) byId("costs").replaceChildren(element("caption", { text: say("noCosts") }));
  showLengths(layer.at_length);
}

function costRow(cost, isFastest) {
  return element("tr", { className: cost.supported ? "" : "refused" }, [
    element("th", { text: cost.backend, attributes: { scope: "row" } }),
    element("td", { text: say(cost.supported ? "runs" : "refused") }),
    element("td", { text: formatTime(cost.milliseconds), className: isFastest ? "number best" : "number" }),
    numberCell(formatBytes(cost.peak_bytes)),
    element("td", { text: visible(inLanguage(cost, "reason") || " ").replace("␣", "") }),
  ]);
}

function showLengths(lengths) {
  if (!lengths) {
    byId("at-length").replaceChildren();
    return;
  }
  const head = tableHead(["columnBackend", "columnTime", "columnPeak", "columnKnown"]);
  const table = element("table", {}, [head, element("tbody", {}, lengths.backends.map(lengthRow))]);
  byId("at-length").replaceChildren(
    element("h3", { text: say("atLength", { length: lengths.length }) }), element("div", { className: "scroll" }, [table]),
  );
}

function lengthRow(cost) {
  const known = cost.extrapolated
    ? say("extrapolated", { measured: cost.measured_to, growth: formatNumber(cost.growth) }) : say("measured");
  return element("tr", {}, [
    element("th", { text: cost.backend, attributes: { scope: "row" } }),
    estimateCell(cost, cost.milliseconds, formatTime),
    estimateCell(cost, cost.peak_bytes, formatBytes),
    element("td", { text: known }),
  ]);
}

function estimateCell(cost, value, format) {
  const isEstimate = cost.extrapolated && value !== null;
  return numberCell((isEstimate ? "≈ " : "") + format(value));
}

function kvGroup(layer, head) {
  return Math.floor((head * layer.kv_heads) / layer.heads);
}

// Heads that share keys and values name their group.
function headName(layer, head) {
  if (head === "mean") return say("mean");
  if (layer.kv_heads === layer.heads) return say("headName", { head });
  return say("headGroup", { head, group: kvGroup(layer, head) });
}

function showHeadNumbers(layer) {
  const head = tableHead(["head", "columnGroup", "columnEntropy", "columnSink", "columnLogit"]);
  const rows = Array.from({ length: layer.heads }, (_, index) => element("tr", {}, [
    element("th", { text: String(index), attributes: { scope: "row" } }),
    numberCell(String(kvGroup(layer, index))),
    numberCell(formatNumber(layer.entropy.per_head[index])),
    numberCell(formatNumber(layer.sink_share.per_head[index], 3)),
    numberCell(formatNumber(layer.max_logit.per_head[index])),
  ]));
  byId("per-head").replaceChildren(head, element("tbody", {}, rows));
}
