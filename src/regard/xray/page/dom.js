// Building the page. Text enters it through `textContent` and `append` only, so no text can become markup.

function byId(id) {
  return document.getElementById(id);
}

function element(tag, { text, className, attributes = {} } = {}, children = []) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const NUMBER_COLUMNS = new Set(["columnHeads", "columnDim", "columnLengths", "columnEntropy", "columnSink", "columnLogit",
  "columnTime", "columnPeak", "columnGroup"]);

function tableHead(keys) {
  const cells = keys.map((key) => element("th", {
    text: say(key), className: NUMBER_COLUMNS.has(key) ? "number" : "", attributes: { scope: "col" },
  }));
  return element("thead", {}, [element("tr", {}, cells)]);
}

function numberCell(text) {
  return element("td", { text, className: "number" });
}

// A cell with a second, quieter line.
function twoLines(first, second, className = "") {
  const children = [element("span", { text: first })];
  if (second) children.push(element("span", { text: second, className: "second", attributes: { title: second } }));
  return element("td", { className }, children);
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(({ value, text }) => element("option", { text, attributes: { value } })));
  select.value = String(chosen);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Arrow keys, Home and End as a step through `count` things; null for any other key.
function steppedBy(key, now, count) {
  const steps = { ArrowLeft: now - 1, ArrowUp: now - 1, ArrowRight: now + 1, ArrowDown: now + 1, Home: 0, End: count - 1 };
  if (!(key in steps) || count === 0) return null;
  return Math.min(count - 1, Math.max(0, steps[key]));
}
