-- Strict check of a JSON body, in front of the gRPC-JSON transcoder, which drops unknown fields and takes loose JSON.
-- mesh/xds/edge/json_schema.py puts the tables PATHS and VERBS in front of this text and says what they mean.
-- It fails closed: a path that the tables do not know is refused, and so is a request on which this code fails.
local MAX_DEPTH, MAX_VALUES = 32, 20000   -- parsing costs the transcoder about 1 us a value
local byte, sub, find, match, lower = string.byte, string.sub, string.find, string.match, string.lower
-- " / \ b f n r t
local ESCAPES = { [34] = true, [47] = true, [92] = true, [98] = true, [102] = true, [110] = true, [114] = true, [116] = true }
local WORDS = { [110] = "null", [116] = "true", [102] = "false" }
local values = 0                          -- in the body at hand: nothing yields while it is checked

local function fail(what, position)
  error({ text = position and what .. " at byte " .. position .. "." or what .. "." }, 0)
end

-- The first position from i on that is not white space, and its byte (nil at the end).
local function skip(s, i)
  local b = byte(s, i)
  while b == 32 or b == 10 or b == 13 or b == 9 do i = i + 1; b = byte(s, i) end
  return i, b
end

-- i: behind the opening quote. The position behind the closing one, and whether there was an escape.
local function string_end(s, i)
  local b, escaped = byte(s, i), false
  while b ~= 34 do
    if b == nil or b < 32 then fail("A string is malformed", i) end
    if b == 92 then
      escaped = true
      i = i + 1
      b = byte(s, i)
      if b == 117 then                    -- NUL is text to nobody, and an error to PostgreSQL
        local hex = match(s, "^%x%x%x%x", i + 1)
        if not hex or hex == "0000" then fail("An escape is not allowed", i) end
        i = i + 4
      elseif not (b and ESCAPES[b]) then fail("An escape is not allowed", i) end
    end
    i = i + 1
    b = byte(s, i)
  end
  return i + 1, escaped
end

local function digits_end(s, i)
  local from, b = i, byte(s, i)
  while b and b >= 48 and b <= 57 do i = i + 1; b = byte(s, i) end
  if i == from then fail("A number is malformed", i) end
  return i, b
end

local function number_end(s, i, b)
  if b == 45 then i = i + 1 end
  local zero, from = byte(s, i) == 48, i
  i, b = digits_end(s, i)
  if zero and i > from + 1 then fail("A number is malformed", i) end
  if b == 46 then i, b = digits_end(s, i + 1) end
  if b == 101 or b == 69 then
    b = byte(s, i + 1)
    i = digits_end(s, (b == 43 or b == 45) and i + 2 or i + 1)
  end
  return i
end

local value_end

-- i: behind the opening brace.
local function object_end(s, i, spec, depth)
  local seen, b = {}, nil
  i, b = skip(s, i)
  if b == 125 then return i + 1 end
  while true do
    if b ~= 34 then fail("A key in double quotes is missing", i) end
    local start = i + 1
    i = string_end(s, start)
    local key = sub(s, start, i - 2)
    local child, id = spec.map, key
    if not child then
      local field = spec.fields[key]
      if not field then fail('Unknown field "' .. sub(key, 1, 64) .. '"') end
      child, id = field[1], field[2]
    end
    if seen[id] then fail('The field "' .. sub(key, 1, 64) .. '" is set twice') end
    seen[id] = true
    i, b = skip(s, i)
    if b ~= 58 then fail("A colon is missing", i) end
    i, b = skip(s, value_end(s, i + 1, child, depth))
    if b == 125 then return i + 1 end
    if b ~= 44 then fail("A comma is missing", i) end
    i, b = skip(s, i + 1)
  end
end

-- i: behind the opening bracket.
local function list_end(s, i, spec, depth)
  local b
  i, b = skip(s, i)
  if b == 93 then return i + 1 end
  while true do
    i, b = skip(s, value_end(s, i, spec, depth))
    if b == 93 then return i + 1 end
    if b ~= 44 then fail("A comma is missing", i) end
    i = i + 1
  end
end

function value_end(s, i, spec, depth)
  local b
  i, b = skip(s, i)
  values = values + 1
  if values > MAX_VALUES then fail("The JSON body has too many values") end
  if depth >= MAX_DEPTH then fail("The JSON body is nested too deeply") end
  if b == 123 then
    if not (spec.fields or spec.map) then fail("An object is not expected", i) end
    return object_end(s, i + 1, spec, depth + 1)
  elseif b == 91 then
    if not spec.list then fail("A list is not expected", i) end
    return list_end(s, i + 1, spec.list, depth + 1)
  end
  if b ~= 110 and not spec.single then fail("A single value is not expected", i) end
  if b == 34 then return (string_end(s, i + 1)) end
  if b == 45 or (b and b >= 48 and b <= 57) then return number_end(s, i, b) end
  local word = WORDS[b]
  if not word or sub(s, i, i + #word - 1) ~= word then fail("The JSON body is malformed", i) end
  return i + #word
end

local function check(s, spec)
  values = 0
  local i, rest = skip(s, value_end(s, 1, spec, 0))
  if rest then fail("There is text after the JSON body", i) end
end

-- The transcoder's own rule: a literal segment before *, that before **.
local function walk(node, path, position, key)
  if not position then return node.m and node.m[key] end
  local slash = find(path, "/", position, true)
  local segment, after = sub(path, position, slash and slash - 1 or -1), slash and slash + 1 or nil
  local child = node.l and node.l[segment]
  local hit = child and walk(child, path, after, key)
  if hit then return hit end
  hit = node.w and walk(node.w, path, after, key)
  if hit then return hit end
  return node.ww and node.ww.m and node.ww.m[key]
end

local function rule_of(method, target)
  local path = match(target, "^[^?]*")
  if byte(path, -1) == 47 then path = sub(path, 1, -2) end   -- as the transcoder does
  local stem, verb = match(path, "^(.*):([^:/]*)$")
  if verb and VERBS[verb] then return walk(PATHS, stem, 2, method .. ":" .. verb) end
  return walk(PATHS, path, 2, method)
end

local function refuse(handle, status, text)
  handle:respond({ [":status"] = status }, text)
end

local function judge(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type")
  -- Exactly what the transcoder passes by: a looser test, as of "application/grpcx", would let JSON round this check.
  if kind == "application/grpc" or (kind and sub(kind, 1, 17) == "application/grpc+") then return end
  local method, target = headers:get(":method"), headers:get(":path")   -- `headers` is dead once body() has yielded
  local body = handle:body()                                            -- whole: the buffer filter is in front
  local size = body and body:length() or 0
  if size == 0 then return end
  local rule = rule_of(method, target)
  if not rule then return refuse(handle, "404", "") end
  if rule.raw then return end
  if not rule.spec then return refuse(handle, "400", "This method takes no body.") end
  if not kind or match(lower(kind), "^%s*([^;%s]*)") ~= "application/json" then return refuse(handle, "415", "") end
  check(body:getBytes(0, size), rule.spec)
end

function envoy_on_request(handle)                                       -- Envoy goes on after an error in Lua
  local good, why = pcall(judge, handle)
  if good then return end
  if type(why) == "table" then return refuse(handle, "400", why.text) end
  handle:logErr("json check: " .. tostring(why))
  refuse(handle, "500", "")
end
