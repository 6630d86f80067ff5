-- Entries of `ready` or `dates` (see index.lua) in their order. Returns where to go on (empty at the end), then entries;
-- fewer than were wanted, perhaps none, when that would take the server too long at a time.
-- KEYS: ready or dates
-- ARGV: where to begin, latest wake (only in `ready`; empty: any), how many, number of queues (0: any), queues, flows
local from, till, most, count = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local page, patience = 100, 1000
local queues, flows = {}, {}
for place = 5, #ARGV do
  (place < 5 + count and queues or flows)[ARGV[place]] = true
end
local any_queue, any_flow = next(queues) == nil, next(flows) == nil
local found = {}
while patience > 0 do
  local to, priority = '+', ''
  if till ~= '' then
    local head = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, 1)[1]
    if not head then
      return {'', found}
    end
    priority = string.sub(head, 1, 8)
    to = '(' .. priority .. till .. '\255'
  end
  local names = redis.call('ZRANGEBYLEX', KEYS[1], from, to, 'LIMIT', 0, page)
  for _, name in ipairs(names) do
    if (any_queue or queues[string.sub(name, -16, -9)]) and (any_flow or flows[string.sub(name, -8)]) then
      found[#found + 1] = name
      if #found == most then
        return {'(' .. name, found}
      end
    end
  end
  patience = patience - 10 - #names
  if #names == page then
    from = '(' .. names[page]
  elseif till == '' then
    return {'', found}
  else -- those of this priority that are left are later: on to the next one
    from = '(' .. priority .. '\255'
  end
end
return {from, found}
