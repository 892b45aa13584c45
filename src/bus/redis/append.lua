-- Assigns a frame its position in a shard, keeps it in history, and publishes it: all or nothing.
--
-- KEYS  1 state (hash)   2 history (stream)   3 trim index (list)   4 the writer's last frame
--       5 last values by key (hash)   6.. request ids of the frame
-- ARGV  1 channel        2 SPUBLISH or PUBLISH
--       3 run: identity of the server process, as the caller's connection found it
--       4 epoch          5 offset: the last position that the caller has seen (0 0: none); "=12":
--                          the frame may be appended after that position and nowhere else
--       6 sequence: the writer's number of the frame; 0: a probe, which is only published
--       7 count: events in the frame              8 frame
--       9 max entries   10 max bytes   11 max age in ms: limits of history
--       12 time to remember writers, in ms        13 time to remember request ids, in ms
--       14 number of last values, then for each its key, its index and its bytes; then for each
--          request id the index of its first event
--
-- Returns {"ok", epoch, first}: appended
--         {"dup", epoch, first}: was appended before
--         {"old"}: a later frame of this writer was appended
--         {"epoch", epoch, offset}: the caller's epoch is over, or its position is taken; nothing
--           was done
--         {"seen", index, value, ...}: these requests were accepted before; nothing was done
--         {"tip", epoch, offset}: the probe was published
--
-- A new epoch begins when the caller can tell that the server lost its memory or may have: there is
-- no state, the server process is another one (a restart, a failover, a migration), or it is behind
-- what the caller has seen. After that nothing is ever appended to the old epoch, so a position
-- never stands for two events. The first entry of an epoch records how the one before ended, so
-- that a reader knows whether anything is missing.

-- The work for each frame is kept small: all other clients of Redis wait for it.

local function num(n) return string.format('%d', n) end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'run', 'bytes', 'mark_bytes')
local epoch, offset = tonumber(state[1]), tonumber(state[2])
local bytes, indexed_bytes = tonumber(state[4]) or 0, tonumber(state[5]) or 0
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
  -- Gateways never use numbers as great as this: such an id was added by an unknown writer.
  local max = 2 ^ 52
  if before > max or ended > max then before, ended = 0, 0 end
  local highest = top()
  if highest > max then
    -- No entry of a gateway can be added after it: history is given up.
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
  -- The state was evicted or deleted: history may still have the end of the last epoch.
  redis.call('DEL', KEYS[3])
  open_epoch(top())
elseif state[3] ~= ARGV[3] or known > epoch or (known == epoch and seen > offset) then
  open_epoch(epoch, offset)
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
    if now - at <= tonumber(ARGV[11]) and bytes - size <= tonumber(ARGV[10]) then break end
    upto = position
    redis.call('LPOP', KEYS[3])
  end
  if upto then redis.call('XTRIM', KEYS[2], 'MINID', upto) end
end

local sequence = tonumber(ARGV[6])
if sequence == 0 then
  -- Probes come every second: they keep history within its age.
  local now = clock()
  local indexed_at = tonumber(redis.call('HMGET', KEYS[1], 'mark_at')[1]) or 0
  if now - indexed_at >= 1000 then trim(now) end
  redis.call(ARGV[2], ARGV[1], 'T1 ' .. num(epoch) .. '-' .. num(offset) .. ' ' .. ARGV[8])
  return {'tip', num(epoch), num(offset)}
end

local before = redis.call('MGET', KEYS[4], unpack(KEYS, 6))
local writer = before[1]
if writer then
  local s, e, first = string.match(writer, '^(%d+) (%d+) (%d+)$')
  if tonumber(s) == sequence then
    -- A write, so that WAIT on this connection waits until replicas have everything before it.
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
local position = e .. '-' .. num(offset + count)
local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[9], position, 'f', ARGV[8])
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
  local value = e .. '-' .. num(first + ARGV[arg + 1]) .. ' ' .. ARGV[arg + 2]
  redis.call('HSET', KEYS[5], ARGV[arg], value)
  arg = arg + 3
end
for i = 6, #KEYS do
  redis.call('SET', KEYS[i], e .. ' ' .. num(first + ARGV[arg]), 'PX', ARGV[13])
  arg = arg + 1
end
redis.call(ARGV[2], ARGV[1], 'T1 ' .. position .. ' ' .. ARGV[8])
if bytes - indexed_bytes >= tonumber(ARGV[10]) / 64 then trim(clock()) end
return {'ok', e, f}
