-- Writes the changes of a member, renews everything of it, and returns the records of all members:
-- all or nothing.
--
-- KEYS  1 records (hash: member -> "<deadline> <written> <number> <record>", times in ms by this
--         server's clock)
--       2 the member's shards (hash: number -> bytes)
-- ARGV  1 member     2 time to live in ms     3 number of this exchange
--       4 number of the exchange on which this one builds; 0: begin anew
--       5 1 if the member has member shards here     6 record
--       7.. number and bytes of each member shard that changed; no bytes: it is removed
--
-- Returns {taken (1 or 0), member, age in ms, record, ...}.

local function num(n) return string.format('%.0f', n) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function parse(value)
  local deadline, written, number, record = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  return tonumber(deadline), tonumber(written), number, record
end

local taken = true
if ARGV[4] == '0' then
  redis.call('DEL', KEYS[2])
else
  local own = redis.call('HMGET', KEYS[1], ARGV[1])[1]
  local deadline, _, number
  if own then deadline, _, number = parse(own) end
  taken = deadline ~= nil and deadline >= now and number == ARGV[4]
  -- Renewing the member shards also shows whether they exist.
  if taken and ARGV[5] == '1' then taken = redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 1 end
end

if taken then
  for i = 7, #ARGV, 2 do
    if ARGV[i + 1] == '' then
      redis.call('HDEL', KEYS[2], ARGV[i])
    else
      redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    end
  end
  local record = num(now + ARGV[2]) .. ' ' .. num(now) .. ' ' .. ARGV[3] .. ' ' .. ARGV[6]
  redis.call('HSET', KEYS[1], ARGV[1], record)
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end

local reply = {taken and 1 or 0}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
  local deadline, written, _, record = parse(records[i + 1])
  if deadline == nil or deadline < now then
    redis.call('HDEL', KEYS[1], records[i])
  else
    reply[#reply + 1] = records[i]
    reply[#reply + 1] = num(math.max(now - written, 0))
    reply[#reply + 1] = record
  end
end
return reply
