"use strict";
// Draws the charts that the page holds as data. A pointer shows the values, a drag zooms into x,
// and a double click shows everything again. Charts of a group move together.
(() => {
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const digits = (v) => (v == null ? "-" : Math.abs(v) >= 1e5 ? v.toExponential(2) : String(Number(v.toPrecision(4))));
  const plots = [];

  const guides = (lines) => ({
    hooks: {
      draw: (u) => {
        const { ctx, bbox } = u;
        ctx.save();
        ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
        ctx.textAlign = "left";
        ctx.textBaseline = "alphabetic";
        ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
        for (const [i, line] of lines.entries()) {
          const at = u.valToPos(line.at, line.axis, true);
          const inside = line.axis === "x"
            ? at >= bbox.left && at <= bbox.left + bbox.width
            : at >= bbox.top && at <= bbox.top + bbox.height;
          if (!inside) continue;
          ctx.strokeStyle = ctx.fillStyle = variable("--guide");
          ctx.beginPath();
          if (line.axis === "x") {
            ctx.moveTo(at, bbox.top);
            ctx.lineTo(at, bbox.top + bbox.height);
          } else {
            ctx.moveTo(bbox.left, at);
            ctx.lineTo(bbox.left + bbox.width, at);
          }
          ctx.stroke();
          const wide = ctx.measureText(line.label).width;
          const gap = 4 * devicePixelRatio;
          const x = line.axis === "x" ? Math.min(at + gap, bbox.left + bbox.width - wide) : bbox.left + gap;
          const y = line.axis === "x" ? bbox.top + (1 + i) * 13 * devicePixelRatio : at - gap;
          ctx.fillText(line.label, x, y);
        }
        ctx.restore();
      },
    },
  });

  const axis = (spec, size) => ({
    label: spec.label,
    size,
    stroke: () => variable("--ink"),
    grid: { stroke: () => variable("--grid"), width: 1 },
    ticks: { stroke: () => variable("--grid"), width: 1 },
    values: (u, ticks) => ticks.map((v) => (v == null ? "" : digits(v))),
  });

  const make = (spec, box) => {
    const reach = Math.max(0, ...spec.lines.filter((l) => l.axis === "y").map((l) => l.at));
    const linear = (u, low, high) => {
      const top = Math.max(high ?? 0, reach) || 1;
      return [spec.y.low ?? 0, spec.y.high ?? top * 1.06];
    };
    const plot = new uPlot({
      title: spec.title,
      width: box.clientWidth,
      height: spec.height,
      cursor: { drag: { x: true, y: false }, ...(spec.group ? { sync: { key: spec.group } } : {}) },
      scales: {
        x: { time: false, ...(spec.x.log ? { distr: 3 } : {}) },
        y: spec.y.log ? { distr: 3 } : { range: linear },
      },
      axes: [axis(spec.x, 48), axis(spec.y, 72)],
      series: [
        { label: spec.x.label, value: (u, v) => digits(v) },
        ...spec.series.map((s) => ({
          label: s.label,
          stroke: s.colour,
          width: 1.6,
          dash: s.dashed ? [6, 4] : undefined,
          points: { show: false },
          paths: s.stepped ? uPlot.paths.stepped({ align: s.stepped }) : undefined,
          value: (u, v) => digits(v),
        })),
      ],
      legend: { markers: { dash: (u, i) => (spec.series[i - 1]?.dashed ? "dashed" : "solid") } },
      plugins: [guides(spec.lines)],
    }, spec.data, box);
    plots.push([plot, box, spec.height]);
  };

  const specs = JSON.parse(document.getElementById("charts").textContent);
  specs.forEach((spec, i) => make(spec, document.getElementById(`chart-${i}`)));

  const redraw = () => plots.forEach(([plot]) => plot.redraw(false, true));
  addEventListener("resize", () => {
    plots.forEach(([plot, box, height]) => plot.setSize({ width: box.clientWidth, height }));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    redraw();
  });
})();
