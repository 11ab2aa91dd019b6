// A source of endpoints in TypeScript. Each line of its input is a report: the lease in seconds, then the instances of
// "store" that it has. It answers with the gRPC status and the seconds that the report holds. Plain HTTP/2: no gRPC
// library is needed beside the generated messages.
import { connect } from "node:http2";
import { createConnection } from "node:net";
import { createInterface } from "node:readline";

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  RegistryService,
  type ReportEndpointsRequest,
  ReportEndpointsRequestSchema,
  ReportEndpointsResponseSchema,
} from "../../../../gen/ts/nourish/mesh/v1/registry_pb.js";

const PREFIX_BYTES = 5; // of a gRPC message: a flag, and its length

const session = connect("http://control", { createConnection: () => createConnection(process.argv[2]!) });

async function report(request: ReportEndpointsRequest): Promise<[string, bigint]> {
  const stream = session.request({
    ":method": "POST",
    ":path": `/${RegistryService.typeName}/ReportEndpoints`,
    "content-type": "application/grpc",
    te: "trailers",
  });
  let status = "";
  const note = (headers: Record<string, unknown>) => (status = String(headers["grpc-status"] ?? status));
  stream.on("response", note);
  stream.on("trailers", note);
  const message = toBinary(ReportEndpointsRequestSchema, request);
  const prefix = Buffer.alloc(PREFIX_BYTES);
  prefix.writeUInt32BE(message.length, 1);
  stream.end(Buffer.concat([prefix, message]));
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part);
  const body = Buffer.concat(parts).subarray(PREFIX_BYTES);
  return [status, fromBinary(ReportEndpointsResponseSchema, body).lease?.seconds ?? 0n];
}

for await (const line of createInterface({ input: process.stdin })) {
  const [seconds, ...instances] = line.split(" ");
  const place = { service: "store", subset: "stable", address: "10.0.0.1", port: 15006 };
  const request = create(ReportEndpointsRequestSchema, {
    source: "worker",
    lease: { seconds: BigInt(seconds!) },
    endpoints: instances.map((instance) => ({ ...place, instance })),
  });
  console.log(...(await report(request)).map(String));
}
session.close();
