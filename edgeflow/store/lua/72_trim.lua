-- trim: forgets log entries and released events, a bounded piece per call. Those past retention that nobody needs (c.logs: lane -> highest seq), and, when the logs are too
-- large by c.over bytes, the oldest ones although a peer has not got them: it will get a snapshot. Of those nothing beyond c.applied goes: what is not
-- merged here could not be told any other way. Returns {entries that went, those of them that some peer still needed, 1 when there is more to do}.

local TRIM = 500

local function drop_entry(p, c, key, item, entry)
  for _, event in ipairs(entry.ev) do drop_blob(p, event[EV_DIGEST], c.now) end
  for _, value in ipairs(entry.va) do drop_blob(p, value[VA_DIGEST], c.now) end
  call('XDEL', key, item[1])
end

local function log_of(p, name)
  local origin, epoch = string.match(name, '^(.*):(%d+)$')
  return log_key(p, origin, epoch)
end

redis.register_function('ef_trim', function(keys, args)
  local p, c = start_call(keys, args)
  local left, gone, forced, over = TRIM, 0, 0, c.over
  for name, upto in pairs(c.logs) do
    local key = log_of(p, name)
    for _, item in ipairs(left > 0 and call('XRANGE', key, '-', string.format('%d-0', upto), 'COUNT', left) or {}) do
      local entry = cmsgpack.unpack(item[2][2])
      if entry.t > c.keep_from then break end
      drop_entry(p, c, key, item, entry)
      left, gone, over = left - 1, gone + 1, over - #item[2][2]
    end
  end
  local released = TRIM
  for _, item in ipairs(call('XRANGE', p .. 'release', '-', '+', 'COUNT', TRIM)) do
    local at
    for i = 1, #item[2], 2 do if item[2][i] == 't' then at = tonumber(item[2][i + 1]) end end
    if at and at > c.keep_from then break end
    note_removed(p, item[2])
    call('XDEL', p .. 'release', item[1])
    released = released - 1
  end
  while over > 0 and left > 0 do
    local oldest, oldest_key, oldest_entry, oldest_name
    for name, applied in pairs(c.applied) do
      local key = log_of(p, name)
      local item = call('XRANGE', key, '-', string.format('%d-0', applied), 'COUNT', 1)[1]
      if item then
        local entry = cmsgpack.unpack(item[2][2])
        if not oldest or entry.t < oldest_entry.t then oldest, oldest_key, oldest_entry, oldest_name = item, key, entry, name end
      end
    end
    if not oldest then break end
    if tonumber(string.match(oldest[1], '^%d+')) > (c.logs[oldest_name] or 0) then forced = forced + 1 end
    drop_entry(p, c, oldest_key, oldest, oldest_entry)
    left, gone, over = left - 1, gone + 1, over - #oldest[2][2]
  end
  count(c, 'log_entries_forced_out', forced)
  finish_call(p, c, false)
  return {gone, forced, (left <= 0 or released <= 0) and 1 or 0}
end)
