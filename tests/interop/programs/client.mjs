// What Node's own clients get: `node client.mjs URL FILE` posts the file in several ways, and prints a line for each.

import fs from "node:fs";
import http from "node:http";
import http2 from "node:http2";

const [url, file] = process.argv.slice(2);
const body = fs.readFileSync(file);

function tell(name, status, text) {
  console.log(`${name}\t${status}\t${text}`);
}

function post(agent, headers, expects) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method: "POST", agent, headers }, (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("end", () => resolve([response.statusCode, Buffer.concat(pieces).toString()]));
    });
    request.on("error", reject);
    if (expects) {
      request.on("continue", () => request.end(body));
      request.flushHeaders();
    } else {
      request.end(body);
    }
  });
}

function http2Post(session) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": "POST", ":path": new URL(url).pathname });
    const pieces = [];
    let status;
    stream.on("response", (headers) => (status = headers[":status"]));
    stream.on("data", (piece) => pieces.push(piece));
    stream.on("end", () => resolve([status, Buffer.concat(pieces).toString()]));
    stream.on("error", reject);
    stream.end(body);
  });
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
tell("length", ...(await post(agent, { "Content-Length": body.length })));
tell("chunked", ...(await post(agent, { "Transfer-Encoding": "chunked" })));
tell("expect", ...(await post(agent, { "Content-Length": body.length, Expect: "100-continue" }, true)));
tell("upgrade", ...(await post(new http.Agent(), { "Content-Length": body.length, Connection: "Upgrade", Upgrade: "h2c" })));
agent.destroy();

const answer = await fetch(url, { method: "POST", body });
tell("fetch", answer.status, await answer.text());

const session = http2.connect(new URL(url).origin);
for (const found of await Promise.all(Array.from({ length: 20 }, () => http2Post(session)))) tell("HTTP/2", ...found);
session.close();
