// What the pieces share: settings and their controls, an address that remembers them, a chart, a random generator.
// No framework, no build step: Python puts this file before a piece's own, and that is the module.

const DRAWN = new Set(["svg", "g", "path", "line", "text", "circle"]);
let named = 0; // elements that need an id

export function make(name, attributes = {}, ...children) {
  const home = DRAWN.has(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(home, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Three digits: enough for the eye, and for a screen reader.
export function shown(value) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "none";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2).replace("e-", "e−").replace("e+", "e");
  return Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 8 });
}

// --- Settings ------------------------------------------------------------------------------------------------------

const BOUNDS = {
  above: ["above", (value, end) => value > end],
  at_least: ["at least", (value, end) => value >= end],
  below: ["below", (value, end) => value < end],
  at_most: ["at most", (value, end) => value <= end],
};

// What would be accepted, if `value` is not: a sentence's end; "" where it is.
export function problem(spec, value) {
  if (spec.choices) return Object.hasOwn(spec.choices, value) ? "" : `one of ${Object.keys(spec.choices).join(", ")}`;
  if (value === null && spec.optional) return "";
  const bounds = Object.keys(BOUNDS).filter((key) => key in spec);
  const right = spec.whole ? Number.isInteger(value) : Number.isFinite(value);
  if (right && bounds.every((key) => BOUNDS[key][1](value, spec[key]))) return "";
  return `a ${spec.whole ? "whole " : ""}number ${bounds.map((key) => `${BOUNDS[key][0]} ${spec[key]}`).join(" and ")}`;
}

const read = (spec, text) => (spec.choices ? text : text.trim() === "" ? null : Number(text));

// On a page of the book there is no kernel: settings come from the page and its address, and go to the address.
export function addressed(el) {
  const piece = el.dataset.piece;
  const given = JSON.parse(el.dataset.settings);
  return {
    get: () => given,
    address: [...new URLSearchParams(location.search)]
      .filter(([key]) => key.startsWith(`${piece}.`))
      .map(([key, text]) => [key.slice(piece.length + 1), text]),
    set: (_, settings) => {
      const query = new URLSearchParams(location.search);
      for (const [name, value] of Object.entries(settings)) {
        if (value === given[name]) query.delete(`${piece}.${name}`);
        else query.set(`${piece}.${name}`, value ?? "");
      }
      const tail = query.size ? `?${query}` : "";
      try { history.replaceState(null, "", location.pathname + tail + location.hash); } catch { /* no address to keep */ }
    },
    save_changes: () => {},
    on: () => {},
  };
}

// A piece's frame: title, controls, what it shows, one line that is read aloud. `changed(name)` follows every change.
export function frame(PIECE, { model, el }, changed) {
  const specs = PIECE.settings, presets = PIECE.presets ?? {};
  for (const [key, { label }] of Object.entries(presets)) specs.preset.choices[key] = label;
  const state = { ...model.get("settings") };
  const status = make("p", { role: "status", class: "pg-status" }), wrong = [], told = [];
  for (const [name, text] of model.address ?? []) {
    const accepted = Object.hasOwn(specs, name) ? problem(specs[name], read(specs[name], text)) : `one of ${Object.keys(specs).join(", ")}`;
    if (accepted) wrong.push(`${name} = ${text || "nothing"} in the address was not used: expected ${accepted}.`);
    else {
      state[name] = read(specs[name], text);
      told.push(name);
    }
  }
  const usual = { ...state, ...presets[state.preset] };
  for (const name of measuredIn(PIECE)) {
    if (!told.includes(name)) state[name] = usual[name];
    else if (state[name] !== usual[name]) state.preset = "own";
  }
  const inputs = {};
  const controls = make("div", { class: "pg-controls", role: "group", "aria-label": "Settings" });
  for (const [name, spec] of Object.entries(specs)) {
    inputs[name] = control(name, spec, state, (value) => {
      state[name] = value;
      changed(name);
      model.set("settings", { ...state });
      model.save_changes();
    });
    controls.append(inputs[name].box);
  }
  const view = make("div", { class: "pg-view" }), title = make("p", { class: "pg-title" }, PIECE.title);
  const root = make("div", { class: "pg", role: "group", "aria-label": PIECE.title }, title, controls, view, status);
  root.dataset.lmSuppressShortcuts = ""; // JupyterLab would take these keys from the controls
  root.addEventListener("keydown", (event) => /^(Arrow|Page|Home|End|Enter| )/.test(event.key) && event.stopPropagation());
  el.replaceChildren(root);
  el.dataset.live = "";
  const refresh = () => Object.values(inputs).forEach((input) => input.refresh());
  model.on("change:settings", () => { // by Python, unless it only hears what was set here
    const next = model.get("settings");
    if (Object.keys(next).every((name) => next[name] === state[name])) return;
    Object.assign(state, next);
    refresh();
    changed("");
  });
  let waiting;
  const say = (text, soon = 400) => { // not at every pixel of a slider
    const write = () => (status.textContent = [...wrong.splice(0), text].join(" "));
    clearTimeout(waiting);
    soon ? (waiting = setTimeout(write, soon)) : write();
  };
  return { state, inputs, view, refresh, say };
}

function values(spec) {
  const { slider, at_least: low, at_most: high } = spec;
  if (Array.isArray(slider)) return slider;
  const found = [];
  if (slider === "doubling") for (let value = low; value <= high; value *= 2) found.push(value);
  else if (slider === "log") {
    const last = Math.round(20 * Math.log10(high / low));
    for (let k = 0; k <= last; k++) found.push(Number((low * 10 ** (k / 20)).toPrecision(2)));
  } else for (let k = 0; low + k * slider <= high + 1e-9; k++) found.push(Number((low + k * slider).toFixed(4)));
  return found;
}

// One setting: a label, its input, its value or what is wrong with it.
function control(name, spec, state, set) {
  const id = `pg-${name}-${++named}`;
  const beside = make("output", { for: id, id: `${id}-value` });
  const box = make("div", { class: "pg-control", "data-name": name }, make("label", { for: id }, spec.label));
  let input, refresh;
  if (spec.choices) {
    input = make("select", { id }, ...Object.entries(spec.choices).map(([value, text]) => make("option", { value }, text)));
    input.addEventListener("change", () => set(input.value));
    refresh = () => (input.value = state[name]);
    box.append(input);
  } else if (spec.slider) {
    const grid = values(spec);
    input = make("input", { id, type: "range", min: 0, max: grid.length - 1, step: 1 });
    refresh = () => {
      const miss = grid.map((value) => Math.abs(value - state[name]));
      input.value = miss.indexOf(Math.min(...miss));
      beside.textContent = shown(state[name]);
      input.setAttribute("aria-valuetext", `${shown(state[name])} ${spec.unit ?? ""}`.trim());
    };
    input.addEventListener("input", () => {
      set(grid[input.value]);
      refresh();
    });
    box.append(input, beside);
  } else {
    input = make("input", { id, type: "number", step: spec.whole ? 1 : "any", "aria-describedby": `${id}-value` });
    refresh = () => {
      input.value = state[name] ?? "";
      beside.textContent = spec.unit ?? "";
      input.removeAttribute("aria-invalid");
    };
    input.addEventListener("input", () => {
      const value = input.validity.badInput ? NaN : read(spec, input.value);
      const accepted = problem(spec, value);
      beside.textContent = accepted ? `expected ${accepted}` : spec.unit ?? "";
      if (accepted) return input.setAttribute("aria-invalid", "true");
      input.removeAttribute("aria-invalid");
      set(value);
    });
    box.append(input, beside);
  }
  refresh();
  return { box, input, refresh };
}

// The settings that a piece's presets fill in.
const measuredIn = ({ presets, settings }) => (presets ? Object.keys(Object.values(presets)[0]).filter((key) => key in settings) : []);

// A preset fills in its numbers; a number changed by hand makes them the reader's own.
export function usePreset(PIECE, { state, refresh }, name) {
  const names = measuredIn(PIECE);
  if (name === "preset" && state.preset !== "own") for (const key of names) state[key] = PIECE.presets[state.preset][key];
  else if (names.includes(name)) state.preset = "own";
  else return;
  if (name === "preset") refresh();
}

// --- Drawing -------------------------------------------------------------------------------------------------------

export const WIDTH = 360, HEIGHT = 250;
const LEFT = 46, RIGHT = 22, TOP = 10, BOTTOM = 40;

function ticks({ from, to, log }) {
  const found = [];
  if (log) {
    const decades = Math.log10(to / from);
    const each = decades <= 2.2 ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil(decades / 6));
    for (let k = Math.floor(Math.log10(from)); k <= Math.log10(to); k++) {
      if (k % every === 0) for (const m of each) found.push(Number((m * 10 ** k).toPrecision(1)));
    }
  } else {
    const rough = (to - from) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
    for (let k = Math.ceil(from / step); k * step <= to + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(6)));
  }
  return found.filter((value) => value >= from * (1 - 1e-9) - (from < 0 ? 1e-9 : 0) && value <= to * (1 + 1e-9));
}

// An SVG chart, described by `label`. `axes` sets its two axes and empties it; `line` and `mark` draw in their units.
export function chart(label) {
  const inside = make("g");
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "pg-chart" }, inside);
  let X, Y;
  const scale = ({ from, to, log }, start, end) => {
    const f = log ? Math.log : Number;
    return (value) => start + ((f(value) - f(from)) / (f(to) - f(from))) * (end - start);
  };
  const inRange = (value) => Math.max(-2 * HEIGHT, Math.min(3 * HEIGHT, value)); // far outside is as good as outside
  return {
    svg,
    describe: (text) => svg.setAttribute("aria-label", text),
    axes(x, y) {
      X = scale(x, LEFT, WIDTH - RIGHT);
      Y = scale(y, HEIGHT - BOTTOM, TOP);
      const parts = [];
      for (const value of ticks(x)) {
        parts.push(make("line", { x1: X(value), x2: X(value), y1: TOP, y2: HEIGHT - BOTTOM, class: "pg-grid" }));
        parts.push(make("text", { x: X(value), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, shown(value)));
      }
      for (const value of ticks(y)) {
        parts.push(make("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: Y(value), y2: Y(value), class: "pg-grid" }));
        parts.push(make("text", { x: LEFT - 5, y: Y(value) + 4, "text-anchor": "end" }, shown(value)));
      }
      parts.push(make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x.label));
      const turned = `translate(11 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`;
      parts.push(make("text", { transform: turned, "text-anchor": "middle" }, y.label));
      inside.replaceChildren(...parts);
      return this;
    },
    line(points, style, text = "", anchor = "end") {
      const ends = points.filter(([x, y]) => !Number.isNaN(x + y));
      const d = ends.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${inRange(Y(y)).toFixed(1)}`).join("");
      const path = make("path", { d, class: `pg-line ${style}` });
      inside.append(path);
      if (text && ends.length) {
        const [x, y] = ends[ends.length - 1];
        inside.append(make("text", { x: X(x) + (anchor === "end" ? -4 : 4), y: Math.max(TOP + 10, inRange(Y(y)) - 5), "text-anchor": anchor }, text));
      }
      return path;
    },
    mark(x, y, style, radius = 4.5, text = "") {
      inside.append(make("circle", { cx: X(x), cy: inRange(Y(y)), r: radius, class: style }));
      if (text) inside.append(make("text", { x: X(x), y: inRange(Y(y)) - 9, "text-anchor": "middle", class: "pg-strong" }, text));
    },
  };
}

// A table of what the piece found: rows of text, the first a header.
export function table(caption, [heads, ...rows]) {
  const cell = (name, attributes) => (text) => make(name, attributes, text);
  const body = rows.map(([head, ...texts]) => make("tr", {}, make("th", { scope: "row" }, head), ...texts.map(cell("td", {}))));
  const first = heads[0] ? make("th", { scope: "col" }, heads[0]) : make("td");
  const top = make("tr", {}, first, ...heads.slice(1).map(cell("th", { scope: "col" })));
  return make("table", { class: "pg-table" }, make("caption", {}, caption), make("thead", {}, top), make("tbody", {}, ...body));
}

// --- Chance --------------------------------------------------------------------------------------------------------

// The high and the low half of a product of two 32-bit numbers.
function product(a, b) {
  const a1 = a >>> 16, a0 = a & 0xffff, b1 = b >>> 16, b0 = b & 0xffff;
  const low = a0 * b0, middle = a1 * b0 + (low >>> 16), other = a0 * b1 + (middle % 65536);
  return [(a1 * b1 + Math.floor(middle / 65536) + Math.floor(other / 65536)) >>> 0, Math.imul(a, b) >>> 0];
}

// Philox4x32-10 (Salmon et al., 2011): four random 32-bit numbers for a counter of four and a key of two.
export function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = product(0xd2511f53, c0), [high1, low1] = product(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

// Four standard normal numbers for (seed, purpose, i, j), by Box and Muller: the same in Python.
export function normals(seed, purpose, i, j) {
  const u = philox([i, j, purpose, 0], [seed, 0]);
  const found = [];
  for (const k of [0, 2]) {
    const radius = Math.sqrt(-2 * Math.log((u[k] + 0.5) / 2 ** 32)), angle = (2 * Math.PI * u[k + 1]) / 2 ** 32;
    found.push(radius * Math.cos(angle), radius * Math.sin(angle));
  }
  return found;
}
