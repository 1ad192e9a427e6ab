// Runs one Worker with its queue in Cloudflare's own runtime. Settings and messages come as lines of JSON on stdin; every line is answered.
import { createInterface } from "node:readline";
import { Miniflare } from "miniflare";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { script, bindings, queue, consumer, compatibilityDate } = JSON.parse((await lines.next()).value);
const miniflare = new Miniflare({
  name: "worker",
  modules: [{ type: "ESModule", path: script }],
  compatibilityDate,
  bindings,
  queueProducers: { QUEUE: queue },
  queueConsumers: { [queue]: consumer },
});
const producer = await miniflare.getQueueProducer("QUEUE", "worker");
console.log("ready");
for await (const line of lines) {
  const { body, base64, contentType } = JSON.parse(line);
  await producer.send(base64 === undefined ? body : Uint8Array.from(Buffer.from(base64, "base64")), { contentType });
  console.log("sent");
}
await miniflare.dispose();
