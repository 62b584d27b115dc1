// Scales: a number to a place between 0 and 1, and the place to a colour.

const FLOOR = 1e-5;

function isDark() {
  return document.documentElement.dataset.theme === "dark";
}

/** A scale over these values: `place(value)` is in 0..1, undefined values have none; `ticks` name its ends. */
function scaleOver(values, { logarithmic, diverging }) {
  let most = 0, least = Infinity, lacking = false, negative = false;
  for (const value of values) {
    const size = Math.abs(value);
    lacking ||= Number.isNaN(size);
    negative ||= value < 0;
    if (size > most) most = size;
    if (size > 0 && size < least) least = size;
  }
  if (most === 0) least = most = 1;
  const low = Math.max(least, most * FLOOR);
  const span = Math.log(most / low) || 1;
  const linear = (size) => Math.min(size / most, 1);
  const log = (size) => (size <= low ? 0 : Math.min(Math.log(size / low) / span, 1));
  // Around zero the logarithm has no end, so small changes of either sign meet in the middle.
  const grown = logarithmic ? (diverging ? (size) => (size <= low ? 0 : 0.05 + 0.95 * log(size)) : log) : linear;
  const place = diverging ? (value) => 0.5 + 0.5 * Math.sign(value) * grown(Math.abs(value)) : (value) => grown(value);
  const near = logarithmic ? `${diverging ? "±" : "≤ "}${shortNumber(low)}` : "0";
  const ticks = diverging ? [shortNumber(-most), near, `+${shortNumber(most)}`] : [near, "", shortNumber(negative ? -most : most)];
  return { place, ticks, lacking, logarithmic, diverging };
}

function rampOf(diverging) {
  return page.colours[isDark() ? "dark" : "light"][diverging ? "diverging" : "sequential"];
}

function channels(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function mixed(ramp, place) {
  const step = place * (ramp.length - 1);
  const index = Math.min(Math.floor(step), ramp.length - 2);
  const [from, to] = [channels(ramp[index]), channels(ramp[index + 1])];
  return from.map((channel, i) => Math.round(channel + (to[i] - channel) * (step - index)));
}

function undefinedColour() {
  return page.colours[isDark() ? "dark" : "light"].undefined;
}

/** A function from values to CSS colours. */
function colouring(scale) {
  const shades = Array.from({ length: 256 }, (_, i) => `rgb(${mixed(rampOf(scale.diverging), i / 255).join(" ")})`);
  return (value) => (Number.isNaN(value) ? undefinedColour() : shades[Math.round(scale.place(value) * 255)]);
}

/** Black or white, whichever is read better on this value's colour (WCAG's relative luminance). */
function inkOn(scale, value) {
  const linear = mixed(rampOf(scale.diverging), scale.place(value)).map((channel) => {
    const part = channel / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

function showLegend(element, scale, title) {
  const ramp = made("span", "ramp");
  ramp.style.background = `linear-gradient(to right, ${rampOf(scale.diverging).join(", ")})`;
  const [low, middle, high] = scale.ticks;
  const kind = `${title}, ${scale.logarithmic ? "logarithmic" : "linear"}${scale.diverging ? `, ${middle} in the middle` : ""}`;
  const parts = [made("span", "", low), ramp, made("span", "", high), made("span", "", `(${kind})`)];
  if (scale.lacking) {
    const none = made("span", "none");
    none.style.background = undefinedColour();
    parts.push(none, made("span", "", "undefined"));
  }
  element.replaceChildren(...parts);
}
