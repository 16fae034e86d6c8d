// Draws the charts; again when the theme or the medium changes, so that they suit it.
(() => {
  "use strict";
  const NARROW = 700;
  const PRINTED_WIDTH = 680;
  const { dark, charts } = JSON.parse(document.getElementById("charts").textContent);
  const theme = window.matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  let printing = false;

  const themed = (value) => {
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
    }
    if (theme.matches && !printing && Object.hasOwn(dark, value)) return dark[value];
    return value;
  };

  const draw = (chart) => {
    const place = document.getElementById(chart.id);
    const width = printing ? PRINTED_WIDTH : place.clientWidth;
    const layout = { ...chart.layout, ...(width < NARROW ? chart.narrow : {}), width };
    const touch = window.matchMedia("(pointer: coarse)").matches;
    const traces = chart.traces.map((trace) => ({
      ...trace,
      visible: !hidden.has(chart.id + "\n" + trace.legendgroup),
    }));
    // A finger that moves over a chart scrolls the page.
    Plotly.react(place, themed(traces), themed({ ...layout, dragmode: touch ? false : "zoom" }), {
      displayModeBar: false,
    });
  };
  const drawAll = () => charts.forEach(draw);

  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const { chart, group } = button.dataset;
      const name = chart + "\n" + group;
      const shown = hidden.delete(name);
      if (!shown) hidden.add(name);
      button.setAttribute("aria-pressed", String(shown));
      draw(charts.find((each) => each.id === chart));
    });
  });

  let width = window.innerWidth;
  let waiting;
  window.addEventListener("resize", () => {
    // On a phone the height changes whenever the address bar goes.
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 100);
  });
  theme.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", () => { printing = true; drawAll(); });
  window.addEventListener("afterprint", () => { printing = false; drawAll(); });
  drawAll();
  document.documentElement.dataset.drawn = String(charts.length);
})();
