// The Z-lab: trains a softmax policy over a few states by trajectory balance, here
// in the browser, again after every move of a control.  The arithmetic is that of
// z_training.py, number for number.

const LEFT = 56;
const COUNTERS = 2 ** 20;
const USUAL_RATE = 0.2; // of log Z, in the run that others are compared with
const BLUE = "#0072B2";
const ORANGE = "#D55E00";

const MODES = {
  learned: "learned",
  attached: "learned, not detached",
  batch: "batch mean (VarGrad)",
  frozen: "frozen at truth + bias",
  dropped: "dropped (0)",
};
const SAMPLERS = {
  policy: "the policy",
  reference: "the reference",
};

function uniform(counter) {
  let x = counter >>> 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (((x ^ (x >>> 16)) >>> 0) + 0.5) / 2 ** 32;
}

function shares(probs, batchSize, seed, step) {
  if (!batchSize) return probs;
  const last = probs.length - 1;
  const sums = new Float64Array(probs.length);
  probs.reduce((sum, p, i) => (sums[i] = sum + p), 0);
  const counts = new Float64Array(probs.length);
  for (let i = 0; i < batchSize; i += 1) {
    const draw = uniform(seed * COUNTERS + step * batchSize + i);
    let low = 0;
    let high = probs.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sums[middle] <= draw) low = middle + 1;
      else high = middle;
    }
    counts[Math.min(low, last)] += 1 / batchSize;
  }
  return counts;
}

function adam(rate, size) {
  const first = new Float64Array(size);
  const second = new Float64Array(size);
  let step = 0;
  return (values, gradient) => {
    step += 1;
    for (let i = 0; i < size; i += 1) {
      first[i] = 0.9 * first[i] + (1 - 0.9) * gradient[i];
      second[i] = 0.999 * second[i] + (1 - 0.999) * gradient[i] ** 2;
      const mean = first[i] / (1 - 0.9 ** step);
      const square = second[i] / (1 - 0.999 ** step);
      values[i] -= (rate * mean) / (Math.sqrt(square) + 1e-8);
    }
  };
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) sum += a[i] * b[i];
  return sum;
}

function logSoftmax(logits) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = logits.reduce((sum, value) => sum + Math.exp(value - top), 0);
  return logits.map((value) => value - top - Math.log(total));
}

function logSumExp(scores) {
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  return top + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - top), 0));
}

function train(world, settings, seed) {
  const { scores, logReference, reads, steps } = world;
  const exact = logSumExp(scores);
  const logits = Float64Array.from(logReference);
  const reference = logReference.map(Math.exp);
  const own = new Float64Array(1);
  const movePolicy = adam(settings.learning_rate, scores.length);
  const moveLogZ = adam(settings.log_z_learning_rate, 1);
  const attached = settings.mode === "attached";
  const trace = { exact, logProbs: [], logZ: [], best: [], kl: [], mean: [], rms: [] };
  for (let step = 0; step <= steps; step += 1) {
    const logProbs = logSoftmax(logits);
    const probs = logProbs.map(Math.exp);
    const ratios = scores.map((score, i) => score - logProbs[i]);
    const drawn = settings.sampler === "policy" ? probs : reference;
    const weights = shares(drawn, settings.batch_size, seed, step);
    let logZ = own[0];
    if (attached) logZ += dot(reads, logits.map((x, i) => x - logReference[i]));
    if (settings.mode === "batch") logZ = dot(weights, ratios);
    if (settings.mode === "frozen") logZ = exact + settings.bias;
    if (settings.mode === "dropped") logZ = 0;
    const residuals = ratios.map((ratio) => logZ - ratio);
    const mean = dot(weights, residuals);
    const best = dot(probs, ratios);
    trace.logProbs.push(logProbs);
    trace.logZ.push(logZ);
    trace.best.push(best);
    trace.kl.push(exact - best);
    trace.mean.push(mean);
    trace.rms.push(Math.sqrt(dot(weights, residuals.map((d) => d * d))));
    movePolicy(logits, residuals.map((residual, i) => (
      2 * (weights[i] * residual - probs[i] * mean) + (attached ? 2 * mean * reads[i] : 0)
    )));
    if (settings.mode === "learned" || attached) moveLogZ(own, [2 * mean]);
  }
  return trace;
}

function place(box, low, high) {
  const span = high > low ? high - low : 1;
  return (value) => {
    const part = Math.min(Math.max((value - low) / span, 0), 1);
    return box.top + box.height * (1 - part);
  };
}

function line(values, box, height) {
  return Array.from(values, (value, i) => {
    const x = box.left + (i / (values.length - 1)) * box.width;
    return `${i ? "L" : "M"}${x.toFixed(1)} ${height(value).toFixed(1)}`;
  }).join("");
}

function frame(svg, box, title, ticks, height) {
  svg.append(node("text", { x: box.left, y: box.top - 8 }, title));
  for (const [value, words] of ticks) {
    const y = height(value);
    svg.append(node("path", { class: "grid", d: `M${box.left} ${y}h${box.width}` }));
    const at = { x: box.left - 5, y: y + 4, "text-anchor": "end" };
    svg.append(node("text", at, words));
  }
}

function drawPolicy(svg, box, logProbs, target) {
  const high = 1.6 * Math.max(...target);
  const probs = logProbs.map(Math.exp);
  const height = place(box, 0, high);
  const spike = probs.indexOf(Math.max(...probs));
  const cut = probs[spike] > high ? `   ↑ ${round(probs[spike])} at ${spike}` : "";
  const title = `policy (line) over target (grey)${cut}`;
  frame(svg, box, title, [[0, "0"], [high, round(high)]], height);
  const base = box.top + box.height;
  const area = `${line(target, box, height)}V${base}H${box.left}Z`;
  svg.append(node("path", { class: "area", d: area }));
  const style = { fill: "none", stroke: BLUE, "stroke-width": 2, class: "policy" };
  svg.append(node("path", { ...style, d: line(probs, box, height) }));
}

function drawCurves(svg, box, title, curves, options) {
  const change = options.log ? (v) => Math.log10(Math.max(v, 1e-6)) : (v) => v;
  const all = curves.flatMap((curve) => Array.from(curve.values, change));
  const held = (options.held[title] ??= [Infinity, -Infinity]);
  held[0] = Math.min(held[0], ...all, options.floor ?? Infinity);
  held[1] = Math.max(held[1], ...all);
  const [low, high] = held;
  const height = place(box, low, high);
  const back = (value) => round(options.log ? 10 ** value : value);
  frame(svg, box, title, [[low, back(low)], [high, back(high)]], height);
  for (const curve of curves) {
    const style = { fill: "none", stroke: curve.color, "stroke-width": curve.width ?? 2 };
    if (curve.dash) style["stroke-dasharray"] = curve.dash;
    svg.append(node("path", { ...style, d: line(curve.values.map(change), box, height) }));
  }
  const last = curves[0].values.length - 1;
  const under = { y: box.top + box.height + 15, class: "small" };
  svg.append(node("text", { ...under, x: box.left }, "step 0"));
  const right = { ...under, x: box.left + box.width, "text-anchor": "end" };
  svg.append(node("text", right, String(last)));
  const x = box.left + (options.step / last) * box.width;
  svg.append(node("path", { class: "frame", d: `M${x} ${box.top}v${box.height}` }));
}

function slider(name, words, low, high, step, write) {
  return { name, words, low, high, step, write };
}

function controls(limits) {
  const sizes = limits.batch_sizes;
  const power = { to: Math.log10, from: (x) => Number((10 ** x).toPrecision(3)) };
  const same = { to: (x) => x, from: Number };
  const size = { to: (x) => sizes.indexOf(x), from: (x) => sizes[Number(x)] };
  const rate = (ends) => [Math.log10(ends[0]), Math.log10(ends[1]), 0.01];
  return [
    { ...slider("bias", "bias, nats", ...limits.bias, 0.5, round), ...same },
    { ...slider("log_z_learning_rate", "rate of log Z", ...rate(limits.log_z_learning_rate), round), ...power },
    { ...slider("learning_rate", "rate of policy", ...rate(limits.learning_rate), round), ...power },
    { ...slider("batch_size", "batch size", 0, sizes.length - 1, 1, (x) => (x ? String(x) : "exact")), ...size },
    { ...slider("seed", "draws, seed", limits.seed[0], 40, 1, String), ...same },
    { ...slider("step", "show step", ...limits.step, 1, String), ...same },
  ];
}

function addRow(form, id, words, input) {
  const row = document.createElement("div");
  row.className = "row";
  const label = Object.assign(document.createElement("label"), { textContent: words });
  label.htmlFor = id;
  input.id = id;
  // the notebook would take the arrow keys for itself
  input.addEventListener("keydown", (event) => event.stopPropagation());
  row.append(label, input);
  form.append(row);
  return row;
}

function addSelect(form, id, words, choices) {
  const select = document.createElement("select");
  for (const [value, text] of Object.entries(choices)) select.append(new Option(text, value));
  addRow(form, id, words, select);
  return select;
}

function addSlider(form, id, control) {
  const input = Object.assign(document.createElement("input"), { type: "range" });
  Object.assign(input, { min: control.low, max: control.high, step: control.step });
  const row = addRow(form, id, control.words, input);
  const output = document.createElement("output");
  output.htmlFor = id;
  row.append(output);
  return { input, output, row };
}

function spread(values) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const squares = values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
  return [mean, Math.sqrt(squares / (values.length - 1))];
}

function lastMean(kl, count) {
  return kl.slice(-count).reduce((a, b) => a + b, 0) / count;
}

// The policy above, three curves below it: beside one another where there is room.
function picture(trace, step, target, usualKl, held) {
  const columns = WIDTH >= 620 ? 3 : 1;
  const height = 196 + (3 / columns) * 172 - 30;
  const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img" });
  const wide = { left: LEFT, top: 24, width: WIDTH - LEFT - 10, height: 110 };
  drawPolicy(svg, wide, trace.logProbs[step], target);
  const pitch = (WIDTH + 1) / columns;
  const boxes = [0, 1, 2].map((i) => ({
    left: LEFT + (i % columns) * pitch,
    top: 196 + Math.floor(i / columns) * 172,
    width: pitch - LEFT - 11,
    height: 120,
  }));
  const truth = trace.kl.map(() => trace.exact);
  drawCurves(svg, boxes[0], "log Z", [
    { values: truth, color: "currentColor", width: 1, dash: "2 3" },
    { values: trace.best, color: ORANGE, dash: "6 3" },
    { values: trace.logZ, color: BLUE },
  ], { step, held });
  drawCurves(svg, boxes[1], "KL(π‖p*), log axis", [
    { values: usualKl, color: "currentColor", width: 1, dash: "2 3" },
    { values: trace.kl, color: BLUE },
  ], { step, held, log: true });
  drawCurves(svg, boxes[2], "rms residual (root of the loss)",
    [{ values: trace.rms, color: BLUE }], { step, held, floor: 0 });
  return svg;
}

function render({ model, el }) {
  const limits = model.get("_limits");
  const world = {
    scores: typed(model.get("_scores"), Float64Array),
    logReference: typed(model.get("_log_reference"), Float64Array),
    reads: typed(model.get("_reads"), Float64Array),
    steps: limits.steps,
  };
  const exact = logSumExp(world.scores);
  const target = world.scores.map((score) => Math.exp(score - exact));
  const id = `flowrl-z-${Math.random().toString(36).slice(2)}`;

  el.classList.add("flowrl-explorer");
  el.innerHTML = `
    <div class="z-controls" role="group" aria-label="Z-lab settings"></div>
    <div class="numbers"></div>
    <div class="verdict"></div>
    <div class="picture"></div>
    <div class="remark">log Z: blue is in the residual, orange is true − KL, dotted is
      true. KL: dotted is the same run with log Z learned. Upright: the step that is
      shown.</div>
    <div class="spoken" aria-live="polite"></div>`;
  const form = el.querySelector(".z-controls");
  const mode = addSelect(form, `${id}-mode`, "log Z is", MODES);
  const sampler = addSelect(form, `${id}-sampler`, "samples from", SAMPLERS);
  const sliders = controls(limits).map((control) => (
    { ...control, ...addSlider(form, `${id}-${control.name}`, control) }
  ));
  const inUse = {
    bias: () => model.get("mode") === "frozen",
    log_z_learning_rate: () => ["learned", "attached"].includes(model.get("mode")),
    seed: () => model.get("batch_size") !== 0,
  };
  let trace = null;
  // While a dial moves the axes may grow and never shrink.
  let held = {};
  let usualKl = null;
  let facts = [];
  let verdict = "";

  function settings() {
    const names = ["mode", "bias", "learning_rate", "log_z_learning_rate", "batch_size",
      "sampler"];
    return Object.fromEntries(names.map((name) => [name, model.get(name)]));
  }

  function retrain() {
    const chosen = settings();
    const seed = model.get("seed");
    const usual = { ...chosen, mode: "learned", log_z_learning_rate: USUAL_RATE };
    trace = train(world, chosen, seed);
    usualKl = train(world, usual, seed).kl;
    const ends = [lastMean(trace.kl, limits.last)];
    // without samples all draws are the same
    for (let more = 1; chosen.batch_size && more < limits.draws; more += 1) {
      ends.push(lastMean(train(world, chosen, seed + more).kl, limits.last));
    }
    const [mean, deviation] = spread(ends);
    const how = `last ${limits.last} steps`;
    verdict = `KL(π‖p*) at the end: ${round(mean)} ` + (chosen.batch_size
      ? `± ${round(deviation)} nats (${how}, ${limits.draws} different draws)`
      : `nats (${how}, exact: nothing is drawn)`);
    draw();
  }

  function showControls() {
    mode.value = model.get("mode");
    sampler.value = model.get("sampler");
    for (const { name, to, write, input, output, row } of sliders) {
      const value = model.get(name);
      input.value = String(to(value));
      output.textContent = write(value);
      input.setAttribute("aria-valuetext", write(value));
      input.disabled = !(inUse[name]?.() ?? true);
      row.classList.toggle("off", input.disabled);
    }
  }

  function draw() {
    const step = model.get("step");
    showControls();
    facts = [
      `step ${step} of ${limits.steps}`,
      `KL(π‖p*) ${round(trace.kl[step])}`,
      `log Z ${round(trace.logZ[step])}`,
      `true log Z ${round(exact)}`,
      `true log Z − KL ${round(trace.best[step])}`,
      `mean residual ${round(trace.mean[step])}`,
      `rms residual ${round(trace.rms[step])}`,
    ];
    el.querySelector(".numbers").replaceChildren(...facts.map((fact) => (
      Object.assign(document.createElement("span"), { textContent: fact })
    )));
    el.querySelector(".verdict").textContent = verdict;
    WIDTH = room(el);
    const svg = picture(trace, step, target, usualKl, held);
    svg.setAttribute("aria-label", `Z-lab, log Z ${MODES[model.get("mode")]}, sampled ` +
      `by ${SAMPLERS[model.get("sampler")]}: ${facts.join(", ")}. ${verdict}.`);
    el.querySelector(".picture").replaceChildren(svg);
  }

  const letGo = whenAtRest(() => {
    held = {};
    draw();
  });
  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }
  const speak = () => {
    el.querySelector(".spoken").textContent = `${facts.slice(1).join(", ")}. ${verdict}.`;
  };
  mode.addEventListener("change", () => {
    held = {};
    set("mode", mode.value);
    speak();
  });
  sampler.addEventListener("change", () => {
    held = {};
    set("sampler", sampler.value);
    speak();
  });
  for (const { name, from, input } of sliders) {
    input.addEventListener("input", () => set(name, from(Number(input.value))));
    input.addEventListener("change", () => {
      speak();
      letGo();
    });
  }
  const retrained = ["mode", "sampler", ...sliders.map((s) => s.name)]
    .filter((name) => name !== "step").map((name) => `change:${name}`);
  for (const event of retrained) model.on(event, retrain);
  model.on("change:step", draw);
  retrain();
  const unfollow = follow(el, draw);
  return () => {
    unfollow();
    for (const event of retrained) model.off(event, retrain);
    model.off("change:step", draw);
  };
}

export default { render };
