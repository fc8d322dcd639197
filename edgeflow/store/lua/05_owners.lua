-- Functions at several PoPs, each event handled once (`d.ow`: the PoPs where the function is placed, in the order of this event or key, made by
-- core/ownership.py). The first of them that is not out is the owner: it does the work. The others keep the arrival as standby, until an entry of
-- some log says what became of it. 66_owners.lua has the rest.
--
-- out             PoPs that are not given work now: lost, as this PoP sees it, or draining
-- standby         arrival -> packed {directive, input, time of its entry};  standby:order  arrivals by the order in which they came
-- settled         arrivals that are over and have not come yet, by time: logs have no order among each other
-- outcomes        invocation -> packed {where it ended, status, stamp}: the one that counts;  outcomes:at  by time
-- mine            invocations that this PoP has to do, by order;  mine:joins  open joins
-- sweep           how far the work has been distributed anew after `out` changed; while it is there, what comes waits behind what is moved
--
-- entry.sh = {row...}, beside entry.x: what was over with this entry.  row = {invocation ("" = none), function, status, stamp, {arrival...}, join, occurrence}

local owners = {}

function owners.is_out(p, c, pop)
  if not c.out_here then
    c.out_here = {}
    for _, name in ipairs(call('SMEMBERS', p .. 'out')) do c.out_here[name] = true end
  end
  return c.out_here[pop] == true
end

-- Without anybody else the first keeps its work, so that it is somebody's.
function owners.owner(p, c, ranked)
  for _, pop in ipairs(ranked) do
    if not owners.is_out(p, c, pop) then return pop end
  end
  return ranked[1]
end

function owners.is_mine(p, c, ranked)
  return owners.owner(p, c, ranked) == c.pop
end

function owners.is_sweeping(p, c)
  if c.sweeping == nil then c.sweeping = call('EXISTS', p .. 'sweep') == 1 end
  return c.sweeping
end

-- Names an event as the cause of work. An output of a function at several PoPs is the same event whichever of them put it out, and so is one that a client
-- published at two PoPs under one name (input[7]). Who called a function by name waits for what its receipt names.
function owners.cause(d, input)
  if d.ow and not d.y and input[7] then return input[7] end
  return input[2] .. '|' .. string.format('%d|%d|%d', input[3], input[4], input[5])
end

-- Names one arrival: that of a single event is its invocation.
function owners.arrival(d, input)
  if d.k == 'one' then return redis.sha1hex(d.f .. '|' .. owners.cause(d, input)) end
  return string.sub(redis.sha1hex(d.f .. '|' .. owners.cause(d, input) .. '|' .. input[1]), 1, 16)
end

-- Something arrived and is over without an invocation (a repetition, a join that gave up): the others need not keep it any more.
function owners.over(p, c, d, inputs)
  if not d.ow then return end
  local arrivals = {}
  for i, input in ipairs(inputs) do arrivals[i] = owners.arrival(d, input) end
  c.shared = c.shared or {}
  c.shared[#c.shared + 1] = {'', d.f, 'over', '', arrivals, '', 0}
end
