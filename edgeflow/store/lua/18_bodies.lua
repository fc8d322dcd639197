-- Where bodies stay, and which of them are only cached here.
--
-- `lazy`: digests that so far nothing refers to at this PoP but values whose bodies are kept elsewhere. Such a body holds no gate and is not
-- missing; once it is here (somebody read it) it is in `cached`, by last use, and may go again when `cached:bytes` is above the budget. What
-- anything else has ever referred to (an event, an own write, a value that is kept here) stays until nothing refers to it.
-- c.places: list of {prefix, 1 (kept here) | 0}, longest prefix first; absent: everything is kept here.

local function stays_here(p, c, origin, key)
  if origin == c.pop then return true end
  for _, place in ipairs(c.places or {}) do
    if string.sub(key, 1, #place[1]) == place[1] then return place[2] == 1 end
  end
  return true
end

local function uncache(p, digest)
  if call('ZREM', p .. 'cached', digest) == 1 then
    call('DECRBY', p .. 'cached:bytes', call('HGET', p .. 'blobs', digest) or 0)
  end
end

-- Said of each reference before it is counted.
local function place_body(p, digest, stays)
  if digest == '' then return end
  if not stays then
    if call('HEXISTS', p .. 'refs', digest) == 0 and call('HEXISTS', p .. 'blobs', digest) == 0 then call('SADD', p .. 'lazy', digest) end
  elseif call('SREM', p .. 'lazy', digest) == 1 then
    uncache(p, digest)
  end
end

-- Takes a body out of what is readable here; returns true when its file is to be removed.
local function forget_body(p, digest)
  uncache(p, digest)
  call('HDEL', p .. 'blobs', digest)
  return call('DEL', p .. 'blob:' .. digest) == 0
end

-- A body that is readable now: is it a cached copy? Makes room for it; returns digests of the files that went.
local function cache_body(p, c, digest, size)
  local unlink = {}
  if call('SISMEMBER', p .. 'lazy', digest) == 0 then return unlink end
  call('ZADD', p .. 'cached', c.now, digest)
  local bytes = call('INCRBY', p .. 'cached:bytes', size)
  for _, old in ipairs(bytes > c.cache_bytes and call('ZRANGE', p .. 'cached', 0, 199) or {}) do
    if bytes <= c.cache_bytes then break end
    if old ~= digest then
      local freed = tonumber(call('HGET', p .. 'blobs', old)) or 0
      if forget_body(p, old) then unlink[#unlink + 1] = old end
      count(c, 'cache_evicted_bytes', freed)
      bytes = bytes - freed
    end
  end
  return unlink
end

-- blob_lost: a body turned out to be damaged. It is missing from now on if something refers to it.
redis.register_function('ef_blob_lost', function(keys, args)
  local p, c = start_call(keys, args)
  local was = call('HEXISTS', p .. 'blobs', c.digest)
  forget_body(p, c.digest)
  if was == 1 then count(c, 'bodies_damaged') end
  if call('HEXISTS', p .. 'refs', c.digest) == 1 and call('SISMEMBER', p .. 'lazy', c.digest) == 0 then call('SADD', p .. 'missing', c.digest) end
  finish_call(p, c, true)
  return was
end)

-- cache: what was read of cached bodies since the last call: c.used {digest, ms, ...}, c.hits, c.misses.
redis.register_function('ef_cache', function(keys, args)
  local p, c = start_call(keys, args)
  for i = 1, #c.used, 2 do call('ZADD', p .. 'cached', 'XX', c.used[i + 1], c.used[i]) end
  count(c, 'cache_hits', c.hits)
  count(c, 'cache_misses', c.misses)
  finish_call(p, c, false)
  return call('GET', p .. 'cached:bytes') or '0'
end)

-- keep_bodies: bodies that are kept here from now on: a policy changed, or this PoP says that it has them. Those that are not here are missing, and
-- returned. Nothing is written where nothing changes.
redis.register_function('ef_keep_bodies', function(keys, args)
  local p, c = start_call(keys, args)
  local absent, changed = {}, false
  for _, digest in ipairs(c.digests) do
    if call('HEXISTS', p .. 'refs', digest) == 1 then
      place_body(p, digest, true)
      if call('HEXISTS', p .. 'blobs', digest) == 0 then
        absent[#absent + 1] = digest
        if call('SADD', p .. 'missing', digest) == 1 then changed = true end
      end
    end
  end
  finish_call(p, c, changed)
  return absent
end)
