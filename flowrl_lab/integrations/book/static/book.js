// Makes a plot's picture live when a reader comes to it: hover, zoom, legend.
(() => {
  const root = document.documentElement.dataset.content_root || "./";
  let library; // asked for once, and only on a page with a plot that was looked at

  const plotly = () => (library ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = `${root}_static/plotly.min.js`;
    script.onload = () => done(window.Plotly);
    script.onerror = failed;
    document.head.append(script);
  }));

  const bringToLife = async (box) => {
    const picture = box.querySelector("img");
    const figure = JSON.parse(box.querySelector("script").textContent);
    const place = document.createElement("div");
    try {
      const Plotly = await plotly();
      // As wide as it was made for; where the page is narrower, its box scrolls.
      const width = Math.max(box.clientWidth, picture.naturalWidth);
      const layout = { ...figure.layout, autosize: false, width };
      layout.height ??= picture.naturalHeight;
      picture.before(place);
      await Plotly.newPlot(place, figure.data, layout, {
        displaylogo: false,
      });
      picture.remove();
    } catch (error) {
      place.remove(); // the picture stays
      console.warn("a plot stays a picture:", error);
    }
  };

  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      bringToLife(target);
    }
  }, { rootMargin: "300px" });

  const start = () => document.querySelectorAll(".flowrl-plot")
    .forEach((box) => seen.observe(box));
  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", start);
  } else {
    start();
  }
})();
