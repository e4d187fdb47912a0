// A quiz: radio buttons, and below the chosen one its explanation, at once and
// without the kernel.  What was tried goes back as `tried`.

function element(name, attributes, content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  return made;
}

function ask(model, question, index, id) {
  const form = element("fieldset", {});
  form.append(element("legend", {}, `${index + 1}. ${question.text}`));
  const inputs = question.choices.map((choice, i) => {
    const label = element("label", { class: "choice" });
    const input = element("input", { type: "radio", name: `${id}-${index}` });
    input.value = String(i);
    input.addEventListener("change", () => {
      const tried = model.get("tried");
      const row = [...(tried[String(index)] ?? []), i];
      model.set("tried", { ...tried, [String(index)]: row });
      model.save_changes();
    });
    label.append(input, element("span", {}, choice.text));
    form.append(label);
    return input;
  });
  const why = element("div", { "aria-live": "polite" });
  form.append(why);
  function draw() {
    const row = model.get("tried")[String(index)] ?? [];
    const last = row[row.length - 1];
    inputs.forEach((input, i) => {
      input.checked = i === last;
    });
    if (last === undefined) {
      why.className = "";
      why.textContent = "";
      return;
    }
    const choice = question.choices[last];
    why.className = `why ${choice.right ? "right" : "wrong"}`;
    why.textContent = `${choice.right ? "✓ Right." : "✗ Not quite."} ${choice.why}`;
  }
  return { form, draw };
}

function render({ model, el }) {
  const id = `flowrl-quiz-${Math.random().toString(36).slice(2)}`;
  const questions = model.get("_questions");
  el.classList.add("flowrl-question");
  const parts = questions.map((question, i) => ask(model, question, i, id));
  const score = element("p", { class: "status score", "aria-live": "polite" });
  el.append(...parts.map((part) => part.form), score);
  // the notebook would take the keys for itself
  el.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.shiftKey || event.ctrlKey)) {
      event.stopPropagation();
    }
  });
  function draw() {
    for (const part of parts) part.draw();
    const tried = model.get("tried");
    const rows = questions.map((_, i) => tried[String(i)] ?? []);
    const answered = rows.filter((row) => row.length).length;
    const right = rows.filter((row, i) => row.length && questions[i].choices[row[0]].right);
    score.textContent = answered === 0
      ? "Nothing chosen yet. Read the explanations of the other choices as well."
      : `${answered} of ${questions.length} answered, ` +
        `${right.length} right at the first try.`;
  }
  model.on("change:tried", draw);
  draw();
  return () => model.off("change:tried", draw);
}

export default { render };
