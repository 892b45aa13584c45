-- Gives a frame its place in a shard, keeps it for history, and publishes it: all or nothing.
--
-- KEYS  1 state (hash)   2 history (stream)   3 marks (list)   4 the writer's last frame
--       5 retained events by key (hash)   6.. request ids of the frame
-- ARGV  1 channel        2 SPUBLISH or PUBLISH
--       3 run: identity of the server process, as the caller's connection found it
--       4 epoch          5 offset: the last place that the caller has seen (0 0: none); "=12": the frame is for the place
--                          behind that one and for no other
--       6 sequence: the writer's number for the frame; 0: a beacon, which is only published
--       7 count: events in the frame              8 frame
--       9 most entries   10 most bytes   11 greatest age in ms: of history
--       12 how long writers are remembered, in ms  13 how long request ids are, in ms
--       14 number of retained events, then for each its key, its index and its bytes; then for each request id the index of
--       its first event
--
-- Returns {"ok", epoch, first} (appended), {"dup", epoch, first} (was appended before), {"old"} (a later frame of this writer
-- was), {"epoch", epoch, offset} (the caller's epoch is over, or its place taken: nothing done), {"seen", index, value, ...} (these requests were
-- accepted before: nothing done), {"tip", epoch, offset} (beacon published).
--
-- A new epoch begins where the caller can tell that the server lost its memory or may have: there is no state, the server
-- process is another one (a restart, a failover, a migration), or it is behind what the caller has seen. After that nothing
-- is ever appended to the old epoch, so a place never means two things. The first entry of an epoch says how the one before
-- ended, so a reader knows whether anything is missing.

-- What is done for each frame is little, since everything that Redis does for others waits for it.

local function num(n) return string.format('%d', n) end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'run', 'bytes', 'mark_bytes')
local epoch, offset = tonumber(state[1]), tonumber(state[2])
local bytes, mark_bytes = tonumber(state[4]) or 0, tonumber(state[5]) or 0
local known, seen = tonumber(ARGV[4]), tonumber(ARGV[5])
local exact = not seen
if exact then seen = tonumber(string.sub(ARGV[5], 2)) end

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The last id that history has ever had; nothing can be added at or before it.
local function top()
  local info = redis.pcall('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local e, o = string.match(info[i + 1], '^(%d+)-(%d+)$')
      return tonumber(e), tonumber(o)
    end
  end
  return 0, 0
end

local function open_epoch(before, ended)
  -- No number of ours is as great: where an id is, somebody else wrote it.
  local most = 2 ^ 52
  if before > most or ended > most then before, ended = 0, 0 end
  local highest = top()
  if highest > most then
    -- Nothing of ours can stand behind it: what was kept is given up.
    redis.call('DEL', KEYS[2], KEYS[3])
    highest = 0
  end
  epoch, offset = math.max(clock(), known + 1, before + 1, highest + 1), 0
  redis.call('HSET', KEYS[1], 'epoch', num(epoch), 'offset', '0', 'run', ARGV[3])
  local ending = num(before) .. '-' .. num(ended)
  redis.call('XADD', KEYS[2], num(epoch) .. '-0', 'e', ending)
  redis.call(ARGV[2], ARGV[1], 'E1 ' .. num(epoch) .. '-0 ' .. ending)
end

if not epoch then
  -- The state is gone (evicted, or deleted): history may still know.
  redis.call('DEL', KEYS[3])
  open_epoch(top())
elseif state[3] ~= ARGV[3] or known > epoch or (known == epoch and seen > offset) then
  open_epoch(epoch, offset)
end

-- Keeps history within its bytes and its age.
local function trim(now)
  local id = num(epoch) .. '-' .. num(offset)
  redis.call('RPUSH', KEYS[3], num(now) .. ' ' .. num(bytes) .. ' ' .. id)
  redis.call('HSET', KEYS[1], 'mark_at', num(now), 'mark_bytes', num(bytes))
  -- A mark says that everything up to its id is at least as old as it, and how many bytes had been kept by then.
  local upto
  for _ = 1, 16 do
    local mark = redis.call('LINDEX', KEYS[3], 0)
    if not mark then break end
    local at, size, place = string.match(mark, '^(%d+) (%d+) (.*)$')
    if now - at <= tonumber(ARGV[11]) and bytes - size <= tonumber(ARGV[10]) then break end
    upto = place
    redis.call('LPOP', KEYS[3])
  end
  if upto then redis.call('XTRIM', KEYS[2], 'MINID', upto) end
end

local sequence = tonumber(ARGV[6])
if sequence == 0 then
  -- Beacons come each second: they see to the age.
  local now, mark_at = clock(), tonumber(redis.call('HMGET', KEYS[1], 'mark_at')[1]) or 0
  if now - mark_at >= 1000 then trim(now) end
  redis.call(ARGV[2], ARGV[1], 'T1 ' .. num(epoch) .. '-' .. num(offset) .. ' ' .. ARGV[8])
  return {'tip', num(epoch), num(offset)}
end

local before = redis.call('MGET', KEYS[4], unpack(KEYS, 6))
local writer = before[1]
if writer then
  local s, e, first = string.match(writer, '^(%d+) (%d+) (%d+)$')
  if tonumber(s) == sequence then
    -- A write, so that WAIT on this connection waits for replicas to have all that came before it.
    redis.call('PEXPIRE', KEYS[4], ARGV[12])
    return {'dup', e, first}
  end
  if tonumber(s) > sequence then return {'old'} end
end

if known ~= epoch or (exact and seen ~= offset) then return {'epoch', num(epoch), num(offset)} end

local reply
for i = 2, #before do
  if before[i] then
    reply = reply or {'seen'}
    reply[#reply + 1] = num(i - 2)
    reply[#reply + 1] = before[i]
    redis.call('PEXPIRE', KEYS[4 + i], ARGV[13])
  end
end
if reply then return reply end

local count = tonumber(ARGV[7])
local first = offset + 1
local e, f = num(epoch), num(first)
local place = e .. '-' .. num(offset + count)
local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[9], place, 'f', ARGV[8])
if type(added) == 'table' and added.err then
  local high, o = top()
  if high < epoch or (high == epoch and o < offset + count) then return added end
  open_epoch(epoch, offset)
  return {'epoch', num(epoch), num(offset)}
end
offset = offset + count
bytes = bytes + #ARGV[8]
redis.call('HSET', KEYS[1], 'offset', num(offset), 'bytes', num(bytes))
redis.call('SET', KEYS[4], ARGV[6] .. ' ' .. e .. ' ' .. f, 'PX', ARGV[12])
local arg = 15
for _ = 1, tonumber(ARGV[14]) do
  redis.call('HSET', KEYS[5], ARGV[arg], e .. '-' .. num(first + ARGV[arg + 1]) .. ' ' .. ARGV[arg + 2])
  arg = arg + 3
end
for i = 6, #KEYS do
  redis.call('SET', KEYS[i], e .. ' ' .. num(first + ARGV[arg]), 'PX', ARGV[13])
  arg = arg + 1
end
redis.call(ARGV[2], ARGV[1], 'T1 ' .. place .. ' ' .. ARGV[8])
if bytes - mark_bytes >= tonumber(ARGV[10]) / 64 then trim(clock()) end
return {'ok', e, f}
