-- claim, commit, fail: the life of an invocation. `n` is the attempt number (the fence): raised by each claim, checked by each end.

local function to_ready(p, c, id, f, r)
  call('HSET', p .. 'inv:' .. id, 'st', 'ready', 'rdy', c.us)
  call('ZADD', p .. 'ready:' .. f .. ':' .. r, call('INCR', p .. 'order'), id)
  woke(c, f .. ':' .. r)
end

-- Returns a list of {id, attempt, accepted_us, ready_us, inputs}. An invocation that was in a failed batch is claimed alone.
redis.register_function('ef_claim', function(keys, args)
  local p, c = start_call(keys, args)
  local ready = p .. 'ready:' .. c.f .. ':' .. c.r
  local claimed = {}
  for _ = 1, c.max do
    local head = call('ZRANGE', ready, 0, 0)
    if #head == 0 then break end
    local id = head[1]
    local key = p .. 'inv:' .. id
    local record = call('HMGET', key, 'in', 'acc', 'rdy', 'alone')
    if not record[1] then
      call('ZREM', ready, id)
    else
      local alone = record[4] == '1'
      if alone and #claimed > 0 then break end
      call('ZREM', ready, id)
      local attempt = call('HINCRBY', key, 'n', 1)
      call('HSET', key, 'st', 'claimed', 'by', c.instance)
      call('ZADD', p .. 'claimed', c.now + c.lease_ms, id)
      call('SADD', p .. 'holds:' .. c.instance, id)
      claimed[#claimed + 1] = {id, attempt, tonumber(record[2]), tonumber(record[3]), record[1]}
      if alone then break end
    end
  end
  return cmsgpack.pack(claimed)
end)

local function unclaim(p, id, instance)
  call('ZREM', p .. 'claimed', id)
  if instance then call('SREM', p .. 'holds:' .. instance, id) end
end

local function finish(p, c, id, record_by, inputs, mark)
  unclaim(p, id, record_by)
  call('DEL', p .. 'inv:' .. id)
  call('HSET', p .. 'done', id, mark)
  call('ZADD', p .. 'done:at', c.now, id)
  if inputs then
    for _, input in ipairs(inputs) do drop_blob(p, input[6][EV_DIGEST], c.now) end
  end
end

-- "current" | "again" (this very attempt ended it already) | "stale"
local function attempt_state(p, id, attempt)
  local record = call('HMGET', p .. 'inv:' .. id, 'n', 'st')
  if record[1] then
    if tonumber(record[1]) == attempt and record[2] == 'claimed' then return 'current' end
    return 'stale'
  end
  if call('HGET', p .. 'done', id) == tostring(attempt) then return 'again' end
  return 'stale'
end

-- One log entry ends the attempt: its events, its values and the done mark appear together or not at all.
redis.register_function('ef_commit', function(keys, args)
  local p, c = start_call(keys, args)
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local state = attempt_state(p, c.id, c.attempt)
  if state ~= 'current' then
    if state == 'stale' then count(c, 'commits_stale') end
    finish_call(p, c, false)
    return cmsgpack.pack({state == 'again' and 'ok' or 'stale', '', {}})
  end
  for _, event in ipairs(c.ev) do
    if not readable(p, event[EV_DIGEST]) then return cmsgpack.pack({'missing', event[EV_DIGEST], {}}) end
  end
  for _, value in ipairs(c.va) do
    if not readable(p, value[VA_DIGEST]) then return cmsgpack.pack({'missing', value[VA_DIGEST], {}}) end
  end
  local record = call('HMGET', p .. 'inv:' .. c.id, 'f', 'by', 'in')
  local inputs = cmsgpack.unpack(record[3])
  append(p, c, 'commit', {c.id, 'committed', record[1], c.attempt}, c.ev, c.va, c.d, '')
  finish(p, c, c.id, record[2], inputs, c.attempt)
  count(c, 'invocations_committed')
  count(c, 'events_emitted', #c.ev)
  finish_call(p, c, true)
  return cmsgpack.pack({'ok', '', c.inboxes})
end)

-- Ends an attempt without a result: `retry_ms` later again, or (retry_ms < 0) as a dead letter.
local function give_up(p, c, id, reason, detail)
  local record = call('HMGET', p .. 'inv:' .. id, 'f', 'r', 'by', 'in', 'x')
  bury(p, c, id, record[1], record[2], reason, detail, tonumber(record[5]), record[4])
  append(p, c, 'end', {id, 'dead', record[1], reason}, {}, {}, {}, '')
  finish(p, c, id, record[3], nil, 'dead')
end

redis.register_function('ef_fail', function(keys, args)
  local p, c = start_call(keys, args)
  if attempt_state(p, c.id, c.attempt) ~= 'current' then return 'stale' end
  local key = p .. 'inv:' .. c.id
  call('HINCRBY', key, 'x', 1)
  count(c, 'attempts_failed')
  if c.retry_ms < 0 then
    give_up(p, c, c.id, c.reason, c.detail)
    finish_call(p, c, true)
    return 'dead'
  end
  finish_call(p, c, false)
  unclaim(p, c.id, call('HGET', key, 'by'))
  call('HSET', key, 'st', 'delayed', 'why', c.reason)
  call('ZADD', p .. 'delayed', c.now + c.retry_ms, c.id)
  return 'retry'
end)

-- How often this invocation failed so far (the decision about its retry is made outside, by core/retries).
redis.register_function('ef_failures', function(keys, args)
  local p, c = start_call(keys, args)
  return tonumber(call('HGET', p .. 'inv:' .. c.id, 'x')) or 0
end)

-- Gives claims back without blame: ids of one instance (c.ids), all of one instance, or all of all instances.
redis.register_function('ef_release', function(keys, args)
  local p, c = start_call(keys, args)
  local ids = c.ids
  if not ids then ids = c.instance and call('SMEMBERS', p .. 'holds:' .. c.instance) or call('ZRANGE', p .. 'claimed', 0, -1) end
  local released = {}
  for _, id in ipairs(ids) do
    local record = call('HMGET', p .. 'inv:' .. id, 'f', 'r', 'st', 'by')
    if record[3] == 'claimed' and (not c.instance or record[4] == c.instance) then
      unclaim(p, id, record[4])
      if c.suspect then call('HSET', p .. 'inv:' .. id, 'alone', '1') end
      to_ready(p, c, id, record[1], record[2])
      released[#released + 1] = id
    end
  end
  finish_call(p, c, #released > 0)
  return released
end)

-- What an instance holds: {id, attempt} pairs.
redis.register_function('ef_holds', function(keys, args)
  local p, c = start_call(keys, args)
  local held = {}
  for _, id in ipairs(call('SMEMBERS', p .. 'holds:' .. c.instance)) do
    held[#held + 1] = {id, tonumber(call('HGET', p .. 'inv:' .. id, 'n')) or 0}
  end
  return cmsgpack.pack(held)
end)
