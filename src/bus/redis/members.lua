-- Puts down what is new of a member's part, renews it, and answers with all heads: all or nothing.
--
-- KEYS  1 heads (hash: member -> "<deadline> <written> <number> <head>", times in ms by this server's clock)
--       2 the member's pages (hash: number -> page)
-- ARGV  1 member     2 time to live in ms     3 number of this exchange
--       4 number of the exchange that must have been the last one; 0: begin anew
--       5 1 if the member has pages here      6 head
--       7.. number and bytes of each page that is new; no bytes: it is no more
--
-- Returns {taken (1 or 0), member, age in ms, head, ...}.

local function num(n) return string.format('%.0f', n) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function parse(value)
  local deadline, written, number, head = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  return tonumber(deadline), tonumber(written), number, head
end

local taken = true
if ARGV[4] == '0' then
  redis.call('DEL', KEYS[2])
else
  local own = redis.call('HMGET', KEYS[1], ARGV[1])[1]
  local deadline, _, number
  if own then deadline, _, number = parse(own) end
  taken = deadline ~= nil and deadline >= now and number == ARGV[4]
  -- Asked by renewing them: nothing is renewed that is not there.
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
  redis.call('HSET', KEYS[1], ARGV[1], num(now + ARGV[2]) .. ' ' .. num(now) .. ' ' .. ARGV[3] .. ' ' .. ARGV[6])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end

local reply = {taken and 1 or 0}
local heads = redis.call('HGETALL', KEYS[1])
for i = 1, #heads, 2 do
  local deadline, written, _, head = parse(heads[i + 1])
  if deadline == nil or deadline < now then
    redis.call('HDEL', KEYS[1], heads[i])
  else
    reply[#reply + 1] = heads[i]
    reply[#reply + 1] = num(math.max(now - written, 0))
    reply[#reply + 1] = head
  end
end
return reply
