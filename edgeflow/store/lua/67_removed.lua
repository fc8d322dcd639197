-- What retention took out of the release stream: per lane ("origin:epoch:channel") the highest seq. A consumer that comes back after a long time is
-- told from it what it missed, channel by channel, and nothing else.
local function note_removed(p, fields)
  local at = {}
  for i = 1, #fields, 2 do at[fields[i]] = fields[i + 1] end
  local channel, seq
  if at.g then
    local gap = cmsgpack.unpack(at.g)
    channel, seq = gap[1], gap[3]
  else
    channel, seq = cmsgpack.unpack(at.e)[EV_CHANNEL], tonumber(at.s)
  end
  local lane = at.o .. ':' .. string.format('%d', at.h) .. ':' .. channel
  if seq > (tonumber(call('HGET', p .. 'removed', lane)) or 0) then
    call('HSET', p .. 'removed', lane, string.format('%d', seq))
  end
end
