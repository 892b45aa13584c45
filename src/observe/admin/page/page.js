// Asks the gateway once a second, and shows its answers.

import { Plot } from '/plots.js';
import { search, show } from '/tables.js';
import { Timeline } from '/timeline.js';
import {
  bytes, compact, count, ending, exact, moment, none, rate, some, span, time, visible, words,
} from '/words.js';

// Milliseconds between two questions, for an answer, and of the plots at most.
const INTERVAL = 1000;
const TIMEOUT = 5000;
const SPAN = 600_000;
// An event that waits so long is late.
const LATE = 5000;
// The plots show the shortest of these that holds all points.
const WINDOWS = [60_000, 120_000, 300_000, SPAN];
const MAX_POINTS = 600;
// Kinds that have a colour of their own; the others share one.
const COLOURS = 6;
const MAX_ROWS = 1000;

const $ = (id) => document.getElementById(id);

function put(id, text) {
  const shown = visible(text);
  if ($(id).textContent !== shown) $(id).textContent = shown;
}

const perSecond = (n) => `${rate(n)}/s`;
const plots = {
  in: new Plot('plot-in', 'Events in', { format: perSecond, stacked: true }),
  out: new Plot('plot-out', 'Events out', { format: perSecond }),
  publish: new Plot('plot-publish', 'Publish latency', { format: time }),
  lag: new Plot('plot-lag', 'Delivery lag', { format: time }),
};

const timeline = new Timeline();
let points = [];
let started = null;
let answered = null;
// The nodes that need attention come first. The address of the page has what is searched and how
// rows are sorted, so that it can be kept and sent.
const query = { search: '', sort: 'state', order: 'descending', rows: 100 };
for (const [key, value] of new URLSearchParams(location.search)) {
  if (['search', 'sort', 'order'].includes(key)) query[key] = value;
}

// --- state ---------------------------------------------------------------------------------------

function state(name, title, why) {
  $('state').dataset.state = name;
  put('state-name', title);
  put('state-why', why);
  const full = `${title} · ${$('gateway').textContent || location.host} · Trunkline`;
  if (document.title !== full) document.title = full;
}

function showState(view) {
  put('gateway', view.gateway);
  const uptime = span(view.uptime);
  put('about', `version ${view.version} · ${view.bus || 'no'} bus · up ${uptime}`);
  const unverified = view.shards.filter((shard) => !shard.verified).length;
  if (view.serving && (view.reason || unverified > 0)) {
    const all = `${count(unverified)} of ${some(view.shards.length, 'shard')} not verified`;
    state('partial', 'Serving in part', `${all}: their events come later, all of them. `
      + `${view.reason}`);
  } else if (view.serving) {
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
  put('tile-behind-more', 'events not yet read');
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
function troubles(view, nodes, recovering) {
  const found = [];
  const bad = (where, text) => found.push({ where, text, tone: 'bad' });
  const add = (where, text) => found.push({ where, text, tone: 'warn' });
  const list = (items) => items.slice(0, 8).join(', ') + (items.length > 8 ? ', ...' : '');
  const shards = view.shards.filter((shard) => !shard.verified).map((shard) => shard.shard);
  if (shards.length > 0) {
    bad('shards', `${some(shards.length, 'shard')} not verified: ${list(shards)}`);
  }
  for (const link of view.links.filter((one) => !one.connected)) {
    bad('links', `The link to ${link.address} (${link.purpose}) is down`);
  }
  for (const gateway of nodes.gateways.filter((one) => one.state !== 'serving' && !one.this)) {
    bad('gateways', `Gateway ${gateway.id} is ${words(gateway.state)}`);
  }
  if (nodes.duplicates > 0) {
    bad('nodes', `${some(nodes.duplicates, 'node id')} of two live processes`);
  }
  for (const { nodeId, programs: all } of nodes.agents) {
    const twice = all.filter(({ duplicate }) => duplicate).map(({ id }) => id);
    if (twice.length > 0) {
      bad('agents', `${some(twice.length, 'program id')} of two processes at ${nodeId}: `
        + list(twice));
    }
  }
  const channels = new Map();
  for (const { channel } of nodes.agents.filter((agent) => agent.channel)) {
    const name = `${channel.name} at ${channel.server}`;
    channels.set(name, (channels.get(name) ?? false) || channel.carried);
  }
  for (const [name] of [...channels].filter(([, carried]) => !carried)) {
    bad('agents', `No agent carries the channel ${name}`);
  }
  for (const agent of nodes.agents.filter(({ waitingAge }) => waitingAge >= LATE)) {
    add('agents', `${some(agent.waiting, 'event')} of ${agent.nodeId} wait for a gateway since `
      + span(agent.waitingAge));
  }
  for (const one of recovering) {
    add('timeline', `Shard ${one.shard} recovers since ${span(view.now - one.began)}: `
      + 'new events wait');
  }
  if (nodes.silent > 0) bad('nodes', `${some(nodes.silent, 'node')} of a gateway that is silent`);
  if (nodes.late > 0) add('nodes', `${some(nodes.late, 'node')} behind by 5 s or more`);
  const brief = (id) => (id.length > 60 ? `${id.slice(0, 60).toWellFormed()}…` : id);
  const lately = (rows) => rows.filter(({ at }) => view.now - at < SPAN);
  const gaps = lately(view.gaps);
  if (gaps.length > 0) {
    const last = `the last of ${brief(gaps[0].node)}: ${words(gaps[0].reason)}`;
    add('gaps', `${some(gaps.length, 'gap')} in ten minutes, ${last}`);
  }
  const ended = lately(view.ended).filter(({ why }) => !(why in ENDINGS));
  if (ended.length > 0) {
    const last = `the last of ${brief(ended[0].node)}: ${ending(ended[0].why)}`;
    add('ended', `${some(ended.length, 'stream')} ended with an error in ten minutes, ${last}`);
  }
  const refused = lately(view.refused);
  if (refused.length > 0) {
    const [{ who, reason, rule }] = refused;
    const last = `the last of ${brief(who || 'an unknown client')}: ${words(reason)}`;
    add('refused', `${some(refused.length, 'request')} refused in ten minutes, ${last}`
      + `${rule && ` (${rule})`}`);
  }
  if (view.unreadable > 0) {
    add('shards', `${some(view.unreadable, 'message')} on the bus that no gateway wrote`);
  }
  return found.sort((a, b) => (a.tone === 'warn') - (b.tone === 'warn'));
}

function showTrouble(view, nodes, recovering) {
  const found = troubles(view, nodes, recovering);
  $('trouble').hidden = found.length === 0;
  const list = $('trouble-list');
  while (list.children.length > found.length) list.lastElementChild.remove();
  while (list.children.length < found.length) {
    const item = document.createElement('li');
    item.append(document.createElement('a'));
    list.append(item);
  }
  found.forEach(({ where, text, tone }, nth) => {
    const item = list.children[nth];
    if (item.className !== tone) item.className = tone;
    const link = item.firstElementChild;
    const shown = visible(text);
    if (link.textContent !== shown) link.textContent = shown;
    if (link.hash !== `#${where}`) link.href = `#${where}`;
  });
}

// --- plots ---------------------------------------------------------------------------------------

// A kind keeps its colour as long as it is among the first ones.
const colours = new Map();

function coloured(kinds) {
  for (const kind of [...colours.keys()]) if (!kinds.includes(kind)) colours.delete(kind);
  for (const kind of kinds.filter((one) => !colours.has(one))) {
    const taken = [...colours.values()];
    colours.set(kind, [...Array(COLOURS).keys()].find((colour) => !taken.includes(colour)));
  }
  return kinds.toSorted((a, b) => colours.get(a) - colours.get(b));
}

function showPlots(view) {
  const total = (kind) => points.reduce((sum, point) => sum + point.published[kind], 0);
  const totals = view.kinds.map((_, kind) => total(kind));
  const seen = totals.map((sum, kind) => ({ sum, kind })).filter(({ sum }) => sum > 0);
  seen.sort((a, b) => b.sum - a.sum);
  const own = seen.length > COLOURS ? seen.slice(0, COLOURS) : seen;
  const series = coloured(own.map(({ kind }) => kind)).map((kind) => ({
    name: words(view.kinds[kind]),
    colour: `c${colours.get(kind)}`,
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
  const happened = timeline.draw(points, view.now, wide);
  const quiet = `Nothing in the last ${span(wide)}.`;
  show('incident-table', timeline.columns(view.now), happened.slice(0, 100), quiet);
}

// --- tables --------------------------------------------------------------------------------------

const when = ({ at }) => ({ text: moment(at), title: exact(at) });
const unwell = (isWell) => ({ tone: (row) => (isWell(row) ? '' : 'bad') });
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
  ], byTrouble(view.links, (link) => link.connected), noLinks, unwell((link) => link.connected));
  show('shard-table', [
    (shard) => String(shard.shard),
    ({ verified }) => (verified
      ? { text: 'verified', pill: 'good' } : { text: 'not verified', pill: 'bad' }),
    (shard) => (shard.verifiedAge === null ? 'never' : `${time(shard.verifiedAge)} ago`),
    (shard) => ({ text: shard.epoch, title: `began ${exact(shard.epochBegan)}`, mono: true }),
    (shard) => ({ text: count(shard.offset), mono: true }),
    (shard) => ({
      text: `${some(shard.logEvents, 'event')}, ${bytes(shard.logBytes)}`,
      title: `holds ${count(shard.logLimitEvents)} events, ${bytes(shard.logLimitBytes)}`,
      fill: Math.max(shard.logEvents / shard.logLimitEvents, shard.logBytes / shard.logLimitBytes),
    }),
    (shard) => count(shard.repairs),
    (shard) => count(shard.epochChanges),
  ], byTrouble(view.shards, (shard) => shard.verified), 'The bus has not started.',
  unwell((shard) => shard.verified));
  put('shards-note', view.shards.length > 1 ? count(view.shards.length) : '');
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
    (refused) => ({ text: refused.text, title: refused.text, wide: true }),
  ], view.refused, 'None since the start.');
}

// A duplicate node id is worse than any other state.
function nodeState(node) {
  if (node.duplicate) {
    return { text: 'duplicate', pill: 'bad', title: 'another live process has this node id' };
  }
  return { text: node.state, pill: { current: 'good', silent: 'bad' }[node.state] ?? 'warn' };
}

// The streams that were asked to go on elsewhere, and why.
function moved({ moves, rebalancing }) {
  const reasons = { stopping: 'stop', rebalance: 'evenness', max_age: 'age' };
  const each = moves.map(({ reason, asked, left }) =>
    `${count(asked)} asked to leave for ${reasons[reason]}, ${count(left)} have`);
  return [...(rebalancing ? ['Rebalancing now'] : []), ...each].join(' · ');
}

function showNodes(answer, view) {
  const { now } = view;
  const shown = answer.nodes.length;
  const all = answer.matching === answer.total ? '' : ` of ${count(answer.total)}`;
  const first = shown < answer.matching ? `the first ${count(shown)} of ` : '';
  const matching = `${first}${count(answer.matching)}${all} match`;
  put('nodes-count', query.search ? matching : `${first}${count(answer.total)}`);
  put('nodes-moves', moved(view));
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
    (node) => (node.processed === null ? none : {
      text: count(node.processed),
      title: `${count(node.delivered - node.processed)} not yet acknowledged; `
        + `the last time ${span(now - node.acknowledgedAt)} ago`,
      fill: node.delivered === 0 ? 1 : node.processed / node.delivered,
    }),
    (node) => node.method,
    (node) => ({ text: node.filter || 'everything', title: node.filter }),
  ], answer.nodes, query.search ? 'No node matches.' : 'No node holds a stream.', {
    searched: true,
    tone: (node) => ({ good: '', warn: 'warn', bad: 'bad' }[nodeState(node).pill]),
  });
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
  ], answer.gateways, none, unwell((gateway) => gateway.state === 'serving'));
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

// A channel of Redis that it has joined.
function channel({ channel: of }) {
  if (!of) return none;
  const title = `${of.name} at ${of.server}, ${some(of.messages, 'message')} published there`;
  return of.carried
    ? { text: `carries ${of.name}`, title, pill: 'good' }
    : { text: `waits for ${of.name}`, title, pill: 'plain' };
}

function healing(last, now) {
  if (!last) return none;
  const of = last.others ? 'other hosts' : some(last.programs, 'program');
  const ago = last.at === null ? '' : `${span(now - last.at)} ago: `;
  const title = `${of}, with ${some(last.accounts, 'account')}`;
  return { text: `${ago}${last.reason}`, title };
}

function showAgents(agents, now) {
  $('agents').hidden = $('to-agents').hidden = agents.length === 0;
  if (agents.length === 0) return;
  const warned = (n) => (n > 0 ? { text: count(n), pill: 'warn' } : '0');
  show('agent-table', [
    (agent) => named(agent.nodeId),
    (agent) => agent.host || none,
    programs,
    channel,
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
  const last = points.at(-1)?.number ?? 0;
  const view = await ask(`/api/status?after=${last}&change=${timeline.change}`);
  // After a restart its points count from one again.
  const restarted = started !== null && view.started !== started;
  const repeated = view.points.length && view.points[0].number <= (points.at(-1)?.number ?? 0);
  if (view.started !== started || repeated) points = [];
  started = view.started;
  if (restarted) {
    timeline.restart();
    const { points: all, incidents } = await ask('/api/status');
    Object.assign(view, { points: all, incidents });
  }
  timeline.take(view.incidents, view.now, SPAN);
  points = [...points, ...view.points].slice(-MAX_POINTS);
  points = points.filter((point) => view.now - point.at < SPAN);
  const answer = await ask(`/api/nodes?${new URLSearchParams(query)}`);
  answered = Date.now();
  showState(view);
  showTrouble(view, answer, timeline.recovering());
  showTiles(view, points.at(-1));
  showPlots(view);
  showNodes(answer, view);
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

function keep() {
  const { search: text, sort, order } = query;
  const kept = new URLSearchParams({ ...(text && { search: text }), sort, order });
  history.replaceState(null, '', `?${kept}${location.hash}`);
}

$('search').value = query.search;
search(query.search);
$('search').addEventListener('input', (event) => {
  query.search = event.target.value;
  query.rows = 100;
  search(query.search);
  keep();
  turn();
});

document.addEventListener('keydown', (event) => {
  const typing = event.target.closest('input, textarea');
  if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $('search').focus();
    $('search').select();
  } else if (event.key === 'Escape' && typing) {
    typing.value = '';
    typing.dispatchEvent(new Event('input'));
    typing.blur();
  }
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
    sorted();
    keep();
    turn();
  });
}

function sorted() {
  for (const button of document.querySelectorAll('[data-sort]')) {
    const cell = button.closest('th');
    if (button.dataset.sort === query.sort) cell.setAttribute('aria-sort', query.order);
    else cell.removeAttribute('aria-sort');
  }
}

sorted();

turn();
