-- gate: bodies that a peer sends just now are not late: what waits for nothing but such bodies (c.coming) is given the time of the gate once more when its
-- own is nearly over, at most GATE_TIMES times that time in all. Returns how many entries were given more.
local GATE_TIMES = 60

redis.register_function('ef_gate', function(keys, args)
  local p, c = start_call(keys, args)
  local coming, moved = {}, 0
  for _, digest in ipairs(c.coming) do
    for _, name in ipairs(call('SMEMBERS', p .. 'wanted:' .. digest)) do coming[name] = (coming[name] or 0) + 1 end
  end
  for name, count_here in pairs(coming) do
    local due = tonumber(call('ZSCORE', p .. 'held', name) or nil)
    if due and due <= c.now + c.soon_ms then
      local record = call('HMGET', p .. 'held:' .. name, 'missing', 'last')
      local last = tonumber(record[2] or nil) or due + (GATE_TIMES - 1) * c.gate_ms
      if record[1] and count_here >= tonumber(record[1]) and c.now < last then
        call('HSET', p .. 'held:' .. name, 'last', last)
        call('ZADD', p .. 'held', 'XX', c.now + math.max(c.gate_ms, c.soon_ms), name)
        moved = moved + 1
      end
    end
  end
  finish_call(p, c, false)
  return moved
end)
