-- Invocations begin and end: the inbox with its bound, the order of keys, dead letters.

-- `done` says how an invocation ended: its committed attempt, or one of these.
local DEAD, EXPIRED, DROPPED = 'dead', 'expired', 'dropped'

-- keep-latest: one that comes back (a retry, a claim that was given back) while there is a newer one of its subject is not handled behind it.
local abandon
local function gives_way(p, c, id, inbox)
  local subject = call('HGET', p .. 'inv:' .. id, 'sj')
  local newest = subject and call('HGET', p .. 'newest:' .. inbox, subject)
  if not newest or newest == id then return false end
  abandon(p, c, id, DROPPED, 'newer')
  return true
end

-- Work of a revision that was rolled back goes to the one that serves, as it becomes ready (62_revisions.lua): failures of the one are not held
-- against the other.
local function serving(p, c, id, f, r)
  local to = call('HGET', p .. 'moved', f .. ':' .. r)
  if not to then return r end
  local from = f .. ':' .. r
  call('HSET', p .. 'inv:' .. id, 'r', to, 'x', '0')
  pend(c, from, -1)
  pend(c, f .. ':' .. to, 1)
  local subject = call('HGET', p .. 'inv:' .. id, 'sj')
  if subject and call('HGET', p .. 'newest:' .. from, subject) == id then
    call('HDEL', p .. 'newest:' .. from, subject)
    call('HSETNX', p .. 'newest:' .. f .. ':' .. to, subject, id)
  end
  return to
end

local function to_ready(p, c, id, f, r)
  r = serving(p, c, id, f, r)
  if gives_way(p, c, id, f .. ':' .. r) then return end
  call('HSET', p .. 'inv:' .. id, 'st', 'ready', 'rdy', c.us)
  call('ZADD', p .. 'ready:' .. f .. ':' .. r, next_number(p, c, 'order'), id)
  woke(c, f .. ':' .. r)
end

-- An invocation that was in a failed batch waits here, to be claimed alone and before the others.
local function to_ready_alone(p, c, id, f, r)
  r = serving(p, c, id, f, r)
  if gives_way(p, c, id, f .. ':' .. r) then return end
  call('HSET', p .. 'inv:' .. id, 'st', 'ready', 'rdy', c.us)
  call('ZADD', p .. 'alone:' .. f .. ':' .. r, next_number(p, c, 'order'), id)
  woke(c, f .. ':' .. r)
end

-- Keyed work: only the first of a key is ready, whatever its revision. A retry keeps its place; an end lets the next go.
local function turns(p, f, key) return p .. 'turn:' .. f .. ':' .. key end

local function leave_turn(p, c, id, f, key)
  local line = turns(p, f, key)
  if call('LINDEX', line, 0) ~= id then
    call('LREM', line, 1, id)
    return
  end
  call('LPOP', line)
  local nxt = call('LINDEX', line, 0)
  if nxt then
    local record = call('HMGET', p .. 'inv:' .. nxt, 'f', 'r')
    to_ready(p, c, nxt, record[1], record[2])
  end
end

local function unclaim(p, c, id, instance)
  c.unclaimed[#c.unclaimed + 1] = id
  if instance then
    local ids = c.unheld[instance] or {}
    ids[#ids + 1] = id
    c.unheld[instance] = ids
  end
end

-- Takes an invocation out of its inbox, whatever comes of it; `inputs` are let go unless somebody keeps them.
local function take_out(p, c, id, inputs, record)
  record = record or call('HMGET', p .. 'inv:' .. id, 'f', 'r', 'by', 'q', 'sj', 'so')
  unclaim(p, c, id, record[3])
  call('DEL', p .. 'inv:' .. id)
  local inbox = record[1] .. ':' .. record[2]
  pend(c, inbox, -1)
  if record[4] then leave_turn(p, c, id, record[1], record[4]) end
  if record[5] and call('HGET', p .. 'newest:' .. inbox, record[5]) == id then call('HDEL', p .. 'newest:' .. inbox, record[5]) end
  if record[6] then call('ZREM', p .. 'mine', id) end
  if inputs then
    for _, input in ipairs(inputs) do drop_blob(p, input[6][EV_DIGEST], c.now) end
  end
end

-- The one end of every invocation. `mark` is kept for as long as its work could come again.
local function finish(p, c, id, mark, inputs, record)
  take_out(p, c, id, inputs, record)
  c.ended[id] = true
  c.done[#c.done + 1] = id
  c.done[#c.done + 1] = tostring(mark)
  c.done_at[#c.done_at + 1] = string.format('%d', c.now)
  c.done_at[#c.done_at + 1] = id
end

-- An accepted invocation that will not run: too late, or no room. It is in none of the inbox's sets any more.
function abandon(p, c, id, mark, why)
  local record = call('HMGET', p .. 'inv:' .. id, 'f', 'in', 'y')
  local inputs = cmsgpack.unpack(record[2])
  count(c, 'invocations_' .. mark .. (why and ':' .. why or ''))
  c.ends[#c.ends + 1] = {id, mark, record[1], why or '', record[3] and 1 or 0}
  owners.ended(p, c, id, mark, inputs)
  finish(p, c, id, mark, inputs)
end

-- keep-latest: at most one invocation of a subject waits. A newer one drops it, whether the inbox is full or not, and gets its place, so that a
-- subject that changes fast is not put off for ever. What is worked on stays. Returns the place in `ready`, if it had one.
local function replace_older(p, c, inbox, subject)
  local id = call('HGET', p .. 'newest:' .. inbox, subject)
  if not id then return nil end
  local state, place = call('HGET', p .. 'inv:' .. id, 'st'), nil
  if state == 'ready' then
    place = call('ZSCORE', p .. 'ready:' .. inbox, id)
    call('ZREM', p .. (place and 'ready:' or 'alone:') .. inbox, id)
  elseif state == 'delayed' then
    call('ZREM', p .. 'delayed', id)
  elseif state ~= 'turn' then
    return nil
  end
  abandon(p, c, id, DROPPED, 'newer')
  return place or nil
end

-- Makes room in a full inbox: the oldest that waits goes. What is worked on stays.
local function make_room(p, c, inbox)
  local victim = call('ZPOPMIN', p .. 'ready:' .. inbox, 1)[1]
  if not victim then return false end
  abandon(p, c, victim, DROPPED, 'full')
  return true
end

local function is_known(p, c, id)
  return c.ended[id] or call('HEXISTS', p .. 'done', id) == 1 or call('EXISTS', p .. 'inv:' .. id) == 1
end

-- `join`: of a function at several PoPs, the join that made it, and its how manieth.
local function accept(p, c, d, id, inputs, window, join, occurrence)
  -- An id that ended or is here already is the same work again.
  if is_known(p, c, id) or (d.ow and call('HEXISTS', p .. 'outcomes', id) == 1) then
    count(c, 'invocations_duplicate')
    owners.over(p, c, d, inputs)
    for _, input in ipairs(inputs) do drop_blob(p, input[6][EV_DIGEST], c.now) end
    return
  end
  count(c, 'invocations_accepted')
  local inbox = d.f .. ':' .. d.r
  local room, place = true, nil
  if d.of == 'keep-latest' and d.sj then place = replace_older(p, c, inbox, d.sj) end
  if d.mx and d.of ~= 'refuse' and pending(p, c, inbox) >= d.mx then room = make_room(p, c, inbox) end
  local sides = 0
  for _, side in ipairs(d.l or {}) do
    local newest = call('HGET', p .. 'latest:' .. d.f .. ':' .. side.g, side.s .. '|' .. side.j)
    if newest then
      local input = cmsgpack.unpack(newest)
      hold_blob(p, input[6][EV_DIGEST])
      inputs[#inputs + 1] = input
      sides = sides + 1
    end
  end
  local fields = {'f', d.f, 'r', d.r, 'in', cmsgpack.pack(inputs), 'n', '0', 'x', '0', 'st', 'ready', 'acc', string.format('%d', c.us), 'rdy', string.format('%d', c.us)}
  local function also(name, value)
    if value then fields[#fields + 1] = name; fields[#fields + 1] = value end
  end
  also('q', d.q); also('z', d.z); also('y', d.y); also('rp', d.rp); also('sh', d.sh)
  also('k', d.j or d.q); also('w', window); also('sd', sides > 0 and sides)
  also('e', d.e and string.format('%d', (c.entry_t or c.now) + d.e))
  also('sj', d.of == 'keep-latest' and d.sj)
  if d.ow then
    d.on = d.on or tonumber(next_number(p, c, 'standby:n'))
    also('so', string.format('%.5f', d.on)); also('d', cmsgpack.pack(d)); also('jn', join); also('jo', occurrence)
    call('ZADD', p .. 'mine', string.format('%.5f', d.on), id)
  end
  call('HSET', p .. 'inv:' .. id, unpack(fields))
  pend(c, inbox, 1)
  if d.rp then call('HINCRBY', p .. 'replay:' .. d.rp, 'invoked', 1) end
  if d.of == 'keep-latest' and d.sj then call('HSET', p .. 'newest:' .. inbox, d.sj, id) end
  if d.q and call('RPUSH', turns(p, d.f, d.q), id) > 1 then
    call('HSET', p .. 'inv:' .. id, 'st', 'turn')
  else
    call('ZADD', p .. 'ready:' .. inbox, place or next_number(p, c, 'order'), id)
    woke(c, inbox)
  end
  if not room then
    call('ZREM', p .. 'ready:' .. inbox, id)
    abandon(p, c, id, DROPPED, 'full')
  end
end

-- A dead letter keeps its inputs (and so their blobs). The agent announces it on `_dead/<function>`.
local function bury(p, c, id, f, r, reason, detail, attempts, inputs)
  call('HSET', p .. 'dead:' .. id, 'f', f, 'r', r, 'reason', reason, 'detail', detail, 'at', c.now, 'attempts', attempts, 'in', inputs)
  call('ZADD', p .. 'dead', c.now, id)
  call('SADD', p .. 'dead:new', id)
  count(c, 'dead_letters')
end

local function position_id(d, input)
  local id = d.f .. '|' .. owners.cause(d, input)
  if d.p then id = id .. '|' .. d.p end
  return redis.sha1hex(d.rp and id .. '|' .. d.rp or id)
end
