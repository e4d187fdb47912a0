// Figures of flowrl_lab in a page: each takes the form that fits the room it has, and
// what its reader switched off or zoomed into stays so while training goes on.
(() => {
  if (window.flowrlReflow) return;
  window.flowrlReflow = true;
  const OUTPUT = '.jp-OutputArea-output, .output_subarea, .cell-output';
  const choices = new WeakMap(); // of an output area: its reader's

  const room = (plot) => {
    const output = plot.closest(OUTPUT) ?? plot.parentElement;
    const style = getComputedStyle(output);
    const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
    return output.clientWidth - padding;
  };

  const change = (plot, layout) =>
    window.Plotly.relayout(plot, { ...layout, _doNotReportToPy: true });

  // What differs from how the figure should be, put right in one go.
  const fit = (plot, kept) => {
    const wide = plot.isConnected && window.Plotly ? room(plot) : 0;
    if (wide <= 0) return; // not in sight
    const forms = plot.layout.meta.flowrl;
    const form = forms.findLast((one) => one.width <= wide) ?? forms[0];
    const layout = form.width === plot.layout.width ? {} : { ...form };
    for (const [axis, range] of kept.zoomed) {
      const now = plot.layout[axis]?.range;
      if (now && now.some((end, i) => end !== range[i])) layout[`${axis}.range`] = range;
    }
    plot.layout.annotations.forEach(({ name, visible }, i) => {
      if (name && (visible === false) !== kept.off.has(name))
        layout[`annotations[${i}].visible`] = !kept.off.has(name);
    });
    if (Object.keys(layout).length) change(plot, layout);
    const off = plot.data.flatMap((trace, i) =>
      kept.off.has(trace.legendgroup) && trace.visible !== 'legendonly' ? [i] : []);
    if (off.length)
      window.Plotly.restyle(plot, { visible: 'legendonly', _doNotReportToPy: true }, off);
  };

  const noteZoom = (plot, kept, event) => {
    for (const key of Object.keys(event)) {
      const [, axis, part] = /^([xy]axis\d*)\.(range\[0\]|autorange)$/.exec(key) ?? [];
      if (!axis) continue;
      const range = [event[`${axis}.range[0]`], event[`${axis}.range[1]`]];
      const { _rangeInitial0, _rangeInitial1 } = plot._fullLayout[axis];
      const whole = range[0] === _rangeInitial0 && range[1] === _rangeInitial1;
      if (part === 'autorange' || whole) kept.zoomed.delete(axis);
      else kept.zoomed.set(axis, range);
    }
  };

  const noteSwitch = (plot, kept, [style, traces]) => {
    if (!('visible' in style)) return;
    for (const i of traces) {
      const { legendgroup, visible } = plot.data[i];
      if (!legendgroup) continue;
      if (visible === 'legendonly') kept.off.add(legendgroup);
      else kept.off.delete(legendgroup);
    }
  };

  const take = (plot) => {
    plot.flowrl = true;
    // a running plot begins afresh; the finished one in its place goes on with it
    const area = plot.closest('.jp-OutputArea') ?? plot.parentElement;
    const live = plot.closest('.jupyter-widgets, .widget-subarea');
    if (live || !choices.has(area))
      choices.set(area, { off: new Set(), zoomed: new Map() });
    const kept = choices.get(area);
    plot.on('plotly_restyle', (event) => noteSwitch(plot, kept, event));
    plot.on('plotly_relayout', (event) => noteZoom(plot, kept, event));
    plot.on('plotly_doubleclick', () => kept.zoomed.clear());
    plot.on('plotly_afterplot', () => fit(plot, kept));
    const output = plot.closest(OUTPUT) ?? plot.parentElement;
    new ResizeObserver(() => fit(plot, kept)).observe(output);
    fit(plot, kept);
  };

  // A notebook that is opened again shows plotly's figures as pictures of the size they
  // had, until the mouse comes.
  const wake = (picture) => {
    picture.flowrl = true;
    picture.dispatchEvent(new Event('mouseenter'));
  };

  const look = () => {
    for (const picture of document.querySelectorAll('.jp-RenderedPlotly > .plot-img[src]'))
      if (!picture.flowrl && picture.style.display !== 'none') wake(picture);
    for (const plot of document.querySelectorAll('.js-plotly-plot'))
      if (!plot.flowrl && plot.on && plot._fullLayout && plot.layout?.meta?.flowrl)
        take(plot);
  };
  let asked = false;
  new MutationObserver(() => {
    if (asked) return;
    asked = true;
    setTimeout(() => { asked = false; look(); }, 30);
  }).observe(document.body, { subtree: true, childList: true, attributeFilter: ['src'] });
  look();
})();
