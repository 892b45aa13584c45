// Checks objects of the Prometheus operator, from standard input as a JSON list, against the types of
// its API. The argument is the folder of the npm packages.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const path = `${process.argv[2]}/@kubernetes-models/prometheus-operator`;
const models = await import(pathToFileURL(`${path}/monitoring.coreos.com/v1/index.js`));
for (const object of JSON.parse(readFileSync(0))) {
  new models[object.kind](object).validate();
}
