// Tables whose cells are always text: the name of a node is never taken for markup.

// Shows rows in the table with this id. Each column turns a row into a text, or into
// { text, title, pill, fill, mono, at }:
//   title  text on hover
//   pill   a state, by its colour: good, bad, warn, plain
//   fill   a part of a whole, 0 to 1
//   at     a point in time
// Cells that did not change are not touched, so that selections and screen readers keep theirs.
export function show(id, columns, rows, empty) {
  const table = document.getElementById(id);
  const body = table.tBodies[0];
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const wanted = Math.max(rows.length, 1);
  while (body.rows.length > wanted) body.deleteRow(-1);
  while (body.rows.length < wanted) role(body.insertRow(), 'row');
  if (rows.length === 0) {
    const row = body.rows[0];
    while (row.cells.length > 1) row.deleteCell(-1);
    const cell = row.cells[0] ?? role(row.insertCell(), 'cell');
    cell.className = 'empty';
    cell.colSpan = columns.length;
    set(cell, { text: empty });
    return;
  }
  rows.forEach((of, nth) => {
    const row = body.rows[nth];
    while (row.cells.length < columns.length) role(row.insertCell(), 'cell');
    columns.forEach((column, at) => {
      const cell = row.cells[at];
      if (cell.className === 'empty') cell.colSpan = 1;
      const value = column(of);
      const shown = typeof value === 'object' ? value : { text: value };
      const { className } = table.tHead.rows[0].cells[at];
      cell.className = `${className} ${shown.mono ? 'mono' : ''}`.trim();
      if (cell.dataset.label !== labels[at]) cell.dataset.label = labels[at];
      set(cell, shown);
    });
  });
}

function set(cell, { text, title = '', pill, fill, at }) {
  let inner = cell.firstElementChild;
  if (!inner) {
    inner = document.createElement('span');
    cell.append(inner);
  }
  const name = pill ? `pill ${pill}` : fill === undefined ? 'text' : 'fill';
  if (inner.className !== name) inner.className = name;
  if (inner.textContent !== String(text)) inner.textContent = text;
  if (inner.title !== title) inner.title = title;
  if (fill !== undefined) inner.style.setProperty('--part', `${Math.min(100, fill * 100)}%`);
  if (at !== undefined) inner.dataset.at = at;
}

// A narrow screen shows rows as blocks, which a screen reader takes for rows by their role only.
function role(element, name) {
  element.setAttribute('role', name);
  return element;
}

for (const table of document.querySelectorAll('table')) {
  role(table, 'table');
  role(table.tHead, 'rowgroup');
  role(table.tBodies[0], 'rowgroup');
  role(table.tHead.rows[0], 'row');
  for (const cell of table.tHead.rows[0].cells) role(cell, 'columnheader');
}
