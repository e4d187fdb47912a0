"""Pictures of explorers as a browser shows them: ``python -m drawings.explorers``.

It needs Chromium and the ``test`` extra; the README shows what it writes.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

from flowrl_lab.widgets import RunScrubber, TargetDesigner

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
WIDTH = 720
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# A notebook's page, as far as an explorer asks for it: the state that Python sent.
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; font: 14px system-ui, sans-serif; background: white; }}
#here {{ width: {width}px; padding: 12px; box-sizing: border-box; }}
{style}</style><div id="here"></div><script type="module">
const state = {state};
for (const name of {binary}) {{
  const text = atob(state[name]);
  state[name] = new DataView(Uint8Array.from(text, (c) => c.charCodeAt(0)).buffer);
}}
const model = {{
  get: (name) => state[name], set: (name, value) => {{ state[name] = value; }},
  on() {{}}, off() {{}}, send() {{}}, save_changes() {{}},
}};
const script = new Blob([{script}], {{ type: "text/javascript" }});
const explorer = (await import(URL.createObjectURL(script))).default;
await explorer.render({{ model, el: document.getElementById("here") }});
document.body.dataset.drawn = "yes";
</script>"""


def explorers() -> dict:
    """name of the picture -> an explorer, as the notebooks show it."""
    scrubber = RunScrubber()
    scrubber.objective = "grpo"
    return {
        "run_scrubber": scrubber,
        "target_designer": TargetDesigner("two_hills", reward_scale=6.0),
    }


def as_page(explorer) -> str:
    """The explorer alone on a page that needs no kernel."""
    state = explorer.get_state()
    script, style = (str(state.pop(name, "")) for name in ("_esm", "_css"))
    binary = [k for k, value in state.items() if isinstance(value, bytes | memoryview)]
    plain = {
        key: base64.b64encode(value).decode() if key in binary else value
        for key, value in state.items()
        if not key.startswith(("_model", "_view", "layout", "tabbable", "tooltip"))
    }
    texts = (plain, binary, script)
    state, binary, script = (json.dumps(x).replace("</", "<\\/") for x in texts)
    return PAGE.format(
        width=WIDTH, style=style, state=state, binary=binary, script=script
    )


def main() -> None:
    """Draw each, and write what the browser shows."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    chromium = next(filter(None, map(shutil.which, CHROMIUM)))
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        for name, explorer in explorers().items():
            page.set_content(as_page(explorer))
            page.locator("body[data-drawn]").wait_for()
            path = FOLDER / f"{name}.png"
            page.locator("#here").screenshot(path=path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
