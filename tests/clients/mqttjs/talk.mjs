// Connects, subscribes, publishes with each QoS, checks retained and will; exits with 0 when all of it worked.
import mqtt from "mqtt";
import { readFileSync } from "node:fs";

const [url, version, ca] = process.argv.slice(2);
const options = { protocolVersion: Number(version), ca: ca ? readFileSync(ca) : undefined, reconnectPeriod: 0 };
const topic = `js/${process.pid}/${version}`;
const fail = (why) => { console.error(String(why)); process.exit(1); };
setTimeout(() => fail("nothing happened for 20 s"), 20000).unref();

const watcher = await mqtt.connectAsync(url, options);
const seen = [];
watcher.on("message", (name, payload, packet) => seen.push([name, payload.toString(), packet.qos, packet.retain]));
await watcher.subscribeAsync(`${topic}/#`, { qos: 2 });
const will = { topic: `${topic}/will`, payload: Buffer.from("gone"), qos: 1 };
const client = await mqtt.connectAsync(url, { ...options, will });
for (const qos of [0, 1, 2]) await client.publishAsync(`${topic}/${qos}`, `body ${qos}`, { qos });
await client.publishAsync(`${topic}/kept`, "kept", { qos: 1, retain: true });
client.stream.destroy();
const until = async (test) => { while (!test()) await new Promise((done) => setTimeout(done, 10)); };
await until(() => seen.length >= 5);
for (const qos of [0, 1, 2]) {
  if (!seen.some((m) => m[0] === `${topic}/${qos}` && m[1] === `body ${qos}` && m[2] === qos)) fail(JSON.stringify(seen));
}
if (!seen.some((m) => m[0] === `${topic}/will` && m[1] === "gone")) fail(JSON.stringify(seen));
const late = await mqtt.connectAsync(url, options);
const kept = new Promise((done) => late.on("message", (name, payload, packet) => done(packet.retain && payload.toString())));
await late.subscribeAsync(`${topic}/kept`);
if ((await kept) !== "kept") fail("retained message");
await late.publishAsync(`${topic}/kept`, "", { qos: 1, retain: true });
process.exit(0);
