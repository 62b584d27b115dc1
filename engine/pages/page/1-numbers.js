// Numbers and texts: base64 arrays into grids, and both into something a person can read.

function decoded(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const view = new DataView(bytes.buffer);
  const numbers = new Float32Array(bytes.length / 4);
  for (let i = 0; i < numbers.length; i++) numbers[i] = view.getFloat32(4 * i, true);
  return numbers;
}

/** The numbers of one prompt at one query: metric x layer x case x variant, NaN where a cell is undefined. */
class Grid {
  constructor(data) {
    Object.assign(this, data);
    this.numbers = decoded(data.numbers);
    this.heads = new Map();
    data.variants.forEach((name, index) => {
      const [kind, head] = name.split("_");
      if (head !== undefined) this.heads.set(kind, [...(this.heads.get(kind) || []), index]);
    });
  }

  at(metric, layer, item, variant) {
    const { layers, cases, variants } = this;
    return this.numbers[((metric * layers.length + layer) * cases.length + item) * variants.length + variant];
  }

  /** The variants that stand beside the chosen one in the head grid. */
  family(variant) {
    const kind = this.variants[variant].split("_")[0];
    return this.heads.get(kind) || this.heads.get("Head") || [...this.heads.values()][0] || [];
  }
}

const CODES = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]/gu;

/** A text in which signs that show nothing, or that reorder what stands around them, are written as their codes. */
function visible(text, longest = 60, { lines = false } = {}) {
  const cut = [...text.slice(0, 2 * longest + 2)];
  const shown = cut.slice(0, longest).join("") + (cut.length > longest ? "…" : "");
  const codes = shown.replace(CODES, (sign) => `<U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`);
  return lines ? codes : codes.replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/** The same for labels: the space in front, which many tokens have, is seen. */
function label(text, longest) {
  return text === "" ? "∅" : visible(text, longest).replace(/^ | $/g, "·");
}

function shortNumber(value) {
  if (Number.isNaN(value)) return "undefined";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** The shortest decimal that gives back this float32. */
function exactNumber(value) {
  for (let digits = 6; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(Number(value.toPrecision(9)));
}
