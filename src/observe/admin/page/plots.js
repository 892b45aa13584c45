// Small plots of the last minutes, one point a second.

import { moment, none, span } from '/words.js';

const WIDTH = 600;
const HEIGHT = 120;
// Points further apart than this are not joined by a line.
const MAX_STEP = 5_000;
// What happened in a single second is at least this wide.
const LEAST = 4;

const svg = (name, attributes) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

const html = (name, className, text = '') => {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
};

export class Plot {
  // format: writes a value. stacked: each series is drawn on top of the one before.
  constructor(id, title, { format, stacked = false }) {
    this.format = format;
    this.stacked = stacked;
    this.title = title;
    const figure = document.getElementById(id);
    const caption = html('figcaption');
    this.now = html('strong', 'now', none);
    caption.append(html('span', '', title), this.now);
    this.area = html('div', 'area');
    this.area.tabIndex = 0;
    this.area.setAttribute('role', 'slider');
    this.area.setAttribute('aria-label', `${title}, second by second`);
    const viewBox = `0 0 ${WIDTH} ${HEIGHT}`;
    this.picture = svg('svg', { viewBox, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    this.most = html('span', 'most');
    this.line = html('span', 'line');
    this.line.hidden = true;
    this.area.append(this.picture, this.most, this.line);
    this.times = html('div', 'times');
    for (let nth = 0; nth < 3; nth += 1) this.times.append(html('span'));
    this.legend = html('ul', 'legend');
    figure.append(caption, this.area, this.times, this.legend);
    this.area.addEventListener('pointermove', (event) => this.look(event));
    for (const away of ['pointerleave', 'blur']) {
      this.area.addEventListener(away, () => this.read(null));
    }
    this.area.addEventListener('keydown', (event) => this.key(event));
  }

  // points: [{ at, ... }]; series: [{ name, colour, value: point => number or null }]; the last
  // `wide` milliseconds before `now` are drawn.
  draw(points, series, now, wide) {
    this.points = points;
    this.series = series;
    this.from = now - wide;
    this.wide = wide;
    this.axis(`${span(wide)} ago`, span(wide / 2), 'now');
    const rows = points.map((point) => series.map((one) => one.value(point)));
    const tops = rows.map((row) => {
      const values = row.map((value) => value ?? 0);
      return this.stacked ? values.reduce((a, b) => a + b, 0) : Math.max(0, ...values);
    });
    this.top = nice(Math.max(0, ...tops));
    this.most.textContent = tops.some((top) => top > 0) ? this.format(this.top) : '';
    const paths = [
      svg('path', { class: 'grid', d: `M0 ${HEIGHT / 2}H${WIDTH}M${WIDTH / 2} 0V${HEIGHT}` }),
    ];
    const floors = rows.map(() => 0);
    const lone = [];
    series.forEach((one, nth) => {
      // A zero of a stacked series is left out: it would draw a line along the series below.
      const runs = this.runs(rows.map((row) => (this.stacked && row[nth] === 0 ? null : row[nth])));
      const y = (value) => HEIGHT - (value / this.top) * (HEIGHT - 4);
      let line = '';
      let fill = '';
      for (const run of runs) {
        const places = this.places(run);
        const above = (at, place) => `${places[place]} ${y(floors[at] + rows[at][nth])}`;
        const below = (at, place) => `${places[place]} ${y(floors[at])}`;
        // Both ends are repeated where the run is widened.
        const ends = [run[0], ...run, run.at(-1)];
        const edge = ends.map(above);
        line += `M${edge.join('L')}`;
        if (run.length === 1 && !this.stacked) {
          const d = `M${this.x(points[run[0]].at)} ${y(rows[run[0]][nth])}h0.01`;
          lone.push(svg('path', { class: `lone ${one.colour}`, d }));
        }
        const back = ends.map(below).toReversed();
        fill += `M${edge.join('L')}L${back.join('L')}Z`;
      }
      if (this.stacked || series.length === 1) {
        const className = `under ${this.stacked ? 'solid ' : ''}${one.colour}`;
        paths.push(svg('path', { class: className, d: fill }));
      }
      const className = `over ${this.stacked ? 'thin ' : ''}${one.colour}`;
      paths.push(svg('path', { class: className, d: line }));
      if (this.stacked) rows.forEach((row, at) => { floors[at] += row[nth] ?? 0; });
    });
    this.picture.replaceChildren(...paths, ...lone);
    this.read(this.at ?? null);
  }

  axis(...texts) {
    texts.forEach((text, nth) => { this.times.children[nth].textContent = text; });
  }

  // The plot ends at this time, and not now: there is no answer since.
  stopped(at) {
    if (!this.wide) return;
    this.axis(...[this.wide, this.wide / 2, 0].map((before) => moment(at - before)));
  }

  // The places of a run from left to right, its first and its last one twice: apart from the others
  // where it would be too narrow to be seen.
  places(run) {
    const inner = run.map((at) => this.x(this.points[at].at));
    const pad = Math.max(0, (LEAST - (inner.at(-1) - inner[0])) / 2);
    const first = Math.min(Math.max(inner[0] - pad, 0), WIDTH - LEAST);
    const last = Math.max(inner.at(-1) + pad, first + (pad > 0 ? LEAST : 0));
    const within = inner.map((x) => Math.min(Math.max(x, first), last));
    return [first, ...within, last];
  }

  // The legend, with the values of the last point, or of the one that is read.
  labels(at = this.points.length - 1) {
    const point = this.points[at];
    const written = (value) => (value === null || value === undefined ? none : this.format(value));
    const values = this.series.map((one) => (point ? one.value(point) : null));
    while (this.legend.children.length > this.series.length) this.legend.lastChild.remove();
    while (this.legend.children.length < this.series.length) {
      const item = html('li');
      item.append(html('i'), html('span'), html('b'));
      this.legend.append(item);
    }
    this.series.forEach((one, nth) => {
      const [swatch, name, value] = this.legend.children[nth].children;
      swatch.className = one.colour;
      name.textContent = one.name;
      value.textContent = written(values[nth]);
    });
    const sum = values.reduce((sum, value) => (value === null ? sum : (sum ?? 0) + value), null);
    const now = this.stacked ? sum : values[0];
    this.now.textContent = this.series.length === 0 ? none : written(now);
    const texts = this.series.map((one, nth) => `${one.name} ${written(values[nth])}`).join(', ');
    const when = point ? moment(point.at) : 'now';
    for (const [name, value] of [
      ['min', 0], ['max', Math.max(0, this.points.length - 1)], ['now', Math.max(0, at)],
      ['text', `${when}: ${texts || 'nothing'}`],
    ]) this.area.setAttribute(`aria-value${name}`, value);
  }

  look(event) {
    const box = this.area.getBoundingClientRect();
    this.read(this.from + ((event.clientX - box.left) / box.width) * this.wide);
  }

  // Arrows read one point after the other.
  key({ key }) {
    const last = this.points.length - 1;
    const now = this.at === null || this.at === undefined ? last : this.nearest(this.at);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[key];
    if (to !== undefined) this.read(this.points[Math.min(Math.max(to, 0), last)]?.at ?? null);
  }

  // Shows the values at a time, also while newer ones come; null: the last ones.
  read(at) {
    this.at = at;
    this.line.hidden = at === null || !this.points?.length;
    if (this.line.hidden) {
      if (this.points) this.labels();
      return;
    }
    const nearest = this.nearest(at);
    const left = (this.x(this.points[nearest].at) / WIDTH) * 100;
    this.line.style.setProperty('--left', `${left}%`);
    this.line.classList.toggle('late', left > 50);
    this.line.dataset.time = moment(this.points[nearest].at);
    this.labels(nearest);
  }

  nearest(at) {
    let nearest = 0;
    this.points.forEach((point, nth) => {
      if (Math.abs(point.at - at) < Math.abs(this.points[nearest].at - at)) nearest = nth;
    });
    return nearest;
  }

  x(at) {
    return Math.round(((at - this.from) / this.wide) * WIDTH * 10) / 10;
  }

  // Runs of indexes of points that are joined by a line.
  runs(values) {
    const runs = [];
    values.forEach((value, at) => {
      if (value === null || value === undefined) return;
      const last = runs.at(-1)?.at(-1);
      const follows = last !== undefined && last === at - 1;
      if (follows && this.points[at].at - this.points[last].at < MAX_STEP) {
        runs.at(-1).push(at);
      } else {
        runs.push([at]);
      }
    });
    return runs;
  }
}

// The next round number that is not less.
function nice(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => value <= step * power) * power;
}
