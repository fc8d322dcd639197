-- mirror: entries of another PoP's log, contiguous, idempotent. The gate holds an entry until all its data is readable here,
-- and what follows it on the same lane with it: on the same (origin, channel), or with increments or typed operations of the same (origin, key).

local function lanes_of(origin, epoch, entry)
  local lanes, known = {}, {}
  for _, event in ipairs(entry.ev) do
    local lane = origin .. ':' .. epoch .. ':' .. event[EV_CHANNEL]
    if not known[lane] then known[lane] = true; lanes[#lanes + 1] = lane end
  end
  if entry.inc or entry.ty then
    for _, key in ipairs(ordered_keys(entry)) do lanes[#lanes + 1] = origin .. ':' .. epoch .. ':+' .. key end
  end
  return lanes
end

local function hold(p, c, origin, epoch, seq, packed, missing, lanes, directives)
  local name = origin .. ':' .. epoch .. ':' .. seq
  call('HSET', p .. 'held:' .. name, 'e', packed, 'missing', #missing, 'd', cmsgpack.pack(directives or {}))
  call('ZADD', p .. 'held', c.now + c.gate_ms, name)
  for _, lane in ipairs(lanes) do call('RPUSH', p .. 'lane:' .. lane, name) end
  for _, digest in ipairs(missing) do
    call('SADD', p .. 'wanted:' .. digest, name)
    call('SADD', p .. 'missing', digest)
  end
end

local function split_name(name)
  local origin, epoch, seq = string.match(name, '^(.*):(%d+):(%d+)$')
  return origin, tonumber(epoch), tonumber(seq)
end

-- Of an entry whose time is over: its increments and typed operations are not held up any longer, its values go on waiting for their bodies.
local function release_late(p, c, name, origin, epoch, seq, entry)
  release_values(p, c, origin, epoch, seq, {va = {}, inc = entry.inc, ty = entry.ty})
  if #entry.va > 0 then
    entry.inc, entry.ty = nil, nil
    call('HSET', p .. 'held:' .. name, 'e', cmsgpack.pack(entry))
  else
    if entry.sh then owners.settle(p, c, origin, epoch, seq, entry.sh) end
    note_results(p, c, origin, epoch, seq, entry)
    call('DEL', p .. 'held:' .. name)
    call('SREM', p .. 'late', name)
  end
end

-- Releases `name` if nothing is missing and it is the first on each of its lanes; then whatever that sets free.
local function try_release(p, c, name)
  local todo = {name}
  while #todo > 0 do
    local current = table.remove(todo)
    local record = call('HMGET', p .. 'held:' .. current, 'e', 'missing', 'd', 'late')
    if record[1] and (record[4] or tonumber(record[2]) <= 0) then
      local origin, epoch, seq = split_name(current)
      local entry = cmsgpack.unpack(record[1])
      local lanes = lanes_of(origin, epoch, entry)
      local first = true
      for _, lane in ipairs(lanes) do
        if call('LINDEX', p .. 'lane:' .. lane, 0) ~= current then first = false end
      end
      if first then
        for _, lane in ipairs(lanes) do call('LPOP', p .. 'lane:' .. lane) end
        if tonumber(record[2]) > 0 then
          release_late(p, c, current, origin, epoch, seq, entry)
        else
          call('DEL', p .. 'held:' .. current)
          call('ZREM', p .. 'held', current)
          if record[4] then call('SREM', p .. 'late', current) end
          release_entry(p, c, origin, epoch, seq, entry, cmsgpack.unpack(record[3]), '')
        end
        for _, lane in ipairs(lanes) do
          local nxt = call('LINDEX', p .. 'lane:' .. lane, 0)
          if nxt then todo[#todo + 1] = nxt end
        end
      end
    end
  end
end

redis.register_function('ef_mirror', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local head = tonumber(call('HGET', p .. 'heads', c.origin .. ':' .. c.epoch)) or 0
  local wanted, grown = {}, false
  for i, packed in ipairs(c.entries) do
    local seq = c.first + i - 1
    if seq == head + 1 then
      local entry = cmsgpack.unpack(packed)
      store_entry(p, c, c.origin, c.epoch, seq, packed, entry)
      head = seq
      grown = true
      local missing = {}
      for _, digest in ipairs(needed_digests(p, c, c.origin, entry)) do
        if not readable(p, digest) then
          missing[#missing + 1] = digest
          wanted[#wanted + 1] = digest
        end
      end
      local lanes = lanes_of(c.origin, c.epoch, entry)
      local blocked = #missing > 0
      for _, lane in ipairs(lanes) do
        if call('EXISTS', p .. 'lane:' .. lane) == 1 then blocked = true end
      end
      if blocked then
        hold(p, c, c.origin, c.epoch, seq, packed, missing, lanes, c.d[i])
      else
        release_entry(p, c, c.origin, c.epoch, seq, entry, c.d[i], '')
      end
    end
  end
  if grown then call('HSET', p .. 'heads', c.origin .. ':' .. c.epoch, head) end
  finish_call(p, c, true)
  return cmsgpack.pack({head, wanted, c.inboxes})
end)

-- blob: a body became readable here (its bytes are stored already). Opens the gates that waited for it. Returns digests of files of cached bodies
-- that made room for it.
redis.register_function('ef_blob', function(keys, args)
  local p, c = start_call(keys, args)
  local sought = call('SMEMBERS', p .. 'sought:' .. c.digest)
  if #sought > 0 and not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  local unlink = call('HSETNX', p .. 'blobs', c.digest, c.size) == 1 and cache_body(p, c, c.digest, c.size) or {}
  if call('HEXISTS', p .. 'refs', c.digest) == 0 then call('ZADD', p .. 'orphans', c.now, c.digest) end
  local names = call('SMEMBERS', p .. 'wanted:' .. c.digest)
  call('DEL', p .. 'wanted:' .. c.digest)
  call('SREM', p .. 'missing', c.digest)
  for _, name in ipairs(names) do
    if call('EXISTS', p .. 'held:' .. name) == 1 then
      call('HINCRBY', p .. 'held:' .. name, 'missing', -1)
      try_release(p, c, name)
    end
  end
  call('DEL', p .. 'sought:' .. c.digest)
  for _, key in ipairs(sought) do drain_waiting(p, c, key) end
  finish_call(p, c, #names > 0 or #sought > 0)
  return unlink
end)

-- The data of a held entry never came: its events become gaps and dead letters, its values go on waiting without a lane (`late`: such entries).
local function expire_held(p, c, name)
  local record = call('HMGET', p .. 'held:' .. name, 'e', 'missing', 'd')
  -- One that only waits behind another is not late itself: it goes when that one does.
  if record[1] and tonumber(record[2]) <= 0 then return end
  call('ZREM', p .. 'held', name)
  if not record[1] then return end
  local origin, epoch, seq = split_name(name)
  local entry, directives = cmsgpack.unpack(record[1]), cmsgpack.unpack(record[3])
  local lanes = lanes_of(origin, epoch, entry)
  for i, event in ipairs(entry.ev) do
    local lane = origin .. ':' .. epoch .. ':' .. event[EV_CHANNEL]
    if event[EV_PREV] >= (tonumber(call('HGET', p .. 'seen', lane)) or 0) then call('HSET', p .. 'seen', lane, seq) end
    release_gap(p, c, origin, epoch, event[EV_CHANNEL], event[EV_PREV], seq, 'gate-timeout')
    count(c, 'events_dropped:gate-timeout')
    for _, d in ipairs(directives[i] or {}) do
      if d.k ~= 'latest' then
        local input = {d.s, origin, epoch, seq, i - 1, event}
        hold_blob(p, event[EV_DIGEST])
        bury(p, c, position_id(d, input), d.f, d.r, 'gate-timeout', 'its data did not become readable at ' .. c.pop .. ' in time', 0,
          cmsgpack.pack({input}))
      end
    end
  end
  entry.ev = {}
  local stays = {}
  for _, lane in ipairs(lanes_of(origin, epoch, entry)) do stays[lane] = true end
  for _, lane in ipairs(lanes) do
    if not stays[lane] then call('LREM', p .. 'lane:' .. lane, 1, name) end
  end
  call('HSET', p .. 'held:' .. name, 'e', cmsgpack.pack(entry), 'd', cmsgpack.pack({}), 'late', 1)
  call('SADD', p .. 'late', name)
  try_release(p, c, name)
  for _, lane in ipairs(lanes) do
    local nxt = call('LINDEX', p .. 'lane:' .. lane, 0)
    if nxt then try_release(p, c, nxt) end
  end
end
