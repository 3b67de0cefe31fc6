"use strict";
(function () {
  const root = document.documentElement;
  root.dataset.errors = "0";
  root.dataset.firstError = "";
  function failed(message) {
    root.dataset.errors = String(Number(root.dataset.errors) + 1);
    root.dataset.firstError = root.dataset.firstError || String(message);
  }
  window.addEventListener("error", (event) => failed(event.message));
  window.addEventListener("unhandledrejection", (event) => failed(event.reason));
  document.addEventListener("securitypolicyviolation", (event) => failed("policy: " + event.violatedDirective + " " + event.blockedURI));

  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const numbers = read("numbers");
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

  function draw(place) {
    const figure = figures[place.dataset.figure];
    return Plotly.newPlot(place, figure.data, figure.layout, config).then(() => { place.dataset.drawn = "1"; });
  }
  const places = Array.from(document.querySelectorAll("[data-figure]"));
  places.reduce((before, place) => before.then(() => draw(place)).catch(failed), Promise.resolve())
    .then(() => { root.dataset.ready = "1"; });

  function cell(value) {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    // A spreadsheet would run a text that begins like a formula.
    const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
    return '"' + text.replace(/"/g, '""') + '"';
  }
  function save(name, type, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const columns = ["scenario", "split", "metric", "score", "label", "model", "kind", "seed", "value", "units", "better", "floor", "failed", "reason"];
  document.getElementById("csv").addEventListener("click", () => {
    const lines = numbers.map((row) => columns.map((name) => cell(row[name])).join(","));
    save("worldsim.csv", "text/csv", [columns.join(","), ...lines].join("\n") + "\n");
  });
  document.getElementById("json").addEventListener("click", () => {
    save("worldsim.json", "application/json", JSON.stringify(numbers, null, 1));
  });
})();
