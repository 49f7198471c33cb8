// Time to target: steps that fall with the batch, times a step that grows with it.
import { chart, frame, make, shown, table, usePreset } from "./shared.js";

// Steps S_min (1 + B_crit / B) (McCandlish et al., 2018); a step takes its fixed time (1 + B / (knee × devices)), and
// the communication where there is more than one device.
export function plan({ s_min, critical_batch, fixed_ms, knee, devices, communication_ms, price }, batch) {
  const steps = s_min * (1 + critical_batch / batch);
  const step = (fixed_ms * (1 + batch / (knee * devices)) + (devices > 1 ? communication_ms : 0)) / 1000;
  return { steps, step, seconds: steps * step, examples: steps * batch, cost: (steps * step * devices * price) / 3600 };
}

// The batch of the least time: √(B_crit × knee of all devices, communication counted as fixed); at least one a device.
export function best({ critical_batch, fixed_ms, knee, devices, communication_ms }) {
  const wait = fixed_ms + (devices > 1 ? communication_ms : 0);
  return Math.max(Math.sqrt(critical_batch * knee * devices * (wait / fixed_ms)), devices);
}

export function duration(seconds) {
  const units = [[86400 * 2, 86400, "days"], [7200, 3600, "h"], [120, 60, "min"], [1, 1, "s"], [0, 0.001, "ms"]];
  const [, size, unit] = units.find(([from]) => seconds >= from);
  return `${shown(seconds / size)} ${unit}`;
}

function render({ model, el }) {
  const piece = frame(PIECE, { model, el }, (name) => {
    usePreset(PIECE, piece, name);
    draw();
  });
  const { state, view, say } = piece;
  const picture = chart("");
  const numbers = make("div", { class: "pg-figure" });
  const others = make("div", { class: "pg-figure pg-whole" });
  view.append(make("div", { class: "pg-figure" }, picture.svg), numbers, others);

  function draw() {
    piece.inputs.preset.refresh();
    const star = best(state), at = plan(state, star), mine = plan(state, state.batch_size);
    const few = state.batch_size < state.devices;
    const { critical_batch: crit, knee, devices } = state;
    const from = Math.max(devices, Math.min(star / 32, crit, knee * devices, state.batch_size) / 1.5);
    const to = 1.5 * Math.max(star * 32, crit, knee * devices, state.batch_size);
    const sizes = Array.from({ length: 81 }, (_, k) => from * (to / from) ** (k / 80));
    const curve = sizes.map((size) => [size, plan(state, size).seconds]);
    const high = Math.max(...curve.map((pair) => pair[1]));
    const [size, unit] = at.seconds < 1 ? [0.001, "ms"] : at.seconds < 600 ? [1, "s"] : [3600, "hours"];
    picture.axes(
      { from, to, log: true, label: "batch size (examples)" },
      { from: at.seconds / size / 1.6, to: high / size * 1.1, log: true, label: `time to the target (${unit})` },
    );
    const upright = (x) => [[x, at.seconds / size / 1.6], [x, high / size]];
    if (knee * devices > from) picture.line(upright(knee * devices), "pg-floor", "knee");
    if (crit > from) picture.line(upright(crit).reverse(), "pg-floor", "critical", "start"); // clear of the other
    picture.line(curve.map(([x, y]) => [x, y / size]), "pg-main");
    picture.mark(star, at.seconds / size, "pg-best", 5, "B*");
    if (!few) picture.mark(state.batch_size, mine.seconds / size, "pg-mine", 6);
    const column = ({ steps, step, seconds, examples, cost }, batch) =>
      [shown(Math.round(batch)), shown(steps), duration(step), duration(seconds), shown(examples), state.price ? shown(cost) : "–"];
    const names = ["batch size", "steps", "a step takes", "time", "examples", "cost"];
    const yours = few ? names.map(() => "–") : column(mine, state.batch_size), fastest = column(at, star);
    numbers.replaceChildren(table("At your batch size, and at the fastest", [
      ["", "yours", "fastest"], ...names.map((name, i) => [name, yours[i], fastest[i]]),
    ]), make("p", {}, source()));
    others.replaceChildren(table("With other numbers of devices, each at its fastest batch size", [
      ["devices", "batch size", "time", "cost"],
      ...[1, 4, 16, 64, 256].map((devices) => {
        const other = { ...state, devices }, batch = best(other), { seconds, cost } = plan(other, batch);
        return [String(devices), shown(Math.round(batch)), duration(seconds), state.price ? shown(cost) : "–"];
      }),
    ]));
    const sentence = few
      ? `${shown(state.devices)} devices need a batch of ${shown(state.devices)} at least; the fastest is ${shown(Math.round(star))}.`
      : `A batch of ${shown(state.batch_size)} takes ${duration(mine.seconds)}, ${shown(mine.seconds / at.seconds)} times the least: ${duration(at.seconds)} at ${shown(Math.round(star))}.`;
    picture.describe(`${sentence} The curve of time against batch size falls to B* and rises again.`);
    say(sentence);
  }
  function source() {
    const preset = PIECE.presets[state.preset];
    return preset ? `Fitted to ${preset.source}: training loss 1.0, rate tuned at each size. The price is an example.` : "Numbers of your own.";
  }
  draw();
}

export default { render };
