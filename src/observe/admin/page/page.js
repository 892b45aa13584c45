// Asks the gateway once a second, and shows what it says.

import { Plot } from '/plots.js';
import { show } from '/tables.js';
import { bytes, compact, count, ending, exact, moment, none, rate, some, span, time, words } from '/words.js';

const EVERY = 1000;
const LIMIT = 5000;
const KEPT = 600;
const SPAN = 600_000;
// Kinds that have a colour of their own; the others share one.
const COLOURS = 6;
const MOST_ROWS = 1000;

const $ = (id) => document.getElementById(id);

function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

const perSecond = (n) => `${rate(n)}/s`;
const plots = {
  in: new Plot('plot-in', 'Events in', { format: perSecond, stacked: true }),
  out: new Plot('plot-out', 'Events out', { format: perSecond }),
  publish: new Plot('plot-publish', 'Publish latency', { format: time }),
  lag: new Plot('plot-lag', 'Delivery lag', { format: time }),
};

let points = [];
let started = null;
let heard = null;
const query = { search: '', sort: 'node', order: 'ascending', rows: 100 };

// --- state -----------------------------------------------------------------------------------------------------------------

function state(name, title, why) {
  $('state').dataset.state = name;
  put('state-name', title);
  put('state-why', why);
  document.title = `${title} · ${$('gateway').textContent || location.host} · Trunkline`;
}

function showState(view) {
  put('gateway', view.gateway);
  put('about', `version ${view.version} · ${view.bus || 'no'} bus · up ${span(view.now - view.started)}`);
  if (view.serving) {
    const lost = view.shards.length === 1 ? 'The shard is proven' : (view.shards.length === 2 ? 'Both shards are proven' : `All ${view.shards.length} shards are proven`);
    state('serving', 'Serving', `${lost}: what is published here comes back over the bus.`);
  } else if (view.draining) {
    state('draining', 'Draining', 'The gateway is going away. Its nodes are sent elsewhere and continue with their tokens.');
  } else {
    state('not-serving', 'Not serving', view.reason);
  }
}

function showTiles(view, last) {
  const sum = last ? last.published.reduce((a, b) => a + b, 0) : 0;
  put('tile-streams', count(view.streams));
  put('tile-streams-more', `of ${compact(view.streamsLimit)} on this gateway`);
  put('tile-in', last ? perSecond(sum) : none);
  put('tile-in-more', `${compact(view.published)} since the start`);
  put('tile-out', last ? perSecond(last.delivered) : none);
  put('tile-out-more', `${compact(view.delivered)} since the start`);
  put('tile-behind', compact(view.behind));
  put('tile-behind-more', 'events still to be offered');
  put('tile-gaps', compact(view.streamGaps));
  put('tile-gaps-more', `${compact(view.missed)} missed · ${compact(view.busGaps)} on the bus`);
  const errors = view.errors.reduce((sum, one) => sum + one.count, 0);
  put('tile-errors', compact(errors));
  put('tile-errors-more', view.unreadable ? some(view.unreadable, 'unreadable message') : 'answers and streams');
  $('tile-behind').parentElement.classList.toggle('warn', view.behind > 0);
  $('tile-gaps').parentElement.classList.toggle('warn', view.streamGaps > 0 || view.busGaps > 0);
}

// --- plots -----------------------------------------------------------------------------------------------------------------

function showPlots(view) {
  const totals = view.kinds.map((_, kind) => points.reduce((sum, point) => sum + point.published[kind], 0));
  const seen = totals.map((total, kind) => ({ total, kind })).filter(({ total }) => total > 0);
  seen.sort((a, b) => b.total - a.total);
  const own = seen.length > COLOURS ? seen.slice(0, COLOURS) : seen;
  const series = own.map(({ kind }, nth) => ({
    name: words(view.kinds[kind]),
    colour: `c${nth}`,
    value: (point) => point.published[kind],
  }));
  const others = seen.slice(own.length);
  if (others.length > 0) {
    const value = (point) => others.reduce((sum, { kind }) => sum + point.published[kind], 0);
    series.push({ name: some(others.length, 'other kind'), colour: 'rest', value });
  }
  if (series.length === 0) series.push({ name: 'accepted here', colour: 'c0', value: () => 0 });
  plots.in.draw(points, series, view.now);
  plots.out.draw(points, [
    { name: 'sent, all streams', colour: 'c1', value: (point) => point.delivered },
    { name: 'came over the bus, all gateways', colour: 'c3', value: (point) => point.received },
  ], view.now);
  const spread = (of) => [
    { name: 'median', colour: 'c0', value: (point) => point[of]?.p50 ?? null },
    { name: '99th percentile', colour: 'c2', value: (point) => point[of]?.p99 ?? null },
  ];
  plots.publish.draw(points, spread('publish'), view.now);
  plots.lag.draw(points, spread('lag'), view.now);
}

// --- tables ----------------------------------------------------------------------------------------------------------------

const when = ({ at }) => ({ text: moment(at), title: exact(at), at });
const named = (text) => ({ text, title: text, mono: true });

function showBus(view) {
  show('link-table', [
    (link) => named(link.address),
    (link) => link.purpose,
    (link) => (link.connected ? { text: 'up', pill: 'good' } : { text: 'down', pill: 'bad' }),
    (link) => count(link.reconnects),
  ], view.links, view.bus === 'embedded' ? 'The embedded bus needs none.' : 'None yet.');
  show('shard-table', [
    (shard) => String(shard.shard),
    (shard) => (shard.proven ? { text: 'proven', pill: 'good' } : { text: 'not proven', pill: 'bad' }),
    (shard) => (shard.proofAge === null ? 'never' : `${time(shard.proofAge)} ago`),
    (shard) => ({ text: String(shard.epoch), title: `began ${exact(shard.epoch)}`, mono: true }),
    (shard) => ({ text: count(shard.offset), mono: true }),
    (shard) => ({
      text: `${some(shard.logEvents, 'event')}, ${bytes(shard.logBytes)}`,
      title: `holds ${count(shard.logLimitEvents)} events, ${bytes(shard.logLimitBytes)}`,
      fill: Math.max(shard.logEvents / shard.logLimitEvents, shard.logBytes / shard.logLimitBytes),
    }),
    (shard) => count(shard.repairs),
    (shard) => count(shard.epochChanges),
  ], view.shards, 'The bus has not started.');
}

function showRecent(view) {
  put('gaps-note', view.gaps.length >= 100 ? 'The last 100 on this gateway.' : '');
  show('gap-table', [
    when,
    (gap) => named(gap.node),
    (gap) => String(gap.shard),
    (gap) => ({ text: words(gap.reason), pill: 'warn' }),
    (gap) => (gap.missed === null ? 'unknown' : count(gap.missed)),
  ], view.gaps, 'None since the start.');
  const colour = (why) => ({ client_went: 'plain', max_events: 'plain', max_duration: 'plain', draining: 'info' })[why] ?? 'bad';
  show('ended-table', [
    when,
    (stream) => ({ ...named(stream.node), title: `${stream.node} from ${stream.peer}` }),
    (stream) => ({ text: ending(stream.why), pill: colour(stream.why) }),
    (stream) => (stream.lasted < 1000 ? time(stream.lasted) : span(stream.lasted)),
    (stream) => count(stream.delivered),
  ], view.ended, 'None since the start.');
  const totals = view.errors.map((one) => `${one.method} ${words(one.reason)} ${count(one.count)}`);
  put('refused-note', totals.length ? `Since the start, ended streams included: ${totals.join(' · ')}` : '');
  show('refused-table', [
    when,
    (refused) => refused.method,
    (refused) => ({ text: words(refused.reason), pill: 'warn' }),
    (refused) => ({ text: refused.text, title: refused.text }),
  ], view.refused, 'None since the start.');
}

// Two live processes with one id are worse than any lag.
function nodeState(node) {
  if (node.duplicate) return { text: 'twice', pill: 'bad', title: 'another live process has this node id' };
  return { text: node.state, pill: { current: 'good', silent: 'bad' }[node.state] ?? 'warn' };
}

function showNodes(answer, now) {
  const shown = answer.nodes.length;
  const all = answer.matching === answer.total ? '' : ` of ${count(answer.total)}`;
  const first = shown < answer.matching ? `the first ${count(shown)} of ` : '';
  put('nodes-count', query.search ? `${first}${count(answer.matching)}${all} match` : `${first}${count(answer.total)}`);
  $('more').hidden = shown >= answer.matching || shown >= MOST_ROWS;
  show('node-table', [
    (node) => ({ ...named(node.nodeId), title: node.incarnation ? `${node.nodeId}, incarnation ${node.incarnation}` : node.nodeId }),
    (node) => node.roles.join(', ') || none,
    (node) => named(node.gateway),
    nodeState,
    (node) => named(node.peer),
    (node) => (node.since === null ? none : { text: span(now - node.since), title: `since ${exact(node.since)}` }),
    (node) => (node.rate === null ? none : rate(node.rate)),
    (node) => (node.behind > 0 ? { text: count(node.behind), pill: 'warn' } : '0'),
    (node) => count(node.delivered),
    (node) => ({ text: node.filter || 'everything', title: node.filter }),
  ], answer.nodes, query.search ? 'No node matches.' : 'No node holds a stream.');
  show('gateway-table', [
    (gateway) => ({ ...named(gateway.this ? `${gateway.id} (this one)` : gateway.id), title: gateway.address ? `${gateway.id} at ${gateway.address}` : gateway.id }),
    (gateway) => ({
      text: words(gateway.state),
      pill: { serving: 'good', draining: 'warn' }[gateway.state] ?? 'bad',
      title: gateway.this ? '' : `heard of ${time(gateway.age)} ago`,
    }),
    (gateway) => gateway.version,
    (gateway) => count(gateway.streams),
    (gateway) => rate(gateway.rate),
    (gateway) => count(gateway.behind),
  ], answer.gateways, none);
}

// --- asking ----------------------------------------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(LIMIT) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function look() {
  const view = await ask(`/api/status?after=${points.at(-1)?.number ?? 0}`);
  // After a restart its points count from one again.
  if (view.started !== started || (view.points.length && view.points[0].number <= (points.at(-1)?.number ?? 0))) points = [];
  const again = started !== null && view.started !== started;
  started = view.started;
  if (again) view.points = (await ask('/api/status?after=0')).points;
  points = [...points, ...view.points].slice(-KEPT).filter((point) => view.now - point.at < SPAN);
  const answer = await ask(`/api/nodes?${new URLSearchParams(query)}`);
  heard = Date.now();
  showState(view);
  showTiles(view, points.at(-1));
  showPlots(view);
  showNodes(answer, view.now);
  showBus(view);
  showRecent(view);
}

let timer;
let busy = false;

async function turn() {
  clearTimeout(timer);
  if (busy) return;
  busy = true;
  try {
    await look();
  } catch (error) {
    const since = heard === null ? '' : ` since ${moment(heard)}. What is below is from then`;
    state('no-answer', 'No answer', `The gateway has not answered${since}. Asking again.`);
    console.debug(error);
  } finally {
    busy = false;
  }
  // Nobody looks at a hidden page.
  if (!document.hidden) timer = setTimeout(turn, EVERY);
}

document.addEventListener('visibilitychange', () => { if (!document.hidden) turn(); });

$('search').addEventListener('input', (event) => {
  query.search = event.target.value;
  query.rows = 100;
  turn();
});

$('more').addEventListener('click', () => {
  query.rows = Math.min(MOST_ROWS, query.rows * 4);
  turn();
});

for (const button of document.querySelectorAll('[data-sort]')) {
  button.addEventListener('click', () => {
    const column = button.dataset.sort;
    const first = ['rate', 'behind', 'delivered'].includes(column) ? 'descending' : 'ascending';
    const other = query.order === 'ascending' ? 'descending' : 'ascending';
    query.order = query.sort === column ? other : first;
    query.sort = column;
    for (const cell of button.closest('tr').cells) cell.removeAttribute('aria-sort');
    button.closest('th').setAttribute('aria-sort', query.order);
    turn();
  });
}

turn();
