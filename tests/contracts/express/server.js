// Express as its documentation shows it, with a body of any type.
const express = require("express");
const app = express();
app.use(express.raw({ type: () => true }));
app.post("/", (request, response) => response.type("text/plain").send(`${request.get("ce-subject")}: ${request.body}`));
app.listen(process.env.PORT || 8080);
