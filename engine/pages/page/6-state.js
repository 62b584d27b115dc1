// What is chosen, and what follows from it.

const page = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);

/** An element with a class and a text; text from prompts and tokenizers reaches the page in this way alone. */
function made(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function measure(name) {
  return page.measures[name] || { label: name, diverging: false, column: 99 };
}

function layerName(layer) {
  return layer === null ? "all" : String(layer);
}

function positionName(item) {
  return item.positions.join("+");
}

/** A case in words: its positions and its quoted text; of an average, only its name. */
function caseName(item, longest = 40) {
  return item.positions.length ? `${positionName(item)} “${visible(item.text, longest)}”` : item.text;
}

const state = { prompt: null, grid: null, metric: 0, variant: 0, layer: 0, item: 0, visibleCases: [] };

/** Every cell of the chosen variant and measure that is shown. */
function shownValues(variant = state.variant) {
  const { grid, metric, visibleCases } = state;
  return grid.layers.flatMap((_, l) => visibleCases.map((c) => grid.at(metric, l, c, variant)));
}

function chosenScale(values) {
  const { diverging } = measure(state.grid.metrics[state.metric]);
  return scaleOver(values, { logarithmic: byId("scale").value === "log", diverging });
}

/** One number for each token: the mean over layers; of changes, the strongest, sign and all. */
function tokenValue(item) {
  const { grid, metric, variant } = state;
  const values = grid.layers.map((_, l) => grid.at(metric, l, item, variant)).filter((value) => !Number.isNaN(value));
  if (!values.length) return NaN;
  if (!grid.effects) return values.reduce((sum, value) => sum + value, 0) / values.length;
  return values.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
}

function updateVisible() {
  const { grid } = state;
  const hidden = (item) => (byId("hide-first").checked && item.first) || (byId("hide-special").checked && item.special);
  const kept = grid.cases.map((_, c) => c).filter((c) => !hidden(grid.cases[c]));
  state.visibleCases = kept.length ? kept : grid.cases.map((_, c) => c);
  if (!state.visibleCases.includes(state.item)) state.item = state.visibleCases[0];
}

/** Start where the chosen variant and measure are strongest. */
function chooseStrongest() {
  const { grid, metric, variant, visibleCases } = state;
  let most = -1;
  grid.layers.forEach((_, l) => visibleCases.forEach((c) => {
    const size = Math.abs(grid.at(metric, l, c, variant));
    if (size > most) [most, state.layer, state.item] = [size, l, c];
  }));
}

function cellText(layer, item, variant, gap) {
  const { grid, metric } = state;
  const named = grid.metrics.map((name, m) => `${measure(name).label} ${shortNumber(grid.at(m, layer, item, variant))}`);
  const value = grid.at(metric, layer, item, variant);
  const all = shownValues(variant).filter((each) => !Number.isNaN(each));
  const rank = 1 + all.filter((each) => Math.abs(each) > Math.abs(value)).length;
  const where = grid.layers[layer] === null ? "all layers" : `layer ${layerName(grid.layers[layer])}`;
  const top = grid.top ? [`top token when hidden “${visible(grid.top.texts[grid.top.codes[layer][item]] ?? "", 40)}”`] : [];
  return [
    `${caseName(grid.cases[item])}, ${where}${grid.effects ? "" : `, ${grid.variants[variant]}`}`,
    ...named,
    ...top,
    ...(Number.isNaN(value) ? [] : [`rank ${rank} of ${all.length} by ${measure(grid.metrics[metric]).label}`]),
  ].join(gap);
}
