-- Events whose dataref names a value that is not readable here yet wait in front of the log, per channel and in order.
-- They are durable; the log gets them once they can be resolved to immutable data.

local function resolve(p, c, event, ref)
  local value = call('HMGET', p .. 'value:' .. ref.key, 'version', 'digest', 'size', 'data', 'dcrc', 'type', 'deleted', 'exp')
  if not value[1] or value[7] == '1' or (value[8] and tonumber(value[8]) <= c.now) then return false end
  if ref.version ~= '' and ref.version ~= value[1] then return false end
  event[EV_DIGEST], event[EV_SIZE], event[EV_DATA], event[EV_DCRC] = value[2], tonumber(value[3]), value[4], tonumber(value[5])
  if event[EV_TYPE] == '' then event[EV_TYPE] = value[6] end
  if readable(p, value[2]) then return true end
  -- It is kept at other PoPs: from now on it is missing here.
  call('SADD', p .. 'missing', value[2])
  call('SADD', p .. 'sought:' .. value[2], ref.key)
  return false
end

local function wait_for(p, c, arrival)
  local channel = arrival.ev[EV_CHANNEL]
  call('RPUSH', p .. 'waiting:' .. channel, cmsgpack.pack({a = arrival, due = c.now + c.gate_ms}))
  call('ZADD', p .. 'waiting', 'NX', c.now + c.gate_ms, channel)
  if arrival.ref then call('SADD', p .. 'waiters:' .. arrival.ref.key, channel) end
  count(c, 'events_waited')
end

local function head_waiting(p, channel)
  local head = call('LINDEX', p .. 'waiting:' .. channel, 0)
  return head and cmsgpack.unpack(head)
end

local function pop_waiting(p, channel, waiting)
  call('LPOP', p .. 'waiting:' .. channel)
  if waiting.a.ref then call('SREM', p .. 'waiters:' .. waiting.a.ref.key, channel) end
  local nxt = head_waiting(p, channel)
  if nxt then call('ZADD', p .. 'waiting', nxt.due, channel) else call('ZREM', p .. 'waiting', channel) end
  return nxt
end

-- Whether the same event came from another PoP, where it was repeated, while this one waited.
local function has_come(p, c, arrival)
  return arrival.id and is_repeated(p, c, arrival.id, c.pop, 0, 0)
end

local function drain_channel(p, c, channel)
  local waiting = head_waiting(p, channel)
  while waiting do
    local arrival = waiting.a
    if arrival.ref and not resolve(p, c, arrival.ev, arrival.ref) then
      -- SREM of an earlier event of the same channel and key may have removed the mark.
      call('SADD', p .. 'waiters:' .. arrival.ref.key, channel)
      return
    end
    if not readable(p, arrival.ev[EV_DIGEST]) then return end
    local nxt = pop_waiting(p, channel, waiting)
    if has_come(p, c, arrival) then
      append(p, c, 'event', {}, {arrival.ev}, {}, {}, 'repeated', nil, nil, arrival.id)
      count(c, 'events_repeated')
    else
      local epoch, seq = append(p, c, 'event', {}, {arrival.ev}, {}, {arrival.d}, arrival.via, nil, nil, arrival.id)
      if arrival.id then note_id(p, c, arrival.id, c.pop, epoch, seq, '') end
    end
    waiting = nxt
  end
end

drain_waiting = function(p, c, key)
  local channels = call('SMEMBERS', p .. 'waiters:' .. key)
  for i = 1, #channels do drain_channel(p, c, channels[i]) end
end

-- A dataref that never became readable: a gap in its channel, said to everyone.
local function expire_waiting(p, c, channel)
  local waiting = head_waiting(p, channel)
  while waiting and waiting.due <= c.now do
    pop_waiting(p, channel, waiting)
    local ref, came = waiting.a.ref, has_come(p, c, waiting.a)
    if not came then release_gap(p, c, c.pop, own_epoch(p, c), channel, 0, 0, 'data never became readable: ' .. (ref and ref.key or '?')) end
    count(c, came and 'events_repeated' or 'events_dropped:gate-timeout')
    for _, d in ipairs(not came and waiting.a.d or {}) do
      local input = {d.s, c.pop, 0, 0, 0, waiting.a.ev}
      if d.k ~= 'latest' then
        hold_blob(p, waiting.a.ev[EV_DIGEST])
        bury(p, c, redis.sha1hex(d.f .. '|gate|' .. waiting.a.ev[EV_HEAD]), d.f, d.r, 'gate-timeout',
          'the value ' .. (ref and ref.key or '?') .. ' did not become readable at ' .. c.pop .. ' in time', 0, cmsgpack.pack({input}))
      end
    end
    -- What waited only behind it is not late: it goes on.
    drain_channel(p, c, channel)
    waiting = head_waiting(p, channel)
  end
end
