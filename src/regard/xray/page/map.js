// Maps on canvas: small ones to choose a head, and the chosen one with its labels.

const SCALES = {
  viridis: ["440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725"],
  cividis: ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"],
};
const LABEL_FONT = '12px "Noto Sans SC", "PingFang SC", "Microsoft YaHei", system-ui, sans-serif';
const LABEL_HEIGHT = 13;
const LARGEST_CELL = 30;
const USUAL_HEIGHT = 720; // a map grows beyond this only to keep every label readable

function mix(stops, place) {
  const at = Math.min(place * (stops.length - 1), stops.length - 1 - 1e-6);
  const low = Math.floor(at);
  const channel = (stop, shift) => (parseInt(stops[stop], 16) >> shift) & 255;
  return [16, 8, 0].map((shift) => channel(low, shift) + (at - low) * (channel(low + 1, shift) - channel(low, shift)));
}

// 256 colours of a scale, as RGB triples.
function palette(name) {
  return Array.from({ length: 256 }, (_, level) => mix(SCALES[name], level / 255));
}

// Weights as an image of one pixel for each pair; `most` is the weight of the brightest colour.
function imageOf(weights, rows, cols, most, colours) {
  const image = new ImageData(cols, rows);
  for (let index = 0; index < rows * cols; index += 1) {
    const level = most > 0 ? Math.min(255, Math.round(255 * Math.sqrt(weights[index] / most))) : 0;
    image.data.set(colours[level], 4 * index);
    image.data[4 * index + 3] = 255;
  }
  return image;
}

function pixelCanvas(weights, map, colours) {
  const canvas = element("canvas", { attributes: { width: map.cols, height: map.rows, "aria-hidden": "true" } });
  const image = imageOf(weights, map.rows, map.cols, largest(weights), colours);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function showHeads(map, layer, chosen, hideSink, colours, choose) {
  const heads = ["mean", ...Array.from({ length: map.entry.heads }, (_, head) => head)];
  byId("heads").replaceChildren(...heads.map((head) => {
    const button = headButton(map, layer, head, hideSink, colours);
    button.setAttribute("aria-pressed", String(head === chosen));
    button.addEventListener("click", () => choose(head));
    return button;
  }));
}

function headButton(map, layer, head, hideSink, colours) {
  const shared = head !== "mean" && layer.kv_heads !== layer.heads;
  const caption = head === "mean" ? say("meanShort") : shared ? `${head} · KV ${kvGroup(layer, head)}` : String(head);
  const entropy = head === "mean" ? layer.entropy.mean : layer.entropy.per_head[head];
  const title = `${headName(layer, head)}, ${say("columnEntropy")}: ${formatNumber(entropy)}`;
  const className = shared ? `thumb group-${kvGroup(layer, head) % 4}` : "thumb";
  return element("button", { className, attributes: { type: "button", title, "aria-label": title } }, [
    pixelCanvas(weightsOf(map, head, hideSink), map, colours), element("span", { text: caption }),
  ]);
}

function measureLabels(context, units) {
  context.font = LABEL_FONT;
  return units.map((unit) => {
    const text = label(unit, 14);
    return { text, width: context.measureText(text).width };
  });
}

function gutter(labels, most) {
  return Math.min(most, Math.ceil(labels.reduce((widest, item) => Math.max(widest, item.width), 0))) + 8;
}

// Where everything lies on the large canvas, in CSS pixels.
function layOut(map, context, width) {
  const rowLabels = measureLabels(context, map.rowUnits);
  const colLabels = measureLabels(context, map.colUnits);
  const most = Math.min(130, width * 0.28);
  const left = gutter(rowLabels, most);
  const top = gutter(colLabels, most);
  const tallest = Math.max(LABEL_HEIGHT, USUAL_HEIGHT / map.rows);
  const cell = Math.min(LARGEST_CELL, tallest, Math.max(0.5, (width - left - 2) / map.cols));
  const step = Math.max(1, Math.ceil(LABEL_HEIGHT / cell));
  return { rowLabels, colLabels, left, top, cell, step, width: left + cell * map.cols + 2, height: top + cell * map.rows + 2 };
}

function sizeCanvas(canvas, layout) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.ceil(layout.width * ratio);
  canvas.height = Math.ceil(layout.height * ratio);
  canvas.style.width = `${layout.width}px`;
  canvas.style.height = `${layout.height}px`;
  canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
}

// Draws the chosen map and returns its layout, which the pointer needs.
function showMap(map, weights, colours, mark) {
  const canvas = byId("map");
  const context = canvas.getContext("2d");
  const layout = layOut(map, context, canvas.parentElement.clientWidth);
  sizeCanvas(canvas, layout);
  context.imageSmoothingEnabled = false;
  context.drawImage(pixelCanvas(weights, map, colours), layout.left, layout.top, layout.cell * map.cols, layout.cell * map.rows);
  drawLabels(context, layout, mark);
  drawMark(context, layout, map, mark);
  return layout;
}

function drawLabels(context, layout, mark) {
  context.font = LABEL_FONT;
  context.textBaseline = "middle";
  forShown(layout.rowLabels, layout.step, mark.row, (item, row) => {
    context.fillStyle = colour(row === mark.row ? "--accent" : "--ink");
    drawRowLabel(context, layout, item, row);
  });
  forShown(layout.colLabels, layout.step, mark.col, (item, col) => {
    context.fillStyle = colour(col === mark.col ? "--accent" : "--ink");
    drawColumnLabel(context, layout, item, col);
  });
}

// Every label there is room for; around the marked one its neighbours give way.
function forShown(labels, step, marked, draw) {
  labels.forEach((item, index) => {
    const near = marked !== null && index !== marked && Math.abs(index - marked) < step;
    if (index === marked || (index % step === 0 && !near)) draw(item, index);
  });
}

function drawRowLabel(context, layout, item, row) {
  const room = layout.left - 6;
  const x = Math.max(0, room - item.width);
  context.textAlign = "left";
  context.fillText(item.text, x, layout.top + (row + 0.5) * layout.cell, room);
}

// A single character stands upright, as Chinese must; a longer label is turned.
function drawColumnLabel(context, layout, item, col) {
  const x = layout.left + (col + 0.5) * layout.cell;
  const room = layout.top - 6;
  if (Array.from(item.text).length === 1 && item.width <= layout.cell * layout.step) {
    context.textAlign = "center";
    context.fillText(item.text, x, layout.top - 10);
    return;
  }
  context.save();
  context.translate(x, layout.top - 4);
  context.rotate(-Math.PI / 2);
  context.textAlign = "left";
  context.fillText(item.text, 0, 0, room);
  context.restore();
}

// A frame around the marked row or column; where a frame would cover what it marks, a tick beside it.
function drawMark(context, layout, map, mark) {
  const { left, top, cell } = layout;
  const tick = cell < 4 ? 6 : 0;
  context.strokeStyle = colour("--mark");
  context.fillStyle = context.strokeStyle;
  context.lineWidth = 2;
  if (mark.row !== null) {
    const y = top + mark.row * cell;
    if (tick) context.fillRect(left - tick, y, tick, Math.max(cell, 2));
    else context.strokeRect(left, y, map.cols * cell, cell);
  }
  if (mark.col !== null) {
    const x = left + mark.col * cell;
    if (tick) context.fillRect(x, top - tick, Math.max(cell, 2), tick);
    else context.strokeRect(x, top, cell, map.rows * cell);
  }
}

function showLegend(colours, most) {
  const context = byId("legend").getContext("2d");
  colours.forEach(([red, green, blue], level) => {
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect((level / 256) * 160, 0, 1, 10);
  });
  byId("legend-most").textContent = formatWeight(most, false);
}

// The pair under the pointer, or null.
function pairAt(event, layout, map) {
  const box = byId("map").getBoundingClientRect();
  const col = Math.floor((event.clientX - box.left - layout.left) / layout.cell);
  const row = Math.floor((event.clientY - box.top - layout.top) / layout.cell);
  const inside = row >= 0 && col >= 0 && row < map.rows && col < map.cols;
  return inside ? { row, col } : null;
}

function showTip(event, lines) {
  const tip = byId("tip");
  tip.replaceChildren(...lines.map((text) => element("div", { text })));
  tip.hidden = false;
  const frame = tip.parentElement.getBoundingClientRect();
  const x = Math.min(event.clientX - frame.left + 14, frame.width - tip.offsetWidth - 4);
  tip.style.left = `${Math.max(0, x)}px`;
  tip.style.top = `${event.clientY - frame.top + 16}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}
