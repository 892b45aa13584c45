// Asks the gateway once a second, and shows its answers.

import { Plot } from '/plots.js';
import { show } from '/tables.js';
import {
  bytes, compact, count, ending, exact, moment, none, rate, some, span, time, words,
} from '/words.js';

// Milliseconds between two questions, for an answer, and of the plots at most.
const INTERVAL = 1000;
const TIMEOUT = 5000;
const SPAN = 600_000;
// The plots show the shortest of these that holds all points.
const WINDOWS = [60_000, 120_000, 300_000, SPAN];
const MAX_POINTS = 600;
// Kinds that have a colour of their own; the others share one.
const COLOURS = 6;
const MAX_ROWS = 1000;

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
let answered = null;
// The nodes that need attention come first.
const query = { search: '', sort: 'state', order: 'descending', rows: 100 };

// --- state ---------------------------------------------------------------------------------------

function state(name, title, why) {
  $('state').dataset.state = name;
  put('state-name', title);
  put('state-why', why);
  document.title = `${title} · ${$('gateway').textContent || location.host} · Trunkline`;
}

function showState(view) {
  put('gateway', view.gateway);
  const uptime = span(view.uptime);
  put('about', `version ${view.version} · ${view.bus || 'no'} bus · up ${uptime}`);
  if (view.serving) {
    const shards = { 1: 'The shard is', 2: 'Both shards are' }[view.shards.length]
      ?? `All ${view.shards.length} shards are`;
    const why = 'verified: Redis answers, and what it says was published arrives.';
    state('serving', 'Serving', `${shards} ${why}`);
  } else if (view.draining) {
    const why = 'The gateway is shutting down. '
      + 'Its nodes connect to others and continue with their tokens.';
    state('draining', 'Draining', why);
  } else {
    state('not-serving', 'Not serving', view.reason);
  }
}

function showTiles(view, last) {
  const sum = last ? last.published.reduce((a, b) => a + b, 0) : 0;
  put('tile-streams', count(view.streams));
  const kinds = [[view.watches, 'Watch'], [view.publishStreams, 'PublishStream']];
  const special = kinds.filter(([n]) => n > 0).map(([n, kind]) => ` · ${compact(n)} ${kind}`);
  put('tile-streams-more', `of ${compact(view.streamsLimit)} here${special.join('')}`);
  put('tile-in', last ? perSecond(sum) : none);
  put('tile-in-more', `${compact(view.published)} since the start`);
  put('tile-out', last ? perSecond(last.delivered) : none);
  put('tile-out-more', `${compact(view.delivered)} since the start`);
  put('tile-behind', compact(view.behind));
  put('tile-behind-more', 'events not yet read by streams');
  put('tile-gaps', compact(view.streamGaps));
  put('tile-gaps-more', `${compact(view.missed)} missed · ${compact(view.busGaps)} on the bus`);
  const errors = view.errors.reduce((sum, one) => sum + one.count, 0);
  put('tile-errors', compact(errors));
  const unreadable = some(view.unreadable, 'unreadable message');
  put('tile-errors-more', view.unreadable ? unreadable : 'answers and streams');
  $('tile-behind').parentElement.classList.toggle('warn', view.behind > 0);
  $('tile-gaps').parentElement.classList.toggle('warn', view.streamGaps > 0 || view.busGaps > 0);
}

// --- trouble -------------------------------------------------------------------------------------

// What needs attention, each with the part of the page that has more.
function troubles(view, nodes) {
  const found = [];
  const add = (where, text) => found.push({ where, text });
  const list = (items) => items.slice(0, 8).join(', ') + (items.length > 8 ? ', ...' : '');
  const shards = view.shards.filter((shard) => !shard.verified).map((shard) => shard.shard);
  if (shards.length > 0) {
    add('shards', `${some(shards.length, 'shard')} not verified: ${list(shards)}`);
  }
  for (const link of view.links.filter((one) => !one.connected)) {
    add('links', `The link to ${link.address} (${link.purpose}) is down`);
  }
  for (const gateway of nodes.gateways.filter((one) => one.state !== 'serving' && !one.this)) {
    add('gateways', `Gateway ${gateway.id} is ${words(gateway.state)}`);
  }
  if (nodes.duplicates > 0) {
    add('nodes', `${some(nodes.duplicates, 'node id')} of two live processes`);
  }
  for (const { nodeId, programs: all } of nodes.agents) {
    const twice = all.filter(({ duplicate }) => duplicate).map(({ id }) => id);
    if (twice.length > 0) {
      add('agents', `${some(twice.length, 'program id')} of two processes at ${nodeId}: `
        + list(twice));
    }
  }
  if (nodes.silent > 0) add('nodes', `${some(nodes.silent, 'node')} of a gateway that is silent`);
  if (nodes.late > 0) add('nodes', `${some(nodes.late, 'node')} behind by 5 s or more`);
  const lately = (rows) => rows.filter(({ at }) => view.now - at < SPAN);
  const gaps = lately(view.gaps);
  if (gaps.length > 0) {
    const last = `the last of ${gaps[0].node}: ${words(gaps[0].reason)}`;
    add('gaps', `${some(gaps.length, 'gap')} in ten minutes, ${last}`);
  }
  const ended = lately(view.ended).filter(({ why }) => !(why in ENDINGS));
  if (ended.length > 0) {
    const last = `the last of ${ended[0].node}: ${ending(ended[0].why)}`;
    add('ended', `${some(ended.length, 'stream')} ended with an error in ten minutes, ${last}`);
  }
  const refused = lately(view.refused);
  if (refused.length > 0) {
    const [{ who, reason, rule }] = refused;
    const last = `the last of ${who || 'an unknown client'}: ${words(reason)}`;
    add('refused', `${some(refused.length, 'request')} refused in ten minutes, ${last}`
      + `${rule && ` (${rule})`}`);
  }
  if (view.unreadable > 0) {
    add('shards', `${some(view.unreadable, 'message')} on the bus that no gateway wrote`);
  }
  return found;
}

function showTrouble(view, nodes) {
  const found = troubles(view, nodes);
  $('trouble').hidden = found.length === 0;
  const list = $('trouble-list');
  while (list.children.length > found.length) list.lastElementChild.remove();
  while (list.children.length < found.length) {
    const item = document.createElement('li');
    item.append(document.createElement('a'));
    list.append(item);
  }
  found.forEach(({ where, text }, nth) => {
    const link = list.children[nth].firstElementChild;
    if (link.textContent !== text) link.textContent = text;
    if (link.hash !== `#${where}`) link.href = `#${where}`;
  });
}

// --- plots ---------------------------------------------------------------------------------------

function showPlots(view) {
  const total = (kind) => points.reduce((sum, point) => sum + point.published[kind], 0);
  const totals = view.kinds.map((_, kind) => total(kind));
  const seen = totals.map((sum, kind) => ({ sum, kind })).filter(({ sum }) => sum > 0);
  seen.sort((a, b) => b.sum - a.sum);
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
  const oldest = view.now - (points[0]?.at ?? view.now);
  const wide = WINDOWS.find((one) => oldest < one) ?? SPAN;
  $('plots').setAttribute('aria-label', `The last ${span(wide)}`);
  plots.in.draw(points, series, view.now, wide);
  plots.out.draw(points, [
    { name: 'sent, all streams', colour: 'c1', value: (point) => point.delivered },
    { name: 'received over the bus', colour: 'c3', value: (point) => point.received },
  ], view.now, wide);
  const spread = (of) => [
    { name: 'median', colour: 'c0', value: (point) => point[of]?.p50 ?? null },
    { name: '99th percentile', colour: 'c2', value: (point) => point[of]?.p99 ?? null },
  ];
  plots.publish.draw(points, spread('publish'), view.now, wide);
  plots.lag.draw(points, spread('lag'), view.now, wide);
}

// --- tables --------------------------------------------------------------------------------------

const when = ({ at }) => ({ text: moment(at), title: exact(at), at });
const named = (text) => ({ text, title: text, mono: true });

// Those that are not well come first.
const byTrouble = (rows, isWell) => rows.toSorted((a, b) => isWell(a) - isWell(b));

// Endings of streams that are no trouble, with their colours.
const ENDINGS = {
  client_went: 'plain', max_events: 'plain', max_duration: 'plain', draining: 'info',
};

function showBus(view) {
  const noLinks = view.bus === 'embedded' ? 'The embedded bus has no links.' : 'None yet.';
  show('link-table', [
    (link) => named(link.address),
    (link) => link.purpose,
    (link) => (link.connected ? { text: 'up', pill: 'good' } : { text: 'down', pill: 'bad' }),
    (link) => count(link.reconnects),
  ], byTrouble(view.links, (link) => link.connected), noLinks);
  show('shard-table', [
    (shard) => String(shard.shard),
    ({ verified }) => (verified
      ? { text: 'verified', pill: 'good' } : { text: 'not verified', pill: 'bad' }),
    (shard) => (shard.verifiedAge === null ? 'never' : `${time(shard.verifiedAge)} ago`),
    (shard) => ({ text: String(shard.epoch), title: `began ${exact(shard.epoch)}`, mono: true }),
    (shard) => ({ text: count(shard.offset), mono: true }),
    (shard) => ({
      text: `${some(shard.logEvents, 'event')}, ${bytes(shard.logBytes)}`,
      title: `holds ${count(shard.logLimitEvents)} events, ${bytes(shard.logLimitBytes)}`,
      fill: Math.max(shard.logEvents / shard.logLimitEvents, shard.logBytes / shard.logLimitBytes),
    }),
    (shard) => count(shard.repairs),
    (shard) => count(shard.epochChanges),
  ], byTrouble(view.shards, (shard) => shard.verified), 'The bus has not started.');
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
  show('ended-table', [
    when,
    (stream) => ({ ...named(stream.node), title: `${stream.node} from ${stream.peer}` }),
    ({ why }) => ({ text: ending(why), pill: ENDINGS[why] ?? 'bad' }),
    (stream) => (stream.lasted < 1000 ? time(stream.lasted) : span(stream.lasted)),
    (stream) => count(stream.delivered),
  ], view.ended, 'None since the start.');
  const totals = view.errors.map((one) => `${one.method} ${words(one.reason)} ${count(one.count)}`);
  const list = totals.join(' · ');
  put('refused-note', list && `Since the start, ended streams included: ${list}`);
  show('refused-table', [
    when,
    (refused) => named(refused.who || none),
    (refused) => refused.method,
    (refused) => ({ text: words(refused.reason), pill: 'warn' }),
    (refused) => named(refused.rule || none),
    (refused) => ({ text: refused.text, title: refused.text }),
  ], view.refused, 'None since the start.');
}

// A duplicate node id is worse than any other state.
function nodeState(node) {
  if (node.duplicate) {
    return { text: 'duplicate', pill: 'bad', title: 'another live process has this node id' };
  }
  return { text: node.state, pill: { current: 'good', silent: 'bad' }[node.state] ?? 'warn' };
}

function showNodes(answer, now) {
  const shown = answer.nodes.length;
  const all = answer.matching === answer.total ? '' : ` of ${count(answer.total)}`;
  const first = shown < answer.matching ? `the first ${count(shown)} of ` : '';
  const matching = `${first}${count(answer.matching)}${all} match`;
  put('nodes-count', query.search ? matching : `${first}${count(answer.total)}`);
  $('more').hidden = shown >= answer.matching || shown >= MAX_ROWS;
  show('node-table', [
    ({ nodeId, incarnation }) => ({
      ...named(nodeId),
      title: incarnation ? `${nodeId}, incarnation ${incarnation}` : nodeId,
    }),
    (node) => node.roles.join(', ') || none,
    (node) => named(node.gateway),
    nodeState,
    (node) => named(node.peer),
    ({ since }) => (since === null
      ? none : { text: span(now - since), title: `since ${exact(since)}` }),
    (node) => (node.rate === null ? none : rate(node.rate)),
    (node) => (node.behind > 0 ? { text: count(node.behind), pill: 'warn' } : '0'),
    (node) => count(node.delivered),
    (node) => (node.processed === null ? none : count(node.processed)),
    (node) => node.method,
    (node) => ({ text: node.filter || 'everything', title: node.filter }),
  ], answer.nodes, query.search ? 'No node matches.' : 'No node holds a stream.');
  show('gateway-table', [
    (gateway) => ({
      ...named(gateway.this ? `${gateway.id} (this one)` : gateway.id),
      title: gateway.address ? `${gateway.id} at ${gateway.address}` : gateway.id,
    }),
    (gateway) => ({
      text: words(gateway.state),
      pill: { serving: 'good', draining: 'warn' }[gateway.state] ?? 'bad',
      title: gateway.this ? '' : `last report ${time(gateway.age)} ago`,
    }),
    (gateway) => gateway.version,
    (gateway) => count(gateway.streams),
    (gateway) => rate(gateway.rate),
    (gateway) => count(gateway.behind),
  ], answer.gateways, none);
}

// Programs that do not know Trunkline, by their ids.
function programs({ format, programs: all }) {
  if (all.length === 0) return none;
  const named = all.map(({ id, duplicate }) => (duplicate ? `${id} (duplicate)` : id));
  const lines = all.map(({ id, version, peer, since, messages }) => {
    const begun = since === null ? '' : `, since ${exact(since)}`;
    return `${id}: ${format} ${version} at ${peer}${begun}, ${some(messages, 'message')}`;
  });
  const shown = { text: named.join(', '), title: lines.join('\n') };
  return all.some((one) => one.duplicate) ? { ...shown, pill: 'bad' } : shown;
}

function healing(last, now) {
  if (!last) return none;
  const of = last.others ? 'other hosts' : some(last.programs, 'program');
  const ago = last.at === null ? '' : `${span(now - last.at)} ago: `;
  const title = `${of}, with ${some(last.accounts, 'account')}`;
  return { text: `${ago}${last.reason}`, title };
}

function showAgents(agents, now) {
  $('agents').hidden = agents.length === 0;
  if (agents.length === 0) return;
  const warned = (n) => (n > 0 ? { text: count(n), pill: 'warn' } : '0');
  show('agent-table', [
    (agent) => named(agent.nodeId),
    (agent) => agent.host || none,
    programs,
    (agent) => count(agent.subscribers),
    (agent) => count(agent.publishedMessages),
    (agent) => count(agent.publishedEvents),
    (agent) => count(agent.receivedEvents),
    (agent) => warned(agent.undecodable),
    (agent) => warned(agent.givenUp),
    ({ waiting, waitingAge }) => (waitingAge === null
      ? count(waiting) : { text: `${count(waiting)}, ${time(waitingAge)}`, pill: 'warn' }),
    (agent) => count(agent.healings),
    (agent) => healing(agent.lastHealing, now),
  ], agents, none);
}

// --- questions -----------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT) });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function look() {
  const view = await ask(`/api/status?after=${points.at(-1)?.number ?? 0}`);
  // After a restart its points count from one again.
  const restarted = started !== null && view.started !== started;
  const repeated = view.points.length && view.points[0].number <= (points.at(-1)?.number ?? 0);
  if (view.started !== started || repeated) points = [];
  started = view.started;
  if (restarted) view.points = (await ask('/api/status?after=0')).points;
  points = [...points, ...view.points].slice(-MAX_POINTS);
  points = points.filter((point) => view.now - point.at < SPAN);
  const answer = await ask(`/api/nodes?${new URLSearchParams(query)}`);
  answered = Date.now();
  showState(view);
  showTrouble(view, answer);
  showTiles(view, points.at(-1));
  showPlots(view);
  showNodes(answer, view.now);
  showAgents(answer.agents, view.now);
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
    const since = answered === null
      ? '' : ` since ${moment(answered)}. The values below are from then`;
    if (answered !== null) for (const plot of Object.values(plots)) plot.stopped(answered);
    state('no-answer', 'No answer', `The gateway has not answered${since}. Retrying.`);
    console.debug(error);
  } finally {
    busy = false;
  }
  // A hidden page does not ask.
  if (!document.hidden) timer = setTimeout(turn, INTERVAL);
}

document.addEventListener('visibilitychange', () => { if (!document.hidden) turn(); });

$('search').addEventListener('input', (event) => {
  query.search = event.target.value;
  query.rows = 100;
  turn();
});

$('more').addEventListener('click', () => {
  query.rows = Math.min(MAX_ROWS, query.rows * 4);
  turn();
});

for (const button of document.querySelectorAll('[data-sort]')) {
  button.addEventListener('click', () => {
    const column = button.dataset.sort;
    const downwards = ['state', 'rate', 'behind', 'delivered', 'processed'].includes(column);
    const first = downwards ? 'descending' : 'ascending';
    const other = query.order === 'ascending' ? 'descending' : 'ascending';
    query.order = query.sort === column ? other : first;
    query.sort = column;
    for (const cell of button.closest('tr').cells) cell.removeAttribute('aria-sort');
    button.closest('th').setAttribute('aria-sort', query.order);
    turn();
  });
}

turn();
