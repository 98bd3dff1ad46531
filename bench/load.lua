-- wrk's script: wrk … URL -- WORK TAG IDS. WORK names the requests, TAG makes keys unique, IDS is a file of order ids.

local work, tag, ids, count
local threads = {}
exhausted = 0

local JSON = { ["Content-Type"] = "application/json" }
local ORDER = '{"customer_id":"c-%d","currency":"EUR","items":[' ..
  '{"item_id":"sku-%d","quantity":2,"unit_price":1250},' ..
  '{"item_id":"sku-%d","quantity":1,"unit_price":990},{"item_id":"sku-%d","quantity":3,"unit_price":75}]}'

function setup(thread)
  table.insert(threads, thread)
end

local function order()
  local random = math.random
  return ORDER:format(random(10000), random(5000), random(5000), random(5000))
end

local works = {
  ["post-keyed"] = function()
    local headers = { ["Content-Type"] = "application/json", ["Idempotency-Key"] = tag .. count }
    return wrk.format("POST", "/orders", headers, order())
  end,
  ["post"] = function()
    return wrk.format("POST", "/orders", JSON, order())
  end,
  ["get"] = function()
    return wrk.format("GET", "/orders/" .. ids[math.random(#ids)])
  end,
  ["list"] = function()
    return wrk.format("GET", "/orders?limit=20")
  end,
  ["batch"] = function()
    local orders = {}
    for i = 1, 100 do orders[i] = order() end
    return wrk.format("POST", "/orders/batch", JSON, '{"orders":[' .. table.concat(orders, ",") .. "]}")
  end,
  ["confirm"] = function()
    if count > #ids then
      exhausted = 1
      wrk.thread:stop()
    end
    return wrk.format("POST", "/orders/" .. ids[math.min(count, #ids)] .. "/confirm")
  end,
}

function init(args)
  work, tag, ids, count = works[args[1]], args[2], {}, 0
  math.randomseed(tonumber(tag, 16) % 2147483647)
  if args[3] then
    for line in io.lines(args[3]) do table.insert(ids, line) end
  end
end

function request()
  count = count + 1
  return work()
end

function done(summary, latency, requests)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format(
    '{"requests":%d,"microseconds":%d,"refused":%d,"lost":%d,"exhausted":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, errors.status, lost, threads[1]:get("exhausted"),
    latency:percentile(50), latency:percentile(99)))
end
