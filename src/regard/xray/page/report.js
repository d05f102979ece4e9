// What is chosen now, and redrawing after a choice.

const report = JSON.parse(byId("report").textContent);
const state = { layer: null, head: "mean", direction: "from", hideSink: false, scale: "viridis", row: 0, col: 0, preview: null };
const current = { map: null, weights: null, layout: null };

function chosenLayer() {
  return report.layers.find((layer) => layer.index === state.layer);
}

function firstOrdinary(units) {
  return Math.max(0, units.findIndex((unit) => !unit.special));
}

function chooseLayer(index) {
  if (!report.layers.some((layer) => layer.index === index)) return;
  const before = current.map;
  state.layer = index;
  current.map = openMap(report, chosenLayer());
  if (state.head !== "mean" && state.head >= chosenLayer().heads) state.head = "mean";
  if (current.map !== null && !sameUnits(before, current.map)) {
    state.row = firstOrdinary(current.map.rowUnits);
    state.col = firstOrdinary(current.map.colUnits);
  }
  redrawAll();
}

// The same text in the same pieces: then the choice of piece is kept from layer to layer.
function sameUnits(before, after) {
  const same = (a, b) => a.length === b.length && a.every((unit, index) => unit.text === b[index].text);
  return before !== null && same(before.rowUnits, after.rowUnits) && same(before.colUnits, after.colUnits);
}

function chooseHead(head) {
  state.head = head;
  redrawWeights();
}

// A piece chosen in a text: in a text that is looked at, that asks what looks there.
function pick(side, index) {
  if (side !== "either") state.direction = side;
  if (state.direction === "from") state.row = index;
  else state.col = index;
  if (side === "either") state.row = state.col = index;
  byId("direction").value = state.direction;
  redrawChoice();
}

function redrawAll() {
  const layer = chosenLayer();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text, { version: report.regard });
  byId("language").textContent = say("otherLanguage");
  showFacts(report);
  showWarnings(report, chooseLayer);
  showLayers(report, state.layer, chooseLayer);
  if (layer === undefined) {
    byId("view").hidden = true;
    return;
  }
  showCosts(layer);
  showHeadNumbers(layer);
  redrawWeights();
}

function redrawWeights() {
  const layer = chosenLayer();
  showControls(layer);
  const { map } = current;
  byId("notes").replaceChildren(...notes(layer, map).map((text) => element("span", { text })));
  byId("view").hidden = map === null || map.rows * map.cols === 0;
  if (byId("view").hidden) return;
  current.weights = weightsOf(map, state.head, state.hideSink);
  const colours = palette(state.scale);
  showHeads(map, layer, state.head, state.hideSink, colours, chooseHead);
  buildTexts(map, layer, report.streams, pick);
  showLegend(colours, largest(current.weights));
  byId("map-title").textContent = say("mapTitle", { layer: layer.index, head: headName(layer, state.head), rows: map.rows, cols: map.cols });
  redrawChoice();
}

function showControls(layer) {
  fillSelect(byId("layer"), report.layers.map((item) => ({ value: item.index, text: `${item.index}: ${visible(item.name)}` })), layer.index);
  const heads = ["mean", ...Array.from({ length: layer.heads }, (_, head) => head)];
  fillSelect(byId("head"), heads.map((head) => ({ value: head, text: headName(layer, head) })), state.head);
  byId("direction").value = state.direction;
  byId("heads").setAttribute("aria-label", say("head"));
}

function notes(layer, map) {
  const streams = [report.streams[layer.query_stream], report.streams[layer.key_stream]];
  const said = [];
  if (streams.some((stream) => stream?.truncated)) said.push(say("truncated"));
  if (layer.batch > 1) said.push(say("firstSample", { batch: layer.batch }));
  if (report.left_out === "exact weights") said.push(say("leftOutExact"));
  if (map === null) return [...said, say(report.left_out === "maps" ? "leftOutMaps" : "noMap")];
  if (map.rows * map.cols === 0) return [...said, say("emptyMap")];
  if (map.entry.row_edges || map.entry.col_edges) said.push(say("pooled"));
  if (map.entry.unusable) said.push(say("unusable", { count: map.entry.unusable }));
  if (state.hideSink) said.push(sinkNote(map.colUnits[0]));
  return said;
}

function sinkNote(unit) {
  return unit.cells > 1 ? say("sinkBlockHidden", { cells: unit.cells }) : say("sinkHidden");
}

// Redraws for another row or column, or for the one under the pointer.
function redrawChoice() {
  const { map, weights } = current;
  const shown = state.preview ?? { row: state.row, col: state.col };
  const from = state.direction === "from";
  const mark = from ? { row: shown.row, col: null } : { row: null, col: shown.col };
  const values = from ? rowWeights(weights, map, shown.row) : columnWeights(weights, map, shown.col);
  const blocks = blockIds(map, state.direction);
  if (blocks.chosen !== blocks.shaded) {
    clearShade(blocks.chosen);
    unmarkChosen(blocks.shaded);
  }
  shade(blocks.shaded, values);
  markChosen(blocks.chosen, from ? shown.row : shown.col);
  current.layout = showMap(map, weights, palette(state.scale), mark);
  tell(from, from ? shown.row : shown.col, values);
}

function tell(from, index, values) {
  const { map } = current;
  const [chosenUnits, otherUnits] = from ? [map.rowUnits, map.colUnits] : [map.colUnits, map.rowUnits];
  const piece = label(chosenUnits[index]);
  const stored = from && !state.hideSink ? storedRow(map, state.head, index) : null;
  const items = strongest(values, stored);
  showStrongest(say(from ? "strongestFrom" : "strongestTo", { piece }), items, otherUnits);
  const list = items.slice(0, 3).map((item) => `${label(otherUnits[item.index])} ${formatWeight(item.weight, item.exact)}`);
  const spoken = say(from ? "spokenFrom" : "spokenTo", {
    head: headName(chosenLayer(), state.head), piece, place: index + 1, count: chosenUnits.length,
    list: list.length > 0 ? list.join(", ") : say("nothing"),
  });
  if (state.preview === null) byId("spoken").textContent = spoken;
  byId("map").setAttribute("aria-label", spoken);
}

function onMapMove(event) {
  const { map, layout, weights } = current;
  const pair = pairAt(event, layout, map);
  if (pair === null) return onMapLeave();
  if (state.preview?.row !== pair.row || state.preview?.col !== pair.col) {
    state.preview = pair;
    redrawChoice();
  }
  return showTip(event, tipLines(map, weights, pair));
}

function tipLines(map, weights, { row, col }) {
  const stored = state.hideSink ? null : storedRow(map, state.head, row);
  const exact = stored?.columns.indexOf(col) ?? -1;
  const weight = exact >= 0 ? formatWeight(stored.weights[exact], true) : formatWeight(weights[row * map.cols + col], false);
  const pair = say("tipPair", { query: label(map.rowUnits[row]), key: label(map.colUnits[col]) });
  const most = strongest(rowWeights(weights, map, row), stored, 5);
  return [`${pair}: ${weight}`, ...most.map((item) => `${label(map.colUnits[item.index])}  ${formatWeight(item.weight, item.exact)}`)];
}

function onMapLeave() {
  hideTip();
  if (state.preview === null) return;
  state.preview = null;
  redrawChoice();
}

function onMapClick(event) {
  const pair = pairAt(event, current.layout, current.map);
  if (pair === null) return;
  state.row = pair.row;
  state.col = pair.col;
  redrawChoice();
}

// Up and down move the row, left and right the column; the direction follows.
function onMapKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const alongColumns = event.key === "ArrowLeft" || event.key === "ArrowRight";
  const from = alongColumns ? false : event.key.startsWith("Arrow") || state.direction === "from";
  const count = from ? current.map.rows : current.map.cols;
  const next = steppedBy(event.key, from ? state.row : state.col, count);
  if (next === null) return;
  event.preventDefault();
  pick(from ? "from" : "to", next);
}

function listen() {
  byId("language").addEventListener("click", () => {
    language = language === "en" ? "zh" : "en";
    redrawAll();
  });
  byId("layer").addEventListener("change", (event) => chooseLayer(Number(event.target.value)));
  byId("head").addEventListener("change", (event) => chooseHead(event.target.value === "mean" ? "mean" : Number(event.target.value)));
  byId("direction").addEventListener("change", (event) => { state.direction = event.target.value; redrawWeights(); });
  byId("scale").addEventListener("change", (event) => { state.scale = event.target.value; redrawWeights(); });
  byId("sink").addEventListener("change", (event) => { state.hideSink = event.target.checked; redrawWeights(); });
  const map = byId("map");
  map.addEventListener("pointermove", onMapMove);
  map.addEventListener("pointerleave", onMapLeave);
  map.addEventListener("click", onMapClick);
  map.addEventListener("keydown", onMapKey);
}

// The canvas takes its width and its colours from the page, so both make it draw again.
function redrawWhenThePageChanges() {
  const again = () => { if (current.map !== null && !byId("view").hidden) redrawChoice(); };
  window.addEventListener("resize", again);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
}

function start() {
  language = report.language;
  listen();
  redrawWhenThePageChanges();
  if (report.layers.length > 0) chooseLayer(report.layers[0].index);
  else redrawAll();
  document.documentElement.dataset.ready = "true";
}

start();
