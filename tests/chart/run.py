#!/usr/bin/env python3
"""The Helm chart: rendered by helm with the values of `values/`, and checked with everything that
knows better. `./test chart` installs what it needs.

- helm: lints the chart with the values, by their schema too, and renders it;
- the schemas of Kubernetes (kubernetes-validate): every object, in the oldest version that the
  chart is for and in the newest, without unknown fields;
- the types of the Prometheus operator's API: its objects (types only: unknown fields pass);
- `trunkline config schema` and `trunkline check`: the configuration, with the files that it names;
- this file: what the objects say of one another, and that the chart and the plain manifest agree.

Values that are wrong must be refused, with what is wrong and what to do.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy/helm/trunkline"
VALUES = Path(__file__).parent / "values"
OPERATOR = "monitoring.coreos.com/v1"

# What each set of values renders, besides a ConfigMap, a Service and a Deployment.
KINDS = {
    "embedded": {"PodDisruptionBudget", "NetworkPolicy"},
    "standalone": {"PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "PrometheusRule"},
    "cluster": {"PodDisruptionBudget", "NetworkPolicy"},
    "sentinel": {"PodDisruptionBudget", "NetworkPolicy", "PodMonitor", "HorizontalPodAutoscaler"},
}

# Wrong values, beside those of a set, and what the answer must have.
WRONG = [
    ("cluster", {"redis": {"type": ""}}, ["redis.type", "RedisCluster", "--set redis.type="]),
    ("cluster", {"redis": {"type": "Sentinel"}}, ['"Sentinel" is none of', "RedisSentinel"]),
    ("cluster", {"redis": {"urls": []}}, ["redis.urls", "at least one", "rediss://"]),
    ("cluster", {"redis": {"type": "Redis", "urls": ["redis://a", "redis://b"]}}, ["one URL"]),
    ("cluster", {"redis": {"urls": ["redis:6379"]}}, ["/redis/urls/0", "pattern"]),
    ("cluster", {"redis": {"urls": ["redis://a:7000"]}}, ["networkPolicy.redis.ports", "7000"]),
    ("cluster", {"redis": {"url": "redis://a"}}, ["/redis", "'url'"]),
    ("cluster", {"redis": {"options": {"urls": []}}}, ["/redis/options"]),
    ("cluster", {"redis": {"type": "RedisSentinel", "urls": ["redis://a"]}}, ["lacks 26379"]),
    ("cluster", {"redis": {"type": "Embedded"}}, ["one gateway", "replicas to 1"]),
    ("cluster", {"tls": {"secret": ""}}, ["tls.secret", "insecure=true"]),
    ("cluster", {"insecure": True}, ["insecure", "remove one"]),
    ("cluster", {"tls": {"clientCertificates": "yes"}}, ["/tls/clientCertificates"]),
    ("embedded", {"tls": {"clientCertificates": "required"}}, ["needs tls.secret"]),
    ("embedded", {"autoscaling": {"enabled": True}}, ["one gateway", "autoscaling"]),
    ("cluster", {"auth": {"secret": ""}}, ["auth.secret", "mail"]),
    ("cluster", {"replicas": "two"}, ["/replicas", "integer"]),
    ("cluster", {"replica": 3}, ["'replica'"]),
    ("cluster", {"config": {"listen": "0.0.0.0:1"}}, ["/config"]),
    ("cluster", {"config": {"drain": {"delay": "1h"}}}, ["/config"]),
    ("cluster", {"drain": {"delay": "5s"}}, ["/drain/delay", "integer"]),
    ("cluster", {"spread": {"hosts": "Sometimes"}}, ["/spread/hosts"]),
    ("cluster", {"tls": {"secret": "a b"}}, ["/tls/secret"]),
    ("cluster", {"networkPolicy": {"nodes": [{"pods": {}}]}}, ["/networkPolicy/nodes/0"]),
    ("cluster", {"networkPolicy": {"redis": {"ports": [0]}}}, ["/networkPolicy/redis/ports/0"]),
    ("cluster", {"podMonitor": {"interval": "often"}}, ["/podMonitor/interval"]),
]

# Configurations that only the gateway can refuse, and what it says.
WRONG_CONFIG = [
    ({"limits": {"maxStream": 5}}, ["limits.maxStream", "maxStreams"]),
    ({"coordinator": {"timeout": "0s"}}, ["coordinator.timeout", "out of range"]),
]


def run(*command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    texts = [str(one) for one in command]
    # The command line takes such variables for settings.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    return subprocess.run(texts, input=stdin, capture_output=True, text=True, timeout=120, env=env)


def success(*command: str | Path, stdin: str = "") -> str:
    done = run(*command, stdin=stdin)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Secrets:
    """The files of the Secrets, in a folder in place of /etc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        subject = ["-subj", "/CN=trunkline", "-days", "2", "-nodes"]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        success("openssl", "req", "-x509", *curve, *files, *subject)
        self.of = {
            "tls.crt": certificate.read_text(),
            "tls.key": key.read_text(),
            "ca.crt": certificate.read_text(),
        }

    def placed(self, config: str) -> str:
        """The configuration with its files there, which exist then."""
        for path in re.findall(r'"/etc/(trunkline-[^"]+)"', config):
            file = self.folder / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(self.of.get(file.name, f"{file.name}-0123456789abcdef0123456789abcdef"))
        return config.replace('"/etc/', f'"{self.folder}/')


class Chart:
    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.helm, self.trunkline, self.npm = args.helm, args.trunkline, args.npm
        self.folder = folder
        self.secrets = Secrets(folder)
        self.schema = json.loads(success(self.trunkline, "config", "schema"))

    def more(self, values: dict[str, Any]) -> Path:
        file = self.folder / "more.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    def template(self, name: str, *more: str | Path) -> subprocess.CompletedProcess[str]:
        values = ["--values", VALUES / f"{name}.yaml"]
        return run(self.helm, "template", "trunkline", CHART, "--namespace", "mail", *values, *more)

    def objects(self, name: str, *more: str | Path) -> list[dict[str, Any]]:
        done = self.template(name, *more)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    def check_config(self, text: str) -> subprocess.CompletedProcess[str]:
        file = self.folder / "trunkline.json"
        file.write_text(self.secrets.placed(text))
        return run(self.trunkline, "check", "--config", file)


def by_kind(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in objects:
        # The dashboard is a ConfigMap too.
        if not one["metadata"]["name"].endswith("-dashboard"):
            assert one["kind"] not in found, one["kind"]
            found[one["kind"]] = one
    return found


def seconds(text: str) -> int:
    assert text.endswith("s"), text
    return int(text[:-1])


def check_objects(chart: Chart, name: str) -> None:
    values = VALUES / f"{name}.yaml"
    success(chart.helm, "lint", "--strict", CHART, "--values", values)
    objects = chart.objects(name)
    kinds = by_kind(objects)
    assert set(kinds) == {"ConfigMap", "Service", "Deployment"} | KINDS[name], set(kinds)

    for one in objects:
        assert one["metadata"]["namespace"] == "mail", one["metadata"]
        if one["apiVersion"] != OPERATOR:
            for version in ["1.27", kubernetes_validate.latest_version()]:
                kubernetes_validate.validate(one, version, strict=True)
    of_operator = [one for one in objects if one["apiVersion"] == OPERATOR]
    if chart.npm and of_operator:
        script = Path(__file__).parent / "operator.mjs"
        success("node", script, chart.npm, stdin=json.dumps(of_operator))

    # The configuration.
    text = kinds["ConfigMap"]["data"]["trunkline.json"]
    config = json.loads(text)
    jsonschema.Draft202012Validator(chart.schema).validate(config)
    done = chart.check_config(text)
    assert done.returncode == 0, done.stderr

    # Each file that it names lies in a Secret that is mounted there.
    pod = kinds["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["spec"]["volumes"]}
    for path in re.findall(r'"(/etc/[^"]+)/[^"/]+"', text):
        assert "secret" in volumes[mounts[path]], path
    assert volumes[mounts["/etc/trunkline"]]["configMap"]["name"] == "trunkline"

    # Ports, times, labels.
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert config["listen"] == f"0.0.0.0:{ports['grpc']}"
    assert config["admin"] == f"0.0.0.0:{ports['admin']}"
    needed = seconds(config["drain"]["delay"]) + seconds(config["drain"]["timeout"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > needed
    ready = container["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < seconds(config["drain"]["delay"])
    selectors = [kinds["Service"]["spec"]["selector"]]
    selectors += [
        kinds[kind]["spec"]["selector"]["matchLabels"]
        for kind in ["Deployment", "PodDisruptionBudget", "PodMonitor"]
        if kind in kinds
    ]
    selectors.append(kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    for spread in pod["spec"].get("topologySpreadConstraints", []):
        selectors.append(spread["labelSelector"]["matchLabels"])
    labels = pod["metadata"]["labels"].items()
    for selector in selectors:
        assert selector == selectors[0] and selector.items() <= labels, selector
    if "PodMonitor" in kinds:
        endpoint = kinds["PodMonitor"]["spec"]["podMetricsEndpoints"][0]
        assert endpoint["port"] in ports
    if "HorizontalPodAutoscaler" in kinds:
        # It would be put back by each upgrade.
        assert "replicas" not in kinds["Deployment"]["spec"]
        pods = kinds["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]
        assert pods["target"] == {"type": "AverageValue", "averageValue": "8000"}
        metrics = (ROOT / "docs/operations.md").read_text()
        assert f"| `{pods['metric']['name']}` | gauge |" in metrics

    # Nobody is let through without being named, but to Redis where it may be anywhere.
    policy = kinds["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for rule in policy["ingress"]:
        assert rule["from"] and rule["ports"], rule
    for rule in policy["egress"]:
        assert rule["ports"] and ("to" not in rule or rule["to"]), rule


def check_files(chart: Chart) -> None:
    """Alerts and dashboard are those of the repository."""
    objects = chart.objects("standalone")
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert by_kind(objects)["PrometheusRule"]["spec"] == alerts
    dashboard = [one for one in objects if one["metadata"]["name"].endswith("-dashboard")]
    text = (ROOT / "deploy/grafana/trunkline.json").read_text()
    assert json.loads(dashboard[0]["data"]["trunkline.json"]) == json.loads(text)


def without_labels(value: Any) -> Any:
    if isinstance(value, dict):
        names = {"labels", "matchLabels", "annotations", "namespace"}
        return {key: without_labels(one) for key, one in value.items() if key not in names}
    if isinstance(value, list):
        return [without_labels(one) for one in value]
    return value


def check_plain(chart: Chart) -> None:
    """The plain manifest is what the chart renders, but for labels and peers."""
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes/trunkline.yaml").read_text())
    plain, rendered = by_kind(list(documents)), by_kind(chart.objects("cluster"))
    assert set(plain) == set(rendered), set(plain) ^ set(rendered)
    for kind, one in plain.items():
        other = rendered[kind]
        if kind == "ConfigMap":
            configs = [json.loads(each["data"]["trunkline.json"]) for each in (one, other)]
            assert configs[0] == configs[1], configs
            continue
        # The plain manifest leaves it to Kubernetes.
        for container in other["spec"].get("template", {}).get("spec", {}).get("containers", []):
            assert container.pop("imagePullPolicy") == "IfNotPresent"
        for each in (one, other):
            constraints = each["spec"].get("template", {}).get("spec", {})
            constraints.get("topologySpreadConstraints", []).sort(key=lambda x: x["topologyKey"])
            constraints.get("volumes", []).sort(key=lambda x: x["name"])
            for container in constraints.get("containers", []):
                container["volumeMounts"].sort(key=lambda x: x["name"])
            if kind == "Service":
                each["spec"].pop("selector")
        assert without_labels(one) == without_labels(other), f"{one}\n{other}"


def check_wrong(chart: Chart) -> None:
    for name, values, parts in WRONG:
        done = chart.template(name, "--values", chart.more(values))
        assert done.returncode != 0, f"accepted: {values}"
        for part in parts:
            assert part in done.stderr, f"{values}: {part!r} is not in\n{done.stderr}"
    for config, parts in WRONG_CONFIG:
        objects = chart.objects("cluster", "--values", chart.more({"config": config}))
        done = chart.check_config(by_kind(objects)["ConfigMap"]["data"]["trunkline.json"])
        assert done.returncode == 78, done
        for part in parts:
            assert part in done.stderr, f"{config}: {part!r} is not in\n{done.stderr}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", default="helm")
    parser.add_argument("--trunkline", default="trunkline")
    parser.add_argument("--npm", help="the folder of the npm packages")
    args = parser.parse_args()
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        chart = Chart(args, Path(folder))
        assert set(KINDS) == {file.stem for file in VALUES.glob("*.yaml")}
        checks = [(f"values of {name}", partial(check_objects, chart, name)) for name in KINDS]
        checks += [
            ("alerts and dashboard", partial(check_files, chart)),
            ("the plain manifest", partial(check_plain, chart)),
            ("wrong values", partial(check_wrong, chart)),
        ]
        for name, check in checks:
            check()
            print(f"chart: {name}: ok", flush=True)
            passed += 1
    left_out = "" if args.npm else ", types of the Prometheus operator LEFT OUT: no npm"
    print(f"chart: {passed} passed{left_out}")


if __name__ == "__main__":
    main()
