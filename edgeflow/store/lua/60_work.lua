-- claim, commit, fail: the life of an invocation. `n` is the attempt number (the fence): raised by each claim, checked by each end.

local function to_ready(p, c, id, f, r)
  call('HSET', p .. 'inv:' .. id, 'st', 'ready', 'rdy', c.us)
  call('ZADD', p .. 'ready:' .. f .. ':' .. r, next_number(p, c, 'order'), id)
  woke(c, f .. ':' .. r)
end

-- An invocation that was in a failed batch waits here, to be claimed alone and before the others.
local function to_ready_alone(p, c, id, f, r)
  call('HSET', p .. 'inv:' .. id, 'st', 'ready', 'rdy', c.us)
  call('ZADD', p .. 'alone:' .. f .. ':' .. r, next_number(p, c, 'order'), id)
  woke(c, f .. ':' .. r)
end

-- Returns a list of {id, attempt, accepted_us, ready_us, inputs}.
redis.register_function('ef_claim', function(keys, args)
  local p, c = start_call(keys, args)
  local inbox = c.f .. ':' .. c.r
  local popped = call('ZPOPMIN', p .. 'alone:' .. inbox, 1)
  if #popped == 0 then popped = call('ZPOPMIN', p .. 'ready:' .. inbox, c.max) end
  local claimed, ids, leases = {}, {}, {}
  local lease = string.format('%d', c.now + c.lease_ms)
  for i = 1, #popped, 2 do
    local id = popped[i]
    local key = p .. 'inv:' .. id
    local record = call('HMGET', key, 'in', 'acc', 'rdy', 'n')
    if record[1] then
      local attempt = tonumber(record[4]) + 1
      call('HSET', key, 'st', 'claimed', 'by', c.instance, 'n', attempt)
      ids[#ids + 1] = id
      leases[#leases + 1] = lease
      leases[#leases + 1] = id
      claimed[#claimed + 1] = {id, attempt, tonumber(record[2]), tonumber(record[3]), record[1]}
    end
  end
  if #ids > 0 then
    call('ZADD', p .. 'claimed', unpack(leases))
    call('SADD', p .. 'holds:' .. c.instance, unpack(ids))
  end
  return cmsgpack.pack(claimed)
end)

local function unclaim(p, c, id, instance)
  c.unclaimed[#c.unclaimed + 1] = id
  if instance then
    local ids = c.unheld[instance] or {}
    ids[#ids + 1] = id
    c.unheld[instance] = ids
  end
end

local function finish(p, c, id, record_by, inputs, mark)
  unclaim(p, c, id, record_by)
  call('DEL', p .. 'inv:' .. id)
  c.done[#c.done + 1] = id
  c.done[#c.done + 1] = tostring(mark)
  c.done_at[#c.done_at + 1] = string.format('%d', c.now)
  c.done_at[#c.done_at + 1] = id
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

local function missing_digest(p, commit)
  for _, event in ipairs(commit.ev) do
    if not readable(p, event[EV_DIGEST]) then return event[EV_DIGEST] end
  end
  for _, value in ipairs(commit.va) do
    if not readable(p, value[VA_DIGEST]) then return value[VA_DIGEST] end
  end
end

-- One log entry ends an attempt: its events, its values and the done mark appear together or not at all. `commits` are independent of each other.
-- Returns {per commit {status, detail, epoch, seq, number of its first event in the release stream, prev per event}, inboxes that got work}.
redis.register_function('ef_commit', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local results = {}
  for i, commit in ipairs(c.commits) do
    local state = attempt_state(p, commit.id, commit.attempt)
    local missing = state == 'current' and missing_digest(p, commit)
    if missing then
      results[i] = {'missing', missing, 0, 0, 0, {}}
    elseif state == 'current' then
      local record = call('HMGET', p .. 'inv:' .. commit.id, 'f', 'by', 'in')
      local ended = {commit.id, 'committed', record[1], commit.attempt}
      local epoch, seq, _, n = append(p, c, 'commit', ended, commit.ev, commit.va, commit.d, '')
      finish(p, c, commit.id, record[2], cmsgpack.unpack(record[3]), commit.attempt)
      count(c, 'invocations_committed')
      count(c, 'events_emitted', #commit.ev)
      local prevs = {}
      for j, event in ipairs(commit.ev) do prevs[j] = event[EV_PREV] end
      results[i] = {'ok', '', epoch, seq, n, prevs}
    else
      if state == 'stale' then count(c, 'commits_stale') end
      results[i] = {state == 'again' and 'ok' or 'stale', '', 0, 0, 0, {}}
    end
  end
  finish_call(p, c, true)
  return cmsgpack.pack({results, c.inboxes})
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
  unclaim(p, c, c.id, call('HGET', key, 'by'))
  call('HSET', key, 'st', 'delayed', 'why', c.reason)
  call('ZADD', p .. 'delayed', c.now + c.retry_ms, c.id)
  finish_call(p, c, false)
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
      unclaim(p, c, id, record[4])
      if c.suspect then to_ready_alone(p, c, id, record[1], record[2]) else to_ready(p, c, id, record[1], record[2]) end
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
