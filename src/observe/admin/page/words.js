// Formats numbers, times and names for people.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const clockOf = new Intl.DateTimeFormat('en-GB', { timeStyle: 'medium' });
const dayOf = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });

export const none = '–';

// Characters that are not seen as they are: control characters, and those that change the direction
// of writing or have no width. They are shown escaped, as the command line does.
const HIDDEN = new RegExp(
  '[\\p{Cc}\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff'
  + '\\ufff9-\\ufffb\\u{e0000}-\\u{e0fff}]', 'gu');
// Scripts that are written from right to left: such a text stays apart from those around it.
const LEFTWARDS = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;
const MAX_TEXT = 400;

// A text of others, as it can be shown: nothing in it is hidden, and its length is bounded.
export function visible(text) {
  const all = String(text);
  const cut = all.length > MAX_TEXT ? `${all.slice(0, MAX_TEXT).toWellFormed()}…` : all;
  const shown = cut.replace(HIDDEN, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
  return LEFTWARDS.test(shown) ? `\u2068${shown}\u2069` : shown;
}

export const count = (n) => whole.format(n);

export const compact = (n) => (n < 10_000 ? whole : short).format(n);

// Events a second.
export const rate = (n) => (n >= 10_000 ? short : n >= 100 ? whole : tenths).format(n);

// `1 node`, `2 nodes`.
export const some = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

// A short time, in milliseconds.
export function time(ms) {
  if (ms === 0) return '0 ms';
  if (ms < 1) return `${whole.format(ms * 1000)} µs`;
  if (ms < 1000) return `${(ms < 10 ? tenths : whole).format(ms)} ms`;
  return `${tenths.format(ms / 1000)} s`;
}

// A long time, in milliseconds: its two largest units.
export function span(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = units.findIndex(([size]) => seconds >= size);
  if (first < 0) return '0 s';
  let left = seconds;
  const parts = [];
  for (const [size, name] of units.slice(first, first + 2)) {
    const n = Math.floor(left / size);
    if (n > 0) parts.push(`${n} ${name}`);
    left %= size;
  }
  return parts.join(' ');
}

// A time of day, with the date if it is not today.
export function moment(ms) {
  const at = new Date(ms);
  const clock = clockOf.format(at);
  return at.toDateString() === new Date().toDateString() ? clock : `${dayOf.format(at)} ${clock}`;
}

export const exact = (ms) => new Date(ms).toISOString();

export function bytes(n) {
  for (const [size, name] of [[2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']]) {
    if (n >= size) return `${tenths.format(n / size)} ${name}`;
  }
  return `${n} B`;
}

// `mailbox_change` as `mailbox change`.
export const words = (name) => name.replaceAll('_', ' ');

const endings = {
  client_went: 'client disconnected',
  draining: 'drained',
  subscriber_too_slow: 'too slow',
};

export const ending = (why) => endings[why] ?? words(why);
