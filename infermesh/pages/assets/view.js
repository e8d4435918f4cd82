"use strict";
// What every page of the local app does: keys, and a run that goes on.
(() => {
  const $ = (selector) => document.querySelector(selector);
  const main = $("main");

  // ---- Keys. Everything that they do, a link or a button does as well.
  const help = $("#help");
  $("#help-button").addEventListener("click", () => help.showModal());
  const step = (by) => {
    const items = [...document.querySelectorAll("[data-item]")];
    if (!items.length) return;
    const at = items.indexOf(document.activeElement);
    const next = items[at < 0 ? (by > 0 ? 0 : items.length - 1) : Math.min(Math.max(at + by, 0), items.length - 1)];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  };
  const follow = (selector) => $(selector)?.click();
  const keys = {
    "/": () => $("[data-search]")?.focus(),
    "?": () => help.showModal(),
    j: () => step(1),
    k: () => step(-1),
    n: () => follow("a[rel=next]"),
    p: () => follow("a[rel=first], a[rel=prev]"),
  };
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented) return; // the editor closes its list of completions, for example
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key === "k" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      location.href = "/#q";
    } else if (event.key === "Escape" && typing) typing.blur();
    else if (!typing && !help.open && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const act = keys[event.key] ?? ($(`a[data-key="${CSS.escape(event.key)}"]`) ? () => follow(`a[data-key="${CSS.escape(event.key)}"]`) : null);
      if (!act) return;
      event.preventDefault();
      act();
    }
  });
  if (location.hash === "#q") $("#q")?.focus();

  // ---- Parts of the page, as the server's templates made them (all that rows hold is escaped there), and charts.
  const put = ({ parts = {}, charts }) => {
    for (const [name, html] of Object.entries(parts)) {
      const place = document.getElementById(`part-${name}`);
      if (!place) continue;
      const open = [...place.querySelectorAll("details")].map((details) => details.open);
      const left = place.querySelector(".scroll")?.scrollLeft;
      const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
      place.innerHTML = html;
      if (focused) place.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
      place.querySelectorAll("details").forEach((details, at) => { details.open = open[at] ?? false; });
      if (left) place.querySelector(".scroll").scrollLeft = left;
    }
    if (charts) window.infermeshCharts.show(charts);
  };

  // ---- What takes longer than a page may: it comes when it is there.
  const { later, events } = main.dataset;
  const ready = () => { document.body.dataset.whole = "yes"; };
  if (later) {
    fetch(later)
      .then((answer) => answer.json())
      .then((found) => {
        if (found.error) throw new Error(found.error);
        put(found);
        $("#reading")?.remove();
        ready();
      })
      .catch((error) => { $("#reading").textContent = `✕ The requests could not be read: ${error.message}`; });
  } else ready();

  // ---- A run that goes on. A tab that nobody sees holds no connection: browsers have six for a server.
  if (events) {
    let source = null;
    const pulse = $("#pulse");
    const close = () => { source?.close(); source = null; };
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(events);
      source.addEventListener("parts", (event) => {
        put(JSON.parse(event.data));
        document.body.dataset.events = String(Number(document.body.dataset.events ?? 0) + 1);
        pulse.textContent = `Live: as of ${new Date().toISOString().slice(11, 19)} UTC.`;
      });
      source.addEventListener("over", () => {
        close();
        location.reload();
      });
      source.onerror = () => { pulse.textContent = "Not connected: the page tries again every two seconds."; };
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    addEventListener("pagehide", close);
    open();
  }
})();
