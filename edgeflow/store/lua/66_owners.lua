-- Functions at several PoPs, second part: standby, what ends do to it, and the distribution of the work anew when a PoP is lost, comes back or drains.
-- 05_owners.lua says what is where.

local SWEEP = 200

-- Whether an arrival is over already; then it is forgotten.
function owners.is_settled(p, c, d, input)
  if call('ZREM', p .. 'settled', owners.arrival(d, input)) == 0 then return false end
  count(c, 'standby_kept')
  count(c, 'standby_settled')
  return true
end

function owners.keep(p, c, d, input, at)
  local name = owners.arrival(d, input)
  -- Two filters of one function on the same event are the same work.
  if call('HEXISTS', p .. 'standby', name) == 1 then return end
  d.on = d.on or tonumber(next_number(p, c, 'standby:n'))
  hold_blob(p, input[6][EV_DIGEST])
  call('HSET', p .. 'standby', name, cmsgpack.pack({d, input, at}))
  call('ZADD', p .. 'standby:order', string.format('%.5f', d.on), name)
  count(c, 'standby_kept')
end

function owners.take_from_standby(p, c, name, why)
  local packed = call('HGET', p .. 'standby', name)
  if not packed then return nil end
  call('HDEL', p .. 'standby', name)
  call('ZREM', p .. 'standby:order', name)
  count(c, why)
  return cmsgpack.unpack(packed)
end

-- What a commit or another end of an invocation tells the other PoPs.
function owners.row(p, c, id, status, inputs)
  local about = call('HMGET', p .. 'inv:' .. id, 'd', 'jn', 'jo', 'sd')
  local d, arrivals = cmsgpack.unpack(about[1]), {}
  if about[2] then
    for i = 1, #inputs - (tonumber(about[4]) or 0) do arrivals[i] = owners.arrival(d, inputs[i]) end
  end
  return {id, d.f, status, next_version(p, c), arrivals, about[2] or '', tonumber(about[3]) or 0}
end

function owners.ended(p, c, id, status, inputs)
  if call('HEXISTS', p .. 'inv:' .. id, 'so') == 0 then return end
  c.shared = c.shared or {}
  c.shared[#c.shared + 1] = owners.row(p, c, id, status, inputs)
end

-- Takes an invocation out of whatever it waits in.
local function unqueue(p, id, f, r, state)
  if state == 'ready' then
    call('ZREM', p .. 'ready:' .. f .. ':' .. r, id)
    call('ZREM', p .. 'alone:' .. f .. ':' .. r, id)
  elseif state == 'delayed' then
    call('ZREM', p .. 'delayed', id)
  end
end

-- Another PoP has ended what this one had to do.
function owners.supersede(p, c, id)
  local record = call('HMGET', p .. 'inv:' .. id, 'f', 'r', 'st', 'in')
  if not record[1] then return end
  unqueue(p, id, record[1], record[2], record[3])
  count(c, 'invocations_superseded')
  finish(p, c, id, 'superseded', cmsgpack.unpack(record[4]))
end

-- Arrivals that another PoP has used up leave the join that is open here.
function owners.leave_join(p, c, name, over)
  local meta = p .. 'join:' .. name
  local packed = call('HGET', meta, '\0d')
  if not packed then return end
  local d, fields, left = cmsgpack.unpack(packed), call('HGETALL', meta), 0
  for i = 1, #fields, 2 do
    if string.byte(fields[i]) ~= 0 and fields[i + 1] ~= '' then
      local kept = {}
      for _, input in ipairs(cmsgpack.unpack(fields[i + 1])) do
        if over[owners.arrival(d, input)] then
          drop_blob(p, input[6][EV_DIGEST], c.now)
          count(c, 'arrivals_superseded')
        else
          kept[#kept + 1] = input
        end
      end
      if #kept > 0 then
        left = left + 1
        call('HSET', meta, fields[i], cmsgpack.pack(kept))
      else
        call('HDEL', meta, fields[i])
      end
    end
  end
  if left > 0 then call('HSET', meta, '\0c', left) else close_join(p, d, name) end
end

-- The one of two results that counts, the same at every PoP: a commit before what is none, then the later stamp. Values of commits are merged by
-- their versions, which follow the stamp, so they agree with it.
function owners.counts_more(status, stamp, than)
  if (status == 'committed') ~= (than[2] == 'committed') then return status == 'committed' end
  return stamp > than[3]
end

-- A commit of this PoP did not count: what it has added is taken back, by an entry of the log that it is in.
function owners.take_back(p, c, where)
  local epoch, seq = string.match(where, ':(%d+):(%d+)$')
  local item = call('XRANGE', log_key(p, c.pop, epoch), seq .. '-0', seq .. '-0')[1]
  local entry = item and cmsgpack.unpack(item[2][2])
  count(c, 'results_superseded')
  if not entry or not entry.inc then return end
  local ops = {}
  for i, add in ipairs(entry.inc) do ops[i] = {'i', add[1], -add[2]} end
  local plan = plan_ops(p, c, ops)
  if plan and #plan.inc > 0 then append(p, c, 'take-back', {}, {}, {}, {}, '', plan.inc) end
end

-- Carries out what an entry says is over. Returns whether its events have been released here as they came from another PoP.
function owners.settle(p, c, origin, epoch, seq, rows, own)
  local where, again = origin .. ':' .. string.format('%d:%d', epoch, seq), false
  for _, row in ipairs(rows) do
    local id, f, status, stamp, arrivals, join, occurrence = row[1], row[2], row[3], row[4], row[5], row[6], row[7]
    if id ~= '' then
      local packed = call('HGET', p .. 'outcomes', id)
      local known = packed and cmsgpack.unpack(packed)
      if known and known[1] ~= where then
        if status == 'committed' and known[2] == 'committed' then again = true end
        if owners.counts_more(status, stamp, known) then
          if status == 'committed' and known[2] == 'committed' and string.match(known[1], '^(.*):%d+:%d+$') == c.pop then owners.take_back(p, c, known[1]) end
          known = nil
        end
      end
      if not known then
        call('HSET', p .. 'outcomes', id, cmsgpack.pack({where, status, stamp}))
        call('ZADD', p .. 'outcomes:at', c.now, id)
      end
      if not own then
        owners.supersede(p, c, id)
        if status == 'committed' and purge_letter(p, c, id) then count(c, 'dead_letters_superseded') end
      end
    end
    if not own and call('SISMEMBER', p .. 'shared', f) == 1 then
      local over = {}
      for i = 1, math.max(#arrivals, 1) do
        local name = arrivals[i] or (join == '' and id ~= '' and id)
        if name then
          over[name] = true
          local taken = owners.take_from_standby(p, c, name, 'standby_settled')
          if taken then
            drop_blob(p, taken[2][6][EV_DIGEST], c.now)
          elseif c.ended[name] == nil then
            call('ZADD', p .. 'settled', c.now, name)
          end
        end
      end
      if join ~= '' then
        if occurrence > (tonumber(call('HGET', p .. 'joins:done', join)) or 0) then
          call('HSET', p .. 'joins:done', join, string.format('%d', occurrence))
          call('ZADD', p .. 'joins:done:at', c.now, join)
        end
        owners.leave_join(p, c, join, over)
      end
    end
  end
  return again
end

-- What was accepted here and not begun becomes standby again: somebody else is the owner now.
local function yield_invocation(p, c, id)
  local record = call('HMGET', p .. 'inv:' .. id, 'f', 'r', 'by', 'q', 'sj', 'so', 'st', 'in', 'd', 'sd', 'jn', 'e')
  if not record[1] then
    call('ZREM', p .. 'mine', id)
    return
  end
  local d = cmsgpack.unpack(record[9])
  -- What is worked on is ended by whoever is first.
  if record[7] == 'claimed' or owners.is_mine(p, c, d.ow) then return end
  local inputs, at = cmsgpack.unpack(record[8]), c.now
  if d.e and record[12] then at = tonumber(record[12]) - d.e end
  for i = 1, #inputs - (tonumber(record[10]) or 0) do
    d.s, d.on = inputs[i][1], tonumber(record[6]) + (i - 1) / 100000
    owners.keep(p, c, d, inputs[i], at)
  end
  if record[11] then call('HINCRBY', p .. 'joins:done', record[11], -1) end
  unqueue(p, id, record[1], record[2], record[7])
  count(c, 'invocations_handed_over')
  take_out(p, c, id, inputs, record)
end

local function yield_join(p, c, name)
  local packed = call('HGET', p .. 'join:' .. name, '\0d')
  if not packed then
    call('ZREM', p .. 'mine:joins', name)
    return
  end
  local d = cmsgpack.unpack(packed)
  if owners.is_mine(p, c, d.ow) then return end
  local inputs, first = gather(p, d, name), d.on
  for i, input in ipairs(inputs) do
    d.s, d.on = input[1], first and first + (i - 1) / 100000
    owners.keep(p, c, d, input, c.now)
    drop_blob(p, input[6][EV_DIGEST], c.now)
  end
  count(c, 'arrivals_handed_over', #inputs)
  close_join(p, d, name)
end

local function take_over(p, c, name)
  local packed = call('HGET', p .. 'standby', name)
  if not packed then
    call('ZREM', p .. 'standby:order', name)
    return
  end
  local item = cmsgpack.unpack(packed)
  local d, input = item[1], item[2]
  local revision, shape = string.match(call('HGET', p .. 'shapes', d.f) or '', '^([^:]*):(.*)$')
  if not revision or call('SISMEMBER', p .. 'shared', d.f) == 0 then
    -- Not placed here, or nowhere else, any more.
    if revision then d.ow = {c.pop} else d.ow = nil end
  end
  if d.ow and not owners.is_mine(p, c, d.ow) then return end
  owners.take_from_standby(p, c, name, d.ow and 'standby_taken' or 'standby_dropped')
  if d.ow then
    if not d.g or d.g == shape then d.r = revision end
    c.entry_t = item[3]
    owners.arrive_here(p, c, d, input)
    c.entry_t = nil
  end
  drop_blob(p, input[6][EV_DIGEST], c.now)
end

local STEPS = {{'mine:joins', yield_join}, {'mine', yield_invocation}, {'standby:order', take_over}}

-- out: c.out are the PoPs that are not given work. Returns 1 when there is something to sweep (c.again: in any case).
redis.register_function('ef_out', function(keys, args)
  local p, c = start_call(keys, args)
  local before, same = {}, true
  for _, pop in ipairs(call('SMEMBERS', p .. 'out')) do before[pop] = true end
  for _, pop in ipairs(c.out) do
    if not before[pop] then same = false end
    before[pop] = nil
  end
  if next(before) then same = false end
  if not same then
    call('DEL', p .. 'out')
    if #c.out > 0 then call('SADD', p .. 'out', unpack(c.out)) end
  end
  if same and not c.again then return call('EXISTS', p .. 'sweep') end
  if call('EXISTS', p .. 'mine', p .. 'mine:joins', p .. 'standby') > 0 then
    call('SET', p .. 'sweep', cmsgpack.pack({1, '-inf'}))
    return 1
  end
  return 0
end)

-- sweep: one piece of distributing the work anew: what is not this PoP's any more goes to standby, then what is comes from there, in the order in which it
-- came. Returns {1 when there is more to do, inboxes that got work}.
redis.register_function('ef_sweep', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  local packed = call('GET', p .. 'sweep')
  if not packed then return cmsgpack.pack({0, {}}) end
  local step, from = unpack(cmsgpack.unpack(packed))
  local key, move = STEPS[step][1], STEPS[step][2]
  local names = call('ZRANGEBYSCORE', p .. key, from, '+inf', 'WITHSCORES', 'LIMIT', 0, SWEEP)
  local last = #names < 2 * SWEEP
  c.sweeping = true
  for i = 1, #names, 2 do move(p, c, names[i]) end
  if not last then
    call('SET', p .. 'sweep', cmsgpack.pack({step, '(' .. names[#names]}))
  elseif step < #STEPS then
    call('SET', p .. 'sweep', cmsgpack.pack({step + 1, '-inf'}))
  else
    call('DEL', p .. 'sweep')
  end
  finish_call(p, c, true)
  return cmsgpack.pack({(last and step == #STEPS) and 0 or 1, c.inboxes})
end)
