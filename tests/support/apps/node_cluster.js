// node's cluster: the primary has the listener, and two workers answer.
"use strict";
const cluster = require("cluster");

if (cluster.isPrimary) for (let number = 0; number < 2; number++) cluster.fork();
else require("./node_default.js");
