// The controls, and the drawing of everything that depends on them.

const map = new Heatmap(byId("map"), {
  choose: (row, column) => choose({ layer: row, item: state.visibleCases[column] }),
  tell: (row, column) => cellText(row, state.visibleCases[column], state.variant, "\n"),
});
const heads = new Heatmap(byId("heads"), {
  choose: (row, column) => choose({ layer: row, variant: state.grid.family(state.variant)[column] }),
  tell: (row, column) => cellText(row, state.item, state.grid.family(state.variant)[column], "\n"),
});
const table = new CellTable(state, (cell) => choose(cell));

function options(select, names, chosen) {
  select.replaceChildren(...names.map((name, index) => {
    const option = made("option", "", name);
    option.value = index;
    return option;
  }));
  select.value = chosen;
}

function choose(change) {
  const variantBefore = state.variant;
  Object.assign(state, change);
  byId("variant").value = state.variant;
  if (state.variant !== variantBefore) render();
  else renderChosen();
  byId("details").textContent = cellText(state.layer, state.item, state.variant, " · ");
}

function openPrompt(index) {
  state.prompt = page.prompts[index];
  const { grids, name } = state.prompt;
  byId("query-choice").hidden = grids.length < 2;
  options(byId("query"), grids.map((grid) => grid.queryName), grids.length - 1);
  byId("prompt-title").textContent = state.prompt.aggregate ? name : "Prompt";
  openGrid(grids.length - 1);
}

function openGrid(index) {
  const before = state.grid && { variant: state.grid.variants[state.variant], metric: state.grid.metrics[state.metric] };
  const grid = (state.grid = new Grid(state.prompt.grids[index]));
  state.variant = Math.max(0, grid.variants.indexOf(before?.variant));
  state.metric = Math.max(0, grid.metrics.indexOf(before?.metric));
  options(byId("variant"), grid.variants, state.variant);
  options(byId("metric"), grid.metrics.map((name) => measure(name).label), state.metric);
  options(byId("only-layer"), ["all", ...grid.layers.map(layerName)], 0);
  [...byId("only-layer").options].forEach((option, i) => (option.value = i ? i - 1 : ""));
  byId("only-layer").value = "";
  byId("variant-choice").hidden = byId("all-choice").hidden = grid.variants.length < 2;
  byId("special-choice").hidden = !grid.cases.some((item) => item.special);
  updateVisible();
  chooseStrongest();
  render();
  byId("details").textContent = cellText(state.layer, state.item, state.variant, " · ");
}

/** Everything. */
function render() {
  updateVisible();
  const { label, note } = measure(state.grid.metrics[state.metric]);
  const of = state.grid.effects ? "" : ` of ${state.grid.variants[state.variant]}`;
  byId("map-title").textContent = `${label}${of}, by layer and ${state.prompt.aggregate ? "place in the prompt" : "token"}`;
  byId("map").title = note || "";
  renderStrip();
  renderAnswer();
  renderChosen();
  table.show();
}

/** What depends on the chosen cell. */
function renderChosen() {
  renderMap();
  renderHeads();
  [...byId("strip").querySelectorAll("button")].forEach((button, c) => {
    button.setAttribute("aria-pressed", c === state.item);
    button.tabIndex = c === state.item ? 0 : -1;
  });
  table.mark();
}

function renderMap() {
  const { grid, metric, variant, visibleCases } = state;
  const scale = chosenScale(shownValues());
  const room = byId("map-scroll").clientWidth - 60;
  byId("fit-choice").hidden = visibleCases.length * 11 <= room;
  map.show({
    rows: grid.layers.map(layerName),
    columns: visibleCases.map((c) => label(grid.cases[c].text, LONGEST)),
    value: (l, column) => grid.at(metric, l, visibleCases[column], variant),
    colour: colouring(scale),
    chosen: [state.layer, visibleCases.indexOf(state.item)],
    narrowest: byId("fit").checked ? 0.5 : 11,
  });
  showLegend(byId("map-legend"), scale, `${measure(grid.metrics[metric]).label}`);
  byId("map").setAttribute("aria-label", `Heat map of ${byId("map-title").textContent}. Arrow keys choose a cell, which is told below.`);
}

function renderHeads() {
  const { grid, metric, item, variant } = state;
  const family = grid.family(variant);
  byId("heads-section").hidden = family.length === 0;
  if (!family.length) return;
  const scale = chosenScale(grid.layers.flatMap((_, l) => family.map((v) => grid.at(metric, l, item, v))));
  const hidden = caseName(grid.cases[item]);
  byId("heads-title").textContent = state.prompt.aggregate ? `Heads, tokens: ${hidden}` : `Heads, when ${hidden} is hidden`;
  heads.show({
    rows: grid.layers.map(layerName),
    columns: family.map((v) => grid.variants[v].split("_")[1]),
    value: (l, column) => grid.at(metric, l, item, family[column]),
    colour: colouring(scale),
    chosen: [state.layer, family.indexOf(variant)],
    narrowest: 13,
  });
  showLegend(byId("heads-legend"), scale, `${measure(grid.metrics[metric]).label} of ${grid.variants[family[0]].split("_")[0]}_n`);
  byId("heads").setAttribute("aria-label", `${byId("heads-title").textContent}: layers by heads. Arrow keys choose a cell.`);
}

function renderStrip() {
  const { grid } = state;
  const values = grid.cases.map((_, c) => tokenValue(c));
  const scale = chosenScale(state.visibleCases.map((c) => values[c]).filter((value) => !Number.isNaN(value)));
  const colour = colouring(scale), shown = new Set(state.visibleCases);
  const children = [];
  grid.cases.forEach((item, c) => {
    const [before] = c ? grid.cases[c - 1].positions.slice(-1) : [-1];
    if (item.positions.length && item.positions[0] > before + 1) children.push(made("span", "gap", "…"));
    const button = made("button", shown.has(c) ? "" : "left-out", visible(item.text, 60) || "∅");
    button.type = "button";
    button.title = `${caseName(item, 300)}: ${shortNumber(values[c])}`;
    button.style.background = colour(values[c]);
    if (!Number.isNaN(values[c])) button.style.color = inkOn(scale, values[c]);
    button.addEventListener("click", () => shown.has(c) && choose({ item: c }));
    children.push(button, item.text.endsWith("\n") ? made("br") : "\u200b");
  });
  byId("strip").replaceChildren(...children);
  const kind = grid.effects ? "the strongest over layers" : "the mean over layers";
  byId("strip-hint").textContent = `Choose a ${state.prompt.aggregate ? "place, counted from the position that is read" : "token"}. Its colour: ${measure(grid.metrics[state.metric]).label}, ${kind}.`;
}

function moveInStrip(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
  if (!step) return;
  event.preventDefault();
  const { visibleCases, item } = state;
  const to = Math.max(0, Math.min(visibleCases.length - 1, visibleCases.indexOf(item) + step));
  choose({ item: visibleCases[to] });
  byId("strip").querySelectorAll("button")[state.item].focus();
}

function renderAnswer() {
  byId("answer").hidden = !state.grid.answer;
  if (!state.grid.answer) return;
  const { grid } = state, [text] = grid.answer.texts;
  const at = (name) => grid.metrics.indexOf(name);
  const [masked, change] = ["answer_logprob_masked", "answer_logprob_change"].map(at);
  const l = 0, c = grid.cases.findIndex((_, i) => !Number.isNaN(grid.at(change, l, i, 0)));
  const known = masked >= 0 && change >= 0 && c >= 0;
  const logprob = known ? grid.at(masked, l, c, 0) - grid.at(change, l, c, 0) : NaN;
  const told = known ? `, probability ${shortNumber(Math.exp(logprob))} (log-probability ${shortNumber(logprob)})` : "";
  byId("answer").textContent = `Answer of the unmasked model: “${visible(text ?? "")}”${told}`;
}
