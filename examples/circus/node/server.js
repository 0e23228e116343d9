// Says which version answers. Change VERSION, then: sockshare reload web
const http = require("node:http");

const VERSION = "1";

const server = http.createServer((request, response) => {
  response.end(`version ${VERSION}, pid ${process.pid}\n`);
});
server.listen({ fd: Number(process.env.SOCKSHARE_FD_WEB) });

// Without this node dies of SIGTERM with its requests in flight.
process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
