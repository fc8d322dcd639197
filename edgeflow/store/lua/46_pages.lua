-- Snapshots: the state of a range of keys, to be merged by a PoP that has missed log entries which are not kept any more.
--
-- A page says what it covers: per lane up to which seq everything is in it, except which. What the page has not although it covers the entry that wrote
-- it has been deleted and forgotten; what it has although the reader has seen the entry that wrote it, and has it not, the reader has deleted and
-- forgotten. (As in Almeida et al., Scalable and Accurate Causality Tracking, 2015: two sets of dots, each with what has been seen.)
--
-- item = {key, register, lost, map, set, counter}: hashes as flat lists, `lost` as the list of its records.

-- lane -> {upto, {seq = true}}: what is merged here.
local function coverage(p)
  local found = {}
  local heads = call('HGETALL', p .. 'heads')
  for i = 1, #heads, 2 do found[heads[i]] = {tonumber(heads[i + 1]), {}} end
  for _, names in ipairs({call('ZRANGE', p .. 'held', 0, -1), call('SMEMBERS', p .. 'late'), call('ZRANGE', p .. 'parked', 0, -1)}) do
    for _, name in ipairs(names) do
      local lane, seq = string.match(name, '^([^:]*:%d+):(%d+)')
      if found[lane] then found[lane][2][seq] = true end
    end
  end
  return found
end

local function covers(context, lane, seq)
  local upto = context[lane]
  return upto ~= nil and seq <= upto[1] and not upto[2][string.format('%d', seq)]
end

local function covers_dot(context, dot)
  local lane, seq = split_dot(dot or '')
  return lane ~= nil and covers(context, lane, seq)
end

-- c.after, c.limit, c.bytes. Returns {coverage, parked, {{key, packed item}...}, last key or false}.
redis.register_function('ef_export', function(keys, args)
  local p, c = start_call(keys, args)
  local context = {}
  for lane, upto in pairs(coverage(p)) do
    local except = {}
    for seq in pairs(upto[2]) do except[#except + 1] = tonumber(seq) end
    context[lane] = {upto[1], except}
  end
  local items, bytes = {}, 0
  local names = call('ZRANGEBYLEX', p .. 'known', c.after == '' and '-' or '(' .. c.after, '+', 'LIMIT', 0, c.limit + 1)
  for i = 1, math.min(#names, c.limit) do
    local key = names[i]
    local packed = cmsgpack.pack({key, call('HGETALL', p .. 'value:' .. key), call('HVALS', p .. 'lost:' .. key), call('HGETALL', p .. 'map:' .. key),
      call('HGETALL', p .. 'set:' .. key), call('HGETALL', p .. 'tally:' .. key)})
    items[#items + 1] = {key, packed}
    bytes = bytes + #packed
    if bytes >= c.bytes then break end
  end
  local parked = c.after == '' and call('HVALS', p .. 'parked:items') or {}
  return cmsgpack.pack({cmsgpack.pack(context), parked, items, #items < #names and items[#items][1] or false})
end)

local function as_table(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function unpacked(packed) return packed and cmsgpack.unpack(packed) or {} end

-- A body that a value needs and that nobody sent along: a peer is asked for it.
local function need_body(p, c, lane, key, digest)
  if digest == '' then return end
  local stays = stays_here(p, c, string.match(lane, '^[^:]*'), key)
  place_body(p, digest, stays)
  if stays and not readable(p, digest) then call('SADD', p .. 'missing', digest) end
end

local function merge_register(p, c, context, key, theirs, lost)
  local hash = p .. 'value:' .. key
  local mine = call('HMGET', hash, 'version', 'dot')
  if theirs.version then
    if mine[1] or not covers_dot(c.here, theirs.dot) then
      local value = {key, theirs.version, theirs.digest, tonumber(theirs.size), theirs.data, tonumber(theirs.dcrc), theirs.type, tonumber(theirs.deleted),
        tonumber(theirs.exp) or 0, theirs.base}
      local lane, seq = split_dot(theirs.dot)
      if not park(p, c, lane, string.format('%d', seq), 'v', 0, value, theirs.version) then
        see_version(p, c, theirs.version)
        need_body(p, c, lane, key, theirs.digest)
        apply_value(p, c, theirs.dot, value, theirs.past)
      end
    end
  elseif mine[1] and covers_dot(context, mine[2]) then
    local digest = call('HGET', hash, 'digest')
    drop_blob(p, digest, c.now)
    forget_register(p, c, key)
    note_change(p, c, key)
  end
  local current = call('HGET', hash, 'version')
  for _, packed in ipairs(lost) do
    local value = cmsgpack.unpack(packed)
    if current and is_newer(current, value[VA_VERSION]) then
      need_body(p, c, (split_dot(value[11])), key, value[VA_DIGEST])
      apply_value(p, c, value[11], value)
    end
  end
end

local function merge_item(p, c, dot, name, item, version)
  local lane, seq = split_dot(dot)
  if park(p, c, lane, string.format('%d', seq), 'm', name, item, version) then return end
  see_version(p, c, version)
  apply_map(p, c, dot, item)
end

local function merge_map(p, c, context, key, theirs)
  local hash = p .. 'map:' .. key
  local mine = as_table(call('HGETALL', hash))
  if theirs.d and (mine.d or not covers_dot(c.here, theirs.dd)) then merge_item(p, c, theirs.dd, '', {'m', key, {}, theirs.d}, theirs.d) end
  for name, packed in pairs(theirs) do
    if string.sub(name, 1, 1) == 'f' then
      local version, dot, deleted, kind, data, crc = unpack(cmsgpack.unpack(packed))
      if mine[name] or not covers_dot(c.here, dot) then
        merge_item(p, c, dot, name, {'m', key, {{string.sub(name, 2), version, deleted, kind, data, crc}}, ''}, version)
      end
    end
  end
  local gone, visible = 0, 0
  for name, packed in pairs(mine) do
    if string.sub(name, 1, 1) == 'f' and not theirs[name] and covers_dot(context, cmsgpack.unpack(packed)[2]) and call('HDEL', hash, name) == 1 then
      call('ZREM', p .. 'graves', 'f' .. key .. '\0' .. string.sub(name, 2))
      gone = gone + 1
      if cmsgpack.unpack(packed)[3] ~= 1 then visible = visible + 1 end
    end
  end
  if gone == 0 then return end
  if visible > 0 then call('HINCRBY', hash, 'c', -visible) end
  tidy_map(p, key)
  note_change(p, c, key)
end

local function merge_set(p, c, context, key, theirs)
  local hash = p .. 'set:' .. key
  local mine = as_table(call('HGETALL', hash))
  if not mine.vv and not theirs.vv then return end
  local my_vv, my_u, their_vv, their_u = unpacked(mine.vv), unpacked(mine.u), unpacked(theirs.vv), unpacked(theirs.u)
  local elements, count_now = {}, 0
  for name in pairs(mine) do if string.sub(name, 1, 1) == 'e' then elements[name] = true end end
  for name in pairs(theirs) do if string.sub(name, 1, 1) == 'e' then elements[name] = true end end
  for name in pairs(elements) do
    local dots, both = {}, {}
    local tail = ' ' .. string.sub(name, 2)
    for dot in string.gmatch(theirs[name] or '', '%S+') do both[dot] = 'theirs' end
    for dot in string.gmatch(mine[name] or '', '%S+') do both[dot] = both[dot] and 'both' or 'mine' end
    for dot, whose in pairs(both) do
      local lane, seq = split_dot(dot)
      local stays = whose == 'both'
        or (whose == 'mine' and not (seq <= (their_vv[lane] or 0) or covers(context, lane, seq) or their_u[dot .. tail]))
        or (whose == 'theirs' and not (seq <= (my_vv[lane] or 0) or covers(c.here, lane, seq) or my_u[dot .. tail]))
      if stays then dots[#dots + 1] = dot end
    end
    table.sort(dots)
    if #dots > 0 then
      count_now = count_now + 1
      call('HSET', hash, name, table.concat(dots, ' '))
    elseif mine[name] then
      call('HDEL', hash, name)
    end
  end
  for lane, seq in pairs(their_vv) do my_vv[lane] = math.max(seq, my_vv[lane] or 0) end
  for named in pairs(their_u) do my_u[named] = 1 end
  for named in pairs(my_u) do
    local lane, seq = split_dot(string.match(named, '^(%S+) '))
    if seq <= (my_vv[lane] or 0) then my_u[named] = nil end
  end
  call('HSET', hash, 'vv', cmsgpack.pack(my_vv))
  if next(my_u) then call('HSET', hash, 'u', cmsgpack.pack(my_u)) else call('HDEL', hash, 'u') end
  resize(p, c, 's', hash, key, tonumber(mine.c) or 0, count_now)
  if count_now == 0 then call('ZADD', p .. 'graves', c.now, 's' .. key) end
  note_change(p, c, key)
end

local function merge_counter(p, c, context, key, theirs)
  local hash = p .. 'tally:' .. key
  local mine = as_table(call('HGETALL', hash))
  local lanes, visible = {}, 0
  for name in pairs(mine) do lanes[string.match(name, '^(.*)|[nsd]$') or ''] = true end
  for name in pairs(theirs) do lanes[string.match(name, '^(.*)|[nsd]$') or ''] = true end
  lanes[''] = nil
  if not next(lanes) then return end
  local function number(one, name) return tonumber(one[name]) or 0 end
  local function dead(one, lane) return tonumber(string.match(one[lane .. '|d'] or '', '^%d+')) or 0 end
  for lane in pairs(lanes) do
    local n, s, d = lane .. '|n', lane .. '|s', lane .. '|d'
    local my_n, their_n = number(mine, n), number(theirs, n)
    if not theirs[s] then
      if covers(context, lane, math.max(my_n, dead(mine, lane))) then call('HDEL', hash, lane, n, s, d) else visible = visible + (my_n > dead(mine, lane) and 1 or 0) end
    elseif mine[s] or not covers(c.here, lane, math.max(their_n, dead(theirs, lane))) then
      local from_them = number(theirs, s) > number(mine, s)
      local same = number(theirs, s) == number(mine, s)
      local gone = from_them and dead(theirs, lane) or same and math.max(dead(theirs, lane), dead(mine, lane)) or dead(mine, lane)
      if from_them then call('HDEL', hash, lane, d) end
      if from_them or (same and their_n > my_n) then
        call('HSET', hash, lane, theirs[lane] or '0', s, theirs[s], n, string.format('%d', math.max(my_n, their_n)))
      end
      if (from_them or same) and dead(theirs, lane) > (same and dead(mine, lane) or 0) then call('HSET', hash, d, theirs[d]) end
      visible = visible + (math.max(my_n, their_n) > gone and 1 or 0)
    end
  end
  local vv = unpacked(mine.vv)
  for lane, seq in pairs(unpacked(theirs.vv)) do vv[lane] = math.max(seq, vv[lane] or 0) end
  if next(vv) then call('HSET', hash, 'vv', cmsgpack.pack(vv)) end
  resize(p, c, 'c', hash, key, number(mine, 'c'), visible)
  if visible == 0 and call('EXISTS', hash) == 1 then call('ZADD', p .. 'graves', c.now, 'c' .. key) end
  note_change(p, c, key)
end

-- c.context, c.parked, c.items (packed), c.absent: keys of the range that the page has not.
redis.register_function('ef_import', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  c.here = coverage(p)
  local context = {}
  for lane, upto in pairs(cmsgpack.unpack(c.context)) do
    local except = {}
    for _, seq in ipairs(upto[2]) do except[string.format('%d', seq)] = true end
    context[lane] = {upto[1], except}
  end
  for _, packed in ipairs(c.parked) do
    local lane, seq, kind, item = unpack(cmsgpack.unpack(packed))
    if kind == 'v' then need_body(p, c, lane, item[VA_KEY], item[VA_DIGEST]) end
    if not covers(c.here, lane, tonumber(seq)) and not park(p, c, lane, seq, kind, 0, item, kind == 'v' and item[VA_VERSION] or map_version(item)) then
      if kind == 'v' then
        apply_value(p, c, lane .. ':' .. seq, item)
        drain_waiting(p, c, item[VA_KEY])
      else
        apply_map(p, c, lane .. ':' .. seq, item)
      end
    end
  end
  local function merge(key, item)
    merge_register(p, c, context, key, as_table(item[2]), item[3])
    merge_map(p, c, context, key, as_table(item[4]))
    merge_set(p, c, context, key, as_table(item[5]))
    merge_counter(p, c, context, key, as_table(item[6]))
    list_key(p, c, key)
    forget_key(p, c, key)
    drain_waiting(p, c, key)
  end
  for _, packed in ipairs(c.items) do
    local item = cmsgpack.unpack(packed)
    merge(item[1], item)
  end
  for _, key in ipairs(c.absent) do merge(key, {key, {}, {}, {}, {}, {}}) end
  finish_call(p, c, true)
  return 'OK'
end)
