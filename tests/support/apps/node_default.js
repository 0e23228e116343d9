// node's own HTTP server on an inherited listener, with its defaults: no handler for any signal.
"use strict";
const fs = require("fs");
const http = require("http");

const behaviour = JSON.parse(fs.readFileSync(process.env.APP_BEHAVIOUR, "utf8"));
const pause = Math.round((behaviour.import || 0) * 1000);
Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pause);

http
  .createServer((request, response) => {
    if (behaviour.fault === "hang_requests") return;
    if (behaviour.fault === "break") return void request.socket.destroy();
    const answer = () => {
      const body = JSON.stringify({ version: behaviour.version, pid: process.pid });
      const status = behaviour.fault === "answer_500" ? 500 : 200;
      response.writeHead(status, { "Content-Type": "application/json", "Content-Length": body.length });
      response.end(body);
    };
    if (request.url.startsWith("/slow")) setTimeout(answer, 1000);
    else answer();
  })
  .listen({ fd: Number(process.env.APP_FD || 3) });
