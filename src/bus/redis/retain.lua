-- Keeps last values that Redis lost: each unless a newer one is there.
--
-- KEYS  1 last values by key (hash)
-- ARGV  for each value its key, the epoch and the offset of its event, and its bytes
for arg = 1, #ARGV, 4 do
  local before = redis.call('HMGET', KEYS[1], ARGV[arg])[1]
  local epoch, offset = string.match(before or '', '^(%d+)-(%d+) ')
  epoch, offset = tonumber(epoch), tonumber(offset)
  local new_epoch, new_offset = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  if not epoch or epoch < new_epoch or (epoch == new_epoch and offset < new_offset) then
    local position = ARGV[arg + 1] .. '-' .. ARGV[arg + 2]
    redis.call('HSET', KEYS[1], ARGV[arg], position .. ' ' .. ARGV[arg + 3])
  end
end
return 1
