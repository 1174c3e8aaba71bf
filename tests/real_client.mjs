// One question, one event, one watch by the official JavaScript client; prints a line of JSON for each step.
import { connect } from "@nats-io/transport-node";
import { Kvm } from "@nats-io/kv";

const say = (what) => console.log(JSON.stringify(what));
const nc = await connect({ servers: process.env.NATS_URL });

const answer = await nc.request("agents.ask.greeter", "How long?", { timeout: 20_000 });
say({ ask: answer.string() });

const context = await new Kvm(nc).open("context");
const changes = await context.watch({ key: "visitors", include: "updates" });
const greetings = nc.subscribe("feed.events.*.visitor.greeted");

const stored = await nc.request("events.visitor.arrived", JSON.stringify({ name: "Grace" }), { timeout: 20_000 });
say({ stored: stored.json() });
for await (const greeting of greetings) {
  say({ event: greeting.subject, data: greeting.json() });
  break;
}
for await (const change of changes) {
  say({ watch: change.key, value: change.json() });
  break;
}
await nc.close();
