-- Everything that gateways do to a shard: append, append again what was lost, release the shard
-- after a recovery, probe, and number streams. Each call is one step, all or nothing.
--
-- KEYS  1 state (hash)   2 history (stream)   3 trim index (list)   4 last values by key (hash)
--       5.. request ids of the frame
-- ARGV  1 op: append, again, release, probe, number
--       2 channel        3 SPUBLISH or PUBLISH
--       4 deployment: what all gateways of the shard must have in common
--       5 entropy: a random number below 2 ^ 18 (earlier versions: 4096)
--       6 reported: for each epoch the last position of which the caller knows that it existed, and
--         those up to there that are copies or notes: "epoch:offset[:first-last[.first-last]..] .."
--       7 max entries    8 max bytes    9 max age in ms: limits of history
--       10 epoch         11 offset: the last position that the caller has seen (0 0: none); "=12":
--         the frame may be placed after that position and nowhere else; "!12": the same, and if
--         that place is taken, other writers wait until this one has come again
--   append, again:
--       12 writer        13 sequence: the writer's number of the frame
--       14 count: events in the frame              15 frame
--       16 again: name: "epoch:first-last", the first acceptance of the frame
--          append: the sequence of the writer's frame that must be here before it; empty: none
--       17 time to remember request ids, in ms
--       18 number of last values, then for each its key, its index and its bytes; then for each
--          request id the index of its first event; then for each run of a publisher's events the
--          16 bytes that name the publisher, with the number of the stream behind them if it has
--          one, and the first and the last sequence that it covers. Indices count from the first
--          event of the name
--   probe:    12 frame    13 caller    14 the caller's number of the probe
--             15 the probe is published unless another one was in the last so many ms; empty:
--                unless anything was in the last second
--   release:  12 caller   13 "all": the shard knows all gateways; empty: others may take part
--   number:   12 how many streams
--
-- Returns {status, epoch, offset, copies, ends, recovering, ..}: the shard after the call. `copies`
-- are the ranges of the epoch that are copies or notes, `ends` is "floor epoch:offset ..": for each
-- earlier epoch the position up to which everything is here, was appended again or was told as lost
-- (all of it for epochs up to `floor`), `recovering` is 1 while appends wait. The statuses:
--   ok, ..      append: epoch and first offset of the frame; again: appended; release: released;
--   probed, who, number, age: the probe that was published last, so many ms ago, if nothing else
--               was published since; otherwise '', 0 and 0
--   dup, epoch, first, count, entry, name's epoch, first, count: the writer's frame is there; its
--               place, the entry as it stands there, and its name
--   there       again: nothing was appended, since the frame or all of its events are there
--   seen, index, value, ..: these requests were accepted before; nothing was done
--   covered, index, ranges, ..: of these runs' publishers the shard has these sequences; nothing
--               was done
--   over, index, ..  append: the publishers of these runs have later streams; nothing was done
--   numbered, last: the number of the last of so many streams; the others have those before it
--   order       append: the writer's frame before it is not here; nothing was done
--   epoch       the caller's epoch is over, or its position is taken; nothing was done
--   turn        append: another writer comes first; nothing was done
--   recovering  appends and numbers wait; nothing was done
--   wait        other gateways may hold what comes before; to be tried again
-- or {"deployment", theirs}: the caller may not serve this shard; nothing was done
--
-- What tells one server from another, and one line of its data from another, is its
-- `master_replid`: it changes when a server starts and when a replica is promoted. Where it is not
-- the recorded one, where there is no state, and where the server is behind what the caller has
-- seen, a new epoch begins and the shard recovers: gateways append again what was lost (`again`),
-- and appends wait until that is done (`release`).

-- The work for each frame is kept small: all other clients of Redis wait for it.

-- A recovery ends when nothing was appended again for so many ms.
local SETTLE = 300
-- A gateway takes part in a recovery if it called at most so many ms before the last one that did.
local PRESENT = 3000
-- Nothing was published for so many ms: the next probe is. Each gateway probes once a second.
local QUIET = 950
-- An epoch is forgotten so many ms after it ended, or when so many younger ones have.
local FORGET, MAX_ENDS = 3600000, 64
-- A deployment whose gateways have not called for so many ms is over.
local ABANDONED = 5000
-- Ranges that are kept of one epoch's copies, and of the sequences of a writer or publisher.
local MAX_RANGES = 64
-- The last frames of a writer of which the places are kept: more than can be under way at once.
local MAX_PLACES = 8
-- A writer for which others wait is waited for so many ms.
local TURN = 1000
-- Writers and publishers are forgotten so many s after their last frame, which is looked at once in
-- so many s.
local FORGET_WRITERS, SWEEP = 600, 60
-- Gateways never use epochs as great as this: such an id was added by an unknown writer.
local MAX_EPOCH = 2 ^ 53 - 2 ^ 30

local op, channel, publish, deployment = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local frames = op == 'append' or op == 'again'
local writer = frames and 'w:' .. ARGV[12] or op == 'probe' and 'probe' or 'run'

local function num(n) return string.format('%d', n) end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'run', 'deployment', 'copies', 'ends',
  'bytes', 'mark_bytes', writer)
local epoch, offset, run = tonumber(state[1]), tonumber(state[2]), state[3]
local known, seen = tonumber(ARGV[10]), tonumber(ARGV[11])
local exact = not seen
if exact then seen = tonumber(string.sub(ARGV[11], 2)) end
-- The caller knows of an epoch that is forgotten.
local floor = tonumber(string.match(state[6] or '', '^%d+')) or 0
local lowest = tonumber(string.match(ARGV[6], '^%d+'))
local forgot = lowest and lowest <= floor
-- The server lacks what the caller has seen.
local behind = epoch and (known > epoch or (known == epoch and seen > offset))

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Of a probe: the record of the last one that was published, "ms position writer number", or of
-- what was found to be published after it, "ms position".
local now, probe
if op == 'probe' then
  now, probe = clock(), {string.match(state[9] or '', '^(%d+) (%S+) ?(%S*) ?(%d*)$')}
  local age, least = now - (tonumber(probe[1]) or 0), tonumber(ARGV[15])
  local is_enough = math.abs(age) < (least or QUIET) and not (least and probe[3] == '')
  local is_last = epoch and probe[2] == num(epoch) .. '-' .. num(offset)
  local is_known = not behind and not forgot and run ~= '' and state[4] == deployment
  if is_enough and is_last and is_known then
    -- Nothing is to be published, in most calls of many gateways: they cost next to nothing. One
    -- call in a second goes on, and looks at the server's identity.
    redis.call('HSET', KEYS[1], 'g:' .. ARGV[13], num(now))
    local copies, ends = state[5] or '', state[6] or '0'
    return {'probed', num(epoch), num(offset), copies, ends, '0', probe[3],
      probe[4] ~= '' and probe[4] or '0', num(math.abs(age))}
  end
end

local info = redis.call('INFO', 'replication')
if string.find(info, 'role:slave', 1, true) then
  return redis.error_reply('READONLY this server is a replica')
end
local identity = string.match(info, 'master_replid:(%w+)')
if not identity then return redis.error_reply('ERR INFO replication has no master_replid') end

local copies, ends = state[5] or '', state[6] or '0'
local bytes, indexed_bytes = tonumber(state[7]) or 0, tonumber(state[8]) or 0

if state[4] and state[4] ~= deployment then
  -- Gateways call every second: those that agreed on the other one may all have ended.
  local at = tonumber(redis.call('HMGET', KEYS[1], 'mark_at')[1]) or 0
  if math.abs(clock() - at) < ABANDONED then return {'deployment', state[4]} end
  run = false
end

local function answer(status, ...)
  local recovering = run == identity and '0' or '1'
  return {status, num(epoch), num(offset), copies, ends, recovering, ...}
end

-- A right that is missing in the middle would leave the work half done, so the rights are looked at
-- before anything is written: those of a frame alone as a rule, and all where more may be needed.
-- Redis before 7.0 cannot do that; there the gateway alone tries them, when it starts.
if redis.acl_check_cmd then
  local commands = {{'HSET', KEYS[1], 'f', ''}, {publish, channel, ''}}
  if frames then
    commands[3], commands[4] = {'XADD', KEYS[2], '1-1', 'f', ''}, {'HSET', KEYS[4], 'f', ''}
    if KEYS[5] then
      commands[5], commands[6] = {'SET', KEYS[5], '', 'PX', '1'}, {'PEXPIRE', KEYS[5], '1'}
    end
  end
  local begins = run ~= identity and run ~= ''
  if not frames or not state[9] or begins then
    for _, more in ipairs({
      {'HDEL', KEYS[1], 'f'}, {'HGETALL', KEYS[1]}, {'XADD', KEYS[2], '1-1', 'f', ''},
      {'XRANGE', KEYS[2], '-', '+'}, {'XINFO', 'STREAM', KEYS[2]}, {'DEL', KEYS[2], KEYS[3]},
      {'XTRIM', KEYS[2], 'MINID', '1'}, {'RPUSH', KEYS[3], ''}, {'LINDEX', KEYS[3], '0'},
      {'LPOP', KEYS[3]}, {'HGETALL', KEYS[4]},
    }) do commands[#commands + 1] = more end
  end
  for _, command in ipairs(commands) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM no right to ' .. table.concat(command, ' ', 1, 2))
    end
  end
end

-- Ranges of numbers, ascending, as text: "1-7.9-9".

local function has(ranges, number)
  for first, last in string.gmatch(ranges, '(%d+)%-(%d+)') do
    if tonumber(first) <= number and number <= tonumber(last) then return true end
  end
  return false
end

-- Joins ranges, of which at most MAX_RANGES are kept, the last ones.
local function join(ranges)
  table.sort(ranges, function(a, b) return a[1] < b[1] end)
  local joined = {}
  for _, range in ipairs(ranges) do
    local last = joined[#joined]
    if last and range[1] <= last[2] + 1 then
      last[2] = math.max(last[2], range[2])
    else
      joined[#joined + 1] = {range[1], range[2]}
    end
  end
  local parts = {}
  for i = math.max(1, #joined - MAX_RANGES + 1), #joined do
    parts[#parts + 1] = num(joined[i][1]) .. '-' .. num(joined[i][2])
  end
  return table.concat(parts, '.')
end

local function parse_ranges(text, into)
  for first, last in string.gmatch(text, '(%d+)%-(%d+)') do
    into[#into + 1] = {tonumber(first), tonumber(last)}
  end
  return into
end

local function with_range(ranges, first, last)
  -- As a rule it follows the last one.
  local before, from, to = string.match(ranges, '^(.-)(%d+)%-(%d+)$')
  if to and tonumber(to) + 1 == first then return before .. from .. '-' .. num(last) end
  local all = parse_ranges(ranges, {})
  all[#all + 1] = {first, last}
  return join(all)
end

-- True if some number from `first` to `last` is in the ranges.
local function overlap(ranges, first, last)
  -- As a rule all of them are behind.
  local highest = tonumber(string.match(ranges, '(%d+)$'))
  if not highest or highest < first then return false end
  for from, to in string.gmatch(ranges, '(%d+)%-(%d+)') do
    if tonumber(from) <= last and first <= tonumber(to) then return true end
  end
  return false
end

-- What callers have reported: a list of {epoch, offset, copies}, ascending.
local function parse_reported(text)
  local list = {}
  for e, o, ranges in string.gmatch(text, '(%d+):(%d+):?([%d.-]*)') do
    if tonumber(e) < MAX_EPOCH then list[#list + 1] = {tonumber(e), tonumber(o), ranges} end
  end
  return list
end

local function merge_reported(one, other)
  local by_epoch, list = {}, {}
  for _, reported in ipairs({one, other}) do
    for _, entry in ipairs(reported) do
      local before = by_epoch[entry[1]]
      if not before then
        by_epoch[entry[1]] = entry
        list[#list + 1] = entry
      else
        before[2] = math.max(before[2], entry[2])
        if entry[3] ~= '' and entry[3] ~= before[3] then
          before[3] = join(parse_ranges(entry[3], parse_ranges(before[3], {})))
        end
      end
    end
  end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

local function reported_text(list)
  local parts = {}
  for _, entry in ipairs(list) do
    local text = num(entry[1]) .. ':' .. num(entry[2])
    if entry[3] ~= '' then text = text .. ':' .. entry[3] end
    parts[#parts + 1] = text
  end
  return table.concat(parts, ' ')
end

-- The ends of earlier epochs: read where they are needed.
local ended, order
local function read_ends()
  floor, ended, order = tonumber(string.match(ends, '^%d+')), {}, {}
  for e, o in string.gmatch(ends, '(%d+):(%d+)') do
    ended[tonumber(e)] = tonumber(o)
    order[#order + 1] = tonumber(e)
  end
end

local function end_of(e)
  if e == epoch then return offset end
  if e <= floor then return math.huge end
  return ended[e] or 0
end

local function write_ends()
  table.sort(order)
  local parts = {num(floor)}
  for _, e in ipairs(order) do parts[#parts + 1] = num(e) .. ':' .. num(ended[e]) end
  ends = table.concat(parts, ' ')
  redis.call('HSET', KEYS[1], 'ends', ends)
end

local function set_end(e, o)
  if e == epoch or e <= floor then return end
  if not ended[e] then order[#order + 1] = e end
  ended[e] = math.max(ended[e] or 0, o)
  write_ends()
end

-- Keeps the ends of epochs that are forgotten, as "floor|epoch:offset ..". `whole`: the list has
-- all that were forgotten since the state began, which is then kept beside it, as the floor.
local function keep_forgotten(list, whole)
  local from = math.max(1, #list - MAX_ENDS + 1)
  local text = num(floor) .. '|' .. table.concat(list, ' ', from)
  whole = whole and from == 1 and num(floor) or ''
  redis.call('HSET', KEYS[1], 'forgotten', text, 'forgotten_whole', whole)
end

-- The ends of epochs that are forgotten, and whether they are all; none if an earlier version has
-- forgotten others since.
local function read_forgotten()
  local fields = redis.call('HMGET', KEYS[1], 'forgotten', 'forgotten_whole')
  local upto, rest = string.match(fields[1] or '', '^(%d+)|(.*)$')
  local list = {}
  if upto == num(floor) then
    for entry in string.gmatch(rest, '%S+') do list[#list + 1] = entry end
  end
  return list, floor == 0 or upto == num(floor) and fields[2] == upto
end

-- Knows epochs again that were forgotten, if callers know that they went on, on another line: of
-- those that the list has, further than it says; and where the list is whole, also those that were
-- never known here, as where the state began anew on this line alone.
local function remember(reported)
  read_ends()
  local list, whole = read_forgotten()
  local last, first = {}, nil
  if #list == 0 and not whole then return end
  for i, entry in ipairs(list) do
    local e, o = string.match(entry, '^(%d+):(%d+)$')
    list[i] = {tonumber(e), tonumber(o), entry}
    last[list[i][1]] = list[i][2]
  end
  local from = whole and 0 or list[1][1]
  for _, entry in ipairs(reported) do
    local e, o = entry[1], entry[2]
    if not first and e <= floor and e >= from and o > (last[e] or 0) then first = e end
  end
  if not first then return end
  floor = first - 1
  local rest = {}
  for _, entry in ipairs(list) do
    if entry[1] < first then
      rest[#rest + 1] = entry[3]
    else
      ended[entry[1]] = entry[2]
      order[#order + 1] = entry[1]
    end
  end
  if not ended[first] then
    ended[first] = 0
    order[#order + 1] = first
  end
  keep_forgotten(rest, whole)
  write_ends()
end

-- The last id that history has ever had; nothing can be added at or before it.
local function top()
  local stream = redis.pcall('XINFO', 'STREAM', KEYS[2])
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' then
      local e, o = string.match(stream[i + 1], '^(%d+)-(%d+)$')
      return tonumber(e), tonumber(o)
    end
  end
  return 0, 0
end

-- Takes in the earlier epochs that callers have reported, so that all who read the shard know that
-- they existed. True if one was not known.
local function know_epochs(reported)
  local new = false
  for _, entry in ipairs(reported) do
    local e = entry[1]
    if e < epoch and e > floor and not ended[e] then
      ended[e], new = 0, true
      order[#order + 1] = e
    end
  end
  return new
end

-- Opens an epoch behind what is there. Its number is greater than every one that is known, and has
-- random low bits, since another server may open one at the same time.
local function open_epoch(most, reported)
  local highest, highest_offset = top()
  local past = {}
  if highest >= MAX_EPOCH then
    -- No entry of a gateway can be added after it: history is given up.
    redis.call('DEL', KEYS[2], KEYS[3])
    highest, highest_offset = 0, 0
  end
  if not epoch then
    -- The state was evicted or deleted: history may still have the end of the last epoch.
    redis.call('DEL', KEYS[3])
    epoch, offset = highest, highest_offset
    -- The records of writers are gone too: everything that is held is appended again, with them.
    -- What history has is not lost, even if nobody holds it. The starts of its epochs say how far
    -- those before went: the ends in one of them do not, if the state had been lost before it, too.
    local e, existed = num(epoch), num(epoch) .. ':' .. num(offset)
    ends = nil
    for _ = 1, MAX_ENDS do
      local start = redis.call('XRANGE', KEYS[2], e .. '-0', e .. '-0')[1]
      local before, last, known = string.match(start and start[2][2] or '', '^(%d+)-(%d+) (.*)$')
      if not before then break end
      ends = ends or string.match(known, '^%d+')
      existed = existed .. ' ' .. known .. ' ' .. before .. ':' .. last
      e = before
    end
    ends = ends or '0'
    past = merge_reported(parse_reported(existed), {})
    -- History may be gone, too. The values of keys are left: newer ones have greater positions.
    local values = redis.pcall('HGETALL', KEYS[4])
    for i = 2, #values, 2 do
      local of = tonumber(string.match(values[i], '^(%d+)%-')) or 0
      if of < MAX_EPOCH then most = math.max(most, of) end
    end
    redis.call('HSET', KEYS[1], 'past', reported_text(past))
  end
  if epoch >= MAX_EPOCH or offset >= MAX_EPOCH then epoch, offset = 0, 0 end
  read_ends()
  know_epochs(past)
  local before, last = epoch, offset
  local now = clock()
  for _, e in ipairs(order) do most = math.max(most, e) end
  most = math.max(most, before, highest)
  epoch = math.max(now, math.floor(most / 4096) + 1) * 4096 + tonumber(ARGV[5])
  offset, copies = 0, ''
  if before > floor and state[1] then
    if not ended[before] then order[#order + 1] = before end
    ended[before] = math.max(ended[before] or 0, last)
  end
  know_epochs(reported)
  table.sort(order)
  local existed, forgotten, whole = {}, read_forgotten()
  local before_floor = floor
  for _, entry in ipairs(reported) do existed[entry[1]] = entry[2] end
  while #order > 0 do
    -- Those of other lines do not say when the one before ended here: just now. One that callers
    -- know to have gone on ended later, on another line.
    local next_epoch = order[1] == before and epoch or order[2] or epoch
    local is_old = now - math.floor(next_epoch / 4096) > FORGET
    is_old = is_old and (existed[order[1]] or 0) <= ended[order[1]]
    if #order <= MAX_ENDS and not is_old then break end
    floor = table.remove(order, 1)
    forgotten[#forgotten + 1] = num(floor) .. ':' .. num(ended[floor])
    ended[floor] = nil
  end
  if floor > before_floor then keep_forgotten(forgotten, whole) end
  write_ends()
  redis.call('HSET', KEYS[1], 'epoch', num(epoch), 'offset', '0', 'copies', '')
  local start = num(before) .. '-' .. num(last) .. ' ' .. ends
  redis.call('XADD', KEYS[2], num(epoch) .. '-0', 'e', start)
  redis.call(publish, channel, 'E2 ' .. num(epoch) .. '-0 ' .. start)
end

-- The gateways that a recovery waits for: those that it waited for before, and those that called
-- until the last one did; '?' if none is known. What the state has of them begins anew: its times
-- are of another clock.
local function present(waits)
  local all, at, last = redis.call('HGETALL', KEYS[1]), {}, 0
  for i = 1, #all, 2 do
    local gateway = string.match(all[i], '^g:(.*)$')
    if gateway then
      redis.call('HDEL', KEYS[1], all[i])
      at[gateway] = tonumber(all[i + 1])
      last = math.max(last, at[gateway])
    end
  end
  for gateway, called in pairs(at) do
    if last - called <= PRESENT and not string.find(waits, gateway, 1, true) then
      waits = waits .. ' ' .. gateway
    end
  end
  return waits ~= '' and waits or '?'
end

local recovery
-- Begins a recovery, or takes part in the one that is under way.
local function recover()
  local before = redis.call('HMGET', KEYS[1], 'recovery', 'reported', 'done', 'since', 'waits')
  local fresh = before[1] ~= identity or not run or behind
  local reported = merge_reported(parse_reported(before[2] or ''), parse_reported(ARGV[6]))
  recovery = {reported = reported, done = before[3] or '', since = tonumber(before[4])}
  -- Those of an epoch that an earlier version began are not known.
  local begun, waits = string.match(before[5] or '', '^(%d+)(.*)$')
  if not epoch or begun ~= num(epoch) then waits = '?' end
  local most = #reported > 0 and reported[#reported][1] or 0
  if fresh or not epoch or most > epoch then
    recovery.done, recovery.since = '', clock()
    -- Nothing is known where the state was lost: only time tells who takes part.
    waits = epoch and present(before[1] and waits or '') or '?'
    -- From now on, and not from the first probe on, another deployment is refused.
    redis.call('HSET', KEYS[1], 'mark_at', num(recovery.since))
    open_epoch(math.max(most, known < MAX_EPOCH and known or 0), reported)
  else
    read_ends()
    if know_epochs(reported) then write_ends() end
  end
  run, recovery.waits = '', waits
  redis.call('HSET', KEYS[1], 'run', '', 'deployment', deployment, 'recovery', identity,
    'reported', reported_text(reported), 'done', recovery.done, 'since', num(recovery.since),
    'waits', num(epoch) .. waits)
end

if forgot then remember(parse_reported(ARGV[6])) end
if not epoch or run ~= identity or behind then
  recover()
end

-- True if nobody who takes part has anything more to append again. `all`: the shard knows them all.
local function settled(all)
  if not recovery or all and recovery.waits == '' then return true end
  local now = clock()
  if now < recovery.since then
    -- The clock went back: the wait begins again.
    recovery.since = now
    redis.call('HSET', KEYS[1], 'since', num(now))
  end
  return now - recovery.since >= SETTLE
end

-- Adds an entry to history at the next `count` offsets. Returns the error, if it cannot be added.
local function add(count, field, value)
  local position = num(epoch) .. '-' .. num(offset + count)
  local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], position, field, value)
  if type(added) == 'table' and added.err then return added end
  offset, bytes = offset + count, bytes + #value
  redis.call('HSET', KEYS[1], 'offset', num(offset), 'bytes', num(bytes))
end

local function add_copies(first, last)
  copies = with_range(copies, first, last)
  redis.call('HSET', KEYS[1], 'copies', copies)
end

local function note_run(e, first, last)
  local lost = num(e) .. ':' .. num(first) .. '-' .. num(last)
  add(1, 'n', lost)
  add_copies(offset, offset)
  redis.call(publish, channel, 'N2 ' .. num(epoch) .. '-' .. num(offset) .. ' ' .. lost)
end

-- Tells that everything of an epoch up to `last` that is not handled is lost. Copies are not: they
-- have names in other epochs.
local function note(e, last, ranges)
  local first = end_of(e) + 1
  local past = redis.call('HMGET', KEYS[1], 'past')[1]
  if past then
    local known = string.match(' ' .. past, ' ' .. num(e) .. ':(%d+)')
    local id = known and num(e) .. '-' .. known
    if known and redis.call('XRANGE', KEYS[2], id, id)[1] then
      first = math.max(first, tonumber(known) + 1)
    end
  end
  local all = parse_ranges(ranges, {})
  table.sort(all, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(all) do
    if range[1] > last then break end
    if range[1] > first then note_run(e, first, range[1] - 1) end
    first = math.max(first, range[2] + 1)
  end
  if first <= last then note_run(e, first, last) end
  set_end(e, last)
end

-- The first offset of an epoch that is not handled, and is not that of a copy.
local function first_lacking(e, ranges)
  local first = end_of(e) + 1
  if ranges == '' then return first end
  for _, range in ipairs(parse_ranges(ranges, {})) do
    if range[1] <= first then first = math.max(first, range[2] + 1) end
  end
  return first
end

local function note_all(list, before)
  for _, entry in ipairs(list) do
    if entry[1] < before and entry[2] > end_of(entry[1]) then note(entry[1], entry[2], entry[3]) end
  end
end

-- Keeps history within its bytes and its age. An entry of the trim index has a time, the bytes
-- that had been added by then, and the position up to which everything is at least as old.
local function trim(now)
  local id = num(epoch) .. '-' .. num(offset)
  redis.call('RPUSH', KEYS[3], num(now) .. ' ' .. num(bytes) .. ' ' .. id)
  redis.call('HSET', KEYS[1], 'mark_at', num(now), 'mark_bytes', num(bytes))
  local upto
  for _ = 1, 16 do
    local oldest = redis.call('LINDEX', KEYS[3], 0)
    if not oldest then break end
    local at, size, position = string.match(oldest, '^(%d+) (%d+) (.*)$')
    if now - at <= tonumber(ARGV[9]) and bytes - size <= tonumber(ARGV[8]) then break end
    upto = position
    redis.call('LPOP', KEYS[3])
  end
  if upto then redis.call('XTRIM', KEYS[2], 'MINID', upto) end
end

-- Forgets the writers and publishers that have not written for long, and the gateways that have
-- not called.
local function sweep(now)
  redis.call('HSET', KEYS[1], 'swept', num(now))
  local all, here = redis.call('HGETALL', KEYS[1]), {}
  for i = 1, #all, 2 do
    local at = string.match(all[i], '^[wp]:') and tonumber(string.match(all[i + 1], '^%d+'))
    if at and now - at > FORGET_WRITERS then
      redis.call('HDEL', KEYS[1], all[i])
    elseif at then
      here[all[i]] = true
    elseif string.find(all[i], '^g:') and math.abs(now - all[i + 1] / 1000) > SWEEP then
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
  for i = 1, #all, 2 do
    local publisher = string.match(all[i], '^s:(.*)$')
    if publisher and not here['p:' .. publisher] then redis.call('HDEL', KEYS[1], all[i]) end
  end
end

if op == 'probe' then
  redis.call('HSET', KEYS[1], 'g:' .. ARGV[13], num(now))
  -- Probes come every second: they keep history within its age.
  local marks = redis.call('HMGET', KEYS[1], 'mark_at', 'swept')
  if now - (tonumber(marks[1]) or 0) >= 1000 then trim(now) end
  local seconds = math.floor(now / 1000)
  -- After a clock that went back, too.
  if math.abs(seconds - (tonumber(marks[2]) or 0)) >= SWEEP then sweep(seconds) end
  local here = num(epoch) .. '-' .. num(offset)
  local who, number = '', '0'
  if ARGV[15] ~= '' or probe[2] == here then
    who, number = ARGV[13], ARGV[14]
    redis.call(publish, channel, 'P2 ' .. here .. ' ' .. copies .. '|' .. ends .. '|' .. ARGV[12])
  end
  redis.call('HSET', KEYS[1], 'probe', table.concat({num(now), here, who, number}, ' '))
  return answer('probed', who, number, '0')
end

if op == 'release' then
  redis.call('HSET', KEYS[1], 'g:' .. ARGV[12], num(clock()))
  if not ended then read_ends() end
  if not recovery then
    -- The caller reports something that nobody appended again, and has waited.
    local reported = parse_reported(ARGV[6])
    if know_epochs(reported) then write_ends() end
    note_all(reported, epoch)
    return answer('ok')
  end
  -- A caller that did not know of this epoch has not appended again what was lost with it.
  if known ~= epoch then return answer('wait') end
  if not string.find(recovery.done, ARGV[12], 1, true) then
    recovery.done = recovery.done .. ' ' .. ARGV[12]
    recovery.waits = string.gsub(recovery.waits, ' ' .. ARGV[12], '')
    redis.call('HSET', KEYS[1], 'done', recovery.done, 'waits', num(epoch) .. recovery.waits)
  end
  if not settled(ARGV[13] ~= '') then return answer('wait') end
  -- History that named the last epochs in place of the state may be gone by now, too.
  local past = redis.call('HMGET', KEYS[1], 'past')[1] or ''
  note_all(merge_reported(recovery.reported, parse_reported(past)), epoch)
  run = identity
  redis.call('HSET', KEYS[1], 'run', identity)
  redis.call('HDEL', KEYS[1], 'recovery', 'reported', 'done', 'since', 'waits')
  return answer('ok')
end

if op == 'number' then
  -- Others may know of greater ones that this server has lost.
  if run ~= identity then return answer('recovering') end
  -- Greater than every number before, also where the state with the last one was lost: epochs rise.
  local last = tonumber(redis.call('HMGET', KEYS[1], 'streams')[1]) or 0
  last = num(math.max(last, epoch) + ARGV[12])
  redis.call('HSET', KEYS[1], 'streams', last)
  return answer('numbered', last)
end

local sequence, count = tonumber(ARGV[13]), tonumber(ARGV[14])
-- A writer's record: the time of the last frame in s, the sequences that are here, and the places
-- of the last of them, ascending: "|sequence:epoch:first:count" each, and ":epoch:first:count" of
-- the name, if that is another one.
local sequences, places = '', ''
if state[9] then sequences, places = string.match(state[9], '^%d+ (%S*) (.*)$') end
local function keep_writer()
  redis.call('HSET', KEYS[1], writer, redis.call('TIME')[1] .. ' ' .. sequences .. ' ' .. places)
end

local function keep_place(sequence, place)
  local highest = tonumber(string.match(places, '|(%d+)[^|]*$'))
  places = places .. '|' .. num(sequence) .. place
  if highest and highest > sequence then
    local all = {}
    for number, rest in string.gmatch(places, '|(%d+)([^|]*)') do
      all[#all + 1] = {tonumber(number), rest}
    end
    table.sort(all, function(one, other) return one[1] < other[1] end)
    places = ''
    for _, kept in ipairs(all) do places = places .. '|' .. num(kept[1]) .. kept[2] end
  end
  local _, count = string.gsub(places, '|', '')
  for _ = MAX_PLACES + 1, count do places = string.match(places, '^|[^|]*(.*)$') end
end

local name_epoch, name_first, name_last
if op == 'append' then
  if run ~= identity then return answer('recovering') end
  if has(sequences, sequence) then
    -- It is remembered for longer.
    keep_writer()
    local place = string.match(places, '|' .. num(sequence) .. '(:[^|]*)')
    if not place then return answer('dup', '0', '0', '0', '', '0', '0', '0') end
    local e, first, events = string.match(place, '^:(%d+):(%d+):(%d+)')
    local id = e .. '-' .. num(first + events - 1)
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    local frame = entry and entry[2][1] == 'f' and entry[2][2] or ''
    return answer('dup', e, first, events, frame, string.match(place, '(%d+):(%d+):(%d+)$'))
  end
  -- The one before it failed: the writer sends both again, in order.
  if ARGV[16] ~= '' and not has(sequences, tonumber(ARGV[16])) then return answer('order') end
  if known ~= epoch then return answer('epoch') end
  if exact then
    local turn = redis.call('HMGET', KEYS[1], 'turn')[1] or ''
    local holder, at = string.match(turn, '^(%S+) (%d+)$')
    local waits = holder and holder ~= ARGV[12] and math.abs(clock() - at) < TURN
    if seen ~= offset then
      if string.sub(ARGV[11], 1, 1) == '!' and not waits then
        redis.call('HSET', KEYS[1], 'turn', ARGV[12] .. ' ' .. num(clock()))
      end
      return answer('epoch')
    end
    if waits then return answer('turn') end
    if holder == ARGV[12] then redis.call('HSET', KEYS[1], 'turn', '') end
  end
else
  if not ended then read_ends() end
  name_epoch, name_first, name_last = string.match(ARGV[16], '^(%d+):(%d+)-(%d+)$')
  name_epoch, name_first = tonumber(name_epoch), tonumber(name_first)
  name_last = tonumber(name_last)
  if name_epoch >= epoch or name_last <= end_of(name_epoch) then return answer('there') end
  -- What this caller reports is among what the recovery knows.
  local reported = recovery and recovery.reported or parse_reported(ARGV[6])
  local ranges = ''
  for _, entry in ipairs(reported) do if entry[1] == name_epoch then ranges = entry[3] end end
  -- Places before it that hold copies have no name that anybody could offer.
  local lacks = first_lacking(name_epoch, ranges) < name_first
  for _, entry in ipairs(reported) do
    local e, last = entry[1], entry[2]
    lacks = lacks or e < name_epoch and first_lacking(e, entry[3]) <= last
  end
  if lacks then
    if not settled() then return answer('wait') end
    note_all(reported, name_epoch)
    if name_first > end_of(name_epoch) + 1 then note(name_epoch, name_first - 1, ranges) end
  end
  if count == 0 or has(sequences, sequence) then
    set_end(name_epoch, name_last)
    return answer('there')
  end
  if exact and (known ~= epoch or seen ~= offset) then return answer('epoch') end
end

local requests = #KEYS > 4 and redis.call('MGET', unpack(KEYS, 5)) or {}
local found = {}
local index = 19 + 3 * tonumber(ARGV[18])
-- A record may have outlived what was accepted: a key of its own is not lost with the others.
local function is_here(record)
  local e, o = string.match(record, '^(%d+) (%d+)$')
  e, o = tonumber(e), tonumber(o)
  if e == epoch then return o <= offset end
  if not ended then read_ends() end
  return e and o <= end_of(e)
end
for i = 1, #KEYS - 4 do
  local own = name_epoch and num(name_epoch) .. ' ' .. num(name_first + ARGV[index + i - 1])
  if requests[i] and requests[i] ~= own and is_here(requests[i]) then
    found[#found + 1] = num(i - 1)
    found[#found + 1] = requests[i]
    redis.call('PEXPIRE', KEYS[4 + i], ARGV[17])
  end
end
if #found > 0 then return answer('seen', unpack(found)) end

-- The runs of publishers. A publisher's record has the time of the last frame in s, and the
-- sequences that are here; another one, which earlier versions leave alone, has the number of the
-- last stream that they came on.
local publishers, had, streams, later = {}, {}, {}, {}
for i = index + #KEYS - 4, #ARGV, 3 do
  publishers[#publishers + 1] = string.sub(ARGV[i], 1, 16)
end
local function keep_publishers()
  local now, records = redis.call('TIME')[1], {}
  for publisher, ranges in pairs(had) do
    if ranges ~= '' then
      records[#records + 1] = 'p:' .. publisher
      records[#records + 1] = now .. ' ' .. ranges
      if later[publisher] then
        records[#records + 1] = 's:' .. publisher
        records[#records + 1] = streams[publisher]
      end
    end
  end
  if #records > 0 then redis.call('HSET', KEYS[1], unpack(records)) end
end
if #publishers > 0 then
  local fields = {}
  for i, publisher in ipairs(publishers) do
    fields[2 * i - 1], fields[2 * i] = 'p:' .. publisher, 's:' .. publisher
  end
  local records = redis.call('HMGET', KEYS[1], unpack(fields))
  local covered, over = {}, {}
  for i, publisher in ipairs(publishers) do
    if not had[publisher] then
      had[publisher] = string.match(records[2 * i - 1] or '', '^%d+ (.*)$') or ''
      streams[publisher] = records[2 * i] or '0'
    end
    local arg = index + #KEYS - 4 + 3 * (i - 1)
    local stream, last = string.sub(ARGV[arg], 17), streams[publisher]
    -- As a rule it is the last one.
    if stream ~= last and stream ~= '' then
      if tonumber(stream) > tonumber(last) then
        streams[publisher], later[publisher] = stream, true
      elseif op == 'append' then
        -- What was accepted before comes again whatever stream it came on.
        over[#over + 1] = num(i - 1)
      end
    end
    if overlap(had[publisher], tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])) then
      covered[#covered + 1] = num(i - 1)
      covered[#covered + 1] = had[publisher]
    end
  end
  if #over > 0 then return answer('over', unpack(over)) end
  if #covered > 0 then
    -- They are remembered for longer.
    keep_publishers()
    return answer('covered', unpack(covered))
  end
end

local first = offset + 1
local failed = add(count, 'f', ARGV[15])
if failed then
  local high, o = top()
  if high < epoch or (high == epoch and o < offset + count) then return failed end
  open_epoch(0, {})
  return answer('epoch')
end
sequences = with_range(sequences, sequence, sequence)
local place = ':' .. num(epoch) .. ':' .. num(first) .. ':' .. num(count)
if name_epoch then
  place = place .. ':' .. num(name_epoch) .. ':' .. num(name_first) .. ':'
    .. num(name_last - name_first + 1)
end
keep_place(sequence, place)
keep_writer()
if #publishers > 0 then
  for i, publisher in ipairs(publishers) do
    local arg = index + #KEYS - 4 + 3 * (i - 1)
    had[publisher] = with_range(had[publisher], tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]))
  end
  keep_publishers()
end
local base_epoch, base = num(name_epoch or epoch), name_first or first
local arg = 19
for _ = 1, tonumber(ARGV[18]) do
  local at = base + ARGV[arg + 1]
  local value = base_epoch .. '-' .. num(at) .. ' ' .. ARGV[arg + 2]
  local newer = true
  if name_epoch then
    local before = redis.call('HMGET', KEYS[4], ARGV[arg])[1]
    local e, o = string.match(before or '', '^(%d+)-(%d+) ')
    e, o = tonumber(e), tonumber(o)
    newer = not e or e < name_epoch or (e == name_epoch and o < at)
  end
  if newer then redis.call('HSET', KEYS[4], ARGV[arg], value) end
  arg = arg + 3
end
for i = 5, #KEYS do
  redis.call('SET', KEYS[i], base_epoch .. ' ' .. num(base + ARGV[arg]), 'PX', ARGV[17])
  arg = arg + 1
end
if name_epoch then
  add_copies(first, offset)
  set_end(name_epoch, name_last)
  if recovery then
    recovery.since = clock()
    redis.call('HSET', KEYS[1], 'since', num(recovery.since))
  end
end
redis.call(publish, channel, 'F2 ' .. num(epoch) .. '-' .. num(offset) .. ' ' .. ARGV[15])
if bytes - indexed_bytes >= tonumber(ARGV[8]) / 64 then trim(clock()) end
return answer('ok', num(epoch), num(first))
