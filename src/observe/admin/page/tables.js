// Tables whose cells are always text: the name of a node is never taken for markup.

import { visible } from '/words.js';

let wanted = '';

// Only rows that contain this text are shown, in any table whose rows are not searched elsewhere.
export function search(text) {
  wanted = text.trim().toLowerCase();
}

// Shows rows in the table with this id. Each column turns a row into a text, or into
// { text, title, pill, fill, mono, wide }:
//   title  text on hover
//   pill   a state, by its colour: good, bad, warn, plain
//   fill   a part of a whole, 0 to 1
//   wide   a text that may be long
// tone: that of a row that needs attention: bad, warn; searched: the rows were searched already.
// Cells that did not change are not touched, so that selections and screen readers keep theirs.
// Returns the number of rows that are shown.
export function show(id, columns, all, empty, { tone = () => '', searched = false } = {}) {
  const filled = all.map((of) => ({ of, cells: columns.map((column) => value(column(of))) }));
  const rows = searched || !wanted ? filled : filled.filter(({ cells }) => cells.some(matches));
  const table = document.getElementById(id);
  const body = table.tBodies[0];
  const label = (cell) => cell.textContent.trim().replace(/\s+/g, ' ');
  const labels = [...table.tHead.rows[0].cells].map(label);
  const count = Math.max(rows.length, 1);
  while (body.rows.length > count) body.deleteRow(-1);
  while (body.rows.length < count) role(body.insertRow(), 'row');
  if (rows.length === 0) {
    const row = body.rows[0];
    while (row.cells.length > 1) row.deleteCell(-1);
    const cell = row.cells[0] ?? role(row.insertCell(), 'cell');
    cell.className = 'empty';
    cell.colSpan = columns.length;
    row.className = '';
    set(cell, { text: all.length === 0 ? empty : 'No row matches.' });
    return 0;
  }
  rows.forEach(({ of, cells }, nth) => {
    const row = body.rows[nth];
    const name = tone(of);
    if (row.className !== name) row.className = name;
    while (row.cells.length < columns.length) role(row.insertCell(), 'cell');
    cells.forEach((shown, at) => {
      const cell = row.cells[at];
      if (cell.className === 'empty') cell.colSpan = 1;
      const { className } = table.tHead.rows[0].cells[at];
      const names = [className, shown.mono && 'mono', shown.wide && 'wide'];
      const name = names.filter(Boolean).join(' ');
      if (cell.className !== name) cell.className = name;
      if (cell.dataset.label !== labels[at]) cell.dataset.label = labels[at];
      set(cell, shown);
    });
  });
  return rows.length;
}

const value = (of) => (typeof of === 'object' ? of : { text: of });

const matches = ({ text, title = '' }) => `${text}\n${title}`.toLowerCase().includes(wanted);

function set(cell, { text, title = '', pill, fill }) {
  let inner = cell.firstElementChild;
  if (!inner) {
    inner = document.createElement('span');
    cell.append(inner);
  }
  const name = pill ? `pill ${pill}` : fill === undefined ? 'text' : 'fill';
  if (inner.className !== name) inner.className = name;
  const shown = visible(text);
  if (inner.textContent !== shown) inner.textContent = shown;
  const more = title.split('\n').map(visible).join('\n');
  if (inner.title !== more) inner.title = more;
  if (fill !== undefined) inner.style.setProperty('--part', `${Math.min(100, fill * 100)}%`);
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
