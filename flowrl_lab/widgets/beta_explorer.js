// Reward in, distribution out: p*(x) ∝ π_ref(x) exp(β r(x)), recomputed here at
// every move of the slider, so that it works without a running kernel.

const LEFT = 56;
const HEIGHT = 120;

function target(rewards, logReference, scale) {
  const scores = rewards.map((reward, i) => logReference[i] + scale * reward);
  const top = Math.max(...scores);
  const logZ = top + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - top), 0));
  const probs = scores.map((score) => Math.exp(score - logZ));
  const entropy = scores.reduce(
    (sum, score, i) => sum - (probs[i] > 0 ? probs[i] * (score - logZ) : 0),
    0,
  );
  return { logZ, probs, entropy };
}

function panel(svg, top, values, low, high, title, reference) {
  const group = node("g", {});
  const count = values.length;
  const step = (WIDTH - LEFT - 10) / count;
  const span = high > low ? high - low : 1;
  const height = (value) => top + HEIGHT - ((value - low) / span) * HEIGHT;
  const base = height(Math.min(Math.max(0, low), high));
  const gap = count <= 120 ? step * 0.15 : 0;
  group.append(node("text", { x: LEFT, y: top - 8 }, title));
  for (const value of [low, high]) {
    const y = height(value);
    group.append(node("path", { class: "grid", d: `M${LEFT} ${y}H${WIDTH - 10}` }));
    const place = { x: LEFT - 6, y: y + 4, "text-anchor": "end" };
    group.append(node("text", place, round(value)));
  }
  let bars = "";
  let outline = "";
  for (let i = 0; i < count; i += 1) {
    const x = LEFT + i * step;
    bars += `M${x + gap} ${base}V${height(values[i])}H${x + step - gap}V${base}Z`;
    if (reference) {
      const y = height(Math.min(reference[i], high));
      outline += `${i ? "L" : "M"}${x} ${y}H${x + step}`;
    }
  }
  const color = reference ? "#0072B2" : "#D55E00";
  group.append(node("path", { d: bars, fill: color }));
  if (reference) group.append(node("path", { class: "outline", d: outline }));
  svg.append(group);
}

// how many of the names fit below one another's neighbours
function axisLabels(labels) {
  const letters = Math.max(...labels.map((label) => label.length));
  return Math.max(2, Math.floor((WIDTH - LEFT - 10) / (7 * letters + 24)));
}

function axis(svg, top, labels) {
  const count = labels.length;
  const step = (WIDTH - LEFT - 10) / count;
  const every = Math.max(1, Math.ceil(count / axisLabels(labels)));
  for (let i = 0; i < count; i += every) {
    const place = { x: LEFT + (i + 0.5) * step, y: top, "text-anchor": "middle" };
    svg.append(node("text", place, labels[i]));
  }
}

function render({ model, el }) {
  const rewards = Array.from(typed(model.get("_rewards"), Float64Array));
  const logReference = Array.from(typed(model.get("_log_reference"), Float64Array));
  const reference = logReference.map(Math.exp);
  const labels = model.get("_labels");
  const [lowest, highest] = model.get("_range");
  const best = Math.max(...rewards);
  const least = Math.min(...rewards);
  const id = `flowrl-scale-${Math.random().toString(36).slice(2)}`;

  el.classList.add("flowrl-explorer");
  el.innerHTML = `
    <div class="controls">
      <label for="${id}">reward scale β</label>
      <input id="${id}" type="range" min="${Math.log10(lowest)}"
        max="${Math.log10(highest)}" step="0.01">
      <output for="${id}"></output>
    </div>
    <div class="numbers"></div>
    <div class="picture"></div>
    <div class="remark pointed">Point at a state to read its numbers.</div>
    <div class="spoken" aria-live="polite"></div>`;
  const input = el.querySelector("input");
  const numbers = el.querySelector(".numbers");
  const spoken = el.querySelector(".spoken");
  const pointed = el.querySelector(".pointed");
  // the notebook would take the arrow keys for itself
  input.addEventListener("keydown", (event) => event.stopPropagation());
  let now = null;
  // While the dial moves the axis may grow and never shrinks: what is seen to move are
  // the probabilities.
  let held = 0;

  function draw() {
    WIDTH = room(el);
    const scale = model.get("reward_scale");
    now = target(rewards, logReference, scale);
    const onBest = now.probs.reduce((s, p, i) => s + (rewards[i] === best ? p : 0), 0);
    const mean = now.probs.reduce((sum, p, i) => sum + p * rewards[i], 0);
    const facts = [
      `effective states ${round(Math.exp(now.entropy))} of ${rewards.length}`,
      `entropy ${round(now.entropy)} nats`,
      `log Z ${round(now.logZ)} nats`,
      `mean reward ${round(mean)}`,
      `mass on the best state ${round(onBest)}`,
    ];
    numbers.replaceChildren(
      ...facts.map((fact) => Object.assign(document.createElement("span"), {
        textContent: fact,
      })),
    );
    el.querySelector("output").textContent = `β = ${round(scale)}`;
    input.value = String(Math.log10(scale));
    input.setAttribute("aria-valuetext", `β = ${round(scale)}, ${facts[0]}`);

    const height = 2 * (HEIGHT + 34) + 20;
    const words = `Reward of ${rewards.length} states and the target distribution at ` +
      `β = ${round(scale)}: ${facts.join(", ")}`;
    const picture = { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": words };
    const svg = node("svg", picture);
    held = Math.max(held, ceiling(Math.max(...now.probs)));
    panel(svg, 24, rewards, Math.min(0, least), Math.max(best, 0), "reward r(x)", null);
    const title = "target p*(x) ∝ π_ref(x) exp(β r(x));  line: π_ref";
    panel(svg, HEIGHT + 62, now.probs, 0, held, title, reference);
    axis(svg, height - 4, labels);
    el.querySelector(".picture").replaceChildren(svg);
    return facts;
  }

  input.addEventListener("input", () => {
    const scale = Number((10 ** Number(input.value)).toPrecision(4));
    model.set("reward_scale", Math.min(Math.max(scale, lowest), highest));
    model.save_changes();
  });
  const letGo = whenAtRest(() => {
    held = 0;
    draw();
  });
  input.addEventListener("change", () => {
    spoken.textContent = `At β = ${round(model.get("reward_scale"))}: ` +
      `${draw().join(", ")}.`;
    letGo();
  });
  el.querySelector(".picture").addEventListener("pointermove", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    WIDTH = room(el);
    const x = ((event.clientX - box.left) / box.width) * WIDTH - LEFT;
    const i = Math.floor((x / (WIDTH - LEFT - 10)) * rewards.length);
    if (i < 0 || i >= rewards.length) return;
    pointed.textContent = `state ${labels[i]}: r = ${round(rewards[i])}, ` +
      `p* = ${round(now.probs[i])}, π_ref = ${round(reference[i])}`;
  });
  model.on("change:reward_scale", draw);
  draw();
  const unfollow = follow(el, draw);
  return () => {
    unfollow();
    model.off("change:reward_scale", draw);
  };
}

export default { render };
