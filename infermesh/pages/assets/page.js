"use strict";
// Draws the page's charts: reads their data (see infermesh/pages/charts.py) and hands it to uPlot.
(() => {
  let charts = JSON.parse(document.getElementById("charts").textContent);
  const drawn = new Map();
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 12, maximumSignificantDigits: 12 });
  const font = "12px system-ui, sans-serif";
  const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];
  for (let days = 1; days <= 1024; days *= 2) STEPS.push(days * 86400);

  // Seconds of a run's time. Below two minutes seconds, then 12:30 (minutes) and 3:05:00 (hours).
  const elapsed = (seconds) => {
    if (Math.abs(seconds) < 120) return `${digits.format(seconds)} s`;
    const at = Math.round(seconds);
    const two = (number) => String(number).padStart(2, "0");
    const minutes = `${two(Math.floor(at / 60) % 60)}:${two(at % 60)}`;
    return at < 3600 ? minutes.replace(/^0/, "") : `${Math.floor(at / 3600)}:${minutes}`;
  };
  const onX = (chart) => (chart.axis === "elapsed" ? elapsed : (value) => whole.format(value));
  const onY = (chart) => (value) =>
    value == null ? "–" : chart.unit === "%" ? `${digits.format(100 * value)} %` : digits.format(value);

  // The vertical lines with their words, over the plot.
  const marked = (chart) => ({
    hooks: {
      draw: (plot) => {
        const { ctx, bbox } = plot, ratio = devicePixelRatio;
        ctx.save();
        for (const mark of chart.marks) {
          const x = Math.round(plot.valToPos(mark.at, "x", true));
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.strokeStyle = ctx.fillStyle = colour(chart.points ? "green" : "muted");
          ctx.lineWidth = ratio;
          ctx.setLineDash([4 * ratio, 4 * ratio]);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.font = `${12 * ratio}px system-ui, sans-serif`;
          const right = x > bbox.left + bbox.width / 2;
          ctx.textAlign = right ? "right" : "left";
          ctx.textBaseline = "top";
          ctx.fillText(mark.label, x + (right ? -4 : 4) * ratio, bbox.top + 2 * ratio);
        }
        ctx.restore();
      },
    },
  });

  const range = (chart) => {
    const values = chart.x, low = values[0], high = values[values.length - 1];
    if (chart.axis === "elapsed") return [0, low + high];  // the middle of the first step, and of the last
    if (chart.axis === "linear") return high > low ? [low - (high - low) / 20, high + (high - low) / 20] : [low - 1, low + 1];
    const room = high > low ? (high / low) ** 0.05 : 2;
    return [low / room, high * room];
  };

  const options = (chart, width) => {
    const axis = { font, stroke: colour("muted"), ticks: { stroke: colour("grid"), width: 1 } };
    return {
      width,
      height: 210,
      plugins: [marked(chart)],
      cursor: { y: false, ...(chart.axis === "elapsed" ? { sync: { key: "run" } } : {}) },
      scales: {
        x: { time: false, range: range(chart), ...(chart.axis === "log" ? { distr: 3, log: 2 } : {}) },
        y: { range: (plot, low, high) => [low < 0 ? low * 1.08 : 0, high > 0 ? high * 1.08 : 1] },
      },
      axes: [
        {
          ...axis, size: 28, label: chart.xLabel, labelFont: font, labelSize: 18, space: 70, grid: { show: false },
          values: (plot, splits) => splits.map((value) => (value == null ? "" : onX(chart)(value))),
          ...(chart.axis === "elapsed" ? { incrs: STEPS } : chart.spread === false ? {} : { splits: () => spread(chart, width) }),
          filter: (plot, splits) => splits,
        },
        {
          ...axis, size: 58, label: chart.unit === "%" ? null : chart.unit, labelFont: font, labelSize: 18, space: 36,
          grid: { stroke: colour("grid"), width: 1 },
          values: (plot, splits) => splits.map(onY(chart)),
        },
      ],
      legend: { markers: { dash: (plot, place) => (chart.series[place - 1]?.dash.length ? "dashed" : "solid") } },
      bands: chart.band ? [{ series: chart.band.map((place) => place + 1), fill: `${colour(chart.series[0].colour)}26` }] : [],
      series: [
        { label: "at", value: (plot, value) => (value == null ? "" : onX(chart)(value)) },
        ...chart.series.map((line) => ({
          label: line.label,
          stroke: colour(line.colour),
          width: 1.75,
          dash: line.dash,
          points: chart.points ? { show: true, size: 7, fill: colour(line.colour) } : { size: 4 },
          spanGaps: false,
          value: (plot, value) => onY(chart)(value),
        })),
      ],
    };
  };

  // The settings of a sweep that have room for their number on the axis.
  const spread = (chart, width) => {
    const [low, high] = range(chart), by = chart.axis === "log" ? Math.log : (value) => value;
    const place = (value) => ((by(value) - by(low)) / (by(high) - by(low))) * (width - 80);
    const shown = [];
    for (const value of chart.x) {
      const last = shown[shown.length - 1];
      if (last === undefined || place(value) - place(last) > 14 + 7 * whole.format(value).length) shown.push(value);
    }
    return shown;
  };

  const draw = (chart) => {
    const place = document.getElementById(`plot-${chart.name}`);
    drawn.get(chart.name)?.destroy();
    const data = [chart.x, ...chart.series.map((line) => line.values)];
    drawn.set(chart.name, new uPlot(options(chart, place.clientWidth || 600), data, place));
  };
  const drawAll = () => charts.forEach(draw);

  // A table of what is drawn, made when it is opened.
  const fill = (chart, box) => {
    if (box.firstChild) return;
    const table = box.appendChild(document.createElement("table"));
    table.className = "numbers";
    const row = (part, kind, texts) => {
      const line = part.appendChild(document.createElement("tr"));
      for (const text of texts) {
        const cell = line.appendChild(document.createElement(kind));
        if (kind === "th") cell.scope = "col";
        cell.textContent = text;
      }
    };
    row(table.createTHead(), "th", [chart.xLabel, ...chart.series.map((line) => line.label)]);
    const body = table.createTBody();
    chart.x.forEach((x, at) => row(body, "td", [onX(chart)(x), ...chart.series.map((line) => onY(chart)(line.values[at]))]));
  };

  // The chart as a picture: its title, the names of its lines, and the plot.
  const save = (chart) => {
    const plot = drawn.get(chart.name).ctx.canvas, ratio = devicePixelRatio, head = 46 * ratio;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [plot.width, plot.height + head];
    const ctx = canvas.getContext("2d");
    ctx.fillStyle = colour("paper");
    ctx.fillRect(0, 0, canvas.width, canvas.height);
    ctx.fillStyle = colour("ink");
    ctx.font = `600 ${14 * ratio}px system-ui, sans-serif`;
    ctx.fillText(chart.title, 8 * ratio, 18 * ratio);
    ctx.font = `${12 * ratio}px system-ui, sans-serif`;
    let x = 8 * ratio;
    for (const line of chart.series) {
      ctx.fillStyle = colour(line.colour);
      ctx.fillText(`— ${line.label}`, x, 38 * ratio);
      x += ctx.measureText(`— ${line.label}`).width + 16 * ratio;
    }
    ctx.drawImage(plot, 0, head);
    canvas.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${chart.name}.png`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    });
  };

  const wire = (chart) => {
    const box = document.getElementById(`table-${chart.name}`);
    box.closest("details").addEventListener("toggle", () => fill(chart, box));
    document.getElementById(`save-${chart.name}`).addEventListener("click", () => save(chart));
  };
  // Other data, of a run that goes on. A chart whose place on the page is a new one is drawn anew.
  const show = (next) => {
    const known = new Map(charts.map((chart) => [chart.name, chart]));
    charts = next.map((chart) => Object.assign(known.get(chart.name) ?? {}, chart));
    for (const chart of charts) {
      if (!document.getElementById(`plot-${chart.name}`)) continue;
      const plot = drawn.get(chart.name);
      if (!plot?.root.isConnected || plot.series.length !== chart.series.length + 1) {
        const fresh = !plot?.root.isConnected;
        draw(chart);
        if (fresh) wire(chart);
      } else plot.setData([chart.x, ...chart.series.map((line) => line.values)]);
      const box = document.getElementById(`table-${chart.name}`);
      if (box.firstChild) {
        box.replaceChildren();
        fill(chart, box);
      }
    }
  };

  drawAll();
  charts.forEach(wire);
  // Of a query's result: a chart that is drawn and saved by itself.
  const single = new Map();
  const one = (chart) => { single.set(chart.name, chart); draw(chart); };
  window.infermeshCharts = { show, one, save: (name) => save(single.get(name)) };
  let width = root.clientWidth;
  addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    for (const chart of charts) {
      const place = document.getElementById(`plot-${chart.name}`);
      drawn.get(chart.name)?.setSize({ width: place.clientWidth, height: 210 });
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  // Paper is white, and narrower than a screen.
  const printed = (on) => () => {
    root.classList.toggle("printed", on);
    drawAll();
  };
  addEventListener("beforeprint", printed(true));
  addEventListener("afterprint", printed(false));
  document.body.dataset.ready = String(charts.length);
})();
