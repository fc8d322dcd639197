-- Snapshots: values have come instead of log entries that no peer keeps any more (page by page, merged like any others). What is left is to say so.

-- adopt: the logs are here up to c.vector (lane "origin:epoch" -> seq). c.lanes = {{origin, epoch, channel, seq}...}, the last event of each channel by
-- then: what was not released here is a gap. Repeating it changes nothing.
redis.register_function('ef_adopt', function(keys, args)
  local p, c = start_call(keys, args)
  local epoch_here = own_epoch(p, c)
  if not epoch_here then return redis.error_reply('NOEPOCH') end
  local own = c.pop .. ':' .. string.format('%d', epoch_here)
  for _, item in ipairs(c.lanes) do
    local origin, epoch, channel, seq = item[1], string.format('%d', item[2]), item[3], item[4]
    local lane = origin .. ':' .. epoch .. ':' .. channel
    local seen = tonumber(call('HGET', p .. 'seen', lane)) or 0
    if origin == c.pop then seen = math.max(seen, tonumber(call('HGET', p .. 'prev', epoch .. ':' .. channel)) or 0) end
    -- What the gate still holds of it comes later, and says itself what is missing.
    if seq > seen and origin .. ':' .. epoch ~= own and call('EXISTS', p .. 'lane:' .. lane) == 0 then
      release_gap(p, c, origin, item[2], channel, seen, seq, 'lost')
      call('HSET', p .. 'seen', lane, string.format('%d', seq))
    end
  end
  for name, seq in pairs(c.vector) do
    local head = tonumber(call('HGET', p .. 'heads', name)) or 0
    if seq > head and name ~= own then call('HSET', p .. 'heads', name, string.format('%d', seq)) end
  end
  count(c, 'snapshots_taken')
  finish_call(p, c, true)
  return 1
end)
