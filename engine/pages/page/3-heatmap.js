// A heat map on a canvas that draws only what is in sight, so a thousand tokens cost what a screenful does.

const GUTTER = 44, LABEL = 11, WIDEST = 64, LONGEST = 14;

class Heatmap {
  /** `choose(row, column)` is called by click and by arrow keys; `tell(row, column)` gives a hover's text. */
  constructor(canvas, { choose, tell }) {
    this.canvas = canvas;
    this.scroll = canvas.closest(".scroll");
    this.wide = canvas.parentElement;
    this.choose = choose;
    this.tell = tell;
    this.scroll.addEventListener("scroll", () => this.draw());
    canvas.addEventListener("click", (event) => this.onCell(event, choose));
    canvas.addEventListener("mousemove", (event) => this.onHover(event));
    canvas.addEventListener("mouseleave", hideTip);
    canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** What is shown: names of rows and columns, `value(row, column)`, a colouring, the chosen cell, the least width. */
  show(content) {
    this.content = content;
    this.measure();
    this.reveal();
    this.draw();
  }

  measure() {
    const { rows, columns, narrowest } = this.content;
    const context = this.canvas.getContext("2d");
    context.font = `${LABEL}px system-ui, sans-serif`;
    const longest = Math.max(0, ...columns.slice(0, 400).map((name) => context.measureText(name).width));
    const room = this.scroll.clientWidth - GUTTER - 2;
    this.cellWidth = Math.max(narrowest, Math.min(WIDEST, room / columns.length));
    const upright = longest + 6 > Math.max(this.cellWidth, Math.min(room / columns.length, longest + 10));
    if (!upright) this.cellWidth = Math.max(this.cellWidth, longest + 10);
    this.cellHeight = Math.max(9, Math.min(32, Math.round(430 / rows.length)));
    this.upright = upright;
    this.foot = upright ? Math.min(longest, 110) + 10 : LABEL + 10;
    this.height = rows.length * this.cellHeight + this.foot;
    this.width = Math.min(this.scroll.clientWidth, GUTTER + columns.length * this.cellWidth + 2);
    this.wide.style.width = `${GUTTER + columns.length * this.cellWidth + 2}px`;
    const sharp = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * sharp);
    this.canvas.height = Math.round(this.height * sharp);
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
  }

  /** Scroll until the chosen column is in sight. */
  reveal() {
    const start = this.content.chosen[1] * this.cellWidth, room = this.width - GUTTER;
    const { scrollLeft } = this.scroll;
    if (start >= 0 && (start < scrollLeft || start + this.cellWidth > scrollLeft + room)) this.scroll.scrollLeft = start - room / 2;
  }

  draw() {
    const { rows, columns, value, colour, chosen } = this.content;
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement), sharp = window.devicePixelRatio || 1;
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    const left = (column) => GUTTER + column * this.cellWidth - this.scroll.scrollLeft;
    const first = Math.floor(this.scroll.scrollLeft / this.cellWidth);
    const last = Math.min(columns.length, Math.ceil((this.scroll.scrollLeft + this.width - GUTTER) / this.cellWidth));
    const seam = this.cellWidth > 6 ? 1 : 0;
    context.save();
    context.beginPath();
    context.rect(GUTTER - 1, 0, this.width, this.height);
    context.clip();
    for (let row = 0; row < rows.length; row++) {
      for (let column = first; column < last; column++) {
        context.fillStyle = colour(value(row, column));
        context.fillRect(left(column), row * this.cellHeight, this.cellWidth - seam + (seam ? 0 : 0.5), this.cellHeight - seam);
      }
    }
    this.drawColumns(context, style, first, last, left);
    // Of a row alone, where no column is chosen, the whole row.
    const [from, width] = chosen[1] < 0 ? [GUTTER, this.width - GUTTER - 2] : [left(chosen[1]), Math.max(this.cellWidth - 1, 3)];
    for (const [line, thickness] of [["--ground", 5], ["--mark", 2.5]]) {
      context.strokeStyle = style.getPropertyValue(line);
      context.lineWidth = thickness;
      context.strokeRect(from, chosen[0] * this.cellHeight, width, this.cellHeight - 1);
    }
    context.restore();
    this.drawRows(context, style);
  }

  drawColumns(context, style, first, last, left) {
    const { columns, chosen } = this.content;
    const top = this.content.rows.length * this.cellHeight + 6;
    const every = Math.max(1, Math.ceil(LABEL / this.cellWidth));
    for (let column = first; column < last; column++) {
      const isChosen = column === chosen[1], near = Math.abs(column - chosen[1]) < every;
      if (!isChosen && (near || column % every)) continue;
      context.save();
      context.translate(left(column) + this.cellWidth / 2, top);
      context.fillStyle = style.getPropertyValue(isChosen ? "--text" : "--faint");
      context.font = `${isChosen ? "bold " : ""}${LABEL}px system-ui, sans-serif`;
      context.textAlign = this.upright ? "right" : "center";
      context.textBaseline = this.upright ? "middle" : "top";
      if (this.upright) context.rotate(-Math.PI / 2);
      context.fillText(columns[column], 0, 0);
      context.restore();
    }
  }

  drawRows(context, style) {
    const { rows, chosen } = this.content;
    const every = Math.max(1, Math.ceil((LABEL + 1) / this.cellHeight));
    context.textAlign = "right";
    context.textBaseline = "middle";
    rows.forEach((name, row) => {
      const isChosen = row === chosen[0];
      if (!isChosen && (row % every || Math.abs(row - chosen[0]) < every)) return;
      context.fillStyle = style.getPropertyValue(isChosen ? "--text" : "--faint");
      context.font = `${isChosen ? "bold " : ""}${LABEL}px system-ui, sans-serif`;
      context.fillText(name, GUTTER - 6, (row + 0.5) * this.cellHeight);
    });
  }

  onCell(event, act) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - GUTTER + this.scroll.scrollLeft) / this.cellWidth);
    const row = Math.floor((event.clientY - box.top) / this.cellHeight);
    const { rows, columns } = this.content;
    const inside = event.clientX - box.left >= GUTTER && column < columns.length && row >= 0 && row < rows.length;
    if (inside) act(row, column);
    return inside;
  }

  onHover(event) {
    if (!this.onCell(event, (row, column) => showTip(this.tell(row, column), event))) hideTip();
  }

  onKey(event) {
    const [row, column] = this.content.chosen;
    const last = [this.content.rows.length - 1, this.content.columns.length - 1];
    const to = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: [row, 0], End: [row, last[1]], PageUp: [0, column], PageDown: [last[0], column] }[event.key];
    if (!to) return;
    event.preventDefault();
    this.choose(...to.map((index, axis) => Math.max(0, Math.min(last[axis], index))));
  }
}

function showTip(text, event) {
  const tip = document.getElementById("tip");
  tip.textContent = text;
  tip.hidden = false;
  const beyond = event.clientX + 24 + tip.offsetWidth > window.innerWidth;
  tip.style.left = `${Math.max(4, event.clientX + (beyond ? -12 - tip.offsetWidth : 14))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 4))}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
