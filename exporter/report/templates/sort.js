"use strict";
// A click or a key press on a column head sorts by that column: ascending, descending, original
// order. Cells without a number stay last. This script turns the heads into buttons, so that a page
// without a running script has no buttons without effect.
const collator = new Intl.Collator("en", { numeric: true });

function numberIn(cell) {
  if (!cell || cell.colSpan > 1) return NaN;
  const text = cell.textContent.replaceAll(",", "").trim();
  return text === "infinite" ? Infinity : parseFloat(text);
}

function byText(one, other, sign) {
  const empty = (text) => text === "" || text === "-";
  return empty(one) || empty(other) ? empty(one) - empty(other) : sign * collator.compare(one, other);
}

function byNumber(one, other, sign) {
  if (isNaN(one) || isNaN(other)) return isNaN(one) - isNaN(other);
  return one === other ? 0 : sign * (one - other);
}

function sorted(rows, column, order, asText) {
  const sign = order === "descending" ? -1 : 1;
  const key = asText
    ? (row) => row.cells[column]?.textContent.trim() ?? ""
    : (row) => numberIn(row.cells[column]);
  const compare = asText ? byText : byNumber;
  return rows.map((row) => [key(row), row])
    .sort((one, other) => compare(one[0], other[0], sign))
    .map((pair) => pair[1]);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const order = was === "descending" ? null : was === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(given, column, order, head.classList.contains("text")) : given));
    });
  });
}

// Print the content of folded sections too.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
