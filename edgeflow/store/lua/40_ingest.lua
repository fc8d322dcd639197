-- ingest: the one way in. arrivals = list of
--   {ev=event, d=directives, via="mqtt"|"http", ref={key, version} or nil, put=value or nil, id=dedup id or nil, ring=text or nil, again=bool}
-- Returns per arrival {status, epoch, seq, version, n, origin}: "ok" | "again" (known already) | "waiting" (for its dataref) | "full" (version names
-- the function whose inbox is full) | "elsewhere" (version says where the home of its key is) | "quota" (version says which); of the last two seq is the time in ms after which to try again. n is the
-- event's number in the release stream; origin is there for what is known already.

-- Token buckets of a namespace: so many events and bytes a second, and what `burst` seconds bring at once.
local function read_quota(p, c)
  local q = call('HMGET', p .. 'quota', 'events', 'bytes', 'burst', 'at', 'e', 'b')
  if not q[1] then return nil end
  local quota = {events = tonumber(q[1]), bytes = tonumber(q[2]), burst = tonumber(q[3])}
  local passed = math.max(0, c.now - (tonumber(q[4]) or 0)) / 1000
  quota.e = math.min(quota.events * quota.burst, (tonumber(q[5]) or 0) + passed * quota.events)
  quota.b = math.min(quota.bytes * quota.burst, (tonumber(q[6]) or 0) + passed * quota.bytes)
  return quota
end

-- Which limit is exceeded and for how long (ms); nil when there is room, which is taken. 0 = no limit. A body larger than the bucket passes when it is full.
local function take_quota(quota, events, bytes)
  local function wait(have, want, rate, burst)
    if rate == 0 then return 0 end
    return math.max(0, math.ceil((math.min(want, rate * burst) - have) * 1000 / rate))
  end
  local e, b = wait(quota.e, events, quota.events, quota.burst), wait(quota.b, bytes, quota.bytes, quota.burst)
  if e > 0 or b > 0 then return e >= b and 'events' or 'bytes', math.max(e, b) end
  if quota.events > 0 then quota.e = quota.e - events end
  if quota.bytes > 0 then quota.b = quota.b - bytes end
end

local function write_quota(p, c, quota)
  call('HSET', p .. 'quota', 'at', c.now, 'e', tostring(quota.e), 'b', tostring(quota.b))
end

local FULL_RETRY_MS = 1000
-- What is dead-lettered or only kept needs no room.
local function has_no_room(p, c, d)
  return d.k ~= 'reject' and d.k ~= 'latest' and (not d.ow or owners.is_mine(p, c, d.ow)) and pending(p, c, d.f .. ':' .. d.r) >= (d.mx or c.mx)
end

local function full_inbox(p, c, directives)
  for _, d in ipairs(directives) do
    if (d.of or 'refuse') == 'refuse' and has_no_room(p, c, d) then return d.f end
  end
end
redis.register_function('ef_ingest', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local results, ring, ids, ids_at, ring_n, known_here, ring_here, blocked_here = {}, {}, {}, {}, 0, {}, {}, {}
  local quota = read_quota(p, c)
  for i, arrival in ipairs(c.arrivals) do
    local known
    if arrival.ring and arrival.again and (ring_here[arrival.ring] or call('ZSCORE', p .. 'ring', arrival.ring)) then known = {'again', 0, 0, '', 0} end
    if not known and arrival.id then
      local have = known_here[arrival.id] or call('HGET', p .. 'ids', arrival.id)
      if have then known = cmsgpack.unpack(have) end
    end
    local full = not known and full_inbox(p, c, arrival.d)
    local kind = not known and arrival.put and kind_of(p, c, arrival.put[VA_KEY])
    local over, wait_ms
    local elsewhere = not known and arrival.put and not_home(p, c, arrival.put[VA_KEY])
    if quota and not known and not full and not elsewhere then over, wait_ms = take_quota(quota, 1, arrival.ev[EV_SIZE]) end
    if known then
      count(c, 'events_duplicate')
      results[i] = known
    elseif elsewhere then
      results[i] = {'elsewhere', 0, 0, elsewhere, 0}
    elseif kind and kind ~= 'r' then
      results[i] = {'wrong-type', 0, 0, '', 0}
    elseif full then
      count(c, 'events_refused:full')
      results[i] = {'full', 0, FULL_RETRY_MS, full, 0}
    elseif over then
      count(c, 'events_refused:quota')
      results[i] = {'quota', 0, wait_ms, over, 0}
    else
      if arrival.ring then
        ring[#ring + 1] = next_number(p, c, 'ring:n')
        ring[#ring + 1] = arrival.ring
        ring_here[arrival.ring] = true
      end
      local channel = arrival.ev[EV_CHANNEL]
      local blocked = blocked_here[channel]
      if blocked == nil then blocked = call('EXISTS', p .. 'waiting:' .. channel) == 1; blocked_here[channel] = blocked end
      if blocked or (arrival.ref and not resolve(p, c, arrival.ev, arrival.ref)) then
        wait_for(p, c, arrival)
        blocked_here[channel] = true
        results[i] = {'waiting', 0, 0, '', 0}
      else
        local put = arrival.put and {arrival.put} or {}
        if arrival.put then blocked_here = {} end
        local epoch, seq, version, n = append(p, c, 'event', {}, {arrival.ev}, put, {arrival.d}, arrival.via, nil, nil, arrival.id)
        results[i] = {'ok', epoch, seq, version, n}
      end
      count(c, 'events_ingested')
      if arrival.id then
        local packed = cmsgpack.pack({'again', results[i][2], results[i][3], results[i][4], 0, c.pop})
        known_here[arrival.id] = packed
        ids[#ids + 1] = arrival.id; ids[#ids + 1] = packed
        ids_at[#ids_at + 1] = string.format('%d', c.now); ids_at[#ids_at + 1] = arrival.id
      end
    end
  end
  if quota then write_quota(p, c, quota) end
  call_with_all('HSET', p .. 'ids', ids)
  call_with_all('ZADD', p .. 'ids:at', ids_at)
  call_with_all('ZADD', p .. 'ring', ring)
  if #ring > 0 then call('ZREMRANGEBYRANK', p .. 'ring', 0, -(c.ring_size + 1)) end
  finish_call(p, c, true)
  return cmsgpack.pack({results, c.inboxes})
end)
