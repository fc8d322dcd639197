-- Arrivals: what a released event does to the functions of this PoP. Joins decide here because the decision and its effect are one step.

local function accept(p, c, f, r, id, inputs)
  -- An id that ended or is here already is the same work again.
  if call('HEXISTS', p .. 'done', id) == 1 or call('EXISTS', p .. 'inv:' .. id) == 1 then
    count(c, 'invocations_duplicate')
    return
  end
  call('HSET', p .. 'inv:' .. id, 'f', f, 'r', r, 'in', cmsgpack.pack(inputs), 'n', 0, 'x', 0, 'st', 'ready', 'acc', c.us, 'rdy', c.us)
  call('ZADD', p .. 'ready:' .. f .. ':' .. r, next_number(p, c, 'order'), id)
  woke(c, f .. ':' .. r)
  count(c, 'invocations_accepted')
end

-- A dead letter keeps its inputs (and so their blobs). `x` names the ended invocation in the log entry that the caller appends.
local function bury(p, c, id, f, r, reason, detail, attempts, inputs)
  call('HSET', p .. 'dead:' .. id, 'f', f, 'r', r, 'reason', reason, 'detail', detail, 'at', c.now, 'attempts', attempts, 'in', inputs)
  call('ZADD', p .. 'dead', c.now, id)
  count(c, 'dead_letters')
end

local function join_keys(p, d)
  local name = d.f .. ':' .. d.g .. ':' .. d.j
  return p .. 'join:' .. name, p .. 'joined:' .. name, name
end

local function complete(p, c, d, meta, name, inputs)
  local occurrence = call('HINCRBY', p .. 'joins:done', name, 1)
  call('ZADD', p .. 'joins:done:at', c.now, name)
  call('ZREM', p .. 'joins', name)
  call('DEL', meta)
  count(c, 'arrivals_consumed', #inputs)
  accept(p, c, d.f, d.r, redis.sha1hex(d.f .. '|join|' .. d.j .. '|' .. occurrence), inputs)
end

local function open_join(p, c, d, meta, name)
  if call('EXISTS', meta) == 0 then
    call('HSET', meta, '\0f', d.f, '\0r', d.r, '\0o', d.o, '\0j', d.j, '\0k', d.k, '\0n', d.n, '\0at', c.now)
    call('ZADD', p .. 'joins', c.now + d.w, name)
  end
end

local function arrive(p, c, d, input)
  local digest = input[6][EV_DIGEST]
  count(c, 'arrivals')
  if d.k == 'one' then
    hold_blob(p, digest)
    count(c, 'arrivals_consumed')
    accept(p, c, d.f, d.r, redis.sha1hex(d.f .. '|' .. input[2] .. '|' .. string.format('%d|%d|%d', input[3], input[4], input[5])), {input})
  elseif d.k == 'all' then
    local meta, _, name = join_keys(p, d)
    open_join(p, c, d, meta, name)
    if call('HSETNX', meta, d.s, cmsgpack.pack(input)) == 0 then
      count(c, 'arrivals_duplicate')
      return
    end
    hold_blob(p, digest)
    local fields = call('HGETALL', meta)
    local inputs = {}
    for i = 1, #fields, 2 do
      if string.byte(fields[i]) ~= 0 then inputs[#inputs + 1] = cmsgpack.unpack(fields[i + 1]) end
    end
    if #inputs >= d.n then complete(p, c, d, meta, name, inputs) end
  elseif d.k == 'collect' then
    local meta, list, name = join_keys(p, d)
    open_join(p, c, d, meta, name)
    hold_blob(p, digest)
    if call('RPUSH', list, cmsgpack.pack(input)) >= d.n then
      local inputs = call('LRANGE', list, 0, -1)
      for i = 1, #inputs do inputs[i] = cmsgpack.unpack(inputs[i]) end
      call('DEL', list)
      complete(p, c, d, meta, name, inputs)
    end
  else -- reject: the event cannot take part (no join key, no count)
    hold_blob(p, digest)
    count(c, 'arrivals_dropped:rejected')
    local id = redis.sha1hex(d.f .. '|' .. input[2] .. '|' .. string.format('%d|%d|%d', input[3], input[4], input[5]))
    bury(p, c, id, d.f, d.r, string.match(d.why, '^[^:]+'), d.why, 0, cmsgpack.pack({input}))
  end
end
