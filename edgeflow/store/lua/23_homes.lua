-- Homes: which PoP decides the writes under a prefix. `homes`: prefix -> "<term>:<pop>"; an empty PoP says that every PoP takes its writes.
-- A term only rises here, so that a home which has been handed over does not come back by an older document.

local function parse_home(text)
  local colon = string.find(text, ':', 1, true)
  return tonumber(string.sub(text, 1, colon - 1)), string.sub(text, colon + 1)
end

-- The rule of the longest prefix that says something about the home of `key`: its PoP and term; nil when there is none.
local function home_of(p, c, key)
  if not c.homes_here then
    c.homes_here = {}
    local all = call('HGETALL', p .. 'homes')
    for i = 1, #all, 2 do c.homes_here[#c.homes_here + 1] = {all[i], all[i + 1]} end
  end
  local longest, found = -1, nil
  for _, rule in ipairs(c.homes_here) do
    if #rule[1] > longest and string.sub(key, 1, #rule[1]) == rule[1] then longest, found = #rule[1], rule[2] end
  end
  if not found then return nil end
  local term, pop = parse_home(found)
  if pop == '' then return nil end
  return pop, term
end

-- Why a value must not be written here, nil when it may. `c.home` is the term in which the caller takes this PoP for the home of all it writes.
-- Keys of edgeflow itself have no home.
local function not_home(p, c, key)
  if string.sub(key, 1, 1) == '_' then return nil end
  local pop, term = home_of(p, c, key)
  if c.home and (pop ~= c.pop or term ~= c.home) then return 'STALEHOME ' .. (pop or '-') .. ' ' .. key end
  if pop and pop ~= c.pop then return 'HOMEELSEWHERE ' .. pop .. ' ' .. key end
end

-- homes: rules = list of {prefix, term, pop}. `whole`: they are the whole document, and rules it does not name go, unless they are of a later term
-- than `term`, the document's own. Of two homes in the same term the document's holds. Returns {epoch, seq, {{prefix, term, pop}, ...}}: how far
-- this PoP's log was when that held, and what holds.
redis.register_function('ef_homes', function(keys, args)
  local p, c = start_call(keys, args)
  if not own_epoch(p, c) then return redis.error_reply('NOEPOCH') end
  local named = {}
  for _, rule in ipairs(c.rules) do
    local prefix, term, pop = rule[1], rule[2], rule[3]
    named[prefix] = true
    local have = call('HGET', p .. 'homes', prefix)
    local have_term = have and parse_home(have) or -1
    if term > have_term or (c.whole and term == have_term) then
      call('HSET', p .. 'homes', prefix, string.format('%d:%s', term, pop))
    end
  end
  local all, held = call('HGETALL', p .. 'homes'), {}
  for i = 1, #all, 2 do
    local term, pop = parse_home(all[i + 1])
    if c.whole and not named[all[i]] and term <= c.term then
      call('HDEL', p .. 'homes', all[i])
    else
      held[#held + 1] = {all[i], term, pop}
    end
  end
  local head = tonumber(call('HGET', p .. 'heads', c.pop .. ':' .. c.epoch_here)) or 0
  return cmsgpack.pack({c.epoch_here, head, held})
end)
