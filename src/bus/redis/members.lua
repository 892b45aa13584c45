-- Writes the changes of a member, renews everything of it, and returns the records of the members
-- that changed since the caller's last exchange: all or nothing.
--
-- What an exchange costs does not grow with the members: each change of a record has a number and
-- a mark in a ring of the last changes, and a caller names the change up to which it knows them.
-- Once a second one of the exchanges, whoever makes it, looks at all records: for those that were
-- not renewed.
--
-- KEYS  1 records (hash: member -> "<deadline> <written> <number> <record>", times in ms by this
--         server's clock; the number begins with 0 if the member marks its changes in KEYS[3],
--         which gateways of earlier versions do not)
--       2 the member's shards (hash: number -> bytes)
--       3 changes (hash: last -> number of the last change; <number> -> "<member> <mark>" for the
--         last changes; swept -> time of the last sweep; earlier -> 1 if gateways of earlier
--         versions are there)
-- ARGV  1 member     2 time to live in ms     3 number of this exchange
--       4 number of the exchange on which this one builds; 0: begin anew
--       5 1 if the member has member shards here     6 record
--       7 time in ms without renewal after which a member is silent, which is a change
--       8 number of the last change that the caller knows; 0: none     9 its content
--       10.. number and bytes of each member shard that changed; no bytes: it is removed
--
-- Returns {taken (1 or 0), all (1 or 0), number and content of the last change, and of each member:
-- member, age in ms, record; no record: it is gone}. If `all` is 1, these are all members that are
-- alive, otherwise those that changed after the change that the caller named.

-- Changes that are kept, and changes from which on a caller gets all members instead.
local KEPT = 2048
local MANY = 128
local SWEEP = 1000
-- How far the numbers of changes may be ahead of the time, in microseconds: ten years.
local AHEAD = 315360000000000
-- Bytes of the content of a change: more is of nobody who knows this script.
local LONGEST = 200

local function num(n) return string.format('%.0f', n) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl, silent_after = tonumber(ARGV[2]), tonumber(ARGV[7])

local function parse(value)
  local deadline, written, number, record = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  return tonumber(deadline), tonumber(written), number, record
end

local ring = redis.call('HMGET', KEYS[3], 'last', 'swept', 'earlier', ARGV[8])
-- Numbers of a ring that was lost do not come again: it begins at the time in microseconds. Of a
-- number that no gateway can have written, nothing is kept either: it would be none that a caller
-- can read, or that grows.
local stored = tonumber(ring[1])
if stored == nil or stored % 1 ~= 0 or stored < 0 or stored > now * 1000 + AHEAD then
  stored = now * 1000
end
local last = stored
local swept, earlier, known = tonumber(ring[2]) or 0, ring[3], ring[4]
local fields, dropped = {}, {}

-- Marks a change of a member: with this exchange, so that no two changes have one content.
local function change(member)
  last = last + 1
  fields[#fields + 1] = num(last)
  fields[#fields + 1] = member .. ' ' .. ARGV[1] .. ARGV[3] .. num(now)
  dropped[#dropped + 1] = num(last - KEPT)
end

local own = redis.call('HMGET', KEYS[1], ARGV[1])[1]
local deadline, written, number, before
if own then deadline, written, number, before = parse(own) end
local taken = true
if ARGV[4] == '0' then
  redis.call('DEL', KEYS[2])
else
  taken = deadline ~= nil and deadline >= now and tonumber(number) == tonumber(ARGV[4])
  -- Renewing the member shards also shows whether they exist.
  if taken and ARGV[5] == '1' then taken = redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 1 end
end

if taken then
  for i = 10, #ARGV, 2 do
    if ARGV[i + 1] == '' then
      redis.call('HDEL', KEYS[2], ARGV[i])
    else
      redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    end
  end
  local record = num(now + ttl) .. ' ' .. num(now) .. ' 0' .. ARGV[3] .. ' ' .. ARGV[6]
  redis.call('HSET', KEYS[1], ARGV[1], record)
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
  if before ~= ARGV[6] or deadline < now or now - written >= silent_after then change(ARGV[1]) end
end

-- Everybody's records, without those that are over. These and those that became silent since the
-- last sweep are changes.
local function sweep()
  local alive, over, sees_earlier = {}, {}, '0'
  local records = redis.call('HGETALL', KEYS[1])
  for i = 1, #records, 2 do
    local member = records[i]
    local deadline, written, number, record = parse(records[i + 1])
    if deadline == nil or deadline < now then
      redis.call('HDEL', KEYS[1], member)
      over[#over + 1] = member
    else
      if string.sub(number, 1, 1) ~= '0' then sees_earlier = '1' end
      local silent = written + silent_after
      if silent <= now and silent > swept then over[#over + 1] = member end
      alive[#alive + 1] = member
      alive[#alive + 1] = num(math.max(now - written, 0))
      alive[#alive + 1] = record
    end
  end
  table.sort(over)
  for i = 1, #over do change(over[i]) end
  -- What gateways of earlier versions removed is no change: everybody looks at all once more.
  if earlier == '1' and sees_earlier == '0' then
    last = last + KEPT
    change(ARGV[1])
  end
  earlier, swept = sees_earlier, now
  fields[#fields + 1] = 'earlier'
  fields[#fields + 1] = earlier
  fields[#fields + 1] = 'swept'
  fields[#fields + 1] = num(now)
  return alive
end

local from = tonumber(ARGV[8])
local all = from == 0 or known ~= ARGV[9] or last - from > MANY
local changed = {}
if not all then
  -- Those of earlier exchanges; this one's follow.
  local numbers = {}
  for i = from + 1, stored do numbers[#numbers + 1] = num(i) end
  if #numbers > 0 then changed = redis.call('HMGET', KEYS[3], unpack(numbers)) end
end
local alive
if all or earlier ~= '0' or now - swept >= SWEEP or now < swept then
  alive = sweep()
  all = all or earlier ~= '0' or last - from > MANY
end

-- The members that changed, each once.
local members, seen = {}, {}
local function note(content)
  local member = content and #content <= LONGEST and string.match(content, '^(%S+) ')
  if member and not seen[member] then
    seen[member] = true
    members[#members + 1] = member
  end
end
for i = 1, #changed do note(changed[i]) end
for i = 2, #fields, 2 do
  if fields[i - 1] ~= 'earlier' and fields[i - 1] ~= 'swept' then note(fields[i]) end
end

if #fields > 0 then
  redis.call('HSET', KEYS[3], 'last', num(last), unpack(fields))
  if #dropped > 0 then redis.call('HDEL', KEYS[3], unpack(dropped)) end
end
redis.call('PEXPIRE', KEYS[3], ARGV[2])
local content = redis.call('HMGET', KEYS[3], num(last))[1]
if content and #content > LONGEST then content = '' end

local reply = {taken and 1 or 0, all and 1 or 0, num(last), content or ''}
if not all then
  alive = {}
  local records = {}
  if #members > 0 then records = redis.call('HMGET', KEYS[1], unpack(members)) end
  for i = 1, #members do
    local deadline, written, _, record
    if records[i] then deadline, written, _, record = parse(records[i]) end
    local is_alive = deadline ~= nil and deadline >= now
    alive[#alive + 1] = members[i]
    alive[#alive + 1] = is_alive and num(math.max(now - written, 0)) or '0'
    alive[#alive + 1] = is_alive and record or ''
  end
end
for i = 1, #alive do reply[#reply + 1] = alive[i] end
return reply
