// Calls a server as Node.js programs do: each line of the output is a status, a label and what was tried.
import { readFile } from "node:fs/promises";
import http from "node:http";

const [server, picture] = process.argv.slice(2);
const image = await readFile(picture);
const json = { "content-type": "application/json" };
const text = JSON.stringify({ text: "good" });

async function say(what, answer) {
  const { predictions, error } = await answer.json();
  console.log(answer.status, predictions?.[0].label ?? error, what);
}

const post = (path, options) => fetch(`${server}/predict/${path}`, { method: "POST", ...options });
const form = new FormData();
form.append("file", new Blob([image], { type: "image/png" }), 'für "uns".png');
const stream = new ReadableStream({
  start(controller) {
    controller.enqueue(new TextEncoder().encode(text));
    controller.close();
  },
});
await say("fetch", await post("text", { body: text, headers: json }));
await say("fetch, form", await post("classifier", { body: form }));
await say("fetch, stream", await post("text", { body: stream, duplex: "half", headers: json }));

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
for (let time = 0; time < 2; time++) {
  await new Promise((done, failed) => {
    const request = http.request(`${server}/predict/text`, { method: "POST", agent, headers: { ...json, trailer: "x-sum" } }, (answer) => {
      let body = "";
      answer.on("data", (piece) => (body += piece));
      answer.on("end", () => {
        console.log(answer.statusCode, JSON.parse(body).predictions[0].label, "http, trailers");
        done();
      });
    });
    request.on("error", failed);
    request.write(text);
    request.addTrailers({ "x-sum": "abc" });
    request.end();
  });
}
agent.destroy();
