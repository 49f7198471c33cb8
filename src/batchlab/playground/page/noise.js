// Noise: how the gradients of 200 batches scatter round the gradient they estimate.
import { chart, frame, make, normals, shown, table, usePreset } from "./shared.js";

const DRAWS = 200, EXAMPLES = 1437;

// Errors of batch gradients over |g|, as drawn in the plane of g: along it, and across it. Noise of one variance in
// every direction adds up to (noise scale / B) |g|²; with many directions, "across" is the length of all but the first.
export function scatter({ batch_size, noise_scale, directions, drawn, seed }) {
  const sd = Math.sqrt(laws({ batch_size, noise_scale, drawn }).miss / directions);
  return Array.from({ length: DRAWS }, (_, i) => {
    const z = [];
    for (let j = 0; z.length < directions; j++) z.push(...normals(seed, 1, i, j));
    const across = Math.hypot(...z.slice(1, directions));
    return [1 + sd * z[0], sd * across * (z[1] < 0 ? -1 : 1)];
  });
}

// Over |g|²: the mean squared miss, the mean squared length, and about the mean cosine (McCandlish et al., 2018).
export function laws({ batch_size, noise_scale, drawn }) {
  const factor = drawn === "with" ? 1 : (EXAMPLES - batch_size) / (EXAMPLES - 1);
  const miss = (noise_scale / batch_size) * factor;
  return { miss, length: 1 + miss, cosine: (1 + miss) ** -0.5 };
}

export function found(points) {
  const mean = (f) => points.reduce((sum, point) => sum + f(...point), 0) / points.length;
  return {
    miss: mean((x, y) => (x - 1) ** 2 + y ** 2),
    length: mean((x, y) => x ** 2 + y ** 2),
    cosine: mean((x, y) => x / Math.hypot(x, y)),
  };
}

function render({ model, el }) {
  const piece = frame(PIECE, { model, el }, (name) => {
    usePreset(PIECE, piece, name);
    draw();
  });
  const { state, view, say } = piece;
  const picture = chart("");
  const numbers = make("div", { class: "pg-figure" });
  view.append(make("div", { class: "pg-figure" }, picture.svg), numbers);

  function draw() {
    piece.inputs.preset.refresh();
    const points = scatter(state), law = laws(state), seen = found(points);
    const most = Math.max(1, Math.sqrt(law.miss), ...points.map(([x, y]) => Math.max(Math.abs(x) / 0.76, Math.abs(y) * 2)));
    const reach = 2 ** (Math.ceil(2 * Math.log2(1.02 * most)) / 2); // in steps, so that a change of B is seen
    picture.axes(
      { from: -reach * 0.76, to: reach * 0.76, label: "along the true gradient (its length = 1)" },
      { from: -reach / 2, to: reach / 2, label: "across it" },
    );
    const ring = Array.from({ length: 73 }, (_, k) => (k * Math.PI) / 36);
    const radius = Math.sqrt(law.miss);
    picture.line(ring.map((angle) => [1 + radius * Math.cos(angle), radius * Math.sin(angle)]), "pg-floor");
    for (const [x, y] of points) picture.mark(x, y, "pg-dot", 2.2);
    picture.line([[0, 0], [1, 0]], "pg-arrow");
    picture.mark(1, 0, "pg-best", 4);
    const rows = [
      ["how far it misses, over |g|", Math.sqrt(law.miss), Math.sqrt(seen.miss)],
      ["its length, over |g|", Math.sqrt(law.length), Math.sqrt(seen.length)],
      ["its cosine with g", law.cosine, seen.cosine],
    ];
    const shownRows = rows.map(([text, ...pair]) => [text, ...pair.map(shown)]);
    numbers.replaceChildren(table("A batch’s gradient", [["", "law", "these 200"], ...shownRows]), make("p", {}, source()));
    const sentence = `Batches of ${shown(state.batch_size)} miss by ${shown(Math.sqrt(law.miss))} times the length of the gradient; their cosine with it is about ${shown(law.cosine)}.`;
    picture.describe(`${sentence} The true gradient is the arrow, each dot a batch, the ring their typical distance.`);
    say(sentence);
  }
  function source() {
    const preset = PIECE.presets[state.preset];
    const law = state.directions < 20 ? " The cosine’s law takes many directions: with few it is only near." : "";
    return (preset ? `Noise scale from ${preset.source}.` : "A noise scale of your own.") + law;
  }
  draw();
}

export default { render };
