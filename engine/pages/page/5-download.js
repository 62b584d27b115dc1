// The prompt's numbers as CSV, in the columns and the order of the results file.

/** A field of CSV. A text that a spreadsheet would run as a formula gets a ' in front. */
function field(value) {
  if (typeof value === "number") return Number.isNaN(value) ? "" : exactNumber(value);
  if (value === null || value === undefined) return "";
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return text === "" || /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Column name -> its value in a cell (layer, case, variant); numbers that are no measurements are texts. */
function csvColumns(prompt, grid) {
  const chosen = (texts) => (l, c) => texts.texts[texts.codes[l][c]];
  const start = (c) => grid.cases[c].positions[0];
  const all = {
    prompt_id: prompt.id === null ? null : () => String(prompt.id),
    layer: (l) => (grid.layers[l] === null ? null : String(grid.layers[l])),
    token_masked: (l, c) => grid.cases[c].text,
    token_position: (l, c) => (start(c) === undefined ? null : String(start(c))),
    variant: grid.effects ? null : (l, c, v) => grid.variants[v],
    answer: grid.answer && chosen(grid.answer),
    top_token_masked: grid.top && chosen(grid.top),
    query_position: grid.query === null ? null : () => String(grid.query),
    masked_positions: grid.cases.some((each) => each.positions.length > 1) ? (l, c) => positionName(grid.cases[c]) : null,
  };
  grid.metrics.forEach((name, m) => (all[name] = (l, c, v) => grid.at(m, l, c, v)));
  return page.columns.filter((name) => all[name]).map((name) => [name, all[name]]);
}

function csvLines(prompt, grid) {
  const columns = csvColumns(prompt, grid);
  const lines = [`${columns.map(([name]) => name).join(",")}\n`];
  grid.layers.forEach((_, l) => grid.cases.forEach((__, c) => grid.variants.forEach((___, v) => {
    lines.push(`${columns.map(([, value]) => field(value(l, c, v))).join(",")}\n`);
  })));
  return lines;
}

function download(prompt, grid) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(csvLines(prompt, grid), { type: "text/csv;charset=utf-8" }));
  link.download = prompt.id === null ? "mask_impact.csv" : `mask_impact_${String(prompt.id).replace(/[^\w-]/g, "_").slice(0, 60)}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
