-- ingest: the one way in. arrivals = list of
--   {ev=event, d=directives, via="mqtt"|"http", ref={key, version} or nil, put=value or nil, id=dedup id or nil, ring=text or nil, again=bool}
-- Returns per arrival {status, epoch, seq, version, n}: "ok" | "again" (known already) | "waiting" (for its dataref); n its number in the
-- release stream.
redis.register_function('ef_ingest', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local results, ring_grew = {}, false
  for i, arrival in ipairs(c.arrivals) do
    local known
    if arrival.ring and arrival.again and call('ZSCORE', p .. 'ring', arrival.ring) then known = {'again', 0, 0, '', 0} end
    if not known and arrival.id then
      local have = call('HGET', p .. 'ids', arrival.id)
      if have then known = cmsgpack.unpack(have) end
    end
    if known then
      count(c, 'events_duplicate')
      results[i] = known
    else
      if arrival.ring then
        call('ZADD', p .. 'ring', call('INCR', p .. 'ring:n'), arrival.ring)
        ring_grew = true
      end
      local blocked = call('EXISTS', p .. 'waiting:' .. arrival.ev[EV_CHANNEL]) == 1
      if blocked or (arrival.ref and not resolve(p, arrival.ev, arrival.ref)) then
        wait_for(p, c, arrival)
        results[i] = {'waiting', 0, 0, '', 0}
      else
        local put = arrival.put and {arrival.put} or {}
        local epoch, seq, version, n = append(p, c, 'event', false, {arrival.ev}, put, {arrival.d}, arrival.via)
        results[i] = {'ok', epoch, seq, version, n}
      end
      count(c, 'events_ingested')
      if arrival.id then
        call('HSET', p .. 'ids', arrival.id, cmsgpack.pack({'again', results[i][2], results[i][3], results[i][4], 0}))
        call('ZADD', p .. 'ids:at', c.now, arrival.id)
      end
    end
  end
  if ring_grew then call('ZREMRANGEBYRANK', p .. 'ring', 0, -(c.ring_size + 1)) end
  finish_call(p, c, true)
  return cmsgpack.pack({results, c.inboxes})
end)

-- put: one value, with an optional condition. Returns {status, epoch, seq, version}; "mismatch" carries the current version.
redis.register_function('ef_put', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local have = call('HMGET', p .. 'value:' .. c.value[VA_KEY], 'version', 'deleted')
  local current = have[1] and have[2] ~= '1' and have[1] or ''
  if c.id then
    local known = call('HGET', p .. 'ids', c.id)
    if known then return known end
  end
  if (c.if_version and c.if_version ~= current) or (c.if_absent and current ~= '') then
    return cmsgpack.pack({'mismatch', 0, 0, current})
  end
  local epoch, seq, version = append(p, c, 'put', false, {}, {c.value}, {}, '')
  count(c, 'values_written')
  local result = cmsgpack.pack({'ok', epoch, seq, version})
  if c.id then
    call('HSET', p .. 'ids', c.id, result)
    call('ZADD', p .. 'ids:at', c.now, c.id)
  end
  finish_call(p, c, true)
  return result
end)
