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
    local meta, list = p .. 'join:' .. name, p .. 'joined:' .. name
    local about = call('HMGET', meta, '\0f', '\0r', '\0o', '\0j', '\0k', '\0n')
    local inputs, have = {}, {}
    if about[5] == 'collect' then
      for _, packed in ipairs(call('LRANGE', list, 0, -1)) do inputs[#inputs + 1] = cmsgpack.unpack(packed) end
    else
      local fields = call('HGETALL', meta)
      for i = 1, #fields, 2 do
        if string.byte(fields[i]) ~= 0 then
          inputs[#inputs + 1] = cmsgpack.unpack(fields[i + 1])
          have[#have + 1] = fields[i]
        end
      end
    end
    call('DEL', meta, list)
    call('ZREM', p .. 'joins', name)
    count(c, 'arrivals_expired', #inputs)
    if about[3] == 'drop' then
      count(c, 'joins_dropped:timeout')
      for _, input in ipairs(inputs) do drop_blob(p, input[6][EV_DIGEST], c.now) end
    else
      local detail = about[5] == 'collect' and (#inputs .. ' of ' .. about[6] .. ' arrived')
        or ('only ' .. table.concat(have, ', ') .. ' arrived (' .. #inputs .. ' of ' .. about[6] .. ')')
      bury(p, c, redis.sha1hex(about[1] .. '|timeout|' .. name .. '|' .. c.now), about[1], about[2], 'join-timeout',
        'join key ' .. about[4] .. ': ' .. detail .. ' in time', 0, cmsgpack.pack(inputs))
    end
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
  for _, window in ipairs({{'done:at', 'done'}, {'ids:at', 'ids'}, {'joins:done:at', 'joins:done'}}) do
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
  local unlink = {}
  for _, digest in ipairs(call('ZRANGEBYSCORE', p .. 'orphans', '-inf', c.orphans_from, 'LIMIT', 0, BATCH)) do
    call('ZREM', p .. 'orphans', digest)
    if call('HEXISTS', p .. 'refs', digest) == 0 then
      call('HDEL', p .. 'blobs', digest)
      if call('DEL', p .. 'blob:' .. digest) == 0 then unlink[#unlink + 1] = digest end
    end
  end
  return unlink
end)

-- routes: installs the table of this PoP. Returns 1 when it changed.
redis.register_function('ef_routes', function(keys, args)
  local p, c = start_call(keys, args)
  if call('GET', p .. 'routes:version') == c.version then return 0 end
  call('MSET', p .. 'routes:version', c.version, p .. 'routes', c.table)
  if #c.inboxes_here > 0 then call('SADD', p .. 'inboxes', unpack(c.inboxes_here)) end
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
