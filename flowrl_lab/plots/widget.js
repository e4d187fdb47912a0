// A live figure's widget.  anywidget gives a script two seconds to start, which plotly's
// five megabytes can exceed on a busy machine: then nothing would ever be drawn.  This
// script starts at once, loads plotly after that, once a page, and hands on what the
// kernel has sent meanwhile.
const loading = (window.flowrlPlotly ??= new Map());

const load = (source) => {
  if (!loading.has(source.length)) {
    const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
    const loaded = import(url).finally(() => URL.revokeObjectURL(url));
    loaded.catch(() => loading.delete(source.length)); // the next plot tries again
    loading.set(source.length, loaded);
  }
  return loading.get(source.length);
};

export default () => {
  let figure; // plotly's own widget, once it is there
  const start = async (model) => {
    const waiting = [];
    const notes = MESSAGES.map((name) => {
      const note = () => {
        if (model.get(name) !== null) waiting.push([name, model.get(name)]);
      };
      model.on(`change:${name}`, note);
      return [`change:${name}`, note];
    });
    const made = (await load(model.get('_plotly'))).default();
    for (const [event, note] of notes) model.off(event, note);
    made.initialize({ model });
    for (const [name, value] of waiting) {
      model.set(name, null); // the last one stands there still
      model.set(name, value);
    }
    return made;
  };
  return {
    initialize({ model }) {
      figure = start(model);
    },
    async render(given) {
      return (await figure).render(given);
    },
  };
};
