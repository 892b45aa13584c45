//! A real headless browser, driven over the `WebDriver` protocol: JSON over HTTP.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    folder,
    ports::Port,
    process::{Process, Program},
    tools,
    wait::{attempt, eventually},
};

/// How long the browser may take for one step, on a busy machine.
const STEP: Duration = Duration::from_mins(1);

/// A browser with one empty tab. It ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    /// The browser is connected to it by a pipe, and ends with it.
    driver: Process,
    port: Port,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser with a window of this size.
    ///
    /// # Panics
    ///
    /// If it does not start, or no `chromium` and `chromedriver` are found.
    pub async fn start(width: u32, height: u32) -> Browser {
        let (port, profile) = (Port::free(), folder::new());
        let home = profile.path().display().to_string();
        let program = Program::new(tools::chromedriver(), [format!("--port={}", port.number())])
            .env("HOME", &home);
        let driver = Process::start("chromedriver", program);
        let mut browser = Browser { driver, port, session: String::new(), _profile: profile };
        attempt(STEP, "the driver is ready", async || {
            let status = browser.call("GET", "/status", None).await?;
            if status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--no-default-browser-check",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
            "--hide-scrollbars",
            // The browser ends with its driver.
            "--remote-debugging-pipe",
            // Only this machine can be reached, even by the browser's own services.
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
        ];
        let mut args: Vec<String> = args.map(str::to_owned).to_vec();
        args.push(format!("--user-data-dir={home}/profile"));
        args.push(format!("--window-size={width},{height}"));
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": tools::chromium(), "args": args },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let session = browser.call("POST", "/session", Some(wanted)).await;
        let session = session.unwrap_or_else(|why| panic!("no browser: {why}"));
        session["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        browser
    }

    /// Opens a page and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.step("POST", "url", json!({ "url": url })).await;
    }

    /// Runs the body of a function in the page; returns its value.
    pub async fn run(&self, script: &str) -> Value {
        self.step("POST", "execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// The rendered text of the first element that matches; empty if none does.
    pub async fn text(&self, selector: &str) -> String {
        let selector = json!(selector);
        let script = format!("return document.querySelector({selector})?.innerText ?? '';");
        self.run(&script).await.as_str().expect("a text").to_owned()
    }

    /// The texts of the cells of a table, row by row.
    pub async fn rows(&self, table: &str) -> Vec<Vec<String>> {
        let selector = json!(format!("{table} tbody tr"));
        let script = format!(
            "return [...document.querySelectorAll({selector})].map(
                (row) => [...row.cells].map((cell) => cell.innerText.trim()));"
        );
        serde_json::from_value(self.run(&script).await).expect("rows of texts")
    }

    /// Waits until `look` returns a value.
    pub async fn wait<T>(&self, what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
        eventually(STEP, what, look).await
    }

    /// Clicks on the first element that matches.
    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.step("POST", &format!("element/{element}/click"), json!({})).await;
    }

    /// Types into the first element that matches.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector).await;
        self.step("POST", &format!("element/{element}/value"), json!({ "text": text })).await;
    }

    /// Lines of the console since the last call: errors of scripts, violations of the security
    /// policy, resources that could not be loaded.
    pub async fn console(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        entries.iter().map(|entry| entry["message"].to_string()).collect()
    }

    /// The URLs of all requests since the last call, except those of the browser's first tab.
    pub async fn requests(&self) -> Vec<String> {
        let mut urls = Vec::new();
        for entry in self.log("performance").await {
            let message: Value =
                serde_json::from_str(entry["message"].as_str().expect("a text")).expect("JSON");
            let message = &message["message"];
            if message["method"] == "Network.requestWillBeSent" {
                let params = &message["params"];
                let url = params["request"]["url"].as_str().expect("a URL");
                let of = params["documentURL"].as_str().expect("a URL");
                if !["chrome:", "chrome-untrusted:"].iter().any(|own| of.starts_with(own)) {
                    urls.push(url.to_owned());
                }
            }
        }
        urls
    }

    /// A command of the Chrome `DevTools` Protocol.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        self.step("POST", "goog/cdp/execute", json!({ "cmd": command, "params": params })).await
    }

    /// Renders the page as in a window of this size.
    pub async fn as_wide_as(&self, width: u32, height: u32, mobile: bool) {
        let params =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile });
        self.devtools("Emulation.setDeviceMetricsOverride", params).await;
    }

    /// Sets the dark or the light colour scheme.
    pub async fn dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// What axe-core finds wrong with the page as it is shown: rule, impact, and the elements.
    pub async fn axe(&self) -> Vec<String> {
        let check = "return axe.run(document, { resultTypes: ['violations'] }).then((found) =>
            found.violations.map(({ id, impact, nodes }) => `${id} (${impact}): ${
                nodes.map(({ target, failureSummary: why }) => `${target} ${why}`).join('; ')}`));";
        let script = format!("{};\n{check}", tools::axe());
        serde_json::from_value(self.run(&script).await).expect("texts")
    }

    /// Presses keys, wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|way| json!({ "type": way, "value": key })))
            .collect();
        let source = json!([{ "type": "key", "id": "keys", "actions": actions }]);
        self.step("POST", "actions", json!({ "actions": source })).await;
    }

    /// The visible part of the page as a PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let shot = self.devtools("Page.captureScreenshot", json!({ "format": "png" })).await;
        STANDARD.decode(shot["data"].as_str().expect("a picture")).expect("base64")
    }

    async fn find(&self, selector: &str) -> String {
        let by = json!({ "using": "css selector", "value": selector });
        let found = self.step("POST", "element", by).await;
        let element = found.as_object().and_then(|found| found.values().next()?.as_str());
        element.expect("an element").to_owned()
    }

    async fn log(&self, name: &str) -> Vec<Value> {
        let entries = self.step("POST", "se/log", json!({ "type": name })).await;
        entries.as_array().expect("entries").clone()
    }

    async fn step(&self, method: &str, what: &str, body: Value) -> Value {
        let path = format!("/session/{}/{what}", self.session);
        let answer = self.call(method, &path, Some(body.clone())).await;
        answer.unwrap_or_else(|why| panic!("{what} {body}: {why}"))
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, String> {
        let body = body.map_or_else(String::new, |body| body.to_string());
        let port = self.port.number();
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            // It ignores `Connection: close`.
            while !is_complete(&answer) && stream.read_buf(&mut answer).await? > 0 {}
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(STEP, exchange).await.map_err(|_| "no answer in time".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&answer);
        let (_, body) = text.split_once("\r\n\r\n").ok_or("no body")?;
        let value: Value =
            serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))?;
        let value = &value["value"];
        match value["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", value["message"])),
            None => Ok(value.clone()),
        }
    }
}

/// True if an answer has all the bytes that its headers announce.
fn is_complete(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let headers = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}
