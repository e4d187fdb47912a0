// What the explorers share; it stands before each one's own script.

const SVG = "http://www.w3.org/2000/svg";
const MOST = 800;
let WIDTH = MOST; // of what is drawn now

function typed(view, Kind) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  return new Kind(bytes);
}

function node(name, attributes, content) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content !== undefined) made.textContent = content;
  return made;
}

function round(value) {
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

// 1, 2 or 5 times a power of ten, at least the value: an axis that need not move often.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((mark) => mark >= value);
}

// Drawn as wide as there is room, so that words keep their size; again when it changes.
const room = (el) => Math.min(MOST, Math.max(280, el.clientWidth || MOST));

function follow(el, draw) {
  let last = room(el);
  const observer = new ResizeObserver(() => {
    if (room(el) === last) return;
    last = room(el);
    draw();
  });
  observer.observe(el);
  return () => observer.disconnect();
}

// Runs `action` once its caller has been at rest for a second: between two key presses
// of a dial nothing but what it moves may change.
function whenAtRest(action) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, 1000);
  };
}
