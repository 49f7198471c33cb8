// Descent: many particles, each a run of SGD with batch noise of its own, on one surface.
import { chart, frame, make, normals, shown, HEIGHT, WIDTH } from "./shared.js";

const LAST = 1000; // steps, then it stops by itself
const REACH = [3, 3 * HEIGHT / WIDTH]; // what is seen of the plane, from the middle

// The loss, its slope, where the particles start, the y of its minima, and the curvatures there.
// The noise of a batch has variance 1 / B on each axis.
export const SURFACES = {
  bowl: { loss: (x, y) => (x * x + y * y) / 2, slope: (x, y) => [x, y], start: [-2.4, 1.6], minima: [0], h: [1, 1] },
  valley: {
    loss: (x, y) => (x * x / 20 + y * y) / 2, slope: (x, y) => [x / 20, y], start: [-2.4, 1.6], minima: [0], h: [1 / 20, 1],
  },
  saddle: {
    loss: (x, y) => x * x / 2 + (y * y - 1) ** 2 / 4, slope: (x, y) => [x, y * (y * y - 1)], start: [-2.4, 0],
    minima: [-1, 1], h: [1, 2],
  },
};

export function begin({ surface, particles }) {
  const { start, h } = SURFACES[surface];
  const at = Array.from({ length: particles }, () => [...start, 0, 0]); // x, y and their velocities
  return { steps: 0, at, moments: h.map((_, i) => [start[i] ** 2, 0, 0]) };
}

// One step of heavy-ball SGD for every particle, v' = μ v + g and w' = w − η v', and of the exact second moments.
export function advance(cloud, { surface, batch_size, lr, momentum, seed }) {
  const { slope, h } = SURFACES[surface];
  const sd = Math.sqrt(1 / batch_size);
  cloud.at.forEach((particle, i) => {
    const [gx, gy] = slope(particle[0], particle[1]);
    const [nx, ny] = normals(seed, 0, i, cloud.steps);
    particle[2] = momentum * particle[2] + gx + sd * nx;
    particle[3] = momentum * particle[3] + gy + sd * ny;
    particle[0] -= lr * particle[2];
    particle[1] -= lr * particle[3];
  });
  cloud.moments = cloud.moments.map(([ww, wv, vv], i) => {
    const next = (h[i] ** 2) * ww + 2 * h[i] * momentum * wv + momentum ** 2 * vv + 1 / batch_size; // E v'²
    const cross = h[i] * ww + momentum * wv; // E w v'
    return [ww - 2 * lr * cross + lr ** 2 * next, cross - lr * next, next];
  });
  cloud.steps += 1;
  return cloud;
}

export const meanLoss = (cloud, { surface }) =>
  cloud.at.reduce((sum, [x, y]) => sum + SURFACES[surface].loss(x, y), 0) / cloud.at.length;

// The expected loss over all runs, exact on bowl and valley; there is no such formula for the saddle.
export const expectedLoss = (cloud, { surface }) =>
  surface === "saddle" ? NaN : cloud.moments.reduce((sum, [ww], i) => sum + SURFACES[surface].h[i] * ww / 2, 0);

// The variance at which the particles stay round a minimum, on both axes (Liu, Ziyin and Ueda, 2021).
export function variances({ surface, batch_size, lr, momentum: mu }) {
  return SURFACES[surface].h.map((h) => {
    const room = 2 * (1 + mu) - lr * h;
    return room > 0 ? (lr * (1 + mu)) / (batch_size * h * (1 - mu) * room) : Infinity;
  });
}

// Where the expected loss settles: half the curvature times the variance, on both axes.
export const floor = (settings) =>
  variances(settings).reduce((sum, variance, i) => sum + (SURFACES[settings.surface].h[i] * variance) / 2, 0);

// --- On the page ---------------------------------------------------------------------------------------------------

const STILL = matchMedia("(prefers-reduced-motion: reduce)");

function render({ model, el }) {
  const piece = frame(PIECE, { model, el }, (name) => {
    if (["surface", "particles", "seed", ""].includes(name)) restart();
    draw();
    tell();
  });
  const { state, view, say } = piece;
  const canvas = make("canvas", { role: "img" });
  const losses = chart("");
  const play = make("button", { type: "button" });
  const step = make("button", { type: "button" }, "Step");
  const again = make("button", { type: "button" }, "Start again");
  const count = make("span", { class: "pg-count" });
  view.append(
    make("div", { class: "pg-figure" }, canvas, make("div", { class: "pg-buttons" }, play, step, again, count)),
    make("div", { class: "pg-figure" }, losses.svg, make("p", {}, "Dashed: the noise floor, and the ellipse that holds six runs of seven there. Thick: the mean of these runs; thin: the expected loss. Red: one run.")),
  );
  let cloud, seen, expected, trail, playing = 0, shade;

  function restart() {
    cloud = begin(state);
    seen = [];
    expected = [];
    trail = [];
    record();
  }
  function record() {
    seen.push([cloud.steps, meanLoss(cloud, state)]);
    expected.push([cloud.steps, expectedLoss(cloud, state)]);
    trail.push(cloud.at[0].slice(0, 2));
  }
  function go(steps) {
    for (let i = 0; i < steps && cloud.steps < LAST; i++) {
      advance(cloud, state);
      record();
    }
    draw();
  }

  function draw() {
    drawCloud();
    const least = Math.min(floor(state), ...seen.slice(-50).map((pair) => pair[1]).filter(Number.isFinite));
    const low = 10 ** Math.max(-6, Math.min(-2, Math.floor(Math.log10(least / 1.5))));
    const wide = Math.max(100, 100 * 2 ** Math.ceil(Math.log2(cloud.steps / 100)));
    losses.axes({ from: 0, to: Math.min(wide, LAST), label: "steps" }, { from: low, to: 10, log: true, label: "loss above the minimum" });
    losses.line([[0, floor(state)], [Math.min(wide, LAST), floor(state)]], "pg-floor", "noise floor");
    losses.line(expected, "pg-thin");
    losses.line(seen, "pg-main");
    count.textContent = `step ${cloud.steps}`;
    play.textContent = playing ? "Pause" : STILL.matches ? "Run 100 steps" : "Play";
    if (playing) return; // nothing is said of a moving picture
    canvas.setAttribute("aria-label", describe());
    losses.describe(`The mean loss of ${state.particles} runs against steps, on its noise floor of ${shown(floor(state))}.`);
  }
  function describe() {
    const loss = seen[seen.length - 1][1];
    const high = floor(state);
    const about = state.surface === "saddle" ? "about " : "";
    const where = Number.isFinite(high)
      ? `The noise floor is ${about}${shown(high)}.`
      : `No floor: the rate is above 2 (1 + μ) / h = ${shown((2 * (1 + state.momentum)) / Math.max(...SURFACES[state.surface].h))}, and runs diverge.`;
    const sides = cloud.at.filter(([, y]) => Math.abs(y) > 0.5).length;
    const left = state.surface === "saddle" ? ` ${sides} of ${state.particles} have left the saddle.` : "";
    const end = cloud.steps === LAST ? " Here it ends." : "";
    return `Step ${cloud.steps}: mean loss ${shown(loss)}. ${where}${left}${end}`;
  }
  const tell = (soon) => say(describe(), soon);

  function drawCloud() {
    const ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width) return;
    const style = getComputedStyle(canvas);
    const key = [width, height, style.color, state.surface].join();
    if (shade?.key !== key) {
      canvas.width = width;
      canvas.height = height;
      shade = { key, picture: contours(width, height, style.color, SURFACES[state.surface].loss) };
    }
    const pen = canvas.getContext("2d");
    const place = ([x, y]) => [width * (0.5 + x / REACH[0] / 2), height * (0.5 - y / REACH[1] / 2)];
    pen.clearRect(0, 0, width, height);
    pen.drawImage(shade.picture, 0, 0);
    pen.strokeStyle = pen.fillStyle = style.caretColor;
    pen.lineWidth = ratio;
    pen.beginPath();
    trail.slice(-60).forEach((point) => pen.lineTo(...place(point)));
    pen.stroke();
    pen.setLineDash([5 * ratio, 4 * ratio]);
    pen.strokeStyle = style.color;
    const [rx, ry] = variances(state).map((variance, i) => Math.sqrt(variance) * [width, height][i] / REACH[i]); // two sd
    for (const y of Number.isFinite(rx + ry) ? SURFACES[state.surface].minima : []) {
      pen.beginPath();
      pen.ellipse(...place([0, y]), rx, ry, 0, 0, 7);
      pen.stroke();
    }
    pen.setLineDash([]);
    pen.strokeStyle = style.caretColor;
    pen.globalAlpha = 0.75;
    for (const particle of cloud.at) {
      pen.beginPath();
      pen.arc(...place(particle), 2.2 * ratio, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.fillStyle = style.outlineColor;
    pen.beginPath();
    pen.arc(...place(cloud.at[0]), 4.5 * ratio, 0, 7);
    pen.fill();
    pen.stroke();
  }

  // While it plays: sixty steps a second, whatever the screen's rate; a tab that was away does not catch up.
  function pause() {
    cancelAnimationFrame(playing);
    playing = 0;
  }
  function run() {
    let last = performance.now(), due = 0;
    const next = (now) => {
      due = Math.min(due + (now - last) * 0.06, 6);
      last = now;
      if (due >= 1) go(Math.floor(due));
      due %= 1;
      if (cloud.steps < LAST && el.isConnected) playing = requestAnimationFrame(next);
      else stop();
    };
    playing = requestAnimationFrame(next);
  }
  function stop() {
    pause();
    draw();
    tell(0);
  }
  play.addEventListener("click", () => {
    if (playing) return stop();
    if (cloud.steps === LAST) restart();
    if (STILL.matches) {
      go(100);
      return tell(0);
    }
    run();
    draw();
  });
  step.addEventListener("click", () => {
    pause();
    go(1);
    tell(0);
  });
  again.addEventListener("click", () => {
    pause();
    restart();
    draw();
    tell(0);
  });
  restart();
  draw();
  tell();
  // Another width, light, dark, less motion: the canvas is drawn anew, in colours of its own for each.
  const gone = new AbortController(), size = new ResizeObserver(draw), theme = new MutationObserver(draw);
  size.observe(canvas);
  theme.observe(document.documentElement, { attributes: true });
  for (const medium of [STILL, matchMedia("(prefers-color-scheme: dark)")]) {
    medium.addEventListener("change", draw, { signal: gone.signal });
  }
  return () => {
    pause();
    gone.abort();
    size.disconnect();
    theme.disconnect();
  };
}

// The height of the loss as bands, a band for each factor of two above the lowest twentieth.
function contours(width, height, colour, loss) {
  const picture = make("canvas", { width, height });
  const pen = picture.getContext("2d");
  pen.fillStyle = colour;
  const cell = Math.max(1, Math.round(width / 320));
  for (let i = 0; i < width; i += cell) {
    for (let j = 0; j < height; j += cell) {
      const z = loss(((i + cell / 2) / width * 2 - 1) * REACH[0], (1 - (j + cell / 2) / height * 2) * REACH[1]);
      pen.globalAlpha = 0.02 + 0.03 * Math.max(0, Math.ceil(Math.log2(z / 0.05)));
      pen.fillRect(i, j, cell, cell);
    }
  }
  return picture;
}

export default { render };
