// What grpc-js and connect-node get: `node rpcs.mjs PORT DESCRIPTORS`, in a directory with their packages.
//
// DESCRIPTORS is a FileDescriptorSet of the services. Prints a line of JSON for each call: its name, its code and value.

import fs from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import grpc from "@grpc/grpc-js";
import { loadFileDescriptorSetFromBuffer } from "@grpc/proto-loader";

const [port, file] = process.argv.slice(2);
const descriptors = fs.readFileSync(file);
const LARGE = 1_000_000;
const FOR_DAYS = 10 ** 12;

function tell(name, code, value) {
  console.log(JSON.stringify([name, code, value]));
}

// A tensor as each client wants its fields: float_val or floatVal.
function numbers(count, name, make) {
  return make(name, "x", { dtype: 1, shape: [count, 1], floats: Array.from({ length: count }, (_, i) => i) });
}

// grpc-js: callbacks, streams, and deadlines of its own.
const loaded = grpc.loadPackageDefinition(loadFileDescriptorSetFromBuffer(descriptors, { keepCase: true, longs: Number }));
const channel = grpc.credentials.createInsecure();
const unlimited = { "grpc.max_receive_message_length": -1 };
const predictions = new loaded.tensorflow.serving.PredictionService(`127.0.0.1:${port}`, channel, unlimited);
const health = new loaded.grpc.health.v1.Health(`127.0.0.1:${port}`, channel);

function tensor(name, input, { dtype, shape, floats, ints }) {
  const dims = shape.map((size) => ({ size }));
  const found = { dtype, tensor_shape: { dim: dims }, float_val: floats, int64_val: ints };
  // From a descriptor, the loader makes a list of entries of a map.
  return { model_spec: { name }, inputs: [{ key: input, value: found }] };
}

function call(client, method, request, options = {}) {
  return new Promise((resolve) => {
    const metadata = new grpc.Metadata();
    const under = client[method](request, metadata, options, (error, answer) => resolve([error?.code ?? 0, answer]));
    if (options.cancel) setTimeout(() => under.cancel(), 200);
  });
}

for (const count of [2, LARGE]) {
  const [code, answer] = await call(predictions, "Predict", numbers(count, "half_plus_two", tensor));
  tell(`grpc-js ${count}`, code, answer?.outputs[0].value.float_val.at(-1));
}
const endless = tensor("endless", "steps", { dtype: 9, shape: [1], ints: [FOR_DAYS] });
tell("grpc-js deadline", (await call(predictions, "Predict", endless, { deadline: Date.now() + 500 }))[0], null);
tell("grpc-js cancel", (await call(predictions, "Predict", endless, { cancel: true }))[0], null);
tell("grpc-js error", (await call(predictions, "Predict", numbers(1, "none", tensor)))[0], null);
const many = Array.from({ length: 50 }, () => call(predictions, "Predict", numbers(2, "half_plus_two", tensor)));
tell("grpc-js many", 0, (await Promise.all(many)).filter(([code]) => code === 0).length);
const watch = health.Watch({ service: "" });
watch.on("error", () => {});
tell("grpc-js watch", 0, await new Promise((resolve) => watch.on("data", (answer) => resolve(answer.status))));
watch.cancel();
predictions.close();
health.close();

// connect-node: gRPC over HTTP/2, and gRPC-Web over both versions.
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors));
const service = registry.getService("tensorflow.serving.PredictionService");
const watched = registry.getService("grpc.health.v1.Health");

function message(name, input, { dtype, shape, floats, ints }) {
  const dims = shape.map((size) => ({ size: BigInt(size) }));
  const found = { dtype, tensorShape: { dim: dims }, floatVal: floats ?? [], int64Val: (ints ?? []).map(BigInt) };
  return { modelSpec: { name }, inputs: { [input]: found } };
}

async function connectCall(client, request, options) {
  try {
    return [0, await client.predict(request, options)];
  } catch (error) {
    return [error.code, null];
  }
}

const at = { baseUrl: `http://127.0.0.1:${port}` };
const transports = {
  "connect gRPC": createGrpcTransport({ ...at, httpVersion: "2" }),
  "connect gRPC-Web over HTTP/1.1": createGrpcWebTransport({ ...at, httpVersion: "1.1" }),
  "connect gRPC-Web over HTTP/2": createGrpcWebTransport({ ...at, httpVersion: "2" }),
};
for (const [name, transport] of Object.entries(transports)) {
  const client = createClient(service, transport);
  for (const count of [2, LARGE]) {
    const [code, answer] = await connectCall(client, numbers(count, "half_plus_two", message));
    tell(`${name} ${count}`, code, answer?.outputs.y.floatVal.at(-1));
  }
  const days = message("endless", "steps", { dtype: 9, shape: [1], ints: [FOR_DAYS] });
  tell(`${name} deadline`, (await connectCall(client, days, { timeoutMs: 500 }))[0], null);
  tell(`${name} cancel`, (await connectCall(client, days, { signal: AbortSignal.timeout(200) }))[0], null);
  tell(`${name} error`, (await connectCall(client, numbers(1, "none", message)))[0], null);
  const stop = new AbortController();
  for await (const answer of createClient(watched, transport).watch({}, { signal: stop.signal })) {
    tell(`${name} watch`, 0, answer.status);
    break;
  }
  stop.abort();
}
process.exit(0);
