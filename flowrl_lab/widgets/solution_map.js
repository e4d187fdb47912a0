// The solution map of finished runs: every answer a cell (or every state a point),
// lit by its probability, with a slider over the training steps.

const SIZE = 150;

function viridis(colors, fraction) {
  const place = Math.min(Math.max(fraction, 0), 1) * (colors.length - 1);
  const index = Math.min(Math.floor(place), colors.length - 2);
  const part = (color, at) => parseInt(color.slice(at, at + 2), 16);
  const mixed = [1, 3, 5].map((at) => {
    const low = part(colors[index], at);
    return Math.round(low + (place - index) * (part(colors[index + 1], at) - low));
  });
  return `rgb(${mixed.join(",")})`;
}

function cellsPicture(labels, count) {
  const columns = Math.ceil(Math.sqrt(count));
  const rows = Math.ceil(count / columns);
  const side = SIZE / columns;
  const gap = columns <= 16 ? 2 : 0.5;
  const svg = node("svg", { viewBox: `0 0 ${SIZE} ${rows * side}`, role: "img" });
  const cells = [];
  for (let i = 0; i < count; i += 1) {
    const cell = node("rect", {
      x: (i % columns) * side,
      y: Math.floor(i / columns) * side,
      width: side - gap,
      height: side - gap,
    });
    cell.append(node("title", {}));
    cells.push(cell);
    svg.append(cell);
  }
  function light(probs, floor, colors) {
    const low = Math.log10(floor);
    cells.forEach((cell, i) => {
      const level = (Math.log10(Math.max(probs[i], floor)) - low) / -low;
      cell.setAttribute("fill", viridis(colors, level));
      cell.firstChild.textContent = `${labels[i]}: ${probs[i].toPrecision(3)}`;
    });
  }
  return { svg, light };
}

function statesPicture(target, color) {
  const high = 1.6 * Math.max(...target);
  const svg = node("svg", { viewBox: `0 0 ${SIZE * 1.5} ${SIZE}`, role: "img" });
  const path = (values) => Array.from(values, (value, i) => {
    const x = (i / (values.length - 1)) * SIZE * 1.5;
    return `${i ? "L" : "M"}${x} ${SIZE - Math.min(value / high, 1) * SIZE}`;
  }).join("");
  const area = `${path(target)}V${SIZE}H0Z`;
  svg.append(node("path", { class: "area", d: area }));
  svg.append(node("path", { class: "frame", d: `M0 0V${SIZE}H${SIZE * 1.5}` }));
  const line = node("path", { fill: "none", stroke: color, "stroke-width": 2 });
  svg.append(line);
  return { svg, light: (probs) => line.setAttribute("d", path(probs)) };
}

function makePanel(run, shape, labels, target) {
  const box = document.createElement("div");
  box.className = "panel";
  const head = document.createElement("p");
  const mark = document.createElement("span");
  mark.style.color = run.color;
  mark.textContent = run.glyph ? `${run.glyph} ` : "";
  const name = document.createElement("strong");
  name.textContent = run.name;
  const said = document.createElement("span");
  said.className = "remark";
  head.append(mark, name, document.createElement("br"), said);
  const picture = shape === "states"
    ? statesPicture(target, run.color)
    : cellsPicture(labels, labels.length);
  box.append(head, picture.svg);
  return { box, said, ...picture };
}

function render({ model, el }) {
  const labels = model.get("_labels");
  const runs = model.get("_runs");
  const steps = model.get("_steps");
  const shape = model.get("_shape");
  const remarks = model.get("_remarks");
  const frames = typed(model.get("_frames"), Float32Array);
  const target = typed(model.get("_target"), Float32Array);
  const floor = model.get("_floor");
  const colors = model.get("_colors");
  const count = labels.length;
  const id = `flowrl-step-${Math.random().toString(36).slice(2)}`;

  el.classList.add("flowrl-explorer");
  el.innerHTML = `
    <div class="controls">
      <button type="button">▶ play</button>
      <label for="${id}">training step</label>
      <input id="${id}" type="range" min="0" max="${steps.length - 1}" step="1">
      <output for="${id}"></output>
    </div>
    <div class="panels"></div>
    <div class="remark note"></div>
    <div class="spoken" aria-live="polite"></div>`;
  const input = el.querySelector("input");
  const button = el.querySelector("button");
  for (const control of [input, button]) {
    // the notebook would take the keys for itself
    control.addEventListener("keydown", (event) => event.stopPropagation());
  }
  el.querySelector(".note").textContent = shape === "states"
    ? `grey: ${model.get("_target_label")}`
    : `bright: likely (1), dark: below ${floor}; hover a cell to read it`;
  const panels = runs.map((run) => makePanel(run, shape, labels, target));
  if (shape === "cells") {
    const name = { name: model.get("_target_label"), glyph: "", color: "inherit" };
    const first = makePanel(name, shape, labels, target);
    first.light(target, floor, colors);
    first.said.textContent = model.get("_target_remark");
    first.svg.setAttribute("aria-label", `${name.name}: ${first.said.textContent}`);
    el.querySelector(".panels").append(first.box);
  }
  el.querySelector(".panels").append(...panels.map((panel) => panel.box));

  function draw() {
    const at = model.get("step_index");
    input.value = String(at);
    const words = [];
    panels.forEach((panel, r) => {
      const start = (at * runs.length + r) * count;
      panel.light(frames.subarray(start, start + count), floor, colors);
      panel.said.textContent = remarks[at][r];
      words.push(`${runs[r].name}: ${remarks[at][r].trim().replace("\n", ", ")}`);
      panel.svg.setAttribute("aria-label", words[words.length - 1]);
    });
    el.querySelector("output").textContent = `step ${steps[at]}`;
    input.setAttribute("aria-valuetext", `step ${steps[at]}`);
    return `Step ${steps[at]}. ${words.join(". ")}.`;
  }

  function go(index) {
    model.set("step_index", index);
    model.save_changes();
  }

  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶ play";
  }
  button.addEventListener("click", () => {
    if (timer) {
      stop();
      return;
    }
    if (model.get("step_index") >= steps.length - 1) go(0);
    button.textContent = "■ stop";
    timer = setInterval(() => {
      if (model.get("step_index") >= steps.length - 1) stop();
      else go(model.get("step_index") + 1);
    }, 350);
  });
  input.addEventListener("input", () => go(Number(input.value)));
  input.addEventListener("change", () => {
    el.querySelector(".spoken").textContent = draw();
  });
  model.on("change:step_index", draw);
  draw();
  return () => {
    stop();
    model.off("change:step_index", draw);
  };
}

export default { render };
