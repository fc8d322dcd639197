-- tick: everything that the passing of time decides. Returns {expired leases as {id, attempt, function, revision, instance}, next due ms}.
local BATCH = 200

redis.register_function('ef_tick', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  local moved = false
  for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'delayed', '-inf', c.now, 'LIMIT', 0, BATCH)) do
    call('ZREM', p .. 'delayed', id)
    local record = call('HMGET', p .. 'inv:' .. id, 'f', 'r')
    if record[1] then to_ready(p, c, id, record[1], record[2]) end
    moved = true
  end
  for _, name in ipairs(call('ZRANGEBYSCORE', p .. 'joins', '-inf', c.now, 'LIMIT', 0, BATCH)) do
    end_join(p, c, name, 'join-timeout', 'in time')
    moved = true
  end
  local closing = call('HGETALL', p .. 'closing')
  for i = 1, #closing, 2 do
    local f, g, r = unpack(cmsgpack.unpack(closing[i + 1]))
    close_windows(p, c, f, g, r, call('HGET', p .. 'marks:' .. f .. ':' .. g, '\0w'), WINDOWS_AT_ONCE)
    moved = true
  end
  for _, channel in ipairs(call('ZRANGEBYSCORE', p .. 'waiting', '-inf', c.now, 'LIMIT', 0, BATCH)) do
    expire_waiting(p, c, channel)
    moved = true
  end
  for _, name in ipairs(call('ZRANGEBYSCORE', p .. 'held', '-inf', c.now, 'LIMIT', 0, BATCH)) do
    expire_held(p, c, name)
    moved = true
  end
  if unpark(p, c, BATCH) then moved = true end
  for _, key in ipairs(call('ZRANGEBYSCORE', p .. 'expires', '-inf', c.now, 'LIMIT', 0, BATCH)) do
    if expire_value(p, c, key) then moved = true end
  end
  local expired = {}
  for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'claimed', '-inf', c.now, 'LIMIT', 0, BATCH)) do
    local record = call('HMGET', p .. 'inv:' .. id, 'n', 'f', 'r', 'by')
    if record[1] then expired[#expired + 1] = {id, tonumber(record[1]), record[2], record[3], record[4] or ''} else call('ZREM', p .. 'claimed', id) end
  end
  finish_call(p, c, moved)
  return cmsgpack.pack(expired)
end)

-- tidy: forgets what is older than its window, a bounded piece per call. Returns digests of file blobs that nothing refers to any more.
local function tidy_log(p, c, name, upto)
  local origin, epoch = string.match(name, '^(.*):(%d+)$')
  local key = log_key(p, origin, epoch)
  for _, item in ipairs(call('XRANGE', key, '-', '+', 'COUNT', BATCH)) do
    local seq = tonumber(string.match(item[1], '^%d+'))
    local entry = cmsgpack.unpack(item[2][2])
    if seq > upto or entry.t > c.keep_from then return end
    for _, event in ipairs(entry.ev) do drop_blob(p, event[EV_DIGEST], c.now) end
    for _, value in ipairs(entry.va) do drop_blob(p, value[VA_DIGEST], c.now) end
    call('XDEL', key, item[1])
  end
end

redis.register_function('ef_tidy', function(keys, args)
  local p, c = start_call(keys, args)
  for name, upto in pairs(c.logs) do tidy_log(p, c, name, upto) end
  for _, window in ipairs({{'done:at', 'done'}, {'ids:at', 'ids'}, {'joins:done:at', 'joins:done'}, {'results:at', 'results'}, {'outcomes:at', 'outcomes'}}) do
    local before = window[2] == 'ids' and c.ids_from or c.keep_from
    for _, id in ipairs(call('ZRANGEBYSCORE', p .. window[1], '-inf', before, 'LIMIT', 0, BATCH)) do
      call('ZREM', p .. window[1], id)
      call('HDEL', p .. window[2], id)
    end
  end
  for _, item in ipairs(call('XRANGE', p .. 'release', '-', '+', 'COUNT', BATCH)) do
    local at
    for i = 1, #item[2], 2 do if item[2][i] == 't' then at = tonumber(item[2][i + 1]) end end
    if at and at > c.keep_from then break end
    note_removed(p, item[2])
    call('XDEL', p .. 'release', item[1])
  end
  call('ZREMRANGEBYSCORE', p .. 'settled', '-inf', c.keep_from)
  for _, id in ipairs(call('ZRANGEBYSCORE', p .. 'dead', '-inf', c.letters_from, 'LIMIT', 0, BATCH)) do
    if purge_letter(p, c, id) then count(c, 'dead_letters_expired') end
  end
  local surplus = math.min(BATCH, call('ZCARD', p .. 'dead') - c.letters_max)
  for _, id in ipairs(surplus > 0 and call('ZRANGE', p .. 'dead', 0, surplus - 1) or {}) do
    if purge_letter(p, c, id) then count(c, 'dead_letters_expired') end
  end
  local unlink = {}
  for _, digest in ipairs(call('ZRANGEBYSCORE', p .. 'orphans', '-inf', c.orphans_from, 'LIMIT', 0, BATCH)) do
    call('ZREM', p .. 'orphans', digest)
    if call('HEXISTS', p .. 'refs', digest) == 0 then
      if forget_body(p, digest) then unlink[#unlink + 1] = digest end
      call('SREM', p .. 'lazy', digest)
      call('SREM', p .. 'missing', digest)
    end
  end
  finish_call(p, c, false)
  return unlink
end)

local function has_routes(p, c)
  if call('GET', p .. 'routes:version') ~= c.version or call('GET', p .. 'routes') ~= c.table then return false end
  local shapes = 0
  for f, shape in pairs(c.shapes) do
    shapes = shapes + 1
    if call('HGET', p .. 'shapes', f) ~= shape then return false end
  end
  return call('HLEN', p .. 'shapes') == shapes
end

-- routes: installs the table of this PoP. Returns 1 when it changed.
redis.register_function('ef_routes', function(keys, args)
  local p, c = start_call(keys, args)
  if has_routes(p, c) then return 0 end
  call('MSET', p .. 'routes:version', c.version, p .. 'routes', c.table)
  if #c.inboxes_here > 0 then
    call('SADD', p .. 'inboxes', unpack(c.inboxes_here))
    call('HDEL', p .. 'moved', unpack(c.inboxes_here))
  end
  call('DEL', p .. 'shapes')
  for f, shape in pairs(c.shapes) do call('HSET', p .. 'shapes', f, shape) end
  call('DEL', p .. 'shared')
  if #c.shared_here > 0 then call('SADD', p .. 'shared', unpack(c.shared_here)) end
  finish_call(p, c, true)
  return 1
end)

-- epoch: opens this PoP's log. c.epoch is what was counted outside Redis; it never goes back.
redis.register_function('ef_open', function(keys, args)
  local p, c = start_call(keys, args)
  local have = tonumber(call('GET', p .. 'epoch')) or 0
  if c.epoch > have then
    call('SET', p .. 'epoch', c.epoch)
    finish_call(p, c, true)
    return c.epoch
  end
  return have
end)
