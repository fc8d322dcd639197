-- Values and how they merge: what an entry's writes do to the state of a namespace, whatever order the logs of several PoPs come in.
-- The same rules, without Redis: edgeflow/core/merges.py; tests drive both side by side.
--
-- value:<key>  register: the highest version wins. `past`: versions that a later write has seen and that may still come
-- lost:<key>   writes that lost to one that had not seen them: version -> packed record, at most LOSERS
-- tally:<key>  counter: per component (log) its sum, `|n` the seq it is counted up to, `|s` the seq its life began, `|d` "n sum" up to where it is deleted
-- set:<key>    add wins: "e<element>" -> the dots (entries) that hold it in; `vv` up to which seq of each log operations are applied,
--              `u` removed dots that have not come yet
-- map:<key>    "f<field>" -> packed {version, dot, deleted, content type, data, crc}; `d` the version below which all fields are deleted, `dd` its dot;
--              `v` the highest version
-- Of the last three `c` counts what is visible. `vv` of a counter: the deletions that are applied
-- keys, kinds  visible keys; which of them are visible as "m", "s" or "c" unless a register is there. `known`: every key with any state
-- graves       what only remembers a deletion, by ms: "r<key>", "f<key>\0<field>", "m<key>", "s<key>", "c<key>"
-- expires      registers by deadline.  changes: keys by the number of their last change here
-- parked       registers and maps from further in the future than c.skew, by the time they are due; `parked:items` -> packed {lane, seq, kind, item}
--
-- Operations of one log on one counter or set are applied in the order of the log (the lanes of the gate see to it), so that `n` and `vv` say all.
local LOSERS, PAST = 8, 8

-- Not the order of strings, which is a matter of the server's locale: bytes, as everywhere else.
local function is_newer(version, than)
  local head, other = string.sub(version, 1, 19), string.sub(than, 1, 19)
  if head ~= other then return head > other end
  for i = 20, math.max(#version, #than) do
    local a, b = string.byte(version, i) or 0, string.byte(than, i) or 0
    if a ~= b then return a > b end
  end
  return false
end

local function ms_of(version) return tonumber(string.sub(version, 1, 13)) or 0 end

local function note_change(p, c, key)
  call('ZADD', p .. 'changes', next_number(p, c, 'changes:n'), key)
end

local function is_register(have, now)
  return have[1] and have[2] ~= '1' and not (have[3] and tonumber(have[3]) <= now)
end

-- "r", "m", "s", "c", or nil when nothing is visible; of a register its version too; and the version that is there, also of a tombstone.
local function kind_of(p, c, key)
  local have = call('HMGET', p .. 'value:' .. key, 'version', 'deleted', 'exp')
  if is_register(have, c.now) then return 'r', have[1], have[1] end
  return call('HGET', p .. 'kinds', key) or nil, nil, have[1]
end

-- Something under `key` appeared or went: says so in `keys` and `kinds`.
local function list_key(p, c, key)
  local kind = nil
  for _, one in ipairs({{'map:', 'm'}, {'set:', 's'}, {'tally:', 'c'}}) do
    if not kind and (tonumber(call('HGET', p .. one[1] .. key, 'c')) or 0) > 0 then kind = one[2] end
  end
  if kind then call('HSET', p .. 'kinds', key, kind) else call('HDEL', p .. 'kinds', key) end
  local have = call('HMGET', p .. 'value:' .. key, 'version', 'deleted')
  if kind or (have[1] and have[2] ~= '1') then call('ZADD', p .. 'keys', 0, key) else call('ZREM', p .. 'keys', key) end
  call('ZADD', p .. 'known', 0, key)
end

-- `from`, `to`: how much of it was visible before and is now. A change of its content alone changes no index.
local function resize(p, c, letter, hash, key, from, to)
  if from == to then return end
  call('HSET', hash, 'c', string.format('%d', to))
  if from > 0 and to > 0 then return end
  if to == 0 then call('ZADD', p .. 'graves', c.now, letter .. key) else call('ZREM', p .. 'graves', letter .. key) end
  list_key(p, c, key)
end

-- registers --------------------------------------------------------------------------------------------------------------

local function has_past(past, version) return past and string.find(' ' .. past .. ' ', ' ' .. version .. ' ', 1, true) ~= nil end

local function forget_loser(p, c, key, version)
  local packed = call('HGET', p .. 'lost:' .. key, version)
  if packed then
    drop_blob(p, cmsgpack.unpack(packed)[VA_DIGEST], c.now)
    call('HDEL', p .. 'lost:' .. key, version)
  end
end

local function keep_loser(p, c, key, value)
  if value[VA_DELETED] == 1 then return end
  local lost = p .. 'lost:' .. key
  if call('HSETNX', lost, value[VA_VERSION], cmsgpack.pack(value)) == 0 then return end
  hold_blob(p, value[VA_DIGEST])
  if call('HLEN', lost) > LOSERS then
    local versions = call('HKEYS', lost)
    table.sort(versions, function(a, b) return is_newer(b, a) end)
    forget_loser(p, c, key, versions[1])
  end
end

-- `past` with `version` in front. The last of many is forgotten: if that write comes yet, it is told as lost though somebody has seen it.
local function with_past(past, version)
  local found, n = {version}, 1
  for one in string.gmatch(past or '', '%S+') do
    if one ~= version and n < PAST then n = n + 1; found[n] = one end
  end
  return table.concat(found, ' ')
end

local function bury_register(p, key, version)
  call('ZADD', p .. 'graves', ms_of(version), 'r' .. key)
  if call('HEXISTS', p .. 'kinds', key) == 0 then call('ZREM', p .. 'keys', key) end
end

local function set_deadline(p, hash, key, exp)
  if exp then
    call('HSET', hash, 'exp', string.format('%d', exp))
    call('ZADD', p .. 'expires', exp, key)
  else
    call('HDEL', hash, 'exp')
    call('ZREM', p .. 'expires', key)
  end
end

-- `known`: `past` of the same write at another PoP, when it does not come from a log.
local function apply_value(p, c, dot, value, known)
  local key, version, base = value[VA_KEY], value[VA_VERSION], value[VA_BASE] or ''
  local hash = p .. 'value:' .. key
  local have = call('HMGET', hash, 'version', 'digest', 'deleted', 'exp', 'past')
  local current, past = have[1], have[5]
  if current == version then return end
  if current and is_newer(current, version) then
    -- It comes too late to be seen; whoever wrote the current one may have seen it, or what it was written over.
    if not has_past(past, version) then
      value[11] = dot
      keep_loser(p, c, key, value)
    end
    if base ~= '' then
      forget_loser(p, c, key, base)
      if not has_past(past, base) then call('HSET', hash, 'past', with_past(past, base)) end
    end
    return
  end
  if current ~= base and (current or base ~= '') then
    if current and have[3] ~= '1' and not has_past(known, current) then
      local old = call('HMGET', hash, 'version', 'digest', 'size', 'data', 'dcrc', 'type', 'dot', 'exp')
      local loser = {key, old[1], old[2], tonumber(old[3]), old[4], tonumber(old[5]), old[6], 0, tonumber(old[8]) or 0, ''}
      loser[11] = old[7]
      keep_loser(p, c, key, loser)
    end
    if base ~= '' then
      forget_loser(p, c, key, base)
      past = with_past(past, base)
      call('HSET', hash, 'past', past)
    end
  end
  if known then
    for one in string.gmatch(known, '%S+') do
      if not has_past(past, one) then past = with_past(past, one) end
    end
    call('HSET', hash, 'past', past)
  end
  hold_blob(p, value[VA_DIGEST])
  if have[2] then drop_blob(p, have[2], c.now) end
  local deleted = value[VA_DELETED]
  call('HSET', hash, 'version', version, 'dot', dot, 'base', base, 'digest', value[VA_DIGEST], 'size', value[VA_SIZE], 'data', value[VA_DATA],
    'dcrc', value[VA_DCRC], 'type', value[VA_TYPE], 'deleted', deleted)
  local exp = (value[VA_EXPIRES] or 0) > 0 and deleted ~= 1 and value[VA_EXPIRES]
  if exp or have[4] then set_deadline(p, hash, key, exp) end
  if not current then call('ZADD', p .. 'known', 0, key) end
  if deleted == 1 then
    bury_register(p, key, version)
  else
    if have[3] == '1' then call('ZREM', p .. 'graves', 'r' .. key) end
    if not current or have[3] == '1' then call('ZADD', p .. 'keys', 0, key) end
  end
  note_change(p, c, key)
end

-- Its deadline has passed: a tombstone of the same version, which every PoP makes by itself.
local function expire_value(p, c, key)
  local hash = p .. 'value:' .. key
  local have = call('HMGET', hash, 'version', 'digest', 'deleted', 'exp')
  call('ZREM', p .. 'expires', key)
  if not have[1] or have[3] == '1' or not have[4] or tonumber(have[4]) > c.now then return false end
  drop_blob(p, have[2], c.now)
  call('HSET', hash, 'digest', '', 'size', 0, 'data', '', 'dcrc', 0, 'deleted', 1)
  bury_register(p, key, have[1])
  count(c, 'values_expired')
  note_change(p, c, key)
  return true
end

-- counters ---------------------------------------------------------------------------------------------------------------

local function component(hash, lane)
  local have = call('HMGET', hash, lane .. '|n', lane .. '|s', lane .. '|d')
  return tonumber(have[1]) or 0, tonumber(have[2]) or 0, tonumber(string.match(have[3] or '', '^%d+')) or 0
end

-- add = {key, by, 1 when a new life begins here}. One that would not fit into 64 bits is left out everywhere alike.
local function apply_increment(p, c, lane, seq, add)
  local key = add[1]
  local hash = p .. 'tally:' .. key
  local n, life, gone = component(hash, lane)
  if n >= seq then return end
  local visible, was = tonumber(call('HGET', hash, 'c')) or 0, n > gone
  if add[3] and seq > life then
    call('HDEL', hash, lane, lane .. '|d')
    call('HSET', hash, lane .. '|s', string.format('%d', seq))
    gone = 0
  end
  -- Of a life of whose end a deletion has told already: it counts no more.
  if seq >= life then redis.pcall('HINCRBY', hash, lane, string.format('%d', add[2])) end
  call('HSET', hash, lane .. '|n', string.format('%d', seq))
  resize(p, c, 'c', hash, key, visible, visible + (seq > gone and 1 or 0) - (was and 1 or 0))
  note_change(p, c, key)
end

-- item = {"d", key, {{component, life, seq, sum}...}}: everything that was counted up to there is deleted.
local function apply_counter_delete(p, c, lane, seq, item)
  local key = item[2]
  local hash = p .. 'tally:' .. key
  local have = call('HMGET', hash, 'vv', 'c')
  local vv, visible = have[1] and cmsgpack.unpack(have[1]) or {}, tonumber(have[2]) or 0
  if (vv[lane] or 0) >= seq then return end
  vv[lane] = seq
  call('HSET', hash, 'vv', cmsgpack.pack(vv))
  local now = visible
  for _, one in ipairs(item[3]) do
    local n, life, gone = component(hash, one[1])
    local was = n > gone
    if one[2] > life then
      call('HDEL', hash, one[1])
      call('HSET', hash, one[1] .. '|s', string.format('%d', one[2]))
      gone = 0
    end
    if one[2] >= life and one[3] > gone then
      gone = one[3]
      call('HSET', hash, one[1] .. '|d', string.format('%d %s', one[3], one[4]))
    end
    now = now + (n > gone and 1 or 0) - (was and 1 or 0)
  end
  resize(p, c, 'c', hash, key, visible, now)
  if now == 0 then
    call('ZADD', p .. 'graves', c.now, 'c' .. key)
    call('ZADD', p .. 'known', 0, key)
  end
  note_change(p, c, key)
end

-- sets -------------------------------------------------------------------------------------------------------------------

local function split_dot(dot)
  local lane, seq = string.match(dot, '^(.*):(%d+)$')
  return lane, tonumber(seq)
end

-- item = {"s", key, {{element, dots it replaces}...}, {{element, dots}...}}: added, removed.
local function apply_set(p, c, lane, seq, item)
  local key = item[2]
  local hash = p .. 'set:' .. key
  local have = call('HMGET', hash, 'vv', 'u', 'c')
  local vv, unborn, visible = have[1] and cmsgpack.unpack(have[1]) or {}, have[2] and cmsgpack.unpack(have[2]) or {}, tonumber(have[3]) or 0
  if (vv[lane] or 0) >= seq then return end
  local now, mine = visible, lane .. ':' .. seq
  local function change(element, gone, add)
    local field = 'e' .. element
    local before = call('HGET', hash, field)
    local without = {}
    for _, dot in ipairs(gone) do
      local from, at = split_dot(dot)
      if at > (vv[from] or 0) then unborn[dot .. ' ' .. element] = 1 end
      without[dot] = true
    end
    local dots = {}
    for dot in string.gmatch(before or '', '%S+') do
      if not without[dot] then dots[#dots + 1] = dot end
    end
    if add then
      if unborn[mine .. ' ' .. element] then unborn[mine .. ' ' .. element] = nil else dots[#dots + 1] = mine end
    end
    if #dots > 0 then call('HSET', hash, field, table.concat(dots, ' ')) elseif before then call('HDEL', hash, field) end
    now = now + (#dots > 0 and 1 or 0) - (before and 1 or 0)
  end
  for _, one in ipairs(item[4]) do change(one[1], one[2], false) end
  for _, one in ipairs(item[3]) do change(one[1], one[2], true) end
  vv[lane] = seq
  call('HSET', hash, 'vv', cmsgpack.pack(vv))
  if next(unborn) then call('HSET', hash, 'u', cmsgpack.pack(unborn)) elseif have[2] then call('HDEL', hash, 'u') end
  resize(p, c, 's', hash, key, visible, now)
  if not have[1] then call('ZADD', p .. 'known', 0, key) end
  if now == 0 then call('ZADD', p .. 'graves', c.now, 's' .. key) end
  note_change(p, c, key)
end

-- maps -------------------------------------------------------------------------------------------------------------------

local function map_version(item)
  local highest = item[4]
  for _, one in ipairs(item[3]) do if is_newer(one[2], highest) then highest = one[2] end end
  return highest
end

-- item = {"m", key, {{field, version, deleted, content type, data, crc}...}, floor or ""}: all fields below the floor are deleted.
local function apply_map(p, c, dot, item)
  local key = item[2]
  local hash = p .. 'map:' .. key
  local have = call('HMGET', hash, 'c', 'd', 'v')
  local visible, floor = tonumber(have[1]) or 0, have[2] or ''
  local now, changed = visible, false
  if is_newer(item[4], floor) then
    floor, changed = item[4], true
    local all = call('HGETALL', hash)
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 1) == 'f' then
        local field = cmsgpack.unpack(all[i + 1])
        if is_newer(floor, field[1]) then
          call('HDEL', hash, all[i])
          if field[3] == 1 then call('ZREM', p .. 'graves', 'f' .. key .. '\0' .. string.sub(all[i], 2)) else now = now - 1 end
        end
      end
    end
    call('HSET', hash, 'd', floor, 'dd', dot)
    call('ZADD', p .. 'graves', ms_of(floor), 'm' .. key)
  end
  for _, one in ipairs(item[3]) do
    local before = call('HGET', hash, 'f' .. one[1])
    local old = before and cmsgpack.unpack(before)
    if is_newer(one[2], floor) and (not old or is_newer(one[2], old[1])) then
      changed = true
      call('HSET', hash, 'f' .. one[1], cmsgpack.pack({one[2], dot, one[3], one[4], one[5], one[6]}))
      now = now + (one[3] == 1 and 0 or 1) - (old and old[3] ~= 1 and 1 or 0)
      local grave = 'f' .. key .. '\0' .. one[1]
      if one[3] == 1 then call('ZADD', p .. 'graves', ms_of(one[2]), grave) elseif old and old[3] == 1 then call('ZREM', p .. 'graves', grave) end
    end
  end
  if not changed then return end
  local highest = map_version(item)
  if is_newer(highest, have[3] or '') then call('HSET', hash, 'v', highest) end
  call('HSET', hash, 'c', string.format('%d', now))
  if now ~= visible and (now == 0 or visible == 0) then list_key(p, c, key) end
  call('ZADD', p .. 'known', 0, key)
  note_change(p, c, key)
end

-- entries ----------------------------------------------------------------------------------------------------------------

-- A version from the future is not merged, and this PoP's clock does not follow it.
local function park(p, c, lane, seq, kind, i, item, version)
  local due = ms_of(version) - c.skew
  if due <= c.now then return false end
  local name = lane .. ':' .. seq .. ':' .. kind .. i
  call('ZADD', p .. 'parked', due, name)
  call('HSET', p .. 'parked:items', name, cmsgpack.pack({lane, seq, kind, item}))
  if kind == 'v' then hold_blob(p, item[VA_DIGEST]) end
  count(c, 'values_parked')
  return true
end

local function apply_typed(p, c, lane, seq, entry)
  for _, add in ipairs(entry.inc or {}) do apply_increment(p, c, lane, seq, add) end
  for _, item in ipairs(entry.ty or {}) do
    if item[1] == 's' then
      apply_set(p, c, lane, seq, item)
    elseif item[1] == 'd' then
      apply_counter_delete(p, c, lane, seq, item)
    end
  end
end

-- Versions of this PoP's own log are never from its own future, unless they come back to it after it lost them.
release_values = function(p, c, origin, epoch, seq, entry, own)
  local lane = origin .. ':' .. string.format('%d', epoch)
  local dot = lane .. ':' .. string.format('%d', seq)
  seq = string.format('%d', seq)
  for i = 1, #entry.va do
    local value = entry.va[i]
    if own or not park(p, c, lane, seq, 'v', i, value, value[VA_VERSION]) then
      if not own then see_version(p, c, value[VA_VERSION]) end
      apply_value(p, c, dot, value)
    end
  end
  if not entry.inc and not entry.ty then return end
  apply_typed(p, c, lane, tonumber(seq), entry)
  for i, item in ipairs(entry.ty or {}) do
    if item[1] == 'm' then
      local version = map_version(item)
      if own or not park(p, c, lane, seq, 'm', i, item, version) then
        if not own then see_version(p, c, version) end
        apply_map(p, c, dot, item)
      end
    end
  end
end

-- Keys whose operations must stay in the order of their log.
local function ordered_keys(entry)
  local found, known = {}, {}
  local function add(key)
    if not known[key] then known[key] = true; found[#found + 1] = key end
  end
  for _, one in ipairs(entry.inc or {}) do add(one[1]) end
  for _, item in ipairs(entry.ty or {}) do
    if item[1] ~= 'm' then add(item[2]) end
  end
  return found
end

-- The time of what was parked has come. Returns whether there was any.
local function unpark(p, c, limit)
  local due = call('ZRANGEBYSCORE', p .. 'parked', '-inf', c.now, 'LIMIT', 0, limit)
  for _, name in ipairs(due) do
    local packed = call('HGET', p .. 'parked:items', name)
    call('ZREM', p .. 'parked', name)
    call('HDEL', p .. 'parked:items', name)
    if packed then
      local lane, seq, kind, item = unpack(cmsgpack.unpack(packed))
      if kind == 'v' then
        see_version(p, c, item[VA_VERSION])
        apply_value(p, c, lane .. ':' .. seq, item)
        drop_blob(p, item[VA_DIGEST], c.now)
        drain_waiting(p, c, item[VA_KEY])
      else
        see_version(p, c, map_version(item))
        apply_map(p, c, lane .. ':' .. seq, item)
      end
    end
  end
  return #due > 0
end
