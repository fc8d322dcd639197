-- Work that is done again because somebody asked for it: dead letters that are redriven, and replays. And dead letters that are forgotten.

-- keep-latest: what somebody asks for again replaces no newer one of its subject, and is replaced by none.
local function without_subject(directives)
  for _, d in ipairs(directives) do d.sj = nil end
  return directives
end

local function forget_letter(p, id)
  call('DEL', p .. 'dead:' .. id)
  call('ZREM', p .. 'dead', id)
  call('SREM', p .. 'dead:new', id)
end

-- c.id; c.d = {directive} that makes one invocation of all inputs, or c.each = per input its directives (then they arrive again).
-- Returns {status}: "ok" | "absent" | "missing" (data of its inputs is not readable here) | "full", function, retry in ms. A full inbox stays as it
-- is whatever the channel says: what is tried again takes nobody's place.
redis.register_function('ef_redrive', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local packed = call('HGET', p .. 'dead:' .. c.id, 'in')
  if not packed then return {'absent'} end
  local inputs = cmsgpack.unpack(packed)
  for _, input in ipairs(inputs) do
    if not readable(p, input[6][EV_DIGEST]) then return {'missing'} end
  end
  for _, directives in ipairs(c.d and {{c.d}} or c.each) do
    for _, d in ipairs(directives) do
      if has_no_room(p, c, d) then return {'full', d.f, FULL_RETRY_MS} end
    end
  end
  forget_letter(p, c.id)
  count(c, 'dead_letters_redriven')
  if c.d then
    without_subject({c.d})
    accept(p, c, c.d, redis.sha1hex(c.id .. '|redrive'), inputs)
  else
    for i, input in ipairs(inputs) do
      for _, d in ipairs(without_subject(c.each[i])) do
        arrive(p, c, d, {d.s, input[2], input[3], input[4], input[5], input[6]})
      end
      drop_blob(p, input[6][EV_DIGEST], c.now)
    end
  end
  finish_call(p, c, true)
  return {'ok'}
end)

local function purge_letter(p, c, id)
  local packed = call('HGET', p .. 'dead:' .. id, 'in')
  if not packed then
    call('ZREM', p .. 'dead', id)
    return false
  end
  for _, input in ipairs(cmsgpack.unpack(packed)) do drop_blob(p, input[6][EV_DIGEST], c.now) end
  forget_letter(p, id)
  return true
end

-- Returns how many of c.ids were there.
redis.register_function('ef_purge', function(keys, args)
  local p, c = start_call(keys, args)
  local purged = 0
  for _, id in ipairs(c.ids) do
    if purge_letter(p, c, id) then purged = purged + 1 end
  end
  count(c, 'dead_letters_purged', purged)
  finish_call(p, c, false)
  return purged
end)

-- One piece of a replay: c.items = {{directives, input}...}, read up to position c.position of the release stream. Repeating a piece changes
-- nothing. Returns 1, or 0 when the replay is not running or the piece was not the next.
redis.register_function('ef_replay', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local key = p .. 'replay:' .. c.replay
  local record = call('HMGET', key, 'state', 'position')
  if record[1] ~= 'running' or tonumber(record[2]) ~= c.after then return 0 end
  for _, item in ipairs(c.items) do
    local input = item[2]
    if readable(p, input[6][EV_DIGEST]) then
      for _, d in ipairs(without_subject(item[1])) do arrive(p, c, d, {d.s, input[2], input[3], input[4], input[5], input[6]}) end
      call('HINCRBY', key, 'read', 1)
    else
      call('HINCRBY', key, 'unreadable', 1)
    end
  end
  call('HSET', key, 'position', string.format('%d', c.position))
  if c.last then
    call('HSET', key, 'state', 'done')
    call('SREM', p .. 'replays:running', c.replay)
  end
  finish_call(p, c, true)
  return 1
end)

-- Ends a replay, or forgets one that has ended (c.forget).
redis.register_function('ef_end_replay', function(keys, args)
  local p, c = start_call(keys, args)
  local key = p .. 'replay:' .. c.replay
  local state = call('HGET', key, 'state')
  if not state then return 0 end
  if state == 'running' then call('HSET', key, 'state', 'cancelled') end
  call('SREM', p .. 'replays:running', c.replay)
  if c.forget then
    for _, packed in ipairs(call('HVALS', p .. 'shadow:' .. c.replay)) do
      for _, event in ipairs(cmsgpack.unpack(packed)[5]) do drop_blob(p, event[EV_DIGEST], c.now) end
    end
    call('DEL', key, p .. 'shadow:' .. c.replay)
    call('ZREM', p .. 'replays', c.replay)
  end
  finish_call(p, c, false)
  return 1
end)

-- Token buckets of the namespace at this PoP; c.quota false = none.
redis.register_function('ef_quota', function(keys, args)
  local p, c = start_call(keys, args)
  if not c.quota then return call('DEL', p .. 'quota') end
  local q = c.quota
  local have = call('HMGET', p .. 'quota', 'events', 'bytes', 'burst')
  if have[1] == tostring(q.events) and have[2] == tostring(q.bytes) and have[3] == tostring(q.burst) then return 0 end
  -- A new bound begins with full buckets.
  call('HSET', p .. 'quota', 'events', tostring(q.events), 'bytes', tostring(q.bytes), 'burst', tostring(q.burst), 'at', c.now,
    'e', tostring(q.events * q.burst), 'b', tostring(q.bytes * q.burst))
  return 1
end)
