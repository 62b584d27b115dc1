// The cells as a table: filtered, sorted, and shown a few hundred rows at a time.

const STEP = 200;

class CellTable {
  constructor(state, choose) {
    this.state = state;
    this.choose = choose;
    this.sort = null;
    this.element = document.getElementById("table");
    document.getElementById("more").addEventListener("click", () => this.fill(this.shown + STEP));
    for (const name of ["find", "only-layer", "all-variants"]) {
      document.getElementById(name).addEventListener("input", () => this.show());
    }
  }

  /** Columns as [heading, value of a cell (layer, case, variant), whether it is a number]. */
  columns() {
    const { grid } = this.state;
    return [
      ["layer", (l) => grid.layers[l] ?? -1, true],
      ["position", (l, c) => grid.cases[c].positions[0] ?? c, true],
      ["token", (l, c) => grid.cases[c].text, false],
      ...(grid.variants.length > 1 ? [["variant", (l, c, v) => v, false]] : []),
      ...grid.metrics.map((name, m) => [measure(name).label, (l, c, v) => grid.at(m, l, c, v), true]),
      ...(grid.top ? [["top token when hidden", (l, c) => grid.top.texts[grid.top.codes[l][c]] ?? "", false]] : []),
    ];
  }

  show() {
    const { grid, metric } = this.state;
    const columns = this.columns();
    const known = this.sort && columns.some(([name]) => name === this.sort.by);
    if (!known || !this.sort.asked) {
      const { label, diverging } = measure(grid.metrics[metric]);
      this.sort = { by: label, descending: !diverging, asked: false };
    }
    this.rows = this.sorted(this.filtered(), columns.find(([name]) => name === this.sort.by)[1]);
    this.head(columns);
    this.fill(STEP);
  }

  filtered() {
    const { grid, variant, visibleCases } = this.state;
    const wanted = document.getElementById("find").value.toLowerCase();
    const layer = document.getElementById("only-layer").value;
    const all = document.getElementById("all-variants").checked;
    const variants = all ? grid.variants.map((_, v) => v) : [variant];
    const layers = layer === "" ? grid.layers.map((_, l) => l) : [Number(layer)];
    const cases = visibleCases.filter((c) => grid.cases[c].text.toLowerCase().includes(wanted));
    const found = new Uint32Array(layers.length * cases.length * variants.length);
    let count = 0;
    for (const l of layers) for (const c of cases) for (const v of variants) found[count++] = this.cell(l, c, v);
    return found;
  }

  cell(l, c, v) {
    return (l * this.state.grid.cases.length + c) * this.state.grid.variants.length + v;
  }

  parts(cell) {
    const { cases, variants } = this.state.grid;
    const item = Math.floor(cell / variants.length);
    return [Math.floor(item / cases.length), item % cases.length, cell % variants.length];
  }

  /** Cells without a value come last, whichever way is up; equal ones stay in the order of the table. */
  sorted(cells, value) {
    const sign = this.sort.descending ? -1 : 1;
    const keys = new Map();
    for (const cell of cells) keys.set(cell, value(...this.parts(cell)));
    return cells.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
      return x < y ? -sign : x > y ? sign : a - b;
    });
  }

  head(columns) {
    const row = document.createElement("tr");
    for (const [name, , isNumber] of columns) {
      const heading = made("th", isNumber ? "number" : "");
      const chosen = this.sort.by === name;
      heading.setAttribute("aria-sort", chosen ? (this.sort.descending ? "descending" : "ascending") : "none");
      const button = made("button", "", name + (chosen ? (this.sort.descending ? " ▼" : " ▲") : ""));
      button.type = "button";
      button.dataset.column = name;
      button.addEventListener("click", () => this.sortBy(name, isNumber && !chosen));
      heading.append(button);
      row.append(heading);
    }
    this.element.tHead.replaceChildren(row);
  }

  sortBy(name, descendingFirst) {
    const descending = this.sort.by === name ? !this.sort.descending : descendingFirst;
    this.sort = { by: name, descending, asked: true };
    this.show();
    [...this.element.tHead.querySelectorAll("button")].find((button) => button.dataset.column === name).focus();
  }

  fill(count) {
    this.shown = Math.min(count, this.rows.length);
    const rows = [...this.rows.subarray(0, this.shown)].map((cell) => this.row(cell));
    this.element.tBodies[0].replaceChildren(...rows);
    document.getElementById("count").textContent =
      `${this.shown.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} rows`;
    document.getElementById("more").hidden = this.shown === this.rows.length;
  }

  row(cell) {
    const { grid } = this.state;
    const [l, c, v] = this.parts(cell);
    const row = made("tr", this.isChosen(l, c, v) ? "chosen" : "");
    const token = made("td"), button = made("button", "", label(grid.cases[c].text));
    button.type = "button";
    button.addEventListener("click", () => this.choose({ layer: l, item: c, variant: v }));
    token.append(button);
    const cells = [made("td", "number", layerName(grid.layers[l])), made("td", "number", positionName(grid.cases[c])), token];
    if (grid.variants.length > 1) cells.push(made("td", "", grid.variants[v]));
    grid.metrics.forEach((_, m) => cells.push(made("td", "number", shortNumber(grid.at(m, l, c, v)))));
    if (grid.top) cells.push(made("td", "", label(grid.top.texts[grid.top.codes[l][c]] ?? "")));
    row.append(...cells);
    row.dataset.cell = cell;
    return row;
  }

  isChosen(l, c, v) {
    const { layer, item, variant } = this.state;
    return l === layer && c === item && v === variant;
  }

  /** Another cell was chosen, and nothing else changed. */
  mark() {
    for (const row of this.element.tBodies[0].rows) {
      row.classList.toggle("chosen", this.isChosen(...this.parts(Number(row.dataset.cell))));
    }
  }
}
