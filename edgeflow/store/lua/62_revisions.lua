-- What is left for a revision that was rolled back. Invocation ids do not name the revision, so the same work under another one is the same work.

-- hand over: at most c.n invocations of c.f that are ready for revision c.r become ready for c.to, in their order, and so does from now on what is
-- delayed, claimed or waits for its turn, when its time comes. Without c.to they end as dead letters. Refused while c.r is what new events go to, and
-- when c.to is not. Returns how many are left, in whatever state.
redis.register_function('ef_hand_over', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  if not routes_are_current(p, c) then return redis.error_reply('STALEROUTES') end
  local inbox = c.f .. ':' .. c.r
  local current = string.match(call('HGET', p .. 'shapes', c.f) or '', '^[^:]*')
  if current == c.r or (c.to and current ~= c.to) then return -1 end
  if c.to then call('HSET', p .. 'moved', inbox, c.to) end
  local left = c.n
  for _, set in ipairs({'alone:', 'ready:'}) do
    local popped = left > 0 and call('ZPOPMIN', p .. set .. inbox, left) or {}
    left = left - #popped / 2
    for i = 1, #popped, 2 do
      local id = popped[i]
      if call('EXISTS', p .. 'inv:' .. id) == 1 then
        if not c.to then
          give_up(p, c, id, 'rolled-back', 'revision ' .. c.r .. ' was rolled back, and the one that serves takes other inputs')
        elseif set == 'alone:' then
          to_ready_alone(p, c, id, c.f, c.r)
        else
          to_ready(p, c, id, c.f, c.r)
        end
      end
    end
  end
  local pending_left = pending(p, c, inbox)
  finish_call(p, c, true)
  return pending_left
end)
