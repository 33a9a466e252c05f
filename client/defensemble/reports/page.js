"use strict";
// Sortable tables: a button in each heading. Rows without a value stay last, and those of the paper stay in their own part.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const isAscending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [key(row.cells[column]), row]);
      keyed.sort(([a], [b]) => compare(a, b, isAscending));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

function key(cell) {
  if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
  return cell.dataset.text;
}

function compare(a, b, isAscending) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return isAscending ? order : -order;
}

// Charts that fit the page's width and colours replace the pictures. `ast`: expressions are interpreted, which needs no `eval`.
const specs = document.getElementById("chart-specs");
if (specs !== null) {
  for (const [id, spec] of Object.entries(JSON.parse(specs.textContent))) {
    const figure = document.querySelector(`[data-chart="${id}"]`);
    figure.classList.add("is-live");
    vegaEmbed(figure.querySelector(".live"), spec, { ast: true, renderer: "svg", actions: false, defaultStyle: false }).catch((error) => {
      figure.classList.remove("is-live");
      console.error(error);
    });
  }
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("main details")) details.open = true;
});
