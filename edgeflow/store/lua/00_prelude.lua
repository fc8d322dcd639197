-- What every operation shares. One namespace per call: KEYS[1] is its prefix "ef:{namespace}:", ARGV[1] a msgpack map.
-- An error in mid-script does not roll back: each operation validates first and writes last. Time is an argument, never TIME.
--
-- event  = {channel, prev, head, head_crc, digest, size, data, data_crc, content_type}   ("" = none; body is data or digest)
-- value  = {key, version, digest, size, data, data_crc, content_type, deleted, expires (ms, 0 = never), base (the version that the writer saw)}
-- entry  = {v=1, k=kind, t=ms, x={end...}, ev={event...}, va={value...}, inc={increment...}, ty={typed operation...}, id=name, sh={...}}  (one log
--          entry; inc, ty: 22_values.lua; id: the name that a client gave its event, by which it is known when it comes again, here or at another PoP;
--          sh: 05_owners.lua)
-- end    = {invocation, status, function, detail, reply, mark}  (reply: somebody waits for its outcome; mark: of several inputs)
-- input  = {name, origin, epoch, seq, index, event, cause}                               (one arrival of an invocation; cause: 05_owners.lua, or absent)
-- directive: what one event does to one function; made by core/routing.py, which says what each letter means

local EV_CHANNEL, EV_PREV, EV_HEAD, EV_HCRC, EV_DIGEST, EV_SIZE, EV_DATA, EV_DCRC, EV_TYPE = 1, 2, 3, 4, 5, 6, 7, 8, 9
local VA_KEY, VA_VERSION, VA_DIGEST, VA_SIZE, VA_DATA, VA_DCRC, VA_TYPE, VA_DELETED, VA_EXPIRES, VA_BASE = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

local function call(...) return redis.call(...) end

-- What many events of one call would write again and again (counters, heads, running numbers, done marks, wake-ups) is gathered in `c` and
-- written once at its end, by `finish_call`. Every operation that gathers must end there.
local function count(c, name, by)
  c.counts[name] = (c.counts[name] or 0) + (by or 1)
end

local function woke(c, inbox)
  if not c.woken[inbox] then
    c.woken[inbox] = true
    c.inboxes[#c.inboxes + 1] = inbox
  end
end

local function start_call(keys, args)
  local c = cmsgpack.unpack(args[1])
  c.counts, c.woken, c.inboxes, c.channels = {}, {}, {}, {}
  c.done, c.done_at, c.unclaimed, c.unheld = {}, {}, {}, {}
  c.ends, c.ended, c.pending, c.grown = {}, {}, {}, {}
  c.prevs = {}
  return keys[1], c
end

-- Invocations of an inbox that have not ended, in whatever state.
local function pending(p, c, inbox)
  if not c.pending[inbox] then c.pending[inbox] = tonumber(call('HGET', p .. 'pending', inbox)) or 0 end
  return c.pending[inbox] + (c.grown[inbox] or 0)
end

local function pend(c, inbox, by)
  c.grown[inbox] = (c.grown[inbox] or 0) + by
end

-- The next of a running number kept under `name`: read once a call, written back by `finish_call`.
local function next_number(p, c, name)
  c.numbers = c.numbers or {}
  local n = (c.numbers[name] or tonumber(call('GET', p .. name)) or 0) + 1
  c.numbers[name] = n
  return string.format('%d', n)
end

local function own_epoch(p, c)
  if not c.epoch_here then c.epoch_here = tonumber(call('GET', p .. 'epoch')) end
  return c.epoch_here
end

-- Lua passes at most some thousand arguments at once.
local function call_with_all(command, key, arguments)
  for from = 1, #arguments, 1000 do
    call(command, key, unpack(arguments, from, math.min(from + 999, #arguments)))
  end
end

-- Tells whoever waits that something was released in this namespace, and which inboxes ("function:revision") got work.
local append
local function finish_call(p, c, changed)
  if #c.ends > 0 or c.shared then
    append(p, c, 'end', c.ends, {}, {}, {}, '', nil, nil, nil, c.shared)
    changed = true
  end
  for name, by in pairs(c.counts) do
    if by ~= 0 then call('HINCRBY', p .. 'counters', name, by) end
  end
  for channel, by in pairs(c.channels) do call('HINCRBY', p .. 'channels', channel, by) end
  for name, n in pairs(c.numbers or {}) do call('SET', p .. name, string.format('%d', n)) end
  if c.clock_moved then call('HSET', p .. 'clock', 'ms', string.format('%d', c.clock_ms), 'n', c.clock_n) end
  for lane, seq in pairs(c.prevs) do call('HSET', p .. 'prev', lane, string.format('%d', seq)) end
  if c.head_here then call('HSET', p .. 'heads', c.pop .. ':' .. c.epoch_here, string.format('%d', c.head_here)) end
  for inbox, by in pairs(c.grown) do
    if by ~= 0 then call('HINCRBY', p .. 'pending', inbox, by) end
  end
  call_with_all('HSET', p .. 'done', c.done)
  call_with_all('ZADD', p .. 'done:at', c.done_at)
  call_with_all('ZREM', p .. 'claimed', c.unclaimed)
  for instance, ids in pairs(c.unheld) do call_with_all('SREM', p .. 'holds:' .. instance, ids) end
  if changed then call('PUBLISH', 'ef:wake', cmsgpack.pack({c.ns, c.by or '', c.inboxes})) end
end

-- Hybrid logical clock (Kulkarni et al. 2014): never behind the wall clock argument, never behind what was seen. `finish_call` writes it back.
local function read_clock(p, c)
  local clock = call('HMGET', p .. 'clock', 'ms', 'n')
  c.clock_ms, c.clock_n = tonumber(clock[1]) or 0, tonumber(clock[2]) or 0
end

local function next_version(p, c)
  if not c.clock_ms then read_clock(p, c) end
  if c.now > c.clock_ms then c.clock_ms, c.clock_n = c.now, 0 else c.clock_n = c.clock_n + 1 end
  if c.clock_n > 99999 then c.clock_ms, c.clock_n = c.clock_ms + 1, 0 end
  c.clock_moved = true
  return string.format('%013d.%05d@%s', c.clock_ms, c.clock_n, c.pop)
end

local function see_version(p, c, version)
  if not c.clock_ms then read_clock(p, c) end
  local ms, n = tonumber(string.sub(version, 1, 13)), tonumber(string.sub(version, 15, 19))
  if ms > c.clock_ms or (ms == c.clock_ms and n > c.clock_n) then c.clock_ms, c.clock_n, c.clock_moved = ms, n, true end
end

-- Blobs live as long as something refers to them. `blobs` holds digest -> size of those that are readable here.
local function hold_blob(p, digest)
  if digest ~= '' then
    if call('HINCRBY', p .. 'refs', digest, 1) == 1 then call('ZREM', p .. 'orphans', digest) end
  end
end

local function drop_blob(p, digest, now)
  if digest ~= '' then
    if call('HINCRBY', p .. 'refs', digest, -1) <= 0 then
      call('HDEL', p .. 'refs', digest)
      call('ZADD', p .. 'orphans', now, digest)
    end
  end
end

local function readable(p, digest)
  return digest == '' or call('HEXISTS', p .. 'blobs', digest) == 1
end

local function routes_are_current(p, c)
  return (call('GET', p .. 'routes:version') or '') == c.rv
end
