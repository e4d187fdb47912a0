// Stored runs: objective, β and training step each move the picture at once; the
// kernel is asked only to train a point anew.

const HEIGHT = 230;
const LEFT = 56;
const TOP = 30;
const RIGHT = 10;

// log-probabilities that sum to 1, from scores
function normalise(scores) {
  const top = scores.reduce((most, s) => Math.max(most, s), -Infinity);
  const sum = scores.reduce((total, s) => total + Math.exp(s - top), 0);
  return Array.from(scores, (s) => s - top - Math.log(sum));
}

function expect(logP, value) {
  return logP.reduce((sum, log, i) => {
    const p = Math.exp(log);
    return p > 0 ? sum + p * value(i) : sum;
  }, 0);
}

const effective = (logP) => Math.exp(-expect(logP, (i) => logP[i]));
const divergence = (logP, logQ) => expect(logP, (i) => logP[i] - logQ[i]);

// the smallest of 1, 2 and 5 times a power of ten that is not below `least`
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].find((factor) => factor * power >= least) * power;
}

function draw(target, policy, live, color, words, high) {
  const count = target.length;
  const base = TOP + HEIGHT;
  const across = (i) => LEFT + (i / (count - 1)) * (WIDTH - LEFT - RIGHT);
  const up = (value) => base - Math.min(value / high, 1) * HEIGHT;
  const path = (values) =>
    values.map((v, i) => `${i ? "L" : "M"}${across(i)} ${up(v)}`).join("");
  const size = { viewBox: `0 0 ${WIDTH} ${base + 34}`, role: "img", "aria-label": words };
  const svg = node("svg", size);
  const gap = roundStep(high / 5);
  for (let value = 0; value <= high; value += gap) {
    const y = up(value);
    svg.append(node("path", { class: "grid", d: `M${LEFT} ${y}H${WIDTH - RIGHT}` }));
    const place = { x: LEFT - 6, y: y + 4, "text-anchor": "end" };
    svg.append(node("text", place, round(value)));
  }
  for (let i = 0; i < count; i += 10) {
    const place = { x: across(i), y: base + 15, "text-anchor": "middle" };
    svg.append(node("text", place, String(i)));
  }
  const middle = { x: (LEFT + WIDTH) / 2, y: base + 31, "text-anchor": "middle" };
  svg.append(node("text", middle, "state"));
  const area = `${path(target)}L${across(count - 1)} ${base}L${LEFT} ${base}Z`;
  svg.append(node("path", { class: "area", d: area }));
  const line = { class: "policy", d: path(policy), fill: "none", stroke: color };
  svg.append(node("path", { ...line, "stroke-width": 2 }));
  if (live) svg.append(node("path", { class: "live", d: path(live) }));
  const top = policy.indexOf(Math.max(...policy));
  const spike = policy[top] > high ? `;  ↑ ${round(policy[top])} on state ${top}` : "";
  const title = `line: policy π;  grey: target p*${live ? ";  dashed: live" : ""}${spike}`;
  svg.append(node("text", { x: LEFT, y: TOP - 12 }, title));
  return svg;
}

function makeControls(el, objectives, scales, steps) {
  const id = `flowrl-runs-${Math.random().toString(36).slice(2)}`;
  el.classList.add("flowrl-explorer", "flowrl-scrubber");
  el.innerHTML = `
    <fieldset><legend>objective</legend></fieldset>
    <div class="controls">
      <label for="${id}-scale">reward scale β</label>
      <input id="${id}-scale" class="scale" type="range" min="0"
        max="${scales.length - 1}" step="1">
      <output for="${id}-scale"></output>
    </div>
    <div class="controls">
      <label for="${id}-step">training step</label>
      <input id="${id}-step" class="step" type="range" min="0"
        max="${steps.length - 1}" step="1">
      <output for="${id}-step"></output>
    </div>
    <div class="numbers"></div>
    <div class="picture"></div>
    <div class="remark about"></div>
    <div class="controls">
      <button type="button">Run this point live</button>
      <span class="said"></span>
    </div>
    <div class="spoken" aria-live="polite"></div>`;
  const choices = objectives.map((objective) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: id, value: objective.name });
    const mark = document.createElement("span");
    mark.style.color = objective.color;
    mark.setAttribute("aria-hidden", "true");
    mark.textContent = "━ ";
    label.append(input, " ", mark, objective.name);
    el.querySelector("fieldset").append(label);
    return input;
  });
  const controls = {
    choices,
    scale: el.querySelector(".scale"),
    step: el.querySelector(".step"),
    button: el.querySelector("button"),
  };
  for (const control of [...choices, controls.scale, controls.step, controls.button]) {
    // the notebook would take the keys for itself
    control.addEventListener("keydown", (event) => event.stopPropagation());
  }
  return controls;
}

function render({ model, el }) {
  const objectives = model.get("_objectives");
  const scales = model.get("_scales");
  const steps = model.get("_steps");
  const rewards = typed(model.get("_rewards"), Float64Array);
  const stored = typed(model.get("_log_probs"), Float32Array);
  const count = rewards.length;
  const controls = makeControls(el, objectives, scales, steps);
  let asked = false;
  // While a dial moves the axis may grow and never shrinks.
  let held = 0;

  // where the controls stand, and the key of a live run of this point
  function now() {
    const objective = objectives.find((o) => o.name === model.get("objective"));
    const scale = model.get("reward_scale");
    const at = scales.indexOf(scale);
    const time = steps.indexOf(model.get("step"));
    const key = objective.scaled ? `${objective.name} ${scale}` : objective.name;
    return { objective, scale, at, time, live: model.get("_live")[key] };
  }

  function show() {
    const { objective, scale, at, time, live } = now();
    const run = objective.first + (objective.scaled ? at : 0);
    const start = (run * steps.length + time) * count;
    const policy = normalise(stored.subarray(start, start + count));
    const target = normalise(rewards.map((r) => scale * r));
    const reward = (logP) => expect(logP, (i) => rewards[i]);
    const facts = [
      `effective states ${round(effective(policy))} (target ${round(effective(target))})`,
      `KL(π‖p*) ${round(divergence(policy, target))} nats`,
      `KL(p*‖π) ${round(divergence(target, policy))} nats`,
      `expected reward ${round(reward(policy))} (target ${round(reward(target))})`,
    ];
    const words = `${objective.name} at β = ${scale}, step ${steps[time]}: ` +
      facts.join(", ");
    const trained = live && normalise(
      typed(live.log_probs, Float32Array).subarray(time * count, (time + 1) * count),
    ).map(Math.exp);
    const [p, q] = [policy.map(Math.exp), target.map(Math.exp)];
    WIDTH = room(el);
    held = Math.max(held, 1.6 * Math.max(...q));
    el.querySelector(".picture").replaceChildren(
      draw(q, p, trained, objective.color, words, held),
    );
    el.querySelector(".numbers").replaceChildren(
      ...facts.map((fact) => Object.assign(document.createElement("span"), {
        textContent: fact,
      })),
    );
    for (const input of controls.choices) input.checked = input.value === objective.name;
    controls.scale.value = String(at);
    controls.step.value = String(time);
    controls.scale.setAttribute("aria-valuetext", `β = ${scale}`);
    controls.step.setAttribute("aria-valuetext", `step ${steps[time]}`);
    const [first, second] = el.querySelectorAll("output");
    first.textContent = `β = ${scale}`;
    second.textContent = `step ${steps[time]}`;
    el.querySelector(".about").textContent = objective.remark;
    say(live);
    return words;
  }

  function say(live) {
    const status = model.get("_status");
    controls.button.disabled = asked;
    el.querySelector(".said").textContent = status || (asked
      ? "asked the kernel; it begins when no cell is running"
      : live ? `Live run drawn over the stored one; ${live.words}` : "");
  }

  const letGo = whenAtRest(() => {
    held = 0;
    show();
  });
  function move(name, value) {
    model.set(name, value);
    model.save_changes();
    el.querySelector(".spoken").textContent = `${show()}.`;
    letGo();
  }

  for (const input of controls.choices) {
    input.addEventListener("change", () => move("objective", input.value));
  }
  controls.scale.addEventListener("input", () => {
    move("reward_scale", scales[Number(controls.scale.value)]);
  });
  controls.step.addEventListener("input", () => {
    move("step", steps[Number(controls.step.value)]);
  });
  controls.button.addEventListener("click", () => {
    const { objective, scale } = now();
    asked = true;
    model.send({ ask: "run", objective: objective.name, reward_scale: scale });
    say();
  });

  const names = ["objective", "reward_scale", "step"].map((name) => `change:${name}`);
  const onStatus = () => {
    const status = model.get("_status");
    // a training run tells its steps; anything else is its end
    if (!status.startsWith("training")) {
      asked = false;
      if (status) el.querySelector(".spoken").textContent = status;
    }
    say(now().live);
  };
  const onLive = () => {
    show();
    el.querySelector(".spoken").textContent = now().live?.words ?? "";
  };
  for (const name of names) model.on(name, show);
  model.on("change:_status", onStatus);
  model.on("change:_live", onLive);
  show();
  const unfollow = follow(el, show);
  return () => {
    unfollow();
    for (const name of names) model.off(name, show);
    model.off("change:_status", onStatus);
    model.off("change:_live", onLive);
  };
}

export default { render };
