// The text itself, shaded by weight: what a person reads, with what the model weighed.

function pieceNode(unit, index, prefix) {
  const text = clip(visible(unit.text, `${LINE_END}\n`), SHOWN_CHARACTERS);
  const className = unit.special ? "piece special" : "piece";
  return element("span", { text, className, attributes: { id: `${prefix}-${index}`, role: "option", "data-index": index } });
}

function gapText(gap) {
  return gap.toWellFormed().replace(INVISIBLE, (character) => (character === "\n" ? "\n" : sign(character)));
}

// A block of text whose pieces can be chosen by mouse or keyboard.
function textBlock(units, prefix, title, tail) {
  const children = units.flatMap((unit, index) => [gapText(unit.gap), pieceNode(unit, index, prefix)]);
  const block = element("div", { className: "text", attributes: {
    id: prefix, role: "listbox", tabindex: "0", dir: "auto", "aria-labelledby": `${prefix}-title`,
  } }, [...children, gapText(tail)]);
  return element("div", { className: "text-frame" }, [
    element("h3", { text: title, attributes: { id: `${prefix}-title` } }), block,
  ]);
}

// Builds one block when a text looks at itself, two when one text looks at another.
function buildTexts(map, layer, streams, pick) {
  const queries = streams[layer.query_stream];
  const keys = streams[layer.key_stream];
  const blocks = map.oneText
    ? [textBlock(map.rowUnits, "text", say("oneText"), queries.tail)]
    : [textBlock(map.rowUnits, "query-text", say("queryText"), queries.tail),
      textBlock(map.colUnits, "key-text", say("keyText"), keys.tail)];
  byId("texts").replaceChildren(...blocks);
  if (map.oneText) listenTo(byId("text"), map.rowUnits.length, "either", pick);
  else {
    listenTo(byId("query-text"), map.rows, "from", pick);
    listenTo(byId("key-text"), map.cols, "to", pick);
  }
}

function listenTo(block, count, side, pick) {
  block.addEventListener("click", (event) => {
    const piece = event.target.closest(".piece");
    if (piece) pick(side, Number(piece.dataset.index));
  });
  block.addEventListener("keydown", (event) => {
    const next = steppedBy(event.key, Number(block.dataset.now ?? 0), count);
    if (next === null || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    pick(side, next);
  });
}

// The ids of the block one chooses in and of the block that is shaded.
function blockIds(map, direction) {
  if (map.oneText) return { chosen: "text", shaded: "text" };
  return direction === "from" ? { chosen: "query-text", shaded: "key-text" } : { chosen: "key-text", shaded: "query-text" };
}

function shade(id, values) {
  const most = largest(values);
  for (const node of byId(id).querySelectorAll(".piece")) {
    const weight = values[Number(node.dataset.index)];
    // The square root again, so that small weights can be told from none; never 0 < shade < 0.06.
    const strength = most > 0 && weight > 0 ? Math.max(0.06, Math.sqrt(weight / most)) : 0;
    node.style.setProperty("--weight", strength.toFixed(3));
    node.title = formatWeight(weight, false);
  }
}

function clearShade(id) {
  for (const node of byId(id).querySelectorAll(".piece")) {
    node.style.setProperty("--weight", "0");
    node.removeAttribute("title");
  }
}

function markChosen(id, index) {
  const block = byId(id);
  for (const old of block.querySelectorAll("[aria-selected=true]")) old.setAttribute("aria-selected", "false");
  const piece = block.querySelector(`[data-index="${index}"]`);
  if (piece === null) return;
  piece.setAttribute("aria-selected", "true");
  block.dataset.now = String(index);
  block.setAttribute("aria-activedescendant", piece.id);
  keepInSight(block, piece);
}

// Scrolls the block, never the page.
function keepInSight(block, piece) {
  const above = piece.offsetTop - block.offsetTop;
  if (above < block.scrollTop) block.scrollTop = above - 8;
  const below = above + Math.min(piece.offsetHeight, block.clientHeight) - block.clientHeight;
  if (below > block.scrollTop) block.scrollTop = below + 8;
}

function unmarkChosen(id) {
  for (const old of byId(id).querySelectorAll("[aria-selected=true]")) old.setAttribute("aria-selected", "false");
  byId(id).removeAttribute("aria-activedescendant");
}

function showStrongest(title, items, units) {
  byId("strongest-title").textContent = title;
  const nodes = items.map((item) => strongestItem(item, units, items[0].weight));
  if (nodes.length === 0) nodes.push(element("li", { text: say("nothing"), className: "quiet" }));
  byId("strongest").replaceChildren(...nodes);
}

function strongestItem(item, units, most) {
  const bar = element("span", { className: "bar", attributes: { "aria-hidden": "true" } });
  bar.style.setProperty("--part", String(item.weight / most));
  return element("li", {}, [
    element("bdi", { text: label(units[item.index]) }),
    element("span", { text: String(item.index + 1), className: "place" }), bar,
    element("span", { text: formatWeight(item.weight, item.exact), className: "weight" }),
  ]);
}
