//! The shipped Kubernetes files: what they say agrees with the configuration and its defaults.

use std::collections::BTreeMap;

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Value, json};

use super::{
    access::files::Files,
    support::{LIMIT, folder, gateway::trunkline},
};

const FILE: &str = include_str!("../../deploy/kubernetes/trunkline.yaml");

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The memory of the process itself, and what tasks, buffers of Redis and the like take.
const BASE: u64 = 128 * MIB;

/// Of a connection with one stream: twice the figure of docs/benchmarks.md, which is without TLS.
const CONNECTION: u64 = 64 * KIB;

/// Of a further stream of a connection.
const STREAM: u64 = 5 * KIB;

fn to_json(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::FloatingPoint(value)) => json!(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => items.iter().map(to_json).collect(),
        Yaml::Mapping(members) => {
            let text = |key: &Yaml<'_>| key.as_str().expect("a key that is text").to_owned();
            members.iter().map(|(key, value)| (text(key), to_json(value))).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The objects of the file, by their kind.
fn objects() -> BTreeMap<String, Value> {
    let documents = Yaml::load_from_str(FILE).expect("YAML");
    let mut objects = BTreeMap::new();
    for object in documents.iter().map(to_json) {
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        assert!(object["apiVersion"].is_string() && object["metadata"]["name"] == "trunkline");
        assert!(objects.insert(kind, object).is_none(), "one of each kind");
    }
    objects
}

/// The configuration of the file as it is, and with all defaults.
async fn configuration() -> (Value, Value) {
    let text = objects()["ConfigMap"]["data"]["trunkline.json"].as_str().expect("text").to_owned();
    let folder = folder::new();
    // The files of the Secrets, elsewhere.
    let files = Files::new().await;
    for (file, content) in [
        ("trunkline-tls/tls.crt", files.read("server.pem")),
        ("trunkline-tls/tls.key", files.read("server.key")),
        ("trunkline-tls/ca.crt", files.read("ca.pem")),
        ("trunkline-tokens/mail", b"mail-0123456789abcdef0123456789abcdef".to_vec()),
        ("trunkline-tokens/operators", b"operators-0123456789abcdef0123456789".to_vec()),
        ("trunkline-redis/password", b"a password".to_vec()),
        ("trunkline-redis/ca.crt", files.read("ca.pem")),
    ] {
        let file = folder.path().join(file);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, content).expect("a file");
    }
    let there = format!("{}/trunkline-", folder.path().display());
    let path = folder.path().join("trunkline.json");
    std::fs::write(&path, text.replace("/etc/trunkline-", &there)).expect("a file");
    let path = path.display().to_string();
    let effective = trunkline(["check", "--config", &path]).run(LIMIT).await.success();
    let parsed = |text: &str| serde_json::from_str(text).expect("JSON");
    (parsed(&text), parsed(&effective))
}

fn pod() -> Value {
    objects()["Deployment"]["spec"]["template"]["spec"].clone()
}

/// Bytes of `64MiB`, `3Gi` or a number.
fn bytes(value: &Value) -> u64 {
    let Some(text) = value.as_str() else { return value.as_u64().expect("a number") };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().expect("a number");
    number
        * match unit.trim_end_matches('B') {
            "" => 1,
            "Ki" => KIB,
            "Mi" => MIB,
            "Gi" => 1024 * MIB,
            other => panic!("{other}"),
        }
}

fn seconds(value: &Value) -> u64 {
    let text = value.as_str().expect("a duration");
    text.strip_suffix('s').and_then(|text| text.parse().ok()).expect("seconds")
}

/// All texts in a value that are paths.
fn paths(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.starts_with('/') => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| paths(item, found)),
        Value::Object(members) => members.values().for_each(|member| paths(member, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_memory_limit_holds_what_the_configuration_allows() {
    let (_, config) = configuration().await;
    let limits = &config["limits"];
    // A cluster has 16 shards unless configured.
    let shards = config["shards"].as_u64().unwrap_or(16);
    let (connections, streams) = (bytes(&limits["maxConnections"]), bytes(&limits["maxStreams"]));
    let identities = config["auth"]["identities"].as_array().expect("identities").len() as u64;
    let needed = BASE
        + shards * bytes(&config["log"]["maxBytes"])
        + bytes(&limits["maxPendingBytes"])
        + connections * CONNECTION
        + streams.saturating_sub(connections) * STREAM
        + identities * bytes(&limits["maxHistoryBytesPerIdentity"]);
    let resources = &pod()["containers"][0]["resources"];
    let limit = bytes(&resources["limits"]["memory"]);
    assert!(limit >= needed, "{} MiB are needed, and {} allowed", needed / MIB, limit / MIB);
    assert!(limit < 2 * needed, "{} MiB are needed, and {} allowed", needed / MIB, limit / MIB);
    assert!(bytes(&resources["requests"]["memory"]) <= limit);
    // The sum of the documentation.
    let docs = include_str!("../../docs/operations.md");
    let sum = format!("| together | {} MiB |", needed / MIB);
    assert!(docs.contains(&sum), "{sum}");
}

#[tokio::test]
async fn nodes_and_redis_are_reached_over_tls_with_credentials_from_secrets() {
    let (config, effective) = configuration().await;
    assert_eq!(effective["insecure"], false);
    for key in ["certificate", "privateKey", "clientCa"] {
        assert!(config["tls"][key].is_string(), "{key}");
    }
    for identity in config["auth"]["identities"].as_array().expect("identities") {
        assert_eq!(identity["tokens"][0]["@type"], "File", "{identity}");
    }
    let coordinator = &config["coordinator"];
    let urls = coordinator["urls"].as_array().expect("urls");
    assert!(urls.iter().all(|url| url.as_str().is_some_and(|url| url.starts_with("rediss://"))));
    assert_eq!(coordinator["authSecret"]["@type"], "File");

    // Every file that the configuration names lies in a secret that is mounted.
    let pod = pod();
    let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
    let volumes = pod["volumes"].as_array().expect("volumes");
    let mut files = vec![];
    paths(&config, &mut files);
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let folder = file.rsplit_once('/').expect("a path").0;
        let mount = mounts.iter().find(|mount| mount["mountPath"] == folder).expect(&file);
        assert_eq!(mount["readOnly"], true, "{mount}");
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        let secret = volume.and_then(|volume| volume["secret"]["secretName"].as_str());
        let secret = secret.expect("a secret");
        // The first lines show how it is made.
        assert!(FILE.contains(&format!("kubectl create secret generic {secret} ")), "{secret}");
        let key = file.rsplit_once('/').expect("a path").1;
        let is_made = FILE.contains(&format!("--from-file={key}"))
            || FILE.contains(&format!("--from-literal={key}="));
        assert!(is_made, "{file}");
    }
}

#[tokio::test]
async fn ports_probes_and_times_are_those_of_the_configuration() {
    let (config, effective) = configuration().await;
    let (objects, pod) = (objects(), pod());
    let container = &pod["containers"][0];
    let port = |name: &str| {
        let ports = container["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == name).expect("the port");
        port["containerPort"].as_u64().expect("a number")
    };
    for (key, name) in [("listen", "grpc"), ("admin", "admin")] {
        let address = config[key].as_str().expect("an address");
        assert!(address.ends_with(&format!(":{}", port(name))), "{address}");
    }
    for (probe, path) in
        [("readinessProbe", "/readyz"), ("startupProbe", "/livez"), ("livenessProbe", "/livez")]
    {
        assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "admin" }));
    }
    // Kubernetes kills what has not ended by then.
    let drain = seconds(&effective["drain"]["delay"]) + seconds(&effective["drain"]["timeout"]);
    assert!(pod["terminationGracePeriodSeconds"].as_u64().expect("seconds") > drain);
    // The readiness of a gateway that drains is seen before its streams are sent away.
    let ready = &container["readinessProbe"];
    let unseen = ready["periodSeconds"].as_u64().expect("seconds")
        * ready["failureThreshold"].as_u64().expect("a number");
    assert!(seconds(&effective["drain"]["delay"]) > unseen);
    let service = &objects["Service"]["spec"];
    assert_eq!(service["ports"][0]["targetPort"], "grpc");
    // Only the port for nodes is a service.
    assert_eq!(service["ports"].as_array().expect("ports").len(), 1);
}

#[test]
fn gateways_are_spread_over_hosts_and_the_network_is_closed() {
    let (objects, pod) = (objects(), pod());
    let labels = &objects["Deployment"]["spec"]["template"]["metadata"]["labels"];
    let spread = pod["topologySpreadConstraints"].as_array().expect("constraints");
    let host = spread.iter().find(|one| one["topologyKey"] == "kubernetes.io/hostname");
    let host = host.expect("a constraint for hosts");
    assert_eq!(
        (&host["whenUnsatisfiable"], &host["maxSkew"]),
        (&json!("DoNotSchedule"), &json!(1))
    );
    let policy = &objects["NetworkPolicy"]["spec"];
    for selector in [
        &objects["Deployment"]["spec"]["selector"]["matchLabels"],
        &objects["Service"]["spec"]["selector"],
        &objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        &policy["podSelector"]["matchLabels"],
        &host["labelSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels);
    }
    assert!(objects["Deployment"]["spec"]["replicas"].as_u64() >= Some(2));

    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let mut ports = vec![];
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in policy[direction].as_array().expect("rules") {
            let named = rule[peers].as_array().is_some_and(|peers| !peers.is_empty());
            assert!(named, "nobody is let through without being named: {rule}");
            let of_rule = rule["ports"].as_array().expect("ports");
            ports.extend(of_rule.iter().map(|port| port["port"].clone()));
        }
    }
    assert_eq!(ports, [json!("grpc"), json!("admin"), json!(53), json!(53), json!(6379)]);
}
