// What happened to the bus lately: a track for each shard, on the axis of the plots, and a list.

import { count, exact, moment, none, some, span, time, visible, words } from '/words.js';

// Tracks of shards; what happened to others is in one track together.
const MAX_TRACKS = 12;
// The names of what happens, with their colours in the list.
const WHAT = {
  recovery: ['recovery', 'info'],
  unverified: ['not verified', 'bad'],
  missing: ['gap', 'warn'],
  repaired: ['read from history', 'plain'],
  subscribed: ['new link', 'plain'],
  moved: ['streams moved', 'plain'],
};

const isLossy = ({ what, lost, moreLost }) => what === 'recovery' && (lost > 0 || moreLost);
const lasted = ({ began, ended }, now) => (ended ?? now) - began;

// What happened, in words.
function details(one) {
  switch (one.what) {
    case 'recovery': {
      const again = some(one.restored, 'event');
      const lost = one.moreLost ? `${count(one.lost)} or more` : count(one.lost);
      const loss = isLossy(one) ? `, ${lost} reported as lost` : ', none lost';
      const so = one.ended === null ? ' so far' : '';
      if (one.restored === 0 && !isLossy(one)) {
        return `a new epoch; nothing was missing${so}`;
      }
      return `a new epoch; ${again} appended again${loss}${so}`;
    }
    case 'unverified': return one.why;
    case 'missing': return `${some(one.gaps, 'gap')}: ${words(one.reason)}, ${
      some(one.events, 'event')}`;
    case 'repaired': return `${some(one.events, 'event')}, ${some(one.times, 'time')}`;
    case 'subscribed': return `${one.server}${one.times > 1 ? `, ${count(one.times)} times` : ''}`;
    case 'moved': return `${some(one.streams, 'stream')} asked to go on elsewhere`;
    default: return '';
  }
}

const where = ({ shard, what, shards }) => {
  if (shards?.length > 1) return `shards ${ranges(shards)}`;
  if (shard !== null) return `shard ${shard}`;
  return what === 'moved' ? 'streams' : 'links';
};

// Numbers as runs: 0-3, 7.
function ranges(numbers) {
  const runs = [];
  for (const number of [...new Set(numbers)].sort((a, b) => a - b)) {
    if (runs.at(-1)?.[1] === number - 1) runs.at(-1)[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([from, to]) => (from === to ? from : `${from}-${to}`)).join(', ');
}

// What happened to several shards at the same time is one row. `all`: the latest first.
function grouped(all) {
  const groups = [];
  for (const one of all) {
    const like = groups.find((other) => one.shard !== null && other.what === one.what
      && other.reason === one.reason && Math.abs(other.began - one.began) < 2000
      && (other.ended === null) === (one.ended === null)
      && Math.abs((other.ended ?? 0) - (one.ended ?? 0)) < 3000);
    if (!like) {
      groups.push({ ...one, shards: one.shard === null ? [] : [one.shard] });
      continue;
    }
    like.shards.push(one.shard);
    like.began = Math.min(like.began, one.began);
    if (one.ended !== null) like.ended = Math.max(like.ended, one.ended);
    like.moreLost ||= one.moreLost;
    for (const sum of ['restored', 'lost', 'gaps', 'events', 'times']) {
      if (sum in like) like[sum] += one[sum];
    }
  }
  return groups;
}

// Runs of seconds in which streams were asked to go on elsewhere.
function moves(points) {
  const runs = [];
  for (const { at, moved } of points.filter((point) => point.moved > 0)) {
    const last = runs.at(-1);
    if (last && at - last.ended < 5000) {
      last.ended = at;
      last.streams += moved;
    } else {
      runs.push({ what: 'moved', shard: null, began: at - 1000, ended: at, streams: moved });
    }
  }
  return runs.map((run) => ({ ...run, streams: Math.round(run.streams) }));
}

export class Timeline {
  constructor() {
    this.tracks = document.getElementById('tracks');
    this.note = document.getElementById('timeline-note');
    this.kept = new Map();
    this.change = 0;
  }

  // Another process answers.
  restart() {
    this.kept.clear();
    this.change = 0;
  }

  // Takes what has changed.
  take(incidents, now, oldest) {
    for (const one of incidents) {
      this.kept.set(one.number, one);
      this.change = Math.max(this.change, one.change);
    }
    for (const [number, one] of this.kept) {
      if (one.ended !== null && one.ended < now - oldest) this.kept.delete(number);
    }
  }

  // Recoveries that go on.
  recovering() {
    const all = [...this.kept.values()];
    return all.filter(({ what, ended }) => what === 'recovery' && ended === null);
  }

  // Draws the last `wide` milliseconds before `now`; returns what happened, the latest first.
  draw(points, now, wide) {
    const all = [...this.kept.values(), ...moves(points)];
    const seen = all.filter((one) => one.ended === null || one.ended >= now - wide);
    seen.sort((a, b) => b.began - a.began);
    const tracks = new Map();
    for (const one of seen) {
      const track = where(one);
      if (!tracks.has(track)) tracks.set(track, []);
      tracks.get(track).push(one);
    }
    const order = (name) => Number(name.split(' ')[1] ?? (name === 'links' ? 1e6 : 1e7));
    let names = [...tracks.keys()].sort((a, b) => order(a) - order(b));
    const shards = names.filter((name) => name.startsWith('shard'));
    if (shards.length > MAX_TRACKS) {
      const others = shards.slice(MAX_TRACKS - 1);
      const name = `${others.length} shards`;
      tracks.set(name, others.flatMap((other) => tracks.get(other)));
      names = [...shards.slice(0, MAX_TRACKS - 1), name,
        ...names.filter((other) => !other.startsWith('shard'))];
    }
    const text = seen.length === 0 ? `Nothing happened in the last ${span(wide)}.`
      : `The last ${span(wide)}.`;
    if (this.note.textContent !== text) this.note.textContent = text;
    this.tracks.hidden = names.length === 0;
    this.tracks.setAttribute('aria-label', seen.length === 0 ? text
      : names.map((name) => `${name}: ${some(tracks.get(name).length, 'mark')}`).join(', '));
    while (this.tracks.children.length > names.length) this.tracks.lastChild.remove();
    while (this.tracks.children.length < names.length) {
      const track = document.createElement('div');
      track.className = 'track';
      track.append(document.createElement('span'), document.createElement('div'));
      this.tracks.append(track);
    }
    names.forEach((name, nth) => {
      const [label, line] = this.tracks.children[nth].children;
      if (label.textContent !== name) label.textContent = name;
      this.marks(line, tracks.get(name), now, wide);
    });
    const ends = [`${span(wide)} ago`, span(wide / 2), 'now'];
    ends.forEach((text, nth) => {
      const label = document.getElementById('track-times').children[nth];
      if (label.textContent !== text) label.textContent = text;
    });
    document.getElementById('track-times').parentElement.hidden = names.length === 0;
    return grouped(seen);
  }

  marks(line, of, now, wide) {
    while (line.children.length > of.length) line.lastChild.remove();
    while (line.children.length < of.length) line.append(document.createElement('i'));
    const part = (at) => Math.min(100, Math.max(0, ((at - now + wide) / wide) * 100));
    of.forEach((one, nth) => {
      const mark = line.children[nth];
      const name = `mark ${one.what}${isLossy(one) ? ' lossy' : ''}`;
      if (mark.className !== name) mark.className = name;
      const [from, to] = [part(one.began), part(one.ended ?? now)];
      mark.style.setProperty('--from', `${from}%`);
      mark.style.setProperty('--wide', `${to - from}%`);
      const title = visible(`${WHAT[one.what][0]}, ${moment(one.began)}: ${details(one)}`);
      if (mark.title !== title) mark.title = title;
    });
  }

  // The columns of the list.
  columns(now) {
    return [
      ({ began }) => ({ text: moment(began), title: exact(began) }),
      (one) => ({ text: WHAT[one.what][0], pill: isLossy(one) ? 'bad' : WHAT[one.what][1] }),
      where,
      (one) => {
        const ms = lasted(one, now);
        if (one.ended === null) return `${span(ms)}, goes on`;
        return ms === 0 ? none : ms < 60_000 ? time(ms) : span(ms);
      },
      (one) => ({ text: details(one), title: details(one), wide: true }),
    ];
  }
}
