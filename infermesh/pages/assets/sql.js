"use strict";
// The SQL box: editor, result, chart, history. What a query gives is put on the page as text alone.
(() => {
  const $ = (id) => document.getElementById(id);
  const { ask, export: file, name } = document.getElementById("main").dataset;
  const { dialect, schema } = JSON.parse($("words").textContent);
  const place = $("editor"), field = $("query"), said = $("said"), result = $("result");
  const KEPT = 50, KEY = `infermesh-sql`;
  let editor = null, asking = null;

  const text = () => (editor ? editor.state.doc.toString() : field.value);
  const write = (query) => {
    if (editor) editor.dispatch({ changes: { from: 0, to: editor.state.doc.length, insert: query } });
    else field.value = query;
  };

  // ---- Earlier queries, in this browser alone.
  const read = () => {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return Array.isArray(found) ? found.filter((each) => typeof each === "string") : [];
    } catch { return []; }
  };
  const list = () => {
    const options = read().map((query) => new Option(query.replace(/\s+/g, " ").slice(0, 80), query));
    $("history").replaceChildren(new Option("–", ""), ...options);
  };
  const remember = (query) => {
    try { localStorage.setItem(KEY, JSON.stringify([query, ...read().filter((each) => each !== query)].slice(0, KEPT))); } catch { /* it is full, or forbidden */ }
    list();
  };
  $("history").addEventListener("change", (event) => { if (event.target.value) write(event.target.value); });

  // ---- Asking.
  const say = (words, bad = false) => {
    said.textContent = words;
    said.className = bad ? "bad value" : "muted";
  };
  const run = async () => {
    const query = text();
    asking?.abort();
    const mine = (asking = new AbortController());
    $("cancel").disabled = false;
    say("Asked …");
    try {
      const response = await fetch(ask, { method: "POST", body: JSON.stringify({ sql: query }), signal: mine.signal });
      const found = await response.json();
      if (found.error) {
        say(`✕ ${found.error}`, true);
        return;
      }
      remember(query);
      history.replaceState(null, "", `?${new URLSearchParams({ sql: query })}`);
      const count = found.rows.length.toLocaleString("en");
      const all = found.more ? `The first ${count} rows; there are more: a file has all` : `${count} row${found.rows.length === 1 ? "" : "s"}`;
      say(`${all}. ${found.seconds} s.`);
      show(found);
    } catch (error) {
      if (mine === asking) say(error.name === "AbortError" ? "Cancelled." : `✕ ${error.message}`, error.name !== "AbortError");
    } finally {
      if (mine === asking) {
        $("cancel").disabled = true;
        document.body.dataset.asked = String(Number(document.body.dataset.asked ?? 0) + 1);
      }
    }
  };
  $("ask").addEventListener("click", run);
  $("cancel").addEventListener("click", () => asking?.abort());
  for (const format of ["csv", "json"]) {
    $(format).addEventListener("click", async () => {
      const checked = await (await fetch(ask, { method: "POST", body: JSON.stringify({ sql: text(), check: true }) })).json();
      if (checked.error) return say(`✕ ${checked.error}`, true);
      const address = `${file}?${new URLSearchParams({ sql: text(), format })}`;
      const link = document.createElement("a");
      link.href = address;
      link.download = "";
      link.click();
    });
  }

  // ---- The result.
  const NUMBER = /INT|DOUBLE|FLOAT|DECIMAL/;
  const isNumber = (column) => NUMBER.test(column.type) && !column.type.includes("[") && !column.type.startsWith("STRUCT");
  const show = ({ columns, rows }) => {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const column of columns) {
      const cell = head.appendChild(document.createElement("th"));
      cell.scope = "col";
      cell.className = isNumber(column) ? "" : "text";
      cell.textContent = column.name;
      cell.title = column.type;
    }
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      row.forEach((value, at) => {
        const cell = line.insertCell();
        cell.textContent = value === null ? "NULL" : value.length > 2000 ? `${value.slice(0, 2000)} …` : value;
        cell.className = value === null ? "null" : isNumber(columns[at]) ? "number" : "";
      });
    }
    result.replaceChildren(table);
    result.hidden = $("result-title").hidden = false;
    plot(columns, rows);
  };

  // ---- A chart, where two columns are numbers.
  let drawn = null;
  const plot = (columns, rows) => {
    const numbers = columns.map((column, at) => [column, at]).filter(([column]) => isNumber(column));
    $("plot").hidden = numbers.length < 2 || rows.length < 2;
    drawn = null;
    if ($("plot").hidden) return;
    const options = () => numbers.map(([column, at]) => new Option(column.name, String(at)));
    $("plot-x").replaceChildren(...options());
    $("plot-y").replaceChildren(...options());
    $("plot-y").selectedIndex = 1;
    drawn = { columns, rows };
    draw();
  };
  const draw = () => {
    if (!drawn) return;
    const x = Number($("plot-x").value), y = Number($("plot-y").value);
    const points = drawn.rows
      .map((row) => [parseFloat(row[x]), row[y] === null ? null : parseFloat(row[y])])
      .filter(([at]) => Number.isFinite(at))
      .sort((a, b) => a[0] - b[0]);
    const [across, up] = [drawn.columns[x].name, drawn.columns[y].name];
    $("plot-title").textContent = `${up} by ${across}`;
    $("plot-finding").textContent = `${points.length.toLocaleString("en")} points, those of the table below.`;
    if (!points.length) return;
    window.infermeshCharts.one({
      name: "result", title: `${up} by ${across}`, axis: "linear", spread: false, xLabel: across, unit: up, band: null, marks: [],
      points: points.length <= 200, x: points.map(([at]) => at),
      series: [{ label: up, colour: "blue", dash: [], values: points.map(([, value]) => value) }],
    });
  };
  for (const id of ["plot-x", "plot-y"]) $(id).addEventListener("change", draw);
  $("save-result").addEventListener("click", () => window.infermeshCharts.save("result"));

  // ---- The editor stands in for the field, which is enough by itself.
  if (window.infermeshEditor) {
    editor = infermeshEditor.create({
      parent: place, text: field.value, nonce: document.currentScript.nonce, label: `SQL over ${name}`,
      dialect, schema, table: "results", run, changed: () => {},
    });
    field.remove();
    editor.contentDOM.dataset.search = "";
  } else field.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(); });
  list();
  document.body.dataset.editor = "ready";
})();
