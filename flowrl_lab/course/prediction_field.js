// One prediction: radio buttons, or a number field with a slider.  Every control is
// a native one, so Tab, arrows and Space work; the answer goes back as `answer`.

function element(name, attributes, content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  return made;
}

function say(value, unit) {
  if (typeof value === "string") return value;
  return `${Number(value.toPrecision(3))} ${unit}`.trim();
}

function radios(model, form, id, commit) {
  const made = model.get("_choices").map((choice, i) => {
    const label = element("label", { class: "choice" });
    const input = element("input", { type: "radio", name: id, value: String(i) });
    input.addEventListener("change", () => commit(choice));
    label.append(input, element("span", {}, choice));
    form.append(label);
    return input;
  });
  return (answer) => made.forEach((input, i) => {
    input.checked = model.get("_choices")[i] === answer;
  });
}

function numbers(model, form, id, commit, complain) {
  const [low, high] = model.get("_range");
  const unit = model.get("_unit");
  const bounds = { min: String(low), max: String(high) };
  const row = element("div", { class: "controls" });
  const label = element("label", { for: id }, `Your number${unit ? ` (${unit})` : ""}`);
  const field = element("input", { type: "number", id, step: "any", ...bounds });
  const slider = element("input", {
    type: "range", step: String(model.get("_step")), ...bounds,
    "aria-label": "Your number, as a slider",
  });
  slider.value = String((low + high) / 2);
  row.append(label, field, slider);
  form.append(row);
  // Arrow keys move in many small steps: keep only where they come to rest.
  let timer = null;
  let waiting = null;
  function flush() {
    clearTimeout(timer);
    if (waiting !== null) commit(waiting);
    waiting = null;
  }
  function take(text) {
    const value = Number(text);
    if (text.trim() === "" || !(value >= low && value <= high)) {
      clearTimeout(timer);
      waiting = null;
      complain(`Choose a number between ${low} and ${high}.`);
      return;
    }
    waiting = value;
    clearTimeout(timer);
    timer = setTimeout(flush, 400);
  }
  slider.addEventListener("input", () => {
    field.value = String(Number(Number(slider.value).toPrecision(6)));
    take(slider.value);
  });
  field.addEventListener("input", () => {
    if (field.value !== "") slider.value = field.value;
  });
  field.addEventListener("change", () => take(field.value));
  for (const input of [field, slider]) input.addEventListener("blur", flush);
  return (answer) => {
    if (answer === null) return;
    field.value = String(answer);
    slider.value = String(answer);
  };
}

function render({ model, el }) {
  const id = `flowrl-predict-${Math.random().toString(36).slice(2)}`;
  const unit = model.get("_unit");
  el.classList.add("flowrl-question");
  const form = element("fieldset", {});
  form.append(element("legend", {}, `Predict: ${model.get("_text")}`));
  const status = element("p", { class: "status", "aria-live": "polite" });
  // the notebook would take the keys for itself
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.shiftKey || event.ctrlKey)) {
      event.stopPropagation();
    }
  });
  function commit(answer) {
    model.set("answer", answer);
    model.save_changes();
    draw();
  }
  function complain(words) {
    status.textContent = words;
  }
  const asked = model.get("_choices").length ? radios : numbers;
  const fill = asked(model, form, id, commit, complain);
  function draw() {
    const answer = model.get("answer");
    fill(answer);
    status.textContent = answer === null
      ? "No prediction yet. Any guess is welcome: it is only for you."
      : `Your prediction: ${say(answer, unit)}. It is kept; run on.`;
  }
  form.append(status);
  el.append(form);
  model.on("change:answer", draw);
  draw();
  return () => model.off("change:answer", draw);
}

export default { render };
