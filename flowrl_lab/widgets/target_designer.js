// A landscape to draw on: rewards above, p*(x) ∝ exp(β r(x)) below, recomputed here
// at every stroke.  Only training needs the kernel.

const LEFT = 56;
const RIGHT = 10;
const HEIGHT = 150;
const TOP = 34; // room for a title, and for the mark of a peak that is cut off
const NAMES = {
  figure1: "Figure 1",
  two_hills: "two hills",
  plateau: "plateau",
  needle: "needle and hill",
  flat: "flat",
};

function make(name, content) {
  const made = document.createElement(name);
  made.textContent = content;
  return made;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// the reference is uniform: log π_ref(x) = −log N
function target(rewards, scale) {
  const scores = rewards.map((reward) => scale * reward - Math.log(rewards.length));
  const top = Math.max(...scores);
  const logZ = top + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - top), 0));
  const probs = scores.map((score) => Math.exp(score - logZ));
  const entropy = probs.reduce((sum, p) => sum - (p > 0 ? p * Math.log(p) : 0), 0);
  const mean = probs.reduce((sum, p, i) => sum + p * rewards[i], 0);
  return { logZ, probs, mean, effective: Math.exp(entropy) };
}

function axes(svg, low, high, title, middle) {
  svg.append(node("text", { x: LEFT, y: 14 }, title));
  const marks = middle ? [low, (low + high) / 2, high] : [low, high];
  for (const value of marks) {
    const y = TOP + HEIGHT - ((value - low) / (high - low)) * HEIGHT;
    svg.append(node("path", { class: "grid", d: `M${LEFT} ${y}H${WIDTH - RIGHT}` }));
    const place = { x: LEFT - 6, y: y + 4, "text-anchor": "end" };
    svg.append(node("text", place, round(value)));
  }
}

function render({ model, el }) {
  const id = `flowrl-design-${Math.random().toString(36).slice(2)}`;
  el.classList.add("flowrl-explorer");
  el.innerHTML = `
    <div class="controls">
      <label for="${id}-start">start from</label>
      <select id="${id}-start"><option value="">your drawing</option></select>
      <label for="${id}-brush">brush</label>
      <input id="${id}-brush" type="number" min="1" max="41" step="2" value="1">
      <span>states wide</span>
    </div>
    <div class="canvas" role="slider" tabindex="0" aria-orientation="vertical"></div>
    <div class="remark pointed"></div>
    <div class="controls">
      <label for="${id}-scale">reward scale β</label>
      <input id="${id}-scale" type="range" step="0.01">
      <output for="${id}-scale"></output>
    </div>
    <div class="numbers"></div>
    <div class="remark flat" role="status"></div>
    <div class="picture"></div>
    <div class="controls">
      <button type="button" class="train"></button>
      <span class="remark status" role="status"></span>
    </div>
    <table class="trained"></table>
    <div class="remark meaning"></div>
    <div class="spoken" aria-live="polite"></div>`;
  const find = (selector) => el.querySelector(selector);
  const select = find("select");
  const brush = find('input[type="number"]');
  const slider = find('input[type="range"]');
  const canvas = find(".canvas");
  const button = find(".train");
  for (const [key, name] of Object.entries(NAMES)) {
    select.append(Object.assign(make("option", name), { value: key }));
  }
  const count = model.get("_algorithms").length;
  button.textContent = count === 2 ? "▶ Train both" : "▶ Train";
  const [least, most] = model.get("_scales").map(Math.log10);
  slider.min = String(least);
  slider.max = String(most);

  let rewards = [...model.get("_rewards")];
  let chosen = Math.floor(rewards.length / 2);
  let now = null;
  let waiting = false;

  const step = () => (WIDTH - LEFT - RIGHT) / rewards.length;

  function drawRewards() {
    const [low, high] = model.get("_range");
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${TOP + HEIGHT + 22}` });
    axes(svg, low, high, "reward r(x): draw here", true);
    const height = (value) => TOP + HEIGHT - ((value - low) / (high - low)) * HEIGHT;
    const gap = rewards.length <= 120 ? step() * 0.15 : 0;
    const bar = (i) => {
      const x = LEFT + i * step();
      return `M${x + gap} ${TOP + HEIGHT}V${height(rewards[i])}` +
        `H${x + step() - gap}V${TOP + HEIGHT}Z`;
    };
    svg.append(node("path", { d: rewards.map((_, i) => bar(i)).join(""), class: "bars" }));
    const middle = LEFT + (chosen + 0.5) * step();
    svg.append(node("path", { class: "chosen", d: `M${middle} ${TOP}V${TOP + HEIGHT}` }));
    const y = height(rewards[chosen]);
    svg.append(node("circle", { class: "chosen", cx: middle, cy: y, r: 4.5 }));
    stateLabels(svg);
    canvas.replaceChildren(svg);
    const words = `state ${chosen}: reward ${round(rewards[chosen])}, ` +
      `p* ${round(now.probs[chosen])}`;
    canvas.setAttribute("aria-label",
      "reward of a state; left and right choose the state, up and down change it");
    canvas.setAttribute("aria-valuemin", round(low));
    canvas.setAttribute("aria-valuemax", round(high));
    canvas.setAttribute("aria-valuenow", round(rewards[chosen]));
    canvas.setAttribute("aria-valuetext", words);
    find(".pointed").textContent = `${words}.  Drag to draw; or keys: ←→ choose a ` +
      "state, ↑↓ raise or lower it (Page Up/Down: more).";
  }

  function stateLabels(svg) {
    const every = Math.max(1, Math.ceil((rewards.length * 40) / (WIDTH - LEFT - RIGHT)));
    for (let i = 0; i < rewards.length; i += every) {
      const x = LEFT + (i + 0.5) * step();
      svg.append(node("text", { x, y: TOP + HEIGHT + 16, "text-anchor": "middle" }, i));
    }
  }

  let held = 0;

  function letGo() {
    held = 0;
    draw();
    speak();
  }

  const whenDialRests = whenAtRest(letGo);

  function outdated() {
    const result = model.get("_result");
    return result.reward_scale !== model.get("reward_scale") ||
      result.rewards.length !== rewards.length ||
      result.rewards.some((reward, i) => reward !== rewards[i]);
  }

  function drawTarget() {
    const result = model.get("_result");
    const runs = result.runs && result.rewards.length === rewards.length ? result.runs : [];
    // while dial or pen moves the axis may grow and never shrinks: what is seen to
    // move are the probabilities
    held = Math.max(held, ceiling((runs.length ? 1.5 : 1) * Math.max(...now.probs)));
    const high = held;
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${TOP + HEIGHT + 22}`, role: "img" });
    const key = runs.map((run) => `${run.glyph} ${run.name}`).join(", ");
    const title = `grey: target p*(x) = π_ref exp(β r(x)) / Z${key && `;  lines: ${key}`}`;
    axes(svg, 0, high, title, false);
    const height = (p) => TOP + HEIGHT - Math.min(p / high, 1) * HEIGHT;
    const line = (probs) => probs.map((p, i) =>
      `${i ? "L" : "M"}${LEFT + (i + 0.5) * step()} ${height(p)}`).join("");
    const last = LEFT + (rewards.length - 0.5) * step();
    const first = LEFT + 0.5 * step();
    const area = `${line(now.probs)}L${last} ${TOP + HEIGHT}L${first} ${TOP + HEIGHT}Z`;
    svg.append(node("path", { class: "area", d: area }));
    svg.append(node("path", { class: "outline", d: line(now.probs) }));
    const old = runs.length > 0 && outdated();
    for (const run of runs) {
      svg.append(node("path", {
        d: line(run.probs),
        fill: "none",
        stroke: run.color,
        "stroke-width": 2,
        "stroke-dasharray": run.dash,
        "stroke-opacity": old ? 0.3 : 1,
      }));
      const top = run.probs.indexOf(Math.max(...run.probs));
      const place = { x: LEFT + (top + 0.5) * step(), y: height(run.probs[top]) - 4 };
      const mark = { ...place, fill: run.color, "text-anchor": "middle" };
      const glyph = node("text", { ...mark, class: "glyph" }, run.glyph);
      glyph.style.fill = run.color;
      svg.append(glyph);
    }
    stateLabels(svg);
    svg.setAttribute("aria-label", `Target of ${rewards.length} states: ${facts().join(", ")}` +
      runs.map((run) => `; ${run.name}: ${run.facts.map((f) => f.join(" ")).join(", ")}`)
        .join(""));
    find(".picture").replaceChildren(svg);
    drawTable(runs, old);
  }

  function drawTable(runs, old) {
    const table = find(".trained");
    table.classList.toggle("outdated", old);
    find(".meaning").textContent = runs.length
      ? "A mode is a run of neighbouring states above half the height of the drawing; " +
        "it is alive where a policy keeps at least half of its target probability."
      : "";
    if (!runs.length) {
      table.replaceChildren();
      return;
    }
    const head = document.createElement("tr");
    const said = old ? "before the drawing changed" : "trained on this drawing";
    for (const text of [said, ...runs[0].facts.map(([name]) => name)]) {
      head.append(Object.assign(make("th", text), { scope: "col" }));
    }
    const rows = runs.map((run) => {
      const row = document.createElement("tr");
      row.dataset.run = run.name;
      const name = Object.assign(make("th", ""), { scope: "row" });
      const mark = make("span", `${run.glyph} `);
      mark.style.color = run.color;
      name.append(mark, run.name);
      row.append(name, ...run.facts.map(([what, value]) => {
        const cell = make("td", value);
        cell.dataset.fact = what;
        return cell;
      }));
      return row;
    });
    table.replaceChildren(head, ...rows);
  }

  function facts() {
    return [
      `effective states ${round(now.effective)} of ${rewards.length}`,
      `log Z ${round(now.logZ)} nats`,
      `mean reward under p* ${round(now.mean)}`,
    ];
  }

  function draw() {
    WIDTH = room(el);
    const scale = model.get("reward_scale");
    now = target(rewards, scale);
    find(".numbers").replaceChildren(...facts().map((fact) => make("span", fact)));
    const flat = rewards.every((reward) => reward === rewards[0]);
    find(".flat").textContent = flat
      ? "A flat landscape: every reward is the same, so p* is the reference whatever " +
        "β is: only differences of reward count. Nothing is left to learn but log Z."
      : "";
    find("output").textContent = `β = ${round(scale)}`;
    slider.value = String(Math.log10(scale));
    slider.setAttribute("aria-valuetext", `β = ${round(scale)}, ${facts()[0]}`);
    drawRewards();
    drawTarget();
    drawStatus();
  }

  function drawStatus() {
    const busy = model.get("_busy");
    button.disabled = busy || waiting;
    const words = waiting ? "waiting for the kernel …" : model.get("_status");
    find(".status").textContent = words;
  }

  function save() {
    model.set("_rewards", [...rewards]);
    model.save_changes();
  }

  function speak() {
    find(".spoken").textContent = `${canvas.getAttribute("aria-valuetext")}; ` +
      `${facts().join(", ")}`;
  }

  // ------------------------------------------------------------ mouse and touch

  function paint(state, reward) {
    const [low, high] = model.get("_range");
    const reach = Math.floor((Number(brush.value) || 1) / 2);
    for (let i = state - reach; i <= state + reach; i += 1) {
      if (i >= 0 && i < rewards.length) rewards[i] = clamp(reward, low, high);
    }
  }

  function spot(event) {
    const box = canvas.firstChild.getBoundingClientRect();
    const [low, high] = model.get("_range");
    WIDTH = room(el);
    const x = ((event.clientX - box.left) / box.width) * WIDTH - LEFT;
    const y = ((event.clientY - box.top) / box.height) * (TOP + HEIGHT + 22) - TOP;
    const state = clamp(Math.floor(x / step()), 0, rewards.length - 1);
    const reward = clamp(high - (y / HEIGHT) * (high - low), low, high);
    return { state, reward: Number(reward.toFixed(3)) };
  }

  let before = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    before = spot(event);
    stroke(before);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (before === null) return;
    const here = spot(event);
    // a fast mouse skips states: fill them with a straight line
    const steps = Math.max(1, Math.abs(here.state - before.state));
    for (let i = 0; i <= steps; i += 1) {
      const share = i / steps;
      const reward = before.reward + share * (here.reward - before.reward);
      paint(Math.round(before.state + share * (here.state - before.state)),
        Number(reward.toFixed(3)));
    }
    stroke(here);
    before = here;
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      if (before === null) return;
      before = null;
      save();
      letGo();
    });
  }

  function stroke(place) {
    paint(place.state, place.reward);
    chosen = place.state;
    select.value = "";
    draw();
  }

  // ------------------------------------------------------------------- keyboard

  canvas.addEventListener("keydown", (event) => {
    const [low, high] = model.get("_range");
    const raise = (high - low) / 20;
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -rewards.length, End: rewards.length };
    const lifts = { ArrowUp: raise, ArrowDown: -raise, PageUp: 4 * raise, PageDown: -4 * raise };
    // the notebook would take these keys for itself
    event.stopPropagation();
    if (event.key in moves) {
      chosen = clamp(chosen + moves[event.key], 0, rewards.length - 1);
      draw();
    } else if (event.key in lifts) {
      const reward = clamp(rewards[chosen] + lifts[event.key], low, high);
      stroke({ state: chosen, reward: Number(reward.toFixed(3)) });
      save();
      speak();
    } else {
      return;
    }
    event.preventDefault();
  });
  for (const control of [select, brush, slider, button]) {
    control.addEventListener("keydown", (event) => event.stopPropagation());
  }

  // ------------------------------------------------------------------- controls

  select.addEventListener("change", () => {
    if (!select.value) return;
    rewards = [...model.get("_drawings")[select.value]];
    chosen = Math.min(chosen, rewards.length - 1);
    draw();
    save();
    speak();
  });
  slider.addEventListener("input", () => {
    const scale = Number((10 ** Number(slider.value)).toPrecision(4));
    const [lowest, highest] = model.get("_scales");
    model.set("reward_scale", clamp(scale, lowest, highest));
    model.save_changes();
  });
  slider.addEventListener("change", () => {
    speak();
    whenDialRests();
  });
  button.addEventListener("click", () => {
    waiting = true;
    drawStatus();
    // the drawing goes along: what save() sends may still wait for an idle kernel
    model.send({ kind: "train", rewards, reward_scale: model.get("reward_scale") });
  });

  // ------------------------------------------------------------- from the kernel

  function adopt() {
    rewards = [...model.get("_rewards")];
    chosen = Math.min(chosen, rewards.length - 1);
    draw();
  }
  function hear() {
    if (model.get("_busy")) waiting = false;
    if (waiting && model.get("_status").startsWith("could not")) waiting = false;
    drawStatus();
  }
  const listeners = {
    "change:_rewards": adopt,
    "change:_range": draw,
    "change:reward_scale": draw,
    "change:_result": draw,
    "change:_status": hear,
    "change:_busy": hear,
  };
  for (const [name, listener] of Object.entries(listeners)) model.on(name, listener);
  draw();
  const unfollow = follow(el, draw);
  return () => {
    unfollow();
    for (const [name, listener] of Object.entries(listeners)) model.off(name, listener);
  };
}

export default { render };
