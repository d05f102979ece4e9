// The report's data: pieces of text, maps of weights, and what is read from them. Nothing here touches the page.

const SHOWN_CHARACTERS = 400; // of one piece in the text view; a piece may be a megabyte
const LINE_END = "↵";
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;
const ONLY_INVISIBLE = /^[\p{Cf}\p{Mn}\u115f\u1160\u3164]+$/u;
const ONLY_SPACE = /^[ \u00a0\u2000-\u200a\u202f\u205f\u3000]+$/;

function codePoint(character) {
  return `⟨${say("control", { code: character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") })}⟩`;
}

// A character that is invisible, or that would turn the text around it, as a sign one can see.
function sign(character) {
  const code = character.codePointAt(0);
  if (character === "\n") return LINE_END;
  if (character === "\t") return "⇥";
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return codePoint(character);
}

// Text a person can see in full: nothing invisible, no control over its surroundings, no lone surrogates.
// `lineEnd` is what stands for a line end: the sign alone, or the sign and a real line end.
function visible(text, lineEnd = LINE_END) {
  const whole = text.toWellFormed();
  if (whole === "") return say("empty");
  if (ONLY_SPACE.test(whole)) return whole.replace(/./gu, "␣");
  if (ONLY_INVISIBLE.test(whole)) return Array.from(whole, codePoint).join("");
  return whole.replace(INVISIBLE, (character) => (character === "\n" ? lineEnd : sign(character)));
}

function clip(text, limit) {
  const characters = Array.from(text.slice(0, 2 * limit + 2));
  if (characters.length <= limit && text.length <= 2 * limit + 2) return text;
  const kept = characters.slice(0, limit).join("");
  return kept + say("clipped", { count: text.length - kept.length });
}

// A short name for a piece, for labels and lists.
function label(unit, limit = 24) {
  const trimmed = unit.text.trim() === "" ? unit.text : unit.text.trim();
  const characters = Array.from(trimmed.slice(0, 4 * limit));
  const short = characters.slice(0, limit).join("");
  return visible(short) + (short.length < trimmed.length ? "…" : "");
}

// What one row or column of a map stands for: a cell, or a block of cells when the map is pooled.
function unitsOf(stream, edges, count) {
  const cells = stream?.cells ?? [];
  const bounds = edges ?? Array.from({ length: count + 1 }, (_, index) => index);
  const special = new Set(stream?.special ?? []);
  return Array.from({ length: count }, (_, index) => unitOf(stream, cells, special, bounds[index], bounds[index + 1]));
}

function unitOf(stream, cells, special, from, to) {
  if (to > cells.length) return { text: `#${from}`, gap: " ", cells: 1, special: false };
  let text = cells[from];
  for (let index = from + 1; index < to; index += 1) text += stream.gaps[index] + cells[index];
  return { text, gap: stream.gaps[from], cells: to - from, special: to - from === 1 && special.has(from) };
}

function decodeLevels(base64) {
  const binary = atob(base64);
  const levels = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index += 1) levels[index] = binary.charCodeAt(index);
  return levels;
}

const WEIGHT_OF_LEVEL = Float32Array.from({ length: 256 }, (_, level) => (level / 255) ** 2);

function headWeights(levels, head, size) {
  const weights = new Float32Array(size);
  for (let index = 0; index < size; index += 1) weights[index] = WEIGHT_OF_LEVEL[levels[head * size + index]];
  return weights;
}

function meanWeights(levels, heads, size) {
  const weights = new Float32Array(size);
  for (let head = 0; head < heads; head += 1) {
    for (let index = 0; index < size; index += 1) weights[index] += WEIGHT_OF_LEVEL[levels[head * size + index]] / heads;
  }
  return weights;
}

// The first column set to 0 and every row divided by what is left.
function withoutFirst(weights, rows, cols) {
  const kept = weights.slice();
  for (let row = 0; row < rows; row += 1) {
    kept[row * cols] = 0;
    const values = kept.subarray(row * cols, (row + 1) * cols);
    const left = values.reduce((sum, value) => sum + value, 0);
    if (left > 0) values.forEach((value, col) => { values[col] = value / left; });
  }
  return kept;
}

// One layer's map, ready to draw. `levels` are decoded once for each layer.
function openMap(report, layer) {
  const entry = report.maps.find((map) => map.layer === layer.index);
  if (entry === undefined) return null;
  const rowUnits = unitsOf(report.streams[layer.query_stream], entry.row_edges, entry.rows);
  const colUnits = unitsOf(report.streams[layer.key_stream], entry.col_edges, entry.cols);
  const oneText = layer.query_stream === layer.key_stream && entry.rows === entry.cols;
  return { entry, levels: decodeLevels(entry.data), rowUnits, colUnits, oneText, rows: entry.rows, cols: entry.cols };
}

// The weights of one head of an open map (or "mean").
function weightsOf(map, head, hideSink) {
  const size = map.rows * map.cols;
  const weights = head === "mean" ? meanWeights(map.levels, map.entry.heads, size) : headWeights(map.levels, head, size);
  return hideSink ? withoutFirst(weights, map.rows, map.cols) : weights;
}

function rowWeights(weights, map, row) {
  return weights.subarray(row * map.cols, (row + 1) * map.cols);
}

function columnWeights(weights, map, col) {
  return Float32Array.from({ length: map.rows }, (_, row) => weights[row * map.cols + col]);
}

// The largest weights of a row or column as [{ index, weight, exact }]; exact where the report stored the number itself.
function strongest(values, stored, count = 8) {
  if (stored !== null) {
    return stored.columns.map((index, rank) => ({ index, weight: stored.weights[rank], exact: true }))
      .filter((item) => item.weight > 0).slice(0, count);
  }
  return Array.from(values, (weight, index) => ({ index, weight, exact: false }))
    .filter((item) => item.weight > 0).sort((a, b) => b.weight - a.weight).slice(0, count);
}

function storedRow(map, head, row) {
  const top = map.entry.top;
  if (head === "mean" || !top) return null;
  return { columns: top.columns[head][row], weights: top.weights[head][row] };
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, value), 0);
}

function formatWeight(weight, exact) {
  return exact ? weight.toFixed(4) : `≈ ${weight.toFixed(3)}`;
}

function formatNumber(value, digits = 2) {
  if (value === null || value === undefined) return say("unknown");
  return Math.abs(value) >= 1e5 ? value.toExponential(2) : value.toFixed(digits);
}

function formatTime(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return say("unknown");
  if (milliseconds >= 1000) return `${(milliseconds / 1000).toPrecision(3)} s`;
  return milliseconds >= 0.01 ? `${Number(milliseconds.toPrecision(3))} ms` : `${(milliseconds * 1000).toPrecision(2)} µs`;
}

function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return say("unknown");
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(bytes, 1)) / 10));
  return `${Number((bytes / 1024 ** power).toPrecision(3))} ${units[power]}`;
}
