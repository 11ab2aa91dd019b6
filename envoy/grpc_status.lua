-- Every gRPC error leaves the edge with google.rpc.Status details, and none with the words of an engine.
-- An error that brings details is an application's own and passes. Any other came from a proxy or a library: it gets the
-- message of its code, ErrorInfo and RequestInfo. The transcoder, which runs after this, prints the result as JSON.
-- mesh/xds/edge/errors.py puts the tables HTTP and GRPC in front of this text: {code, reason, message} by status.
local char, floor, sub = string.char, math.floor, string.sub

-- The wire format of protobuf, https://protobuf.dev/programming-guides/encoding/
local function varint(n)
  local out = ""
  while n >= 128 do out = out .. char(n % 128 + 128); n = floor(n / 128) end
  return out .. char(n)
end

local function field(number, text) return char(number * 8 + 2) .. varint(#text) .. text end

local function detail(name, value)
  return field(3, field(1, "type.googleapis.com/google.rpc." .. name) .. field(2, value))
end

-- google.rpc.Status: code = 1, message = 2, details = 3. ErrorInfo: reason = 1, domain = 2. RequestInfo: request_id = 1.
local function status_of(code, reason, message, request_id)
  local status = char(8) .. varint(code) .. field(2, message)
    .. detail("ErrorInfo", field(1, reason) .. field(2, "nourish.local"))
  return request_id and status .. detail("RequestInfo", field(1, request_id)) or status
end

local function word(handle, where, entry)
  local metadata = handle:streamInfo():dynamicMetadata():get("nourish.edge")
  local status = status_of(entry[1], entry[2], entry[3], metadata and metadata.id)
  where:replace("grpc-status", tostring(entry[1]))
  where:replace("grpc-message", entry[3])
  where:add("grpc-status-details-bin", handle:base64Escape(status))
end

local function mend(handle, where)
  local said = where:get("grpc-status")
  if not said or said == "0" or where:get("grpc-status-details-bin") then return end
  word(handle, where, GRPC[tonumber(said)] or GRPC[2])
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local own = headers:get("x-nourish-status")
  if own then                                         -- the edge's own reply to gRPC (or to gRPC-Web: plain HTTP still)
    headers:remove("x-nourish-status")
    headers:replace(":status", "200")
    headers:replace("content-type", "application/grpc")
    return word(handle, headers, HTTP[tonumber(own)] or HTTP[500])
  end
  local kind = headers:get("content-type")
  if not kind or sub(kind, 1, 16) ~= "application/grpc" then return end
  if headers:get("grpc-status") then return mend(handle, headers) end   -- trailers only
  local trailers = handle:trailers()                                    -- data flows on meanwhile
  if trailers then mend(handle, trailers) end
end
