// Completions as boxes: blue and "+" where the policy likes a token more than the
// reference does, orange and "−" where less.  Hover or arrow keys read the numbers.

const SHADE = 0.65; // of the full colour: text stays readable on it

function doubles(view) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  return new Float64Array(bytes);
}

function make(name, className, content) {
  const made = document.createElement(name);
  made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

function digits(value) {
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function plain(value) {
  return Number.isFinite(value) ? digits(value).replace("-", "−") : "–";
}

function signed(value) {
  if (!Number.isFinite(value) || value === 0) return plain(value);
  return `${value > 0 ? "+" : "−"}${digits(Math.abs(value))}`;
}

// in a box: two decimals, "0" where nothing is left
function brief(value) {
  const shown = Math.abs(value).toFixed(2);
  if (!Number.isFinite(value) || Number(shown) === 0) return plain(value * 0);
  return `${value > 0 ? "+" : "−"}${shown}`;
}

function show(token) {
  const seen = token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return seen || "∅";
}

function colour(ratio, scale) {
  const share = Math.min(1, Math.abs(ratio) / scale);
  const rgb = ratio > 0 ? "0, 114, 178" : "213, 94, 0";
  return `rgba(${rgb}, ${(SHADE * share).toFixed(3)})`;
}

function render({ model, el }) {
  const rows = model.get("_tokens");
  const counted = model.get("_counted");
  const heads = model.get("_heads");
  const totals = model.get("_totals");
  const scale = model.get("_scale");
  const numbers = doubles(model.get("_numbers"));
  const width = counted[0].length;
  const number = (kind, row, at) => numbers[(kind * rows.length + row) * width + at];

  el.classList.add("flowrl-explorer");
  el.innerHTML = `
    <div class="tokens-prompt">prompt <code></code></div>
    <div class="remark tokens-key">
      <span>less likely than under π_ref</span><span class="ramp"></span>
      <span>more likely</span>
      <span class="token uncounted sample">⟨pad⟩</span><span>not counted</span>
    </div>
    <div class="token-rows" role="grid" aria-label="log-ratio of each token"></div>
    <table class="token-facts"><tbody></tbody></table>`;
  el.querySelector("code").textContent = model.get("_prompt");
  const ramp = el.querySelector(".ramp");
  for (const share of [-1, -0.5, 0, 0.5, 1]) {
    const step = make("span", "token", brief(share * scale));
    step.style.background = colour(share, 1);
    ramp.append(step);
  }

  function facts(row, at) {
    const kept = counted[row][at];
    const ratio = number(2, row, at);
    const times = Number.isFinite(ratio) ? `× ${plain(Math.exp(ratio))}` : "";
    return [
      ["token", show(rows[row][at])],
      ["position", `${at + 1} of ${width}`],
      ["log π", `${plain(number(0, row, at))} nats`],
      ["log π_ref", `${plain(number(1, row, at))} nats`],
      ["log-ratio", `${signed(ratio)} nats`, times],
      ["running sum", `${signed(number(3, row, at))} nats`],
      ["counted", kept ? "yes" : "no: masked out"],
    ];
  }

  const grid = el.querySelector(".token-rows");
  const table = el.querySelector("tbody");
  const cells = [];
  let here = [0, 0];

  function point(row, at) {
    cells[here[0]][here[1]].classList.remove("chosen");
    cells[here[0]][here[1]].tabIndex = -1;
    here = [row, at];
    const cell = cells[row][at];
    cell.tabIndex = 0; // one stop of the Tab key; the arrow keys do the rest
    cell.classList.add("chosen");
    const heading = document.createElement("tr");
    const values = document.createElement("tr");
    for (const [name, value, more] of facts(row, at)) {
      const head = make("th", "", name);
      head.scope = "col";
      const data = make("td", "", value);
      data.dataset.fact = name;
      if (more) data.append(make("div", "remark", more));
      heading.append(head);
      values.append(data);
    }
    table.replaceChildren(heading, values);
  }

  rows.forEach((tokens, row) => {
    const block = make("div", "token-row");
    block.setAttribute("role", "row");
    const label = make("div", "token-head", heads[row]);
    label.setAttribute("role", "rowheader");
    const line = make("div", "token-line");
    line.setAttribute("role", "presentation");
    cells.push(tokens.map((token, at) => {
      const kept = counted[row][at];
      const ratio = number(2, row, at);
      const cell = make("div", kept ? "token" : "token uncounted");
      cell.append(make("span", "token-text", show(token)));
      cell.append(make("span", "token-ratio", kept ? brief(ratio) : "–"));
      if (kept) cell.style.background = colour(ratio, scale);
      cell.setAttribute("role", "gridcell");
      const words = facts(row, at).map(([name, value]) => `${name} ${value}`);
      cell.setAttribute("aria-label", words.join(", "));
      cell.tabIndex = -1;
      cell.addEventListener("pointerenter", () => point(row, at));
      cell.addEventListener("focus", () => point(row, at));
      line.append(cell);
      return cell;
    }));
    block.append(label, line, make("div", "remark token-total", totals[row]));
    block.lastChild.setAttribute("role", "gridcell");
    grid.append(block);
  });

  const moves = {
    ArrowRight: [0, 1],
    ArrowLeft: [0, -1],
    ArrowDown: [1, 0],
    ArrowUp: [-1, 0],
    Home: [0, -width],
    End: [0, width],
  };
  grid.addEventListener("keydown", (event) => {
    // the notebook would take the arrow keys for itself
    event.stopPropagation();
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const row = Math.min(Math.max(here[0] + move[0], 0), rows.length - 1);
    const at = Math.min(Math.max(here[1] + move[1], 0), width - 1);
    cells[row][at].focus();
  });
  point(0, 0);
}

export default { render };
