-- write: the local ways to change values, one by one or several at once, all or nothing. What an operation means is decided here, where the state is
-- that its writer sees: a removal names the dots it has seen, a deletion everything that is visible under its key.
--
-- op = {"p", value, if_version or false, if_absent} | {"x", key, if_version or false, missing_ok} | {"i", key, by}
--    | {"s", key, {element to add...}, {element to remove...}} | {"m", key, {{field, "", deleted, content type, data, crc}...}}

-- What deletes everything that is visible under a key: into plan.va and plan.ty.
local function plan_delete(p, c, plan, key, is_live)
  if is_live then plan.va[#plan.va + 1] = {key, '', '', 0, '', 0, '', 1, 0, ''} end
  if (tonumber(call('HGET', p .. 'map:' .. key, 'c')) or 0) > 0 then plan.ty[#plan.ty + 1] = {'m', key, {}, 'now'} end
  local members = call('HGETALL', p .. 'set:' .. key)
  local gone = {}
  for i = 1, #members, 2 do
    if string.sub(members[i], 1, 1) == 'e' then
      local dots = {}
      for dot in string.gmatch(members[i + 1], '%S+') do dots[#dots + 1] = dot end
      gone[#gone + 1] = {string.sub(members[i], 2), dots}
    end
  end
  if #gone > 0 then plan.ty[#plan.ty + 1] = {'s', key, {}, gone} end
  local hash = p .. 'tally:' .. key
  local parts = {}
  for _, field in ipairs(call('HKEYS', hash)) do
    local lane = string.match(field, '^(.*)|n$')
    if lane then
      local n, life, dead = component(hash, lane)
      if n > dead then parts[#parts + 1] = {lane, life, n, call('HGET', hash, lane) or '0'} end
    end
  end
  if #parts > 0 then plan.ty[#plan.ty + 1] = {'d', key, parts} end
end

local function plan_set(p, c, plan, op)
  local hash = p .. 'set:' .. op[2]
  local function seen(element)
    local dots = {}
    for dot in string.gmatch(call('HGET', hash, 'e' .. element) or '', '%S+') do dots[#dots + 1] = dot end
    return dots
  end
  local adds, removes, size = {}, {}, tonumber(call('HGET', hash, 'c')) or 0
  for _, element in ipairs(op[3]) do
    local dots = seen(element)
    adds[#adds + 1] = {element, dots}
    if #dots == 0 then size = size + 1 end
  end
  for _, element in ipairs(op[4]) do
    local dots = seen(element)
    if #dots > 0 then
      removes[#removes + 1] = {element, dots}
      size = size - 1
    end
  end
  if #adds > 0 and size > c.set_max then return 'too-many', op[2] end
  if #adds + #removes > 0 then plan.ty[#plan.ty + 1] = {'s', op[2], adds, removes} end
end

local function plan_map(p, c, plan, op)
  local hash = p .. 'map:' .. op[2]
  local fields, size, puts = {}, tonumber(call('HGET', hash, 'c')) or 0, false
  for _, field in ipairs(op[3]) do
    local before = call('HGET', hash, 'f' .. field[1])
    local is_there = before and cmsgpack.unpack(before)[3] ~= 1
    if field[3] ~= 1 or is_there then
      fields[#fields + 1] = field
      size = size + (field[3] == 1 and 0 or 1) - (is_there and 1 or 0)
      puts = puts or field[3] ~= 1
    end
  end
  if puts and size > c.map_max then return 'too-many', op[2] end
  if #fields > 0 then plan.ty[#plan.ty + 1] = {'m', op[2], fields, ''} end
end

local KIND = {p = 'r', i = 'c', s = 's', m = 'm'}

-- Returns a plan {va, inc, ty}, or nil, why not, and the key (of "mismatch": its version).
local function plan_ops(p, c, ops, plan)
  plan = plan or {va = {}, inc = {}, ty = {}}
  for _, op in ipairs(ops) do
    local name = op[1]
    local key = name == 'p' and op[2][VA_KEY] or op[2]
    local elsewhere = not_home(p, c, key)
    if elsewhere then return nil, 'elsewhere', elsewhere end
    local kind, version, there = kind_of(p, c, key)
    if name == 'x' then
      if not kind and not op[4] then return nil, 'absent', key end
      if op[3] and op[3] ~= (version or '') then return nil, 'mismatch', key, version or '' end
      if kind then plan_delete(p, c, plan, key, kind == 'r') end
    else
      if kind and kind ~= KIND[name] then return nil, 'wrong-type', key end
      if name == 'p' then
        if (op[3] and op[3] ~= (version or '')) or (op[4] and kind) then return nil, 'mismatch', key, version or '' end
        if not readable(p, op[2][VA_DIGEST]) then return nil, 'missing', op[2][VA_DIGEST] end
        op[2][VA_BASE] = there or ''
        plan.va[#plan.va + 1] = op[2]
      elseif name == 'i' then
        local lane = c.pop .. ':' .. string.format('%d', own_epoch(p, c))
        local n, _, dead = component(p .. 'tally:' .. key, lane)
        plan.inc[#plan.inc + 1] = n > dead and {key, op[3]} or {key, op[3], 1}
      else
        local why, about
        if name == 's' then why, about = plan_set(p, c, plan, op) else why, about = plan_map(p, c, plan, op) end
        if why then return nil, why, about end
      end
    end
  end
  return plan
end

local function some(list) return #list > 0 and list or nil end

-- Of a commit: its values, increments and typed operations. commit.cond = {{key, version or false, absent}...}: what must be there for it to happen.
-- The same answer as `plan_ops`.
local function plan_commit(p, c, commit)
  for _, cond in ipairs(commit.cond or {}) do
    local kind, version = kind_of(p, c, cond[1])
    if (cond[2] and cond[2] ~= (version or '')) or (cond[3] and kind) then return nil, 'mismatch', cond[1], version or '' end
  end
  if #commit.va == 0 and not commit.inc and not commit.ops then return commit end
  local plan = {va = {}, inc = {}, ty = {}}
  for _, value in ipairs(commit.va) do
    local kind = kind_of(p, c, value[VA_KEY])
    if value[VA_DELETED] == 1 and kind and kind ~= 'r' then
      plan_delete(p, c, plan, value[VA_KEY], false)
    elseif kind and kind ~= 'r' then
      return nil, 'wrong-type', value[VA_KEY]
    else
      plan.va[#plan.va + 1] = value
    end
  end
  local ops = commit.ops or {}
  for _, add in ipairs(commit.inc or {}) do ops[#ops + 1] = {'i', add[1], add[2]} end
  local found, why, about = plan_ops(p, c, ops, plan)
  if not found then return nil, why, about end
  plan.inc, plan.ty = some(plan.inc), some(plan.ty)
  return plan
end

-- Returns {status, epoch, seq, version}: "ok" | "again" (known by its id) | "mismatch" (version: "<key> <its version>") | "absent" | "wrong-type" | "too-many" |
-- "missing" (version: the key or digest) | "elsewhere" (version says where the home is) | "quota" (seq: the time in ms after which to try again, version: of what).
redis.register_function('ef_write', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local known = call('HGET', p .. 'ids', c.id)
  if known then
    local result = cmsgpack.unpack(known)
    return cmsgpack.pack({'again', result[2], result[3], result[4]})
  end
  local plan, why, about, version = plan_ops(p, c, c.ops)
  if not plan then return cmsgpack.pack({why, 0, 0, version and about .. ' ' .. version or about}) end
  local quota = read_quota(p, c)
  if quota then
    local over, wait_ms = take_quota(quota, #c.ops, c.size)
    if over then
      count(c, 'values_refused:quota')
      finish_call(p, c, false)
      return cmsgpack.pack({'quota', 0, wait_ms, over})
    end
    write_quota(p, c, quota)
  end
  local epoch, seq, last = append(p, c, 'put', {}, {}, plan.va, {}, '', some(plan.inc), some(plan.ty))
  count(c, 'values_written', #c.ops)
  call('HSET', p .. 'ids', c.id, cmsgpack.pack({'ok', epoch, seq, last}))
  call('ZADD', p .. 'ids:at', c.now, c.id)
  finish_call(p, c, true)
  return cmsgpack.pack({'ok', epoch, seq, last})
end)

-- collect: forgets tombstones that nobody can be surprised by any more: below c.bound no version is given out, and every PoP has applied what c.passed
-- ("origin:epoch" -> seq) names. Returns how many.
local function is_passed(c, lane, seq) return seq <= (c.passed[lane] or 0) end

local function dot_passed(c, dot)
  local lane, seq = split_dot(dot or '')
  return lane and is_passed(c, lane, seq)
end

local function all_passed(c, packed)
  for lane, seq in pairs(packed and cmsgpack.unpack(packed) or {}) do
    if not is_passed(c, lane, seq) then return false end
  end
  return true
end

-- Nothing is left under a key: neither is its place in the indexes.
local function forget_key(p, c, key)
  if call('EXISTS', p .. 'value:' .. key, p .. 'map:' .. key, p .. 'set:' .. key, p .. 'tally:' .. key) > 0 then return end
  call('ZREM', p .. 'known', key)
  local n = tonumber(call('ZSCORE', p .. 'changes', key))
  if n then
    call('ZREM', p .. 'changes', key)
    if n > (tonumber(call('GET', p .. 'changes:from')) or 0) then call('SET', p .. 'changes:from', string.format('%d', n)) end
  end
end

local function forget_register(p, c, key)
  for _, version in ipairs(call('HKEYS', p .. 'lost:' .. key)) do forget_loser(p, c, key, version) end
  call('DEL', p .. 'value:' .. key, p .. 'lost:' .. key)
  call('ZREM', p .. 'graves', 'r' .. key)
  call('ZREM', p .. 'expires', key)
end

local function tidy_map(p, key)
  local hash = p .. 'map:' .. key
  -- All that is left is how many fields are visible and the highest version.
  if call('HLEN', hash) <= 2 and call('HEXISTS', hash, 'd') == 0 then call('DEL', hash) end
end

local function collect_grave(p, c, member)
  local letter, key = string.sub(member, 1, 1), string.sub(member, 2)
  if letter == 'r' then
    local have = call('HMGET', p .. 'value:' .. key, 'version', 'deleted', 'dot')
    if have[2] ~= '1' or not is_newer(c.bound, have[1]) or not dot_passed(c, have[3]) then return false end
    forget_register(p, c, key)
  elseif letter == 'f' then
    local field
    key, field = string.match(key, '^(%Z*)%z(.*)$')
    local packed = call('HGET', p .. 'map:' .. key, 'f' .. field)
    local have = packed and cmsgpack.unpack(packed)
    if have and (have[3] ~= 1 or not is_newer(c.bound, have[1]) or not dot_passed(c, have[2])) then return false end
    call('HDEL', p .. 'map:' .. key, 'f' .. field)
    tidy_map(p, key)
  elseif letter == 'm' then
    local have = call('HMGET', p .. 'map:' .. key, 'd', 'dd')
    if have[1] and (not is_newer(c.bound, have[1]) or not dot_passed(c, have[2])) then return false end
    call('HDEL', p .. 'map:' .. key, 'd', 'dd')
    tidy_map(p, key)
  elseif letter == 's' then
    local have = call('HMGET', p .. 'set:' .. key, 'vv', 'u', 'c')
    if (tonumber(have[3]) or 0) > 0 or have[2] or not all_passed(c, have[1]) then return false end
    call('DEL', p .. 'set:' .. key)
  else
    local hash = p .. 'tally:' .. key
    local have = call('HMGET', hash, 'vv', 'c')
    if (tonumber(have[2]) or 0) > 0 or not all_passed(c, have[1]) then return false end
    for _, name in ipairs(call('HKEYS', hash)) do
      local lane = string.match(name, '^(.*)|[nd]$')
      if lane then
        local n, _, dead = component(hash, lane)
        if not is_passed(c, lane, math.max(n, dead)) then return false end
      end
    end
    call('DEL', hash)
  end
  call('ZREM', p .. 'graves', member)
  forget_key(p, c, key)
  return true
end

local COLLECT = 1000
redis.register_function('ef_collect', function(keys, args)
  local p, c = start_call(keys, args)
  local gone = 0
  for _, member in ipairs(call('ZRANGEBYSCORE', p .. 'graves', '-inf', ms_of(c.bound), 'LIMIT', 0, COLLECT)) do
    if collect_grave(p, c, member) then gone = gone + 1 end
  end
  count(c, 'tombstones_collected', gone)
  finish_call(p, c, false)
  return gone
end)
