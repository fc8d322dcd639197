-- claim, commit, fail: the life of an invocation. `n` is the attempt number (the fence): raised by each claim, checked by each end.

local function state_value(p, key)
  local value = call('HMGET', p .. 'value:' .. key, 'version', 'digest', 'data', 'type', 'deleted')
  if not value[1] or value[5] == '1' then return false end
  return {value[1], value[2], value[3], value[4]}
end

-- What there is to say of an attempt besides its inputs; false when there is nothing. al: it is to be worked on alone.
local function about_attempt(p, alone, e, k, w, z, rp, sh)
  if not (alone or e or k or w or z or rp) then return false end
  return {al = alone or nil, e = e or nil, k = k or nil, w = w or nil, z = z or nil, v = z and state_value(p, z) or nil, rp = rp or nil, sh = sh or nil}
end

-- c.down = {{inbox, bound}...}: where this function's outputs go and what they may not overfill.
local function is_blocked(p, c)
  for _, down in ipairs(c.down or {}) do
    if pending(p, c, down[1]) >= down[2] then return true end
  end
  return false
end

-- Returns {list of {id, attempt, accepted_us, ready_us, inputs, about}, blocked}.
redis.register_function('ef_claim', function(keys, args)
  local p, c = start_call(keys, args)
  local inbox = c.f .. ':' .. c.r
  -- c.hold: this PoP does not know yet what others have done of it.
  if c.hold and call('SISMEMBER', p .. 'shared', c.f) == 1 then return cmsgpack.pack({{}, true}) end
  if is_blocked(p, c) then return cmsgpack.pack({{}, true}) end
  local claimed, ids, leases = {}, {}, {}
  local lease = string.format('%d', c.now + c.lease_ms)
  local alone, ended = true, false
  while #claimed < c.max do
    local popped = alone and call('ZPOPMIN', p .. 'alone:' .. inbox, 1) or {}
    alone = alone and #popped > 0
    if not alone then popped = call('ZPOPMIN', p .. 'ready:' .. inbox, c.max - #claimed) end
    if #popped == 0 then break end
    for i = 1, #popped, 2 do
      local id = popped[i]
      local key = p .. 'inv:' .. id
      local record = call('HMGET', key, 'in', 'acc', 'rdy', 'n', 'e', 'k', 'w', 'z', 'rp', 'sh')
      if record[1] and record[5] and tonumber(record[5]) < c.now then
        abandon(p, c, id, EXPIRED)
        ended = true
      elseif record[1] then
        local attempt = tonumber(record[4]) + 1
        call('HSET', key, 'st', 'claimed', 'by', c.instance, 'n', string.format('%d', attempt))
        ids[#ids + 1] = id
        leases[#leases + 1] = lease
        leases[#leases + 1] = id
        claimed[#claimed + 1] = {id, attempt, tonumber(record[2]), tonumber(record[3]), record[1],
          about_attempt(p, alone, record[5], record[6], record[7], record[8], record[9], record[10])}
      end
    end
    if alone and #claimed > 0 then break end
  end
  if #ids > 0 then
    call('ZADD', p .. 'claimed', unpack(leases))
    call('SADD', p .. 'holds:' .. c.instance, unpack(ids))
  end
  if ended then finish_call(p, c, true) end
  return cmsgpack.pack({claimed, false})
end)

-- "current" | "again" (this very attempt ended it already) | "stale"
local function attempt_state(p, id, attempt, record)
  record = record or call('HMGET', p .. 'inv:' .. id, 'n', 'st')
  if record[1] then
    if tonumber(record[1]) == attempt and record[2] == 'claimed' then return 'current' end
    return 'stale'
  end
  if call('HGET', p .. 'done', id) == tostring(attempt) then return 'again' end
  return 'stale'
end

-- A body of another size than its reference says is not the one that is meant: limits were checked against what it says.
local function is_there(p, digest, size)
  if digest == '' then return true end
  local known = call('HGET', p .. 'blobs', digest)
  return known and tonumber(known) == size
end

local function missing_digest(p, commit)
  for _, event in ipairs(commit.ev) do
    if not is_there(p, event[EV_DIGEST], event[EV_SIZE]) then return event[EV_DIGEST] end
  end
  for _, value in ipairs(commit.va) do
    if not is_there(p, value[VA_DIGEST], value[VA_SIZE]) then return value[VA_DIGEST] end
  end
end

-- Names what went into an invocation of several events, so that the same work can be found again under another id.
local function inputs_mark(inputs, sides)
  local positions = {}
  for i = 1, #inputs - sides do
    local input = inputs[i]
    positions[i] = input[2] .. '|' .. string.format('%d|%d|%d', input[3], input[4], input[5])
  end
  table.sort(positions)
  return string.sub(redis.sha1hex(table.concat(positions, '/')), 1, 16)
end

-- Outputs of a shadow go nowhere: they are kept beside its replay, to be compared.
local function keep_shadow(p, c, id, replay, status, inputs, sides, events, values)
  local first = inputs[1]
  call('HSET', p .. 'shadow:' .. replay, id,
    cmsgpack.pack({status, {first[2], first[3], first[4], first[5]}, inputs_mark(inputs, sides), #inputs - sides, events, values}))
  for _, event in ipairs(events) do hold_blob(p, event[EV_DIGEST]) end
  call('HINCRBY', p .. 'replay:' .. replay, status, 1)
  count(c, 'invocations_shadowed')
end

-- Why what a commit writes must not be written here: a home is elsewhere.
local function commit_elsewhere(p, c, commit)
  for _, value in ipairs(commit.va) do
    local why = not_home(p, c, value[VA_KEY])
    if why then return why end
  end
  for _, add in ipairs(commit.inc or {}) do
    local why = not_home(p, c, add[1])
    if why then return why end
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
    -- All of it at once: the parts that `attempt_state`, `finish` and this look at.
    local all = call('HMGET', p .. 'inv:' .. commit.id, 'n', 'st', 'f', 'r', 'by', 'q', 'sj', 'in', 'y', 'rp', 'sh', 'sd', 'so')
    local state = c.ended[commit.id] and 'stale' or attempt_state(p, commit.id, commit.attempt, all)
    local missing = state == 'current' and missing_digest(p, commit)
    local elsewhere = state == 'current' and not missing and commit_elsewhere(p, c, commit)
    local plan, refused, about_it, version_here
    -- What a shadow writes is only compared: nothing that is there now speaks against it.
    if all[11] then commit.cond = nil end
    if state == 'current' and not missing and not elsewhere then plan, refused, about_it, version_here = plan_commit(p, c, commit) end
    if missing then
      results[i] = {'missing', missing, 0, 0, 0, {}}
    elseif elsewhere then
      results[i] = {'elsewhere', elsewhere, 0, 0, 0, {}}
    elseif refused then
      results[i] = {refused, version_here and about_it .. ' ' .. version_here or about_it, 0, 0, 0, {}}
    elseif state == 'current' then
      local f, packed, reply, replay, shadow = all[3], all[8], all[9], all[10], all[11]
      local about = {f, all[4], all[5], all[6], all[7], all[13]}
      local inputs, sides = cmsgpack.unpack(packed), tonumber(all[12]) or 0
      if shadow then
        keep_shadow(p, c, commit.id, replay, 'committed', inputs, sides, commit.ev, plan.va)
        finish(p, c, commit.id, commit.attempt, inputs, about)
        results[i] = {'ok', '', 0, 0, 0, {}}
      else
        local ended = {commit.id, 'committed', f, tostring(commit.attempt), reply and 1 or 0}
        if #inputs - sides > 1 then ended[6] = inputs_mark(inputs, sides) end
        local shared = all[13] and {owners.row(p, c, commit.id, 'committed', inputs)}
        local epoch, seq, _, n = append(p, c, 'commit', {ended}, commit.ev, plan.va, commit.d, '', plan.inc, plan.ty, nil, shared or nil)
        if replay then call('HINCRBY', p .. 'replay:' .. replay, 'committed', 1) end
        finish(p, c, commit.id, commit.attempt, inputs, about)
        count(c, 'invocations_committed')
        count(c, 'events_emitted', #commit.ev)
        local prevs = {}
        for j, event in ipairs(commit.ev) do prevs[j] = event[EV_PREV] end
        results[i] = {'ok', '', epoch, seq, n, prevs}
      end
    else
      if state == 'stale' then count(c, 'commits_stale') end
      results[i] = {state == 'again' and 'ok' or 'stale', '', 0, 0, 0, {}}
    end
  end
  finish_call(p, c, true)
  return cmsgpack.pack({results, c.inboxes})
end)

-- Ends an invocation without a result, as a dead letter (or, of a shadow, as a difference).
local function give_up(p, c, id, reason, detail)
  local record = call('HMGET', p .. 'inv:' .. id, 'f', 'r', 'in', 'x', 'y', 'rp', 'sh', 'sd')
  if record[7] then
    local inputs = cmsgpack.unpack(record[3])
    keep_shadow(p, c, id, record[6], 'dead', inputs, tonumber(record[8]) or 0, {}, {})
    finish(p, c, id, DEAD, inputs)
    return
  end
  bury(p, c, id, record[1], record[2], reason, detail, tonumber(record[4]), record[3])
  count(c, 'invocations_dead')
  if record[6] then call('HINCRBY', p .. 'replay:' .. record[6], 'dead', 1) end
  c.ends[#c.ends + 1] = {id, DEAD, record[1], reason, record[5] and 1 or 0}
  owners.ended(p, c, id, DEAD, cmsgpack.unpack(record[3]))
  finish(p, c, id, DEAD)
end

-- Ends an attempt without a result: `retry_ms` later again, or (retry_ms < 0) as a dead letter.
redis.register_function('ef_fail', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
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
