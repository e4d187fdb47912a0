// Two menus, an entry and a button: the kernel trains the fork and sends pictures.

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(chosen)) select.value = chosen;
}

function render({ model, el }) {
  const id = `flowrl-fork-${Math.random().toString(36).slice(2)}`;
  el.classList.add("flowrl-explorer", "flowrl-fork");
  el.innerHTML = `
    <div class="controls" style="flex-wrap: wrap">
      <label for="${id}-parent">parent run</label>
      <select id="${id}-parent" class="parent"></select>
      <label for="${id}-variant">continue as</label>
      <select id="${id}-variant" class="variant"></select>
      <label for="${id}-steps">steps</label>
      <input id="${id}-steps" class="steps" type="number" min="1" step="1"
        style="width: 6em">
      <button type="button">Run the fork</button>
    </div>
    <div class="said remark"></div>
    <div class="picture"></div>
    <div class="spoken" aria-live="polite"></div>`;
  const [parent, variant, steps, button] = ["select.parent", "select.variant",
    "input.steps", "button"].map((name) => el.querySelector(name));
  for (const control of [parent, variant, steps, button]) {
    // the notebook would take the keys for itself
    control.addEventListener("keydown", (event) => event.stopPropagation());
  }
  fill(variant, model.get("_variant_names"));
  let asked = false;

  function say(words) {
    button.disabled = asked;
    el.querySelector(".said").textContent = words;
  }
  const showNames = () => fill(parent, model.get("_names"), parent.value);
  const showSteps = () => { steps.value = String(model.get("steps")); };
  const showPicture = () => {
    el.querySelector(".picture").innerHTML = model.get("_picture");
  };
  const showStatus = () => {
    const status = model.get("_status");
    // a training fork tells its steps; anything else is its end
    if (!status.startsWith("training")) {
      asked = false;
      el.querySelector(".spoken").textContent = status;
    }
    say(status);
  };
  steps.addEventListener("change", () => {
    const count = Number(steps.value);
    if (Number.isInteger(count) && count >= 1) {
      model.set("steps", count);
      model.save_changes();
    }
  });
  button.addEventListener("click", () => {
    const count = Number(steps.value);
    if (!Number.isInteger(count) || count < 1) {
      say(`steps is "${steps.value}"; expected a whole number of at least 1`);
      return;
    }
    asked = true;
    model.send({
      ask: "fork", parent: parent.value, variant: variant.value, steps: count,
    });
    say("asked the kernel; it begins when no cell is running");
  });

  const watched = [
    ["change:_names", showNames],
    ["change:steps", showSteps],
    ["change:_picture", showPicture],
    ["change:_status", showStatus],
  ];
  for (const [name, show] of watched) {
    model.on(name, show);
    show();
  }
  return () => {
    for (const [name, show] of watched) model.off(name, show);
  };
}

export default { render };
