-- The log, the release stream and the gate.

local function log_key(p, origin, epoch)
  return p .. 'log:' .. origin .. ':' .. epoch
end

local function release_gap(p, c, origin, epoch, channel, from, to, why)
  call('XADD', p .. 'release', next_number(p, c, 'release:n') .. '-0',
    'o', origin, 'h', epoch, 't', c.now, 'g', cmsgpack.pack({channel, from, to, why}))
  count(c, 'gaps')
end

-- `own`: appended here in this call, so that nothing of its lane can be missing in front of it. `cause`: what names them wherever they came from.
local function release_events(p, c, origin, epoch, seq, events, directives, via, own, cause)
  for i = 1, #events do
    local event = events[i]
    local channel = event[EV_CHANNEL]
    if not own then
      local lane = origin .. ':' .. epoch .. ':' .. channel
      local seen = tonumber(call('HGET', p .. 'seen', lane)) or 0
      -- A tail of this PoP's own log that a peer gives back goes on where the part that was kept ended.
      if origin == c.pop then seen = math.max(seen, c.prevs[epoch .. ':' .. channel] or tonumber(call('HGET', p .. 'prev', epoch .. ':' .. channel)) or 0) end
      if event[EV_PREV] > seen then release_gap(p, c, origin, epoch, channel, seen, event[EV_PREV], 'lost') end
      call('HSET', p .. 'seen', lane, seq)
    end
    call('XADD', p .. 'release', next_number(p, c, 'release:n') .. '-0',
      'o', origin, 'h', string.format('%d', epoch), 's', string.format('%d', seq), 'i', string.format('%d', i - 1), 'v', via, 't', string.format('%d', c.now), 'e', cmsgpack.pack(event))
    if via ~= 'repeated' then c.channels[channel] = (c.channels[channel] or 0) + 1 end
    local routed = directives and directives[i] or {}
    for j = 1, #routed do
      arrive(p, c, routed[j], {routed[j].s, origin, epoch, seq, i - 1, event, cause and cause .. '|' .. string.format('%d', i - 1) or nil})
    end
  end
end

-- What somebody waits for: how an invocation ended, and the entry that has its outputs.
local function note_results(p, c, origin, epoch, seq, entry)
  for _, ended in ipairs(entry.x or {}) do
    if ended[5] == 1 then
      call('HSET', p .. 'results', ended[1], cmsgpack.pack({ended[2], ended[4], origin, epoch, seq}))
      call('ZADD', p .. 'results:at', c.now, ended[1])
    end
  end
end

-- What clients named themselves: `ids` keeps per name {status, epoch, seq, version, 0, origin}, the first event of that name that was released here
-- (seq 0: one that waits in front of this PoP's log).
local function note_id(p, c, id, origin, epoch, seq, version)
  call('HSET', p .. 'ids', id, cmsgpack.pack({'again', epoch, seq, version, 0, origin}))
  call('ZADD', p .. 'ids:at', c.now, id)
end

-- Whether another event of that name was released here before.
local function is_repeated(p, c, id, origin, epoch, seq)
  local packed = call('HGET', p .. 'ids', id)
  if not packed then return false end
  local known = cmsgpack.unpack(packed)
  return known[3] > 0 and not ((known[6] or c.pop) == origin and known[2] == epoch and known[3] == seq)
end

-- Opens the gate for one entry: values first, then its events, so that who is told can read. A publish that a client repeated at another PoP is two
-- entries: which of them was here first is this PoP's event, the other one keeps its place in the release stream (cursors name it) and is shown to nobody.
local drain_waiting, release_values
local function release_entry(p, c, origin, epoch, seq, entry, directives, via, own)
  c.entry_t = entry.t
  if entry.id and not own then
    if is_repeated(p, c, entry.id, origin, epoch, seq) then
      directives, via = nil, 'repeated'
      count(c, 'events_repeated')
    else
      note_id(p, c, entry.id, origin, epoch, seq, entry.va[1] and entry.va[1][VA_VERSION] or '')
    end
  end
  if #entry.va > 0 or entry.inc or entry.ty then release_values(p, c, origin, epoch, seq, entry, own) end
  local cause = entry.id and 'named|' .. entry.id
  if entry.sh then
    if #entry.ev > 0 then cause = entry.sh[1][1] end
    if owners.settle(p, c, origin, epoch, seq, entry.sh, own) then
      directives, via = nil, 'repeated'
      count(c, 'events_superseded', #entry.ev)
    end
  end
  if via ~= 'repeated' then note_results(p, c, origin, epoch, seq, entry) end
  release_events(p, c, origin, epoch, seq, entry.ev, directives, via, own, cause)
  for i = 1, #entry.va do drain_waiting(p, c, entry.va[i][VA_KEY]) end
end

-- The bodies that have to be readable here before an entry is released.
local function needed_digests(p, c, origin, entry)
  local digests, known = {}, {}
  for _, event in ipairs(entry.ev) do
    local digest = event[EV_DIGEST]
    if digest ~= '' and not known[digest] then known[digest] = true; digests[#digests + 1] = digest end
  end
  for _, value in ipairs(entry.va) do
    local digest = stays_here(p, c, origin, value[VA_KEY]) and value[VA_DIGEST] or ''
    if digest ~= '' and not known[digest] then known[digest] = true; digests[#digests + 1] = digest end
  end
  return digests
end

local function store_entry(p, c, origin, epoch, seq, packed, entry)
  call('XADD', log_key(p, origin, epoch), string.format('%d-0', seq), 'e', packed)
  for i = 1, #entry.ev do
    place_body(p, entry.ev[i][EV_DIGEST], true)
    hold_blob(p, entry.ev[i][EV_DIGEST])
  end
  for i = 1, #entry.va do
    local value = entry.va[i]
    place_body(p, value[VA_DIGEST], stays_here(p, c, origin, value[VA_KEY]))
    hold_blob(p, value[VA_DIGEST])
  end
end

-- Appends one entry to this PoP's own log and releases it here. All its data is readable: the caller made sure.
-- ended: list of ends; events without prev, values and fields of maps without version: both are set here. Returns epoch, seq, the last version, and the number of the
-- first of its events in the release stream (the others follow it without a gap).
append = function(p, c, kind, ended, events, values, directives, via, increments, typed, id, shared)
  local epoch = own_epoch(p, c)
  local seq = (c.head_here or tonumber(call('HGET', p .. 'heads', c.pop .. ':' .. epoch)) or 0) + 1
  c.head_here = seq
  local version = ''
  local written = #values > 0 and {}
  for i = 1, #values do
    local value = values[i]
    local key = value[VA_KEY]
    version = next_version(p, c)
    value[VA_VERSION] = version
    -- The caller may have looked already.
    if written[key] then value[VA_BASE] = written[key] elseif value[VA_BASE] == '' then value[VA_BASE] = call('HGET', p .. 'value:' .. key, 'version') or '' end
    written[key] = version
  end
  if typed then
    for _, item in ipairs(typed) do
      if item[1] == 'm' then
        if item[4] ~= '' then version = next_version(p, c); item[4] = version end
        for _, field in ipairs(item[3]) do version = next_version(p, c); field[2] = version end
      end
    end
  end
  for i = 1, #events do
    local lane = epoch .. ':' .. events[i][EV_CHANNEL]
    events[i][EV_PREV] = c.prevs[lane] or tonumber(call('HGET', p .. 'prev', lane)) or 0
    c.prevs[lane] = seq
  end
  local entry = {v = 1, k = kind, t = c.now, x = ended, ev = events, va = values, inc = increments, ty = typed, id = id, sh = shared}
  store_entry(p, c, c.pop, epoch, seq, cmsgpack.pack(entry), entry)
  local released = c.numbers and c.numbers['release:n'] or tonumber(call('GET', p .. 'release:n')) or 0
  release_entry(p, c, c.pop, epoch, seq, entry, directives, via, true)
  return epoch, seq, version, released + 1
end
