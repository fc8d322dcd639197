-- Joins: arrivals that wait to become one invocation. What an event means for a join (its key, its windows, how many are needed) is in the
-- directive; what has arrived is here, and the step from one to the other is part of the call that releases the event.
--
-- join:<name>   per input its packed arrivals; '\0...' fields: f r (function, revision), o (on_timeout), j (key), k (kind), n (needed), at (opened),
--               d (directive that fires it), c (inputs that are there), fired, and for windows a, b (start and end)
-- joined:<name> arrivals of a collect or a window, packed {event time, input}
-- mine:joins    those of functions at several PoPs
-- joins         when each gives up waiting;  joins:of:<function>:<signature>  in the order they were opened

local WINDOWS_AT_ONCE = 200

local function join_keys(p, name) return p .. 'join:' .. name, p .. 'joined:' .. name end

local function shape_of(d) return d.f .. ':' .. d.g end

-- sessions:<function>:<signature>  per key its open sessions, {first event time, last event time, name}
local function forget_session(p, d, name)
  local key = p .. 'sessions:' .. shape_of(d)
  local packed = call('HGET', key, d.j)
  local left = {}
  for _, session in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if session[3] ~= name then left[#left + 1] = session end
  end
  if #left > 0 then call('HSET', key, d.j, cmsgpack.pack(left)) else call('HDEL', key, d.j) end
end

local function close_join(p, d, name)
  local meta, list = join_keys(p, name)
  call('DEL', meta, list)
  call('ZREM', p .. 'joins', name)
  call('ZREM', p .. 'joins:of:' .. shape_of(d), name)
  if d.ow then call('ZREM', p .. 'mine:joins', name) end
  if d.k == 'window' then call('ZREM', p .. 'windows:' .. shape_of(d), name) end
  if d.gap then forget_session(p, d, name) end
end

local function by_time(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  a, b = a[2], b[2]
  for i = 2, 5 do
    if a[i] ~= b[i] then return a[i] < b[i] end
  end
  return false
end

-- All arrivals of a join. With their names, in order of the names, for `all`; in order of arrival for `collect`; of event time for windows.
local function gather(p, d, name)
  local meta, list = join_keys(p, name)
  local inputs, have = {}, {}
  if d.k == 'all' then
    local fields = call('HGETALL', meta)
    for i = 1, #fields, 2 do
      if string.byte(fields[i]) ~= 0 and fields[i + 1] ~= '' then
        for _, input in ipairs(cmsgpack.unpack(fields[i + 1])) do inputs[#inputs + 1] = input end
        have[#have + 1] = fields[i]
      end
    end
    table.sort(have)
  else
    local items = call('LRANGE', list, 0, -1)
    for i = 1, #items do items[i] = cmsgpack.unpack(items[i]) end
    if d.k == 'window' then table.sort(items, by_time) end
    for i = 1, #items do inputs[i] = items[i][2] end
  end
  return inputs, have
end

local function window_id(d, from) return d.f .. '|window|' .. d.j .. '|' .. from .. (d.p and '|' .. d.p or '') end

-- The id says which work this is: the occurrence of a key, or the window of a key.
local function fire(p, c, d, name, inputs)
  local meta = join_keys(p, name)
  local id, window, occurrence
  if d.k == 'window' then
    local about = call('HMGET', meta, '\0a', '\0b')
    id = window_id(d, about[1])
    window = about[1] .. '|' .. about[2]
  else
    occurrence = call('HINCRBY', p .. 'joins:done', name, 1)
    id = d.f .. '|join|' .. d.j .. '|' .. occurrence .. (d.p and '|' .. d.p or '')
    call('ZADD', p .. 'joins:done:at', c.now, name)
  end
  if d.rp then id = id .. '|' .. d.rp end
  count(c, 'arrivals_consumed', #inputs)
  accept(p, c, d, redis.sha1hex(id), inputs, window, d.ow and name, occurrence)
end

-- A join that will not become complete ends as its function says.
local function end_join(p, c, name, reason, why)
  local meta = join_keys(p, name)
  local about = call('HMGET', meta, '\0d', '\0o', '\0j', '\0n', '\0fired', '\0at')
  if not about[1] then return end
  local d = cmsgpack.unpack(about[1])
  local inputs, have = gather(p, d, name)
  if about[5] then
    close_join(p, d, name)
    return
  end
  if about[2] == 'partial' then
    -- A new revision of the same shape takes over what is pending; of another shape it could not use it.
    local current = call('HGET', p .. 'shapes', d.f) or ''
    local revision = string.match(current, '^(.*):' .. d.g .. '$')
    if revision or d.rp then
      d.r = d.rp and d.r or revision
      fire(p, c, d, name, inputs)
      close_join(p, d, name)
      return
    end
  end
  count(c, 'arrivals_expired', #inputs)
  owners.over(p, c, d, inputs)
  if about[2] == 'drop' or d.sh then
    count(c, 'joins_dropped:' .. reason)
    for _, input in ipairs(inputs) do drop_blob(p, input[6][EV_DIGEST], c.now) end
  else
    local detail = d.k == 'all' and 'only ' .. table.concat(have, ', ') .. ' arrived (' .. #have .. ' of ' .. about[4] .. ')'
      or d.k == 'collect' and #inputs .. ' of ' .. about[4] .. ' arrived' or #inputs .. ' arrived'
    bury(p, c, redis.sha1hex(d.f .. '|timeout|' .. name .. '|' .. about[6] .. '|' .. c.now), d.f, d.r, reason,
      'join key ' .. about[3] .. ': ' .. detail .. ' ' .. why, 0, cmsgpack.pack(inputs))
  end
  close_join(p, d, name)
end

-- `due`: when it gives up. One that is there already keeps its time, and goes on with the newest directive.
local function open_join(p, c, d, name, due)
  local meta = join_keys(p, name)
  local directive = cmsgpack.pack({f = d.f, r = d.r, g = d.g, j = d.j, k = d.k, q = d.q, z = d.z, e = d.e, mx = d.mx, of = d.of, sj = d.sj, l = d.l, y = d.y, rp = d.rp, sh = d.sh, gap = d.gap, o = d.o, ow = d.ow, p = d.p, n = d.n, m = d.m, u = d.u, w = d.w, c = d.c, on = d.on})
  if call('EXISTS', meta) == 1 then
    call('HSET', meta, '\0d', directive)
    return
  end
  local order = p .. 'joins:of:' .. shape_of(d)
  if call('ZCARD', order) >= d.c then
    end_join(p, c, call('ZRANGE', order, 0, 0)[1], 'join-overflow', 'when it gave way to a newer one: more than ' .. d.c .. ' were pending')
  end
  call('HSET', meta, '\0d', directive, '\0f', d.f, '\0r', d.r, '\0o', d.o, '\0j', d.j, '\0k', d.k, '\0n', d.n, '\0at', c.now, '\0c', 0)
  local number = next_number(p, c, 'joins:n')
  call('ZADD', order, number, name)
  if d.ow then call('ZADD', p .. 'mine:joins', number, name) end
  call('ZADD', p .. 'joins', due, name)
end

-- all, k of m: one occurrence of a key at a time. One that fired early keeps what still comes for its key until its time is over.
local function arrive_all(p, c, d, input)
  local name = shape_of(d) .. ':' .. d.j
  local meta = join_keys(p, name)
  if call('HEXISTS', meta, '\0fired') == 1 then
    if call('HSETNX', meta, d.s, '') == 0 then
      count(c, 'arrivals_duplicate')
    else
      count(c, 'arrivals_dropped:surplus')
      if call('HINCRBY', meta, '\0c', 1) >= d.n then close_join(p, d, name) end
    end
    return
  end
  open_join(p, c, d, name, c.now + d.w)
  local have = call('HGET', meta, d.s)
  if have and d.u == 'first' then
    count(c, 'arrivals_duplicate')
    owners.over(p, c, d, {input})
    return
  end
  hold_blob(p, input[6][EV_DIGEST])
  local arrivals = {input}
  if have then
    local before = cmsgpack.unpack(have)
    if d.u == 'last' then
      count(c, 'arrivals_duplicate')
      owners.over(p, c, d, before)
      drop_blob(p, before[1][6][EV_DIGEST], c.now)
    else
      before[#before + 1] = input
      arrivals = before
    end
  end
  call('HSET', meta, d.s, cmsgpack.pack(arrivals))
  if have or call('HINCRBY', meta, '\0c', 1) < d.m then return end
  local inputs, names = gather(p, d, name)
  fire(p, c, d, name, inputs)
  if d.m == d.n then
    close_join(p, d, name)
  else
    call('HSET', meta, '\0fired', 1)
    for _, each in ipairs(names) do call('HSET', meta, each, '') end
  end
end

local function arrive_collect(p, c, d, input)
  local name = shape_of(d) .. ':' .. d.j
  local meta, list = join_keys(p, name)
  open_join(p, c, d, name, c.now + d.w)
  call('HSET', meta, '\0n', d.n)
  hold_blob(p, input[6][EV_DIGEST])
  if call('RPUSH', list, cmsgpack.pack({0, input})) >= d.n then
    fire(p, c, d, name, (gather(p, d, name)))
    close_join(p, d, name)
  end
end

-- The watermark of a function: how far event time has certainly come. The least of the origins' latest event times, without those that were silent
-- for `idle`; it never goes back. (Akidau et al., The Dataflow Model, 2015, section 2.3; idleness as in Flink's withIdleness.)
local function watermark(p, c, d, origin)
  local key = p .. 'marks:' .. shape_of(d)
  local fields = call('HGETALL', key)
  local latest, mark, least = d.et, 0, nil
  for i = 1, #fields, 2 do
    if fields[i] == '\0w' then
      mark = tonumber(fields[i + 1])
    else
      local at, seen = string.match(fields[i + 1], '^(%d+) (%d+)$')
      at, seen = tonumber(at), tonumber(seen)
      if fields[i] == origin then
        latest = math.max(latest, at)
      elseif seen + d.id > c.now then
        least = math.min(least or at, at)
      end
    end
  end
  mark = math.max(mark, math.min(least or latest, latest))
  call('HSET', key, origin, string.format('%d %d', latest, c.now), '\0w', string.format('%d', mark))
  return mark
end

-- Windows whose end and allowed lateness the watermark has passed become invocations, the earliest first; a tick goes on with what is left.
local function close_windows(p, c, f, g, r, mark, limit)
  local shape = f .. ':' .. g
  for _, name in ipairs(call('ZRANGEBYSCORE', p .. 'windows:' .. shape, '-inf', mark, 'LIMIT', 0, limit)) do
    local d = cmsgpack.unpack(call('HGET', (join_keys(p, name)), '\0d'))
    d.r = r
    fire(p, c, d, name, (gather(p, d, name)))
    close_join(p, d, name)
    limit = limit - 1
  end
  if limit <= 0 then call('HSET', p .. 'closing', shape, cmsgpack.pack({f, g, r})) else call('HDEL', p .. 'closing', shape) end
end

local function into_window(p, c, d, name, from, to, input, due)
  local meta, list = join_keys(p, name)
  open_join(p, c, d, name, due)
  call('HSET', meta, '\0a', string.format('%d', from), '\0b', string.format('%d', to))
  call('ZADD', p .. 'windows:' .. shape_of(d), to + d.la, name)
  if call('LLEN', list) >= d.n then
    count(c, 'arrivals_dropped:window-full')
    return
  end
  hold_blob(p, input[6][EV_DIGEST])
  call('RPUSH', list, cmsgpack.pack({d.et, input}))
end

-- Sessions of one key that are less than the gap apart are one (as they come in any order, an event can join two).
local function into_session(p, c, d, input)
  local key = p .. 'sessions:' .. shape_of(d)
  local packed = call('HGET', key, d.j)
  local from, to, mine, rest = d.et, d.et, nil, {}
  for _, session in ipairs(packed and cmsgpack.unpack(packed) or {}) do
    if session[1] - d.gap < d.et and d.et < session[2] + d.gap then
      from, to = math.min(from, session[1]), math.max(to, session[2])
      if not mine then
        mine = session[3]
      else
        local _, list = join_keys(p, session[3])
        local _, target = join_keys(p, mine)
        for _, item in ipairs(call('LRANGE', list, 0, -1)) do call('RPUSH', target, item) end
        close_join(p, d, session[3])
      end
    else
      rest[#rest + 1] = session
    end
  end
  mine = mine or shape_of(d) .. ':' .. d.j .. '|' .. next_number(p, c, 'sessions:n')
  rest[#rest + 1] = {from, to, mine}
  call('HSET', key, d.j, cmsgpack.pack(rest))
  into_window(p, c, d, mine, from, to + d.gap, input, c.now + d.w)
  call('ZADD', p .. 'joins', 'XX', c.now + d.w, mine)
end

local function arrive_window(p, c, d, input)
  local mark = watermark(p, c, d, input[2])
  if d.gap then
    if d.et + d.gap + d.la <= mark then
      count(c, 'arrivals_dropped:late')
    else
      into_session(p, c, d, input)
    end
  else
    -- An event of overlapping windows arrives in each of them.
    count(c, 'arrivals', #d.ws - 1)
    for _, window in ipairs(d.ws) do
      local from = string.format('%d', window[1])
      local id = window_id(d, from)
      -- One that was closed on the wall clock is closed as well.
      if window[2] + d.la <= mark or is_known(p, c, redis.sha1hex(d.rp and id .. '|' .. d.rp or id)) then
        count(c, 'arrivals_dropped:late')
      else
        into_window(p, c, d, shape_of(d) .. ':' .. d.j .. '|' .. from, window[1], window[2], input, c.now + d.w)
      end
    end
  end
  close_windows(p, c, d.f, d.g, d.r, mark, WINDOWS_AT_ONCE)
end

-- A side input: kept, and handed to the invocations that are made from now on. It starts nothing.
local function keep_latest(p, c, d, input)
  local key, field = p .. 'latest:' .. shape_of(d), d.s .. '|' .. d.j
  local before = call('HGET', key, field)
  hold_blob(p, input[6][EV_DIGEST])
  if before then drop_blob(p, cmsgpack.unpack(before)[6][EV_DIGEST], c.now) end
  call('HSET', key, field, cmsgpack.pack(input))
  count(c, 'arrivals_latest')
end

-- Work of this PoP.
function owners.arrive_here(p, c, d, input)
  count(c, 'arrivals')
  if d.k == 'one' then
    hold_blob(p, input[6][EV_DIGEST])
    count(c, 'arrivals_consumed')
    accept(p, c, d, position_id(d, input), {input})
  elseif d.k == 'all' then
    arrive_all(p, c, d, input)
  elseif d.k == 'collect' then
    arrive_collect(p, c, d, input)
  elseif d.k == 'window' then
    arrive_window(p, c, d, input)
  else -- reject: the event cannot take part; `why` begins with the reason
    count(c, 'arrivals_dropped:rejected')
    if d.sh then return end
    hold_blob(p, input[6][EV_DIGEST])
    owners.over(p, c, d, {input})
    local id, reason = position_id(d, input), string.match(d.why, '^[^:]+')
    bury(p, c, id, d.f, d.r, reason, d.why, 0, cmsgpack.pack({input}))
    if d.y then c.ends[#c.ends + 1] = {id, DEAD, d.f, reason, 1} end
  end
end

local function arrive(p, c, d, input)
  if d.k == 'latest' then
    keep_latest(p, c, d, input)
  elseif not d.ow then
    owners.arrive_here(p, c, d, input)
  elseif not owners.is_settled(p, c, d, input) then
    if owners.is_mine(p, c, d.ow) and not owners.is_sweeping(p, c) then
      owners.arrive_here(p, c, d, input)
    else
      owners.keep(p, c, d, input, c.entry_t or c.now)
    end
  end
end
