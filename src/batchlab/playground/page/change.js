// Change B: settings found at one batch size, at another. The twin of batchlab.rescale, word for word where it speaks.
import { frame, make, shown, table } from "./shared.js";

const RATES = { sgd: 0.1, adam: 0.001, adamw: 0.001 };
const DECAYS = {
  ema: "power r (Busbridge 2023)",
  momentum: "power r (Busbridge 2023)",
  beta1: "power r (Malladi 2022, to first order)",
  beta2: "power r: half-life in examples (Marek 2025)",
};
const SOURCES = {
  "linear sgd": "linear (Goyal 2017)",
  "sqrt adam": "square root (Malladi 2022, Hilton 2022)",
  "gain sgd": "gain (AdaScale, Johnson 2020)",
  "gain adam": "square root of the gain (McCandlish 2018)",
};

// `old` holds numbers by name, lr among them; `keep` is a list of names, or null for what chapter 6 advises.
export function rescale(old, before, after, { optimizer, rule = "auto", noise_scale = null, keep = null }) {
  const r = after / before, family = optimizer === "sgd" ? "sgd" : "adam";
  const why = keep ? "kept: asked for" : "kept: lost accuracy where it moved";
  keep ??= "momentum" in old ? ["momentum"] : [];
  if (rule === "auto") rule = noise_scale ? "gain" : family === "sgd" ? "linear" : "sqrt";
  const settings = { ...old }, rules = {};
  for (const name of Object.keys(old)) {
    if (keep.includes(name)) rules[name] = why;
    else if (name in DECAYS) [settings[name], rules[name]] = [old[name] ** r, DECAYS[name]];
    else if (name === "eps") [settings[name], rules[name]] = [old[name] / Math.sqrt(r), "/ sqrt(r) (Malladi 2022)"];
    else if (name.endsWith("_steps")) [settings[name], rules[name]] = [old[name] / r, "/ r: as many examples"];
    else rules[name] = "kept: part of the loss";
  }
  if (!keep.includes("lr")) {
    const gain = (1 + noise_scale / before) / (1 + noise_scale / after);
    const factors = { none: 1, sqrt: Math.sqrt(r), linear: r, gain: family === "sgd" ? gain : Math.sqrt(gain) };
    settings.lr = old.lr * factors[rule];
    rules.lr = rule === "none" ? "kept: rule 'none'" : SOURCES[`${rule} ${family}`] ?? rule;
    if (settings.momentum !== old.momentum) {
      settings.lr *= (1 - settings.momentum) / (1 - old.momentum);
      rules.lr += ", of lr / (1 - momentum)";
    }
  }
  if (optimizer === "adamw" && "weight_decay" in old && !keep.includes("weight_decay")) {
    settings.weight_decay = (old.weight_decay * r * old.lr) / settings.lr;
    rules.weight_decay = "timescale in examples (Wang & Aitchison 2025, Bergsma 2025)";
  }
  return { settings, rules };
}

// What of a piece's settings `rescale` is given, here and in Python.
export function asked(state, specs) {
  const names = ["lr", "momentum", "beta1", "beta2", "eps", "weight_decay", "ema", "warmup_steps"];
  const of = names.filter((name) => state[name] !== null && (specs[name].of ?? [state.optimizer]).includes(state.optimizer));
  const old = Object.fromEntries(of.map((name) => [name, state[name]]));
  const keep = { advised: null, none: [], decays: of.filter((name) => name in DECAYS) }[state.keep];
  return { old, keep };
}

function refusal({ batch_size, new_batch_size, rule, noise_scale }) {
  if (rule === "gain" && noise_scale === null) return "The gain needs a noise scale: fill it in, or choose another rule.";
  if (!["auto", "gain"].includes(rule) && noise_scale !== null) return "This rule does not use the noise scale: empty it, or choose the gain.";
  return "";
}

function render({ model, el }) {
  const specs = PIECE.settings;
  let was;
  const piece = frame(PIECE, { model, el }, (name) => {
    if (name === "optimizer" && state.lr === RATES[was]) state.lr = RATES[state.optimizer];
    if (name === "optimizer") piece.refresh();
    draw();
  });
  const { state, view, say } = piece;
  const result = make("div", { class: "pg-figure pg-whole" });
  view.append(result);

  function draw() {
    was = state.optimizer;
    for (const [name, { box }] of Object.entries(piece.inputs)) box.hidden = !(specs[name].of ?? [was]).includes(was);
    const refused = refusal(state);
    if (refused) {
      result.replaceChildren(make("p", { class: "pg-warning" }, refused));
      return say(refused);
    }
    const { old, keep } = asked(state, specs);
    const { batch_size: before, new_batch_size: after, critical_batch: critical } = state;
    const { settings, rules } = rescale(old, before, after, { ...state, keep });
    const digits = (value) => String(Number(value.toPrecision(6)));
    const rows = Object.keys(old).map((name) => [name, digits(old[name]), digits(settings[name]), rules[name]]);
    const past = critical !== null && before !== after && Math.max(before, after) > critical
      ? "Past the critical batch size a larger batch saves hardly any steps, and no rule was shown to hold: tune again." : "";
    result.replaceChildren(
      table(`The settings at B = ${shown(before)}, and at B = ${shown(after)}`, [["setting", "before", "after", "rule"], ...rows]),
      ...(past ? [make("p", { class: "pg-warning" }, past)] : []),
      make("p", {}, "In Python:"), make("pre", {}, make("code", {}, call(old, keep, state, past))),
    );
    say(`From ${shown(before)} to ${shown(after)}: learning rate ${digits(old.lr)} to ${digits(settings.lr)}. ${past}`);
  }
  draw();
}

function call(old, keep, { batch_size, new_batch_size, optimizer, rule, noise_scale, critical_batch }, past) {
  const pairs = Object.entries(old).map(([name, value]) => `"${name}": ${value}`).join(", ");
  const more = [
    rule === "auto" ? "" : `rule="${rule}"`,
    noise_scale === null ? "" : `noise_scale=${noise_scale}`,
    critical_batch === null ? "" : `critical_batch=${critical_batch}`,
    past ? 'past_critical="warn"' : "",
    keep === null ? "" : `keep=(${keep.map((name) => `"${name}", `).join("").trim()})`,
  ].filter(Boolean).map((text) => `, ${text}`).join("");
  return `bl.rescale({${pairs}}, ${batch_size}, ${new_batch_size}, optimizer="${optimizer}"${more})`;
}

export default { render };
