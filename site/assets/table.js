// Sorts tables by their column heads and filters the table of entries; both states live in the address.
"use strict";

const numeric = (text) => (text !== "" && !Number.isNaN(Number(text)) ? Number(text) : null);
const valueOf = (cell) => (cell.dataset.sort ?? cell.textContent).trim().toLowerCase();

// Numbers by size, words by alphabet, empty cells last whichever way the column runs.
function compare(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [numeric(a), numeric(b)];
  return direction * (x !== null && y !== null ? x - y : a.localeCompare(b, "en"));
}

function sortable(table, changed = () => {}) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  let state = { key: "", direction: 1 };

  function apply(key, direction) {
    const column = heads.findIndex((head) => head.dataset.key === key);
    state = column < 0 ? { key: "", direction: 1 } : { key, direction };
    heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index !== column ? "none" : direction > 0 ? "ascending" : "descending");
    });
    const rows = column < 0 ? original : original
      .map((row) => [valueOf(row.cells[column]), row])
      .sort(([a], [b]) => compare(a, b, direction))
      .map(([, row]) => row);
    body.append(...rows);
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const { key, direction } = state;
      apply(head.dataset.key, key === head.dataset.key ? -direction : 1);
      changed();
    });
  }
  apply("", 1);
  return { apply, state: () => state };
}

function filtered(table, form, status) {
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    words: `${row.cells[0].textContent} ${row.dataset.words}`.toLowerCase(),
    claims: row.dataset.claims.split(" "),
    models: row.dataset.model.split(" "),
    year: Number(row.dataset.year),
  }));
  const names = ["find", "category", "trained", "model", "standing", "from", "to"];
  const boxes = [...form.querySelectorAll("input[name=claims]")];
  const sorter = sortable(table, remember);

  // Where the heads are not shown, on phones, a list stands in for them; an order that it lacks shows as its first.
  const order = form.elements.sort;
  order.addEventListener("input", () => sort(order.value));

  function sort(text) {
    sorter.apply(text.replace(/^-/, ""), text.startsWith("-") ? -1 : 1);
  }

  function written() {
    const { key, direction } = sorter.state();
    return key && direction < 0 ? `-${key}` : key;
  }

  function reflect() {
    order.value = written();
    if (order.selectedIndex < 0) order.value = "";
  }

  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);

  function show() {
    const wanted = Object.fromEntries(names.map((name) => [name, form.elements[name].value.trim()]));
    const words = wanted.find.toLowerCase().split(/\s+/).filter(Boolean);
    const claims = chosen();
    let count = 0;
    for (const item of rows) {
      const { category, trained, standing } = item.row.dataset;
      const fits = words.every((word) => item.words.includes(word))
        && claims.every((claim) => item.claims.includes(claim))
        && (!wanted.category || category === wanted.category)
        && (!wanted.trained || trained === wanted.trained)
        && (!wanted.standing || standing === wanted.standing)
        && (!wanted.model || item.models.includes(wanted.model))
        && (!wanted.from || item.year >= Number(wanted.from))
        && (!wanted.to || item.year <= Number(wanted.to));
      item.row.hidden = !fits;
      count += fits;
    }
    status.textContent = count === rows.length
      ? `${count} entries`
      : `${count} of ${rows.length} entries${count ? "" : ". Clear a filter to see more."}`;
  }

  // The address holds exactly what differs from the start, so that it can be shared.
  function remember() {
    const query = new URLSearchParams();
    for (const name of names) {
      const value = form.elements[name].value.trim();
      if (value) query.set(name, value);
    }
    const claims = chosen();
    if (claims.length) query.set("claims", claims.join(","));
    const sorted = written();
    if (sorted) query.set("sort", sorted);
    reflect();
    const text = query.toString();
    history.replaceState(null, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
  }

  function restore() {
    const query = new URLSearchParams(location.search);
    for (const name of names) form.elements[name].value = query.get(name) ?? "";
    const claims = (query.get("claims") ?? "").split(",");
    for (const box of boxes) box.checked = claims.includes(box.value);
    sort(query.get("sort") ?? "");
    reflect();
    show();
  }

  form.addEventListener("input", () => { show(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sorter.apply("", 1); show(); remember(); }));
  window.addEventListener("popstate", restore);
  form.hidden = false;
  restore();
}

const entries = document.getElementById("entries-table");
if (entries) filtered(entries, document.getElementById("filters"), document.getElementById("table-status"));
for (const table of document.querySelectorAll("table[data-sortable]")) sortable(table);
